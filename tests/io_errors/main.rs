//! A disk that fails, fills up or shrinks: the guest gets errors, nothing that it was told is lost, the program goes on,
//! and the guest is not accused of what the disk has done.

mod disk;
#[path = "../common/engines.rs"]
mod engines;
#[path = "../common/recorded.rs"]
mod recorded;

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use disk::{FailingDisk, How, Kind};
use engines::IO_URING;
use parser::ChecksumType;
use recorded::{BEFORE, PLAIN, RECORDED, SUMMED, disk_after, root_block};
use replay::driver::Driver;
use replay::{Backend, Change, Op, Outcome, Writes};

/// Values of `--io-engine` that can be tested here.
fn engines() -> &'static [&'static str] {
    if *IO_URING { &["sync", "io-uring"] } else { &["sync"] }
}
const EIO: How = How::Error(libc::EIO);
const ENOSPC: How = How::Error(libc::ENOSPC);
const SUPER: u64 = 64 << 10;
const ALWAYS: usize = usize::MAX;
/// Everything behind the primary super block.
const TREES: std::ops::Range<u64> = 1 << 20..1 << 60;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_btrfs-shadow"))
}

/// The program on a failing disk, and a guest that has made commits before.
struct Scene {
    // In the order in which they are to go.
    driver: Driver,
    backend: Backend,
    disk: FailingDisk,
    _image: testkit::Image,
}

impl Scene {
    fn new(options: &[&str]) -> Self {
        let image = RECORDED.image.copy();
        let disk = FailingDisk::new(image.path());
        let mut all = vec!["--once"];
        all.extend(options);
        let backend = Backend::start_with(program(), disk.path(), &all);
        let mut scene = Scene { driver: backend.connect(), backend, disk, _image: image };
        for writes in &RECORDED.commits[..BEFORE] {
            assert_eq!(scene.commit(writes), 0);
        }
        scene
    }

    /// Makes a commit as a guest does that takes no notice of errors; how many there were.
    fn commit(&mut self, writes: &Writes) -> usize {
        commit(&mut self.driver, writes)
    }

    /// Makes all commits that are left, and ends it.
    fn finish(mut self, done: usize) -> Outcome {
        assert!(done < RECORDED.commits.len());
        for writes in &RECORDED.commits[done..] {
            assert_eq!(self.commit(writes), 0, "the disk is well again");
        }
        self.end()
    }

    fn end(self) -> Outcome {
        let Scene { driver, backend, .. } = self;
        drop(driver);
        backend.wait()
    }
}

fn commit(driver: &mut Driver, writes: &Writes) -> usize {
    let done = |op: &Op, driver: &mut Driver| match op {
        Op::Blocks(changes) => changes.iter().filter(|change| !driver.attempt(change)).count(),
        Op::Write(change) => usize::from(!driver.attempt(change)),
        Op::Flush => usize::from(!driver.attempt_flush()),
        Op::Discard(..) | Op::Zeroes(..) => unreachable!("commits are made of writes"),
    };
    writes.ops().iter().map(|op| done(op, driver)).sum()
}

fn range(change: &Change) -> std::ops::Range<u64> {
    change.offset..change.offset + change.bytes.len() as u64
}

#[track_caller]
fn is_clean(outcome: &Outcome) {
    assert!(outcome.all_violations().is_empty(), "{:#?}", outcome.all_violations());
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
}

/// Not everything was verified, and the program says so; nobody is accused, and the last commit was verified again.
#[track_caller]
fn is_unverified(outcome: &Outcome, says: &str) {
    assert!(outcome.all_violations().is_empty(), "{:#?}", outcome.all_violations());
    assert_eq!(outcome.code, Some(3), "{outcome:#?}");
    let said = outcome.events.iter().any(|event| event.to_string().contains(says));
    assert!(said, "{says}: {:#?}", outcome.events);
    let last = outcome.of_kind("commit").last().expect("commits");
    assert_eq!(last["verdict"], "clean", "{last:#}");
}

#[test]
fn one_copy_of_a_block_that_could_not_be_written_is_no_fault_of_the_guest() {
    for &engine in engines() {
        for copy in 0..2 {
            for how in [vec![EIO], vec![ENOSPC], vec![How::Short(5000), ENOSPC]] {
                let mut scene = Scene::new(&["--io-engine", engine, "--verify-data"]);
                for how in &how {
                    scene.disk.plan(Kind::Write, range(&root_block(BEFORE)[copy]), *how, 1);
                }
                assert_eq!(scene.commit(&RECORDED.commits[BEFORE]), 1);
                assert_eq!(scene.disk.mend(), how.len());
                is_clean(&scene.finish(BEFORE + 1));
            }
        }
    }
}

