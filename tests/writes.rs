//! Faults of writes, not of what is written: live blocks overwritten, discarded, reused too early; blocks that were
//! never written, not flushed, or differ from copy to copy. The same commits without them are clean.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use btrfs_shadow::capture::{Capture, CaptureShared, Message};
use btrfs_shadow::events::{Event, Sink, Sinks};
use btrfs_shadow::image::{self, RawImage};
use btrfs_shadow::tap::Tap;
use btrfs_shadow::verifier::{self, VerifierOptions};
use parser::{ChecksumType, Header, SuperBlock, superblock};
use replay::disk::{self, Memory};
use replay::refusal::commit;
use replay::rng::Rng;
use replay::{Backend, Change, Op, Outcome, Writes, carry_out};
use testkit::{Image, Session, Spec};

#[path = "common/recorded.rs"]
mod recorded;

use recorded::{BEFORE, PLAIN, RECORDED, SUMMED, disk_after, root_block};

const NODESIZE: usize = 16384;

fn ops(commits: &[Writes]) -> Vec<Op> {
    commits.iter().flat_map(Writes::ops).collect()
}

/// The commits before the fault, the one that carries it, and those after it.
fn parts() -> (Vec<Op>, Writes, Vec<Op>) {
    let commits = &RECORDED.commits;
    (ops(&commits[..BEFORE]), commits[BEFORE].clone(), ops(&commits[BEFORE + 1..]))
}

/// Whether any write of these commits touches one of these places.
fn is_written_by(commits: &[Writes], places: &[Change]) -> bool {
    let end = |change: &Change| change.offset + change.bytes.len() as u64;
    let touches =
        |block: &Change| places.iter().any(|place| block.offset < end(place) && place.offset < end(block));
    commits.iter().flat_map(|writes| &writes.blocks).any(touches)
}

/// A root of the root tree that is free after `BEFORE` commits, and has been since the one after its own.
fn freed_root() -> Vec<Change> {
    let free = (0..BEFORE - 1)
        .rev()
        .find(|index| !is_written_by(&RECORDED.commits[index + 1..BEFORE], &root_block(*index)));
    root_block(free.expect("a root in whose place nothing is"))
}

/// The first sector of a file.
fn data_of(text: &[u8; 16]) -> u64 {
    let memory = disk_after(0);
    let sectors = memory.bytes().chunks(4096).position(|sector| sector.chunks(16).all(|piece| piece == text));
    sectors.expect("the file's data") as u64 * 4096
}

fn garbage(offset: u64, len: usize) -> Change {
    Change { offset, bytes: vec![0x5a; len] }
}

/// Bytes of the disk.
fn disk_len() -> u64 {
    std::fs::metadata(RECORDED.image.path()).unwrap().len()
}

fn play(ops: &[Op]) -> Outcome {
    play_on(&RECORDED.image.copy(), ops)
}

fn play_on(image: &Image, ops: &[Op]) -> Outcome {
    Backend::start(Path::new(env!("CARGO_BIN_EXE_btrfs-shadow")), image.path()).perform(ops, 7)
}

#[track_caller]
fn is_silent(ops: &[Op]) {
    let outcome = play(ops);
    assert!(outcome.all_violations().is_empty(), "{:#?}", outcome.all_violations());
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
}

#[track_caller]
fn finds(ops: &[Op], code: &str, origin: &str) {
    let outcome = play(ops);
    let found = outcome.all_violations();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].code, code, "{found:#?}");
    let event = outcome.of_kind("violation").next().unwrap();
    assert_eq!(event["origin"], origin, "{event:#}");
    assert_eq!(outcome.code, Some(1));
}

#[test]
fn the_commits_themselves_are_clean() {
    is_silent(&ops(&RECORDED.commits));
}

#[test]
fn a_live_tree_block_is_overwritten() {
    let (mut all, ..) = parts();
    let block = &root_block(BEFORE - 1)[1];
    all.push(Op::Write(garbage(block.offset + 8192, 4096)));
    finds(&all, "write/metadata-overwritten", "write");
}

