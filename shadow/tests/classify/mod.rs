//! What a write of the primary super block means: every row of the table.

use parser::SuperBlock;
use parser::layout::SuperBlock as Raw;
use shadow::classify::ReattachReason;
use shadow::{SuperChange, classify};

use crate::support::*;

fn root() -> RootSpec {
    RootSpec { bytenr: 1 << 20, level: 0, generation: 10, refs: 1, cursor: None, last_snapshot: 0 }
}

/// How a super block changed in this way follows the one before.
#[track_caller]
fn check(edit: impl Fn(&mut Raw), expected: SuperChange) {
    let config = Config::default();
    let mut raw = bytes::superblock(&config, 10, &root(), &root());
    let last = bytes::seal(&raw, config.csum);
    edit(&mut raw);
    let next = bytes::seal(&raw, config.csum);
    assert_eq!(classify(Some(&SuperBlock::parse(&last).unwrap()), &next), expected);
}

#[test]
fn the_next_transaction() {
    check(|raw| raw.generation = 11.into(), SuperChange::Commit);
    check(
        |raw| {
            (raw.generation, raw.root, raw.bytes_used) = (11.into(), 4096.into(), 1.into());
            (raw.label[0], raw.num_devices, raw.incompat_flags) = (b'x', 2.into(), 9.into());
        },
        SuperChange::Commit,
    );
}

#[test]
fn a_log_commit() {
    check(|raw| raw.log_root = 8192.into(), SuperChange::LogCommit);
    check(|raw| (raw.log_root, raw.log_root_level) = (8192.into(), 1), SuperChange::LogCommit);
}

#[test]
fn the_same_again() {
    check(|_| {}, SuperChange::Rewrite);
}

#[test]
fn a_tool_worked_offline() {
    let rewritten = SuperChange::Reattach(ReattachReason::Rewritten);
    check(|raw| raw.label[0] = b'x', rewritten);
    check(|raw| raw.root = 4096.into(), rewritten);
    check(|raw| (raw.log_root, raw.label[0]) = (8192.into(), b'x'), rewritten);
    // What comes without a log tree is no log commit.
    check(|raw| raw.log_root_level = 1, rewritten);
    check(
        |raw| {
            raw.metadata_uuid = raw.fsid;
            raw.fsid = [9; 16];
            raw.generation = 11.into();
            raw.incompat_flags =
                (raw.incompat_flags.get() | parser::superblock::incompat::METADATA_UUID).into();
        },
        rewritten,
    );
}

#[test]
fn commits_are_missing_or_were_taken_back() {
    let gap = SuperChange::Reattach(ReattachReason::GenerationGap);
    for generation in [0, 9, 12, u64::MAX] {
        check(|raw| raw.generation = generation.into(), gap);
    }
}

#[test]
fn another_file_system() {
    let new = SuperChange::Reattach(ReattachReason::NewFileSystem);
    check(|raw| raw.fsid = [9; 16], new);
    check(|raw| (raw.fsid, raw.generation) = ([9; 16], 11.into()), new);
    check(|raw| raw.dev_item.uuid = [9; 16], new);
}

#[test]
fn no_file_system() {
    check(|raw| raw.magic = [0; 8], SuperChange::Gone);
    check(|raw| raw.magic = parser::superblock::MAGIC_IN_PROGRESS, SuperChange::Gone);
    for bytes in [&[][..], &[0; 4096], &[0xff; 4096], &[0; 100]] {
        assert_eq!(classify(None, bytes), SuperChange::Gone);
    }
}

#[test]
fn an_invalid_super_block() {
    check(|raw| raw.nodesize = 5.into(), SuperChange::Invalid);
    check(|raw| raw.csum_type = 9.into(), SuperChange::Invalid);
    check(|raw| raw.bytenr = (64 << 20).into(), SuperChange::Invalid);
    let config = Config::default();
    let mut bytes = bytes::seal(&bytes::superblock(&config, 10, &root(), &root()), config.csum);
    bytes[4095] ^= 1;
    assert_eq!(classify(None, &bytes), SuperChange::Invalid);
    assert_eq!(classify(None, &bytes[..4000]), SuperChange::Invalid);
}

#[test]
fn the_first() {
    let config = Config::default();
    let bytes = bytes::seal(&bytes::superblock(&config, 10, &root(), &root()), config.csum);
    assert_eq!(classify(None, &bytes), SuperChange::Reattach(ReattachReason::First));
}