/// The kernel writes a block again that has changed since. What the first write has left looks right, and is not.
#[test]
fn an_older_version_of_a_block_is_not_taken_for_the_one_that_could_not_be_written() {
    let copies = root_block(BEFORE);
    let mut scene = Scene::new(&[]);
    for copy in &copies {
        let mut older = copy.clone();
        // As if the last item had not been there yet.
        let items = u32::from_le_bytes(older.bytes[96..100].try_into().unwrap());
        older.bytes[96..100].copy_from_slice(&(items - 1).to_le_bytes());
        ChecksumType::Crc32c.seal(&mut older.bytes);
        assert!(scene.driver.attempt(&older));
    }
    scene.disk.plan(Kind::Write, range(&copies[0]), EIO, 1);
    assert_eq!(scene.commit(&RECORDED.commits[BEFORE]), 1);
    assert_eq!(scene.disk.mend(), 1);
    is_clean(&scene.finish(BEFORE + 1));
}

#[test]
fn a_guest_that_commits_a_block_of_which_no_copy_was_written_is_told_of() {
    let mut scene = Scene::new(&[]);
    root_block(BEFORE).iter().for_each(|copy| scene.disk.plan(Kind::Write, range(copy), EIO, 1));
    assert_eq!(scene.commit(&RECORDED.commits[BEFORE]), 2);
    let outcome = scene.end();
    assert!(!outcome.all_violations().is_empty());
    assert_eq!(outcome.code, Some(1));
}

#[test]
fn writes_that_are_cut_short_are_gone_on_with() {
    for &engine in engines() {
        let mut scene = Scene::new(&["--io-engine", engine]);
        let writes = &RECORDED.commits[BEFORE];
        for len in [512, 4096, 1, 10_000] {
            scene.disk.plan(Kind::Write, TREES, How::Short(len), 3);
        }
        assert_eq!(scene.commit(writes), 0);
        assert_eq!(scene.disk.mend(), 12);
        let blocks = || writes.blocks.iter().filter(|change| change.bytes.len() <= 64 << 10);
        blocks().for_each(|change| {
            assert!(scene.driver.read(change.offset, change.bytes.len()).as_ref() == Some(&change.bytes));
        });
        is_clean(&scene.finish(BEFORE + 1));
    }
}

#[test]
fn a_copy_of_the_super_block_could_not_be_written() {
    for policy in ["report", "reject"] {
        let mut scene = Scene::new(&["--on-violation", policy]);
        let writes = &RECORDED.commits[BEFORE];
        scene.disk.plan(Kind::Write, range(&writes.supers[1]), EIO, 1);
        assert_eq!(scene.commit(writes), 1);
        assert_eq!(scene.disk.mend(), 1);
        is_clean(&scene.finish(BEFORE + 1));
    }
    // Before the primary one.
    let mut scene = Scene::new(&[]);
    let mut writes = RECORDED.commits[BEFORE].clone();
    writes.supers.reverse();
    scene.disk.plan(Kind::Write, range(&writes.supers[0]), EIO, 1);
    assert_eq!(scene.commit(&writes), 1);
    is_clean(&scene.finish(BEFORE + 1));
}

/// The guest aborts its transaction then, and makes it again after the next mount.
#[test]
fn the_super_block_could_not_be_written() {
    let writes = &RECORDED.commits[BEFORE];
    for unreadable in [false, true] {
        let mut scene =
            Scene::new(&["--io-engine", if unreadable || !*IO_URING { "sync" } else { "io-uring" }]);
        scene.disk.plan(Kind::Write, range(&writes.supers[0]), EIO, 1);
        if unreadable {
            scene.disk.plan(Kind::Read, SUPER..SUPER + 4096, EIO, ALWAYS);
        }
        let mut aborted = writes.clone();
        aborted.supers.truncate(1);
        assert_eq!(scene.commit(&aborted), 1);
        assert!(scene.disk.mend() > usize::from(unreadable));
        let outcome = scene.finish(BEFORE);
        if unreadable {
            is_unverified(&outcome, "can't read a super block")
        } else {
            is_clean(&outcome)
        }
        let commits = outcome.of_kind("commit").count();
        assert_eq!(commits, RECORDED.commits.len() + 1, "every commit was verified, one of them twice");
    }
}