/// Under a policy that refuses, harm is not done, and the report says so; where it is no error, it is done.
#[test]
fn a_write_that_does_harm_is_refused_where_that_is_an_error() {
    let refusing = ["--once", "--on-violation", "reject"];
    let warned = [&refusing[..], &["--rule", "write/*=warn"]].concat();
    let off = [&refusing[..], &["--rule", "write/*=off"]].concat();
    let (block, data) = (root_block(0)[0].offset, data_of(SUMMED));
    for (options, refuses, reports) in [(&refusing[..], true, 3), (&warned, false, 3), (&off, false, 0)] {
        let image = RECORDED.image.copy();
        let backend =
            Backend::start_with(Path::new(env!("CARGO_BIN_EXE_btrfs-shadow")), image.path(), options);
        let mut driver = backend.connect();
        let mut rng = Rng::new(1);
        assert_eq!(commit(&mut driver, &RECORDED.commits[0], &mut rng), (true, Some(true)));
        for (offset, erase) in [(block, false), (data, false), (data + 4096, true)] {
            let before = driver.read(offset, 4096).expect("what is there");
            match erase {
                true => assert_eq!(driver.attempt_erase(offset, 4096, true), !refuses),
                false => assert_eq!(driver.attempt(&garbage(offset, 4096)), !refuses),
            }
            assert_eq!(driver.read(offset, 4096) == Some(before), refuses, "what is at {offset} now");
        }
        drop(driver);
        let outcome = backend.wait();
        let found = outcome.all_violations();
        assert_eq!(found.len(), reports, "{found:#?}");
        for violation in found {
            assert!(violation.code.starts_with("write/"), "{violation:#?}");
            assert_eq!(violation.message.ends_with("; the write was refused"), refuses, "{violation:#?}");
        }
        assert_eq!(outcome.code, Some(u8::from(refuses).into()), "{}", outcome.stderr);
    }
}

#[test]
fn the_same_bytes_again_are_a_repair_and_free_space_may_be_written() {
    let (mut all, ..) = parts();
    all.extend(root_block(BEFORE - 1).into_iter().map(Op::Write));
    let data = data_of(SUMMED);
    all.push(Op::Write(Change { offset: data, bytes: SUMMED.repeat(256) }));
    all.push(Op::Write(garbage(freed_root()[0].offset, NODESIZE)));
    is_silent(&all);
}

#[test]
fn damaged_bytes_may_be_mended() {
    let (mut all, ..) = parts();
    let image = RECORDED.image.copy();
    let (data, memory) = (data_of(SUMMED), disk_after(0));
    let (root, _) = SuperBlock::parse(memory.get(65536, 4096).unwrap()).unwrap().chunk_root();
    let place = (0..memory.bytes().len() as u64).step_by(4096).find(|at| {
        let block = memory.get(*at, NODESIZE);
        block.is_some_and(|block| Header::parse(block).is_ok_and(|header| header.bytenr() == root))
    });
    let place = place.expect("the chunk tree's root");
    let right = memory.get(place, NODESIZE).unwrap().to_vec();
    // The second copy, which nobody reads while the first is good.
    let second = (place + 4096..memory.bytes().len() as u64)
        .step_by(4096)
        .find(|at| memory.get(*at, NODESIZE) == Some(&right))
        .expect("a second copy");
    let file = disk::open(image.path());
    file.write_all_at(&[7; 4096], second + 4096).unwrap();
    file.write_all_at(&[7; 4096], data).unwrap();
    all.push(Op::Write(Change { offset: second, bytes: right }));
    all.push(Op::Write(Change { offset: data, bytes: SUMMED.repeat(256) }));
    let outcome = play_on(&image, &all);
    assert!(outcome.all_violations().is_empty(), "{:#?}", outcome.all_violations());
}

#[test]
fn data_with_checksums_is_overwritten() {
    let (mut all, ..) = parts();
    all.push(Op::Write(garbage(data_of(SUMMED) + 512, 512)));
    finds(&all, "write/data-overwritten", "write");
}

#[test]
fn one_good_sector_behind_many_bad_ones_is_discarded() {
    let (mut all, ..) = parts();
    let image = RECORDED.image.copy();
    let (data, bad) = (data_of(SUMMED), 100 * 4096);
    disk::open(image.path()).write_all_at(&vec![7; bad], data).unwrap();
    all.push(Op::Discard(data, bad as u64 + 4096));
    let found = play_on(&image, &all).all_violations();
    assert!(found.len() == 1 && found[0].code == "write/discard-live", "{found:#?}");
}

#[test]
fn data_without_checksums_may_be_overwritten() {
    let (mut all, ..) = parts();
    all.push(Op::Write(garbage(data_of(PLAIN), 8192)));
    all.push(Op::Zeroes(data_of(PLAIN) + 8192, 8192));
    is_silent(&all);
}

#[test]
fn live_blocks_are_discarded_or_zeroed() {
    let (before, ..) = parts();
    for (offset, len) in [
        (root_block(BEFORE - 1)[0].offset, 16384),
        (data_of(SUMMED), 4096),
        (1 << 20, disk_len() - (1 << 20)),
    ] {
        for op in [Op::Discard(offset, len), Op::Zeroes(offset, len)] {
            let mut all = before.clone();
            all.push(op);
            finds(&all, "write/discard-live", "write");
        }
    }
}

#[test]
fn free_space_may_be_discarded() {
    let (mut all, writes, _) = parts();
    all.extend(freed_root().into_iter().map(|block| Op::Discard(block.offset, NODESIZE as u64)));
    all.push(Op::Zeroes(disk_len() - (1 << 20), 1 << 20));
    all.extend(writes.ops());
    is_silent(&all);
}

#[test]
fn freed_space_is_used_before_that_is_durable() {
    let (mut all, writes, _) = parts();
    let Some((Op::Flush, unflushed)) =
        writes.ops().split_last().map(|(last, rest)| (last.clone(), rest.to_vec()))
    else {
        panic!("a flush at the end")
    };
    all.extend(unflushed);
    all.push(Op::Write(garbage(root_block(BEFORE - 1)[0].offset, NODESIZE)));
    all.push(Op::Flush);
    finds(&all, "write/reused-early", "write");
}

#[test]
fn the_flush_before_the_super_block_is_missing() {
    let (mut all, writes, after) = parts();
    let flush = writes.ops().iter().position(|op| matches!(op, Op::Flush)).unwrap();
    let mut unflushed = writes.ops();
    unflushed.remove(flush);
    all.extend(unflushed);
    all.extend(after);
    finds(&all, "write/not-flushed", "write");
}

#[test]
fn a_block_is_written_after_the_flush() {
    let (mut all, mut writes, after) = parts();
    let late = writes.blocks.pop().expect("blocks");
    all.push(Op::Blocks(writes.blocks));
    all.push(Op::Flush);
    all.push(Op::Write(late));
    all.extend(writes.supers.into_iter().map(Op::Write));
    all.push(Op::Flush);
    all.extend(after);
    finds(&all, "write/not-flushed", "write");
}

/// As a guest does that is mounted with nobarrier, or whose disk has no write cache; from the beginning or all of a
/// sudden.
#[test]
fn a_guest_that_never_flushes_may_do_that() {
    let unflushed = |ops: Vec<Op>| ops.into_iter().filter(|op| !matches!(op, Op::Flush));
    is_silent(&unflushed(ops(&RECORDED.commits)).collect::<Vec<_>>());
    let (mut all, writes, after) = parts();
    all.extend(unflushed(writes.ops()));
    all.push(Op::Write(garbage(root_block(BEFORE - 1)[0].offset, 4096)));
    all.extend(unflushed(after));
    is_silent(&all);
}