/// After a flush that failed the kernel takes pages for clean that are not on the disk: no later one may succeed.
#[test]
fn a_flush_failed() {
    for &engine in engines() {
        let mut scene = Scene::new(&["--io-engine", engine]);
        scene.disk.plan(Kind::Flush, 0..0, EIO, 1);
        assert_eq!(scene.commit(&RECORDED.commits[BEFORE]), 2, "both flushes of the commit");
        assert_eq!(scene.disk.mend(), 1);
        // A guest with other disks goes on: it is not accused of not flushing.
        for writes in &RECORDED.commits[BEFORE + 1..] {
            assert_eq!(scene.commit(writes), 2);
        }
        // Everything but flushes goes on.
        let place = (300 << 20, 4096);
        assert!(scene.driver.read(place.0, place.1).is_some());
        let outcome = scene.end();
        is_clean(&outcome);
        assert!(outcome.stderr.contains("a flush failed"), "{}", outcome.stderr);
    }
}

#[test]
fn the_super_block_can_not_be_read_when_a_guest_connects() {
    let image = RECORDED.image.copy();
    let disk = FailingDisk::new(image.path());
    let backend = Backend::start_with(program(), disk.path(), &[]);
    disk.plan(Kind::Read, SUPER..SUPER + 4096, EIO, ALWAYS);
    let mut driver = backend.connect();
    assert!(driver.read(SUPER, 4096).is_none());
    let data = driver.read(1 << 20, 4096).expect("the rest can be read");
    let mut before = vec![0; 4096];
    replay::disk::open(image.path()).read_exact_at(&mut before, 1 << 20).unwrap();
    assert!(data == before);
    backend.wait_for_notice("can't read a super block");
    // What the guest writes meanwhile is not lost, and the commit is verified once the super block can be read.
    let writes = &RECORDED.commits[0];
    assert!(writes.blocks.iter().all(|change| driver.attempt(change)));
    assert!(driver.attempt_flush() && disk.mend() > 1);
    assert_eq!(commit(&mut driver, writes), 0);
    for writes in &RECORDED.commits[1..] {
        assert_eq!(commit(&mut driver, writes), 0);
    }
    drop(driver);
    let stopped = Command::new(program()).arg("ctl").arg(backend.control()).arg("stop").status();
    assert!(stopped.expect("btrfs-shadow ctl").success());
    let outcome = backend.wait();
    is_unverified(&outcome, "can't read a super block");
    assert_eq!(outcome.of_kind("commit").count(), RECORDED.commits.len());
    assert!(outcome.of_kind("commit").all(|event| event["verdict"] == "clean"));
}

/// What is in use can't be found out, nor what a commit replaces; later it can.
#[test]
fn trees_can_not_be_read_for_a_while() {
    let image = RECORDED.image.copy();
    let disk = FailingDisk::new(image.path());
    // Nothing is kept in memory: every tree block is read.
    let backend = Backend::start_with(program(), disk.path(), &["--once", "--capture-memory", "0"]);
    let mut driver = backend.connect();
    disk.plan(Kind::Read, TREES, EIO, ALWAYS);
    let file = (0..disk_after(0).bytes().len() as u64)
        .step_by(4096)
        .find(|at| disk_after_is(*at, PLAIN))
        .expect("the file without checksums");
    // The guard wants to know whether that does harm.
    assert!(driver.attempt(&Change { offset: file, bytes: vec![7; 4096] }));
    assert_eq!(commit(&mut driver, &RECORDED.commits[0]), 0);
    assert!(disk.mend() > 0);
    let summed = (0..disk_after(0).bytes().len() as u64)
        .step_by(4096)
        .find(|at| disk_after_is(*at, SUMMED))
        .expect("the file with checksums");
    for writes in &RECORDED.commits[1..] {
        assert_eq!(commit(&mut driver, writes), 0);
    }
    // The guard knows by now.
    assert!(driver.attempt(&Change { offset: summed, bytes: vec![7; 4096] }));
    drop(driver);
    let outcome = backend.wait();
    let found = outcome.all_violations();
    assert!(found.len() == 1 && found[0].code == "write/data-overwritten", "{found:#?}");
    let said = |what: &str| outcome.of_kind("notice").any(|event| event.to_string().contains(what));
    assert!(said("was not guarded since the last commit"), "{:#?}", outcome.events);
    let verdicts: Vec<_> = outcome.of_kind("commit").map(|event| event["verdict"].clone()).collect();
    assert_eq!(verdicts.iter().filter(|verdict| *verdict == "violations").count(), 0, "{verdicts:?}");
    assert_eq!(verdicts.last().unwrap(), "clean");
}

/// Whether a sector of the disk is full of this text.
fn disk_after_is(offset: u64, text: &[u8; 16]) -> bool {
    static DISK: std::sync::LazyLock<replay::disk::Memory> = std::sync::LazyLock::new(|| disk_after(0));
    DISK.get(offset, 4096).is_some_and(|sector| sector.chunks(16).all(|piece| piece == text))
}