#[test]
fn a_guest_that_begins_to_flush_has_not_forgotten_to() {
    let unflushed = |ops: Vec<Op>| ops.into_iter().filter(|op| !matches!(op, Op::Flush));
    let (mut all, writes, after) = parts();
    all.extend(unflushed(writes.ops()));
    all.extend(after);
    is_silent(&all);
}

#[test]
fn a_block_that_nobody_wrote_is_reached() {
    let (mut all, mut writes, _) = parts();
    // As if it had been there all the time: whatever it holds, the guest has not put it there.
    let image = RECORDED.image.copy();
    let file = disk::open(image.path());
    let root = root_block(BEFORE);
    root.iter().for_each(|copy| file.write_all_at(&copy.bytes, copy.offset).unwrap());
    writes.blocks.retain(|change| !root.contains(change));
    all.extend(writes.ops());
    assert!(!is_written_by(&RECORDED.commits[..BEFORE], &root), "written by an earlier commit as well");
    let outcome = play_on(&image, &all);
    let found = outcome.all_violations();
    assert!(found.len() == 1 && found[0].code == "write/not-written", "{found:#?}");
}

#[test]
fn copies_of_a_block_differ() {
    let (mut all, mut writes, _) = parts();
    let second = &root_block(BEFORE)[1];
    let change = writes.blocks.iter_mut().find(|change| change.offset == second.offset).unwrap();
    // Behind the items: no rule looks there.
    change.bytes[4000] ^= 1;
    ChecksumType::Crc32c.seal(&mut change.bytes);
    all.extend(writes.ops());
    finds(&all, "write/copies-differ", "commit");
}

#[test]
fn a_copy_of_the_super_block_is_left_out() {
    let (mut all, mut writes, after) = parts();
    assert!(writes.supers.len() > 1);
    writes.supers.truncate(1);
    all.extend(writes.ops());
    all.extend(after);
    finds(&all, "write/super-copies", "commit");
}

/// The super block of a commit has one wrong bit, or is no whole one any more: nothing can be mounted with it.
#[test]
fn the_super_block_is_written_with_wrong_content() {
    let (before, writes, _) = parts();
    let nodesize = std::mem::offset_of!(parser::layout::SuperBlock, nodesize);
    let flip = |bytes: &mut Vec<u8>| bytes[2000] ^= 4;
    let no_size = |bytes: &mut Vec<u8>| {
        bytes[nodesize + 1] ^= 1;
        ChecksumType::Crc32c.seal(bytes);
    };
    let no_place = |bytes: &mut Vec<u8>| {
        bytes[std::mem::offset_of!(parser::layout::SuperBlock, bytenr) + 2] ^= 4;
        ChecksumType::Crc32c.seal(bytes);
    };
    for edit in [&flip as &dyn Fn(&mut Vec<u8>), &no_size, &no_place] {
        let mut writes = writes.clone();
        edit(&mut writes.supers[0].bytes);
        let mut all = before.clone();
        all.extend(writes.ops());
        finds(&all, "tree/super-block", "write");
    }
}

/// What an fsync of a directory writes: tree blocks of the log, and the super block that reaches them. Whoever syncs all
/// file systems of this machine meanwhile makes a transaction of it: then again.
fn logged() -> (Image, Writes) {
    (0..10).find_map(|_| try_logged()).expect("a log")
}

fn try_logged() -> Option<(Image, Writes)> {
    let image = Spec::new("log", "-n 16384 -m dup").mounted("commit=300,nodiscard").mkfs();
    let mut session = Session::start(&image);
    session.run("mkdir d; echo 1 > d/a; sync -f .", || ());
    let base = image.copy();
    session.run("echo 2 > d/b; sync d", || ());
    let (before, after) = (Memory::load(base.path()), Memory::load(image.path()));
    session.finish();
    let superblock = after.get(65536, 4096).unwrap();
    let view = SuperBlock::parse(superblock).unwrap();
    let last = SuperBlock::parse(before.get(65536, 4096).unwrap()).unwrap().generation();
    if view.log_root().is_none() || view.generation() != last {
        return None;
    }
    let mut writes = Writes { blocks: Vec::new(), supers: Vec::new() };
    let mut at = 0;
    while let Some(page) = after.get(at, 4096) {
        let is_block = |bytes: &&[u8]| {
            Header::parse(bytes)
                .is_ok_and(|header| header.fsid() == view.metadata_uuid() && header.bytenr() != 0)
        };
        let bytes = after.get(at, NODESIZE).filter(is_block).unwrap_or(page).to_vec();
        let len = bytes.len();
        let change = Change { offset: at, bytes };
        match before.get(at, len) == Some(change.bytes.as_slice()) {
            true => {}
            false if at == 65536 => writes.supers.push(change),
            false => writes.blocks.push(change),
        }
        at += len as u64;
    }
    Some((base, writes))
}

#[test]
fn an_item_of_a_log_is_malformed() {
    let (base, sound) = logged();
    let image = base.copy();
    let outcome = play_on(&image, &sound.ops());
    assert_eq!(checked(&image), (Some(0), vec![]), "a log that waits to be replayed");
    assert!(outcome.all_violations().is_empty(), "{:#?}", outcome.all_violations());
    let logs = |outcome: &Outcome| outcome.of_kind("commit").filter(|event| event["kind"] == "log").count();
    assert_eq!((logs(&outcome), outcome.code), (1, Some(0)));
    let kinds: Vec<_> = corrupt::all().into_iter().filter(corrupt::Kind::is_for_logs).collect();
    assert!(!kinds.is_empty());
    for kind in kinds {
        let mut writes = sound.clone();
        let planted: Vec<_> = writes
            .blocks
            .iter_mut()
            .filter_map(|change| corrupt::mutate_block(&mut change.bytes, &kind, 1))
            .collect();
        assert!(planted.len() == 2 && planted[0] == planted[1], "both copies of a block: {planted:?}");
        let image = base.copy();
        let outcome = play_on(&image, &writes.ops());
        let found = outcome.all_violations();
        assert!(
            found.len() == 1 && planted[0].is_found_in([found[0].code.as_str()]),
            "{planted:?} {found:#?}"
        );
        assert_eq!((logs(&outcome), outcome.code), (1, Some(1)));
        assert_eq!(checked(&image), (Some(1), vec![found[0].code.clone()]));
    }
}

/// A log whose root lies nowhere, or is no block of a log.
#[test]
fn a_log_cannot_be_read() {
    let (base, sound) = logged();
    for code in ["tree/unmapped", "tree/generation"] {
        let image = base.copy();
        play_on(&image, &sound.ops());
        let file = disk::open(image.path());
        let mut bytes = vec![0; superblock::SIZE];
        file.read_exact_at(&mut bytes, superblock::PRIMARY).unwrap();
        let root = SuperBlock::parse(&bytes).unwrap().root().0;
        let log_root = if code == "tree/unmapped" { 1u64 << 50 } else { root };
        let at = std::mem::offset_of!(parser::layout::SuperBlock, log_root);
        bytes[at..at + 8].copy_from_slice(&log_root.to_le_bytes());
        ChecksumType::Crc32c.seal(&mut bytes);
        file.write_all_at(&bytes, superblock::PRIMARY).unwrap();
        assert_eq!(checked(&image), (Some(1), vec![code.to_owned()]));
    }
}

/// What `check` makes of an image: its exit code, and the codes of what it finds.
fn checked(image: &Image) -> (Option<i32>, Vec<String>) {
    let outcome = replay::check(Path::new(env!("CARGO_BIN_EXE_btrfs-shadow")), image.path());
    (outcome.code, outcome.all_violations().into_iter().map(|found| found.code).collect())
}