/// Writes until that fails; then what was written can be read, and again be written.
fn fill_up(driver: &mut Driver, end: u64) -> u64 {
    const LEN: usize = 64 << 10;
    let bytes = |at: u64| vec![(at >> 16) as u8 | 1; LEN];
    let mut at = 0;
    while driver.attempt(&Change { offset: at, bytes: bytes(at) }) {
        at += LEN as u64;
        assert!(at < end, "it never failed");
    }
    for before in (0..at).step_by(LEN) {
        assert!(driver.read(before, LEN) == Some(bytes(before)), "what was acknowledged at {before} is lost");
    }
    at
}

#[test]
fn the_host_has_no_more_space() {
    for &engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        // In a mount namespace that ends with the thread.
        let path = dir.path().to_owned();
        let work = move || {
            testkit::mounts::enter_private().expect("a mount namespace: this needs root");
            let mounted =
                Command::new("mount").args(["-t", "tmpfs", "-o", "size=4M", "full"]).arg(&path).status();
            assert!(mounted.unwrap().success());
            let image = path.join("image");
            std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
            let backend = Backend::start_with(program(), &image, &["--once", "--io-engine", engine]);
            let mut driver = backend.connect();
            let full = fill_up(&mut driver, 64 << 20);
            assert!(!driver.attempt(&Change { offset: 32 << 20, bytes: vec![1; 4096] }));
            driver.erase(0, full / 2, false);
            let change = Change { offset: 32 << 20, bytes: vec![1; 4096] };
            assert!(driver.attempt(&change), "there is space again");
            assert!(driver.read(change.offset, 4096) == Some(change.bytes));
            drop(driver);
            assert_eq!(backend.wait().code, Some(3), "there is no file system");
        };
        std::thread::spawn(work).join().unwrap();
    }
}

#[test]
fn a_limit_of_file_sizes_is_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let (script, image) = (dir.path().join("limited"), dir.path().join("image"));
    // In blocks of 512 bytes, as sh has it.
    let text = format!("#!/bin/sh\nulimit -f 4096\nexec {} \"$@\"\n", program().display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    for &engine in engines() {
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let backend = Backend::start_with(&script, &image, &["--once", "--io-engine", engine]);
        let mut driver = backend.connect();
        assert_eq!(fill_up(&mut driver, 64 << 20), 2 << 20);
        assert!(driver.attempt_flush());
        drop(driver);
        assert_eq!(backend.wait().code, Some(3), "there is no file system");
    }
}

#[test]
fn the_image_is_cut_off_under_the_program() {
    for &engine in engines() {
        let image = RECORDED.image.copy();
        let backend = Backend::start_with(program(), image.path(), &["--once", "--io-engine", engine]);
        let mut driver = backend.connect();
        for writes in &RECORDED.commits[..BEFORE] {
            assert_eq!(commit(&mut driver, writes), 0);
        }
        let file = replay::disk::open(image.path());
        let len = file.metadata().unwrap().len();
        file.set_len(32 << 20).unwrap();
        assert!(driver.read(16 << 20, 65536).is_some());
        assert!(driver.read((32 << 20) - 4096, 8192).is_none(), "half of it is there");
        assert!(driver.read(len - 65536, 65536).is_none());
        // What is written is there, whatever it takes, until it is seen that there is no place for it any more.
        let change = Change { offset: len - (1 << 20), bytes: vec![3; 4096] };
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut unreadable = 0;
        while driver.attempt(&change) {
            // The size may be looked at between the write's beginning and its end, and followed before the read.
            match driver.read(change.offset, 4096) {
                Some(bytes) => assert!(bytes == change.bytes),
                None => unreadable += 1,
            }
            assert!(unreadable <= 1, "what was written is not there");
            assert!(driver.read(len - 4096, 4096).is_none());
            assert!(Instant::now() < deadline, "the new size is not followed");
            file.set_len(32 << 20).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(file.metadata().unwrap().len(), 32 << 20);
        let _ = commit(&mut driver, &RECORDED.commits[BEFORE]);
        assert!(driver.attempt_flush());
        drop(driver);
        let outcome = backend.wait();
        assert_eq!(outcome.code, Some(1), "a file system that lacks its end: {}", outcome.stderr);
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        assert_eq!(outcome.of_kind("commit").count(), BEFORE + 1);
        let codes: Vec<_> = outcome.all_violations().iter().map(|violation| violation.code.clone()).collect();
        assert_eq!(codes.iter().filter(|code| *code == "space/device-too-small").count(), 1, "{codes:?}");
    }
}