/// The disk gets larger in the middle, and what is guarded with it.
#[test]
fn what_is_live_is_guarded_on_a_disk_of_another_size() {
    let (before, fault, after) = parts();
    for overwrites in [false, true] {
        let image = RECORDED.image.copy();
        let backend = Backend::start(Path::new(env!("CARGO_BIN_EXE_btrfs-shadow")), image.path());
        let mut driver = backend.connect();
        carry_out(&mut driver, &before, 7);
        let len = disk_len() + (300 << 20);
        disk::open(image.path()).set_len(len).unwrap();
        backend.wait_for_notice(&format!("the image has {len} bytes now"));
        let new = garbage(len - 4096, 4096);
        carry_out(&mut driver, &[Op::Write(new.clone())], 7);
        assert!(driver.read(new.offset, 4096) == Some(new.bytes));
        if overwrites {
            let block = &root_block(BEFORE - 1)[1];
            carry_out(&mut driver, &[Op::Write(garbage(block.offset + 8192, 4096))], 7);
        } else {
            carry_out(&mut driver, &[fault.ops(), after.clone()].concat(), 7);
        }
        drop(driver);
        let outcome = backend.wait();
        let found = outcome.all_violations();
        let codes: Vec<_> = found.iter().map(|violation| violation.code.as_str()).collect();
        let expected: &[&str] = if overwrites { &["write/metadata-overwritten"] } else { &[] };
        assert_eq!((codes.as_slice(), outcome.code), (expected, Some(overwrites.into())), "{found:#?}");
    }
}

/// The image was cut off behind the last extent: nothing of it is missing but room that its super block counts on.
#[test]
fn a_device_is_smaller_than_the_file_system_on_it() {
    let image = RECORDED.image.copy();
    let file = disk::open(image.path());
    file.set_len(disk_len() - (1 << 20)).unwrap();
    let outcome = play_on(&image, &ops(&RECORDED.commits[..1]));
    let offline = replay::check(Path::new(env!("CARGO_BIN_EXE_btrfs-shadow")), image.path());
    for outcome in [outcome, offline] {
        let found = outcome.all_violations();
        assert!(found.len() == 1 && found[0].code == "space/device-too-small", "{found:#?}");
        assert_eq!(outcome.code, Some(1));
    }
}

#[test]
fn a_new_file_system_may_be_written_over_the_old_one() {
    let (mut all, ..) = parts();
    // mkfs discards the disk from its beginning; without that it begins with zeros there.
    let data = data_of(SUMMED);
    let root = root_block(BEFORE - 1)[0].offset;
    let mut discarding = all.clone();
    discarding.extend([Op::Discard(0, 64 << 20), Op::Discard(64 << 20, disk_len() - (64 << 20))]);
    discarding.push(Op::Write(garbage(data, 4096)));
    is_silent(&discarding);
    all.push(Op::Blocks(vec![Change { offset: 65536, bytes: vec![0; 4096] }]));
    all.push(Op::Blocks(vec![garbage(data, 4096), garbage(root, NODESIZE)]));
    is_silent(&all);
}

/// The cause that is named for what is wrong in the commit after `BEFORE` others.
#[track_caller]
fn cause_of(change: impl FnOnce(&mut Writes)) -> String {
    let (mut all, mut writes, _) = parts();
    change(&mut writes);
    all.extend(writes.ops());
    let outcome = play(&all);
    let causes: Vec<_> = outcome.of_kind("violation").map(|event| event["cause"].clone()).collect();
    assert!(!causes.is_empty() && causes.iter().all(|cause| *cause == causes[0]), "{causes:?}");
    causes[0].as_str().unwrap_or("none").to_owned()
}

/// The block as the commit with this index wrote it, wherever that one has put it.
fn set_root(writes: &mut Writes, edit: impl Fn(&mut Vec<u8>)) {
    let root = root_block(BEFORE);
    let copies = writes.blocks.iter_mut().filter(|change| root.contains(change));
    copies.for_each(|change| edit(&mut change.bytes));
}

#[test]
fn what_kind_of_fault_it_was() {
    let flip = cause_of(|writes| set_root(writes, |bytes| bytes[5000] ^= 0x10));
    assert_eq!(flip, "bit-flip");
    let lost = cause_of(|writes| {
        let root = root_block(BEFORE);
        writes.blocks.retain(|change| !root.contains(change));
    });
    assert_eq!(lost, "lost-write");
    let older = root_block(BEFORE - 1)[0].bytes.clone();
    let misdirected = cause_of(|writes| set_root(writes, |bytes| bytes.clone_from(&older)));
    assert_eq!(misdirected, "misdirected-write");
    // The same block, a transaction older by what it says.
    let stale = cause_of(|writes| {
        set_root(writes, |bytes| {
            let at = std::mem::offset_of!(parser::layout::Header, generation);
            bytes[at] -= 1;
            ChecksumType::Crc32c.seal(bytes);
        });
    });
    assert_eq!(stale, "stale-write");
}

/// Codes of the violations that were reported, and when.
#[derive(Clone, Default)]
struct Codes(Arc<Mutex<Vec<(u64, String)>>>);

impl Sink for Codes {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        if let Event::Violation { generation, violation, .. } = event {
            self.0.lock().unwrap().push((*generation, violation.code.name().to_owned()));
        }
        Ok(())
    }

    fn name(&self) -> &str {
        "codes"
    }
}

/// A write that is still under way can't be had from outside: whatever carries it out is faster. So here the tap is told
/// what a device would tell it.
#[test]
fn a_block_whose_write_is_not_complete_is_reached() {
    let copy = RECORDED.image.copy();
    let image: Arc<dyn image::Image> = Arc::new(RawImage::open(copy.path(), false).unwrap());
    let shared = Arc::new(CaptureShared::new(Arc::clone(&image), 64 << 20));
    let (sender, messages) = crossbeam_channel::unbounded();
    let codes = Codes::default();
    let mut sinks = Sinks::default();
    sinks.push(Box::new(codes.clone()));
    let tap = Capture::new(Arc::clone(&shared), sender.clone(), None);
    let options = VerifierOptions { shadow_memory: 1 << 20, ..VerifierOptions::default() };
    let thread =
        verifier::spawn(Arc::clone(&image), shared, (sender.clone(), messages), sinks, options).unwrap();
    tap.connected();
    let late = &root_block(BEFORE)[0];
    for writes in &RECORDED.commits[..=BEFORE] {
        let mut pending = None;
        for change in &writes.blocks {
            let mut bytes = change.bytes.clone();
            tap.copied(change.offset, &mut bytes);
            image.write_at(&bytes, change.offset).unwrap();
            if change == late {
                pending = Some(bytes);
            } else {
                tap.written(change.offset, bytes);
            }
        }
        tap.flushed(tap.flush_begins());
        let (done, answer) = crossbeam_channel::bounded(1);
        let answered = move |result: io::Result<()>| done.send(result.is_ok()).unwrap();
        tap.hold(65536, writes.supers[0].bytes.clone(), Box::new(answered));
        assert_eq!(answer.recv(), Ok(true));
        for change in &writes.supers[1..] {
            image.write_at(&change.bytes, change.offset).unwrap();
        }
        tap.flushed(tap.flush_begins());
        if let Some(bytes) = pending {
            tap.written(late.offset, bytes);
        }
    }
    sender.send(Message::Finish).unwrap();
    thread.join().unwrap();
    let generation = SuperBlock::parse(&RECORDED.commits[BEFORE].supers[0].bytes).unwrap().generation();
    assert_eq!(*codes.0.lock().unwrap(), [(generation, "write/not-completed".to_owned())]);
}
