//! `btrfs_ref_tree_mod` and `btrfs_free_ref_tree_range`, check by check.

use shadow::refverify::{Action, ActionKind, BlockEntry};
use shadow::{Code, RefKey, Shadow};

use super::{BYTENR, LEN, action, record};

const DATA: RefKey = RefKey { metadata: false, root: 5, parent: 0, owner: 257, offset: 0 };
const OTHER: RefKey = RefKey { metadata: false, root: 5, parent: 0, owner: 258, offset: 0 };

fn shadow() -> Shadow {
    Shadow::new(1 << 20)
}

fn tree(root: u64) -> RefKey {
    RefKey::tree(root, 0)
}

fn entry(shadow: &Shadow) -> &BlockEntry {
    shadow.entry(BYTENR).expect("an entry")
}

/// All references, by key, by root.
type Counts = (u64, Vec<(RefKey, u64)>, Vec<(u64, i64)>);

fn counts(shadow: &Shadow) -> Counts {
    let entry = entry(shadow);
    (
        entry.num_refs,
        entry.refs().to_vec(),
        entry.roots().iter().map(|root| (root.root, root.num_refs)).collect(),
    )
}

/// Does an action that must be refused with this code and change no count.
#[track_caller]
fn refused(shadow: &mut Shadow, action: &Action, code: Code) {
    let before = shadow.entry(BYTENR).map(|entry| (entry.num_refs, entry.refs().to_vec()));
    let found = shadow.modify(action).expect_err("must be refused");
    assert_eq!((found.code, found.bytenr, found.key), (code, BYTENR, Some(action.key)), "{found}");
    if code != Code::RefDuplicateTreeRef || before.as_ref().is_some_and(|(num_refs, _)| *num_refs > 0) {
        assert_eq!(shadow.entry(BYTENR).map(|entry| (entry.num_refs, entry.refs().to_vec())), before);
    }
}

/// `btrfs_ref_tree_mod`, ADD_DELAYED_EXTENT of a bytenr never seen: an entry with one reference.
#[test]
fn alloc_makes_an_entry() {
    let mut shadow = shadow();
    shadow.modify(&action(ActionKind::Alloc, tree(5))).unwrap();
    assert_eq!(counts(&shadow), (1, vec![(tree(5), 1)], vec![(5, 1)]));
    assert!(entry(&shadow).metadata && !entry(&shadow).from_disk);
}

/// `btrfs_ref_tree_mod`: "re-allocated a block that still has references to it!".
#[test]
fn alloc_of_a_block_in_use() {
    let mut shadow = shadow();
    shadow.load(BYTENR, Some(&record(BYTENR, Some(0), &[(tree(5), 1)])));
    refused(&mut shadow, &action(ActionKind::Alloc, tree(6)), Code::RefReallocated);
}

/// `btrfs_ref_tree_mod`, ADD_DELAYED_EXTENT of a block whose references are all gone: allowed; the history that the
/// kernel deletes here stays.
#[test]
fn alloc_of_a_block_that_was_freed() {
    let mut shadow = shadow();
    shadow.modify(&action(ActionKind::Alloc, tree(5))).unwrap();
    shadow.modify(&action(ActionKind::Drop, tree(5))).unwrap();
    assert_eq!(entry(&shadow).num_refs, 0);
    shadow.modify(&action(ActionKind::Alloc, DATA)).unwrap();
    assert_eq!(counts(&shadow), (1, vec![(DATA, 1)], vec![(5, 1)]));
    assert!(!entry(&shadow).metadata, "what it is, the new item says");
    let kinds: Vec<_> = entry(&shadow).history().map(|step| step.kind).collect();
    assert_eq!(kinds, [ActionKind::Alloc, ActionKind::Drop, ActionKind::Free, ActionKind::Alloc]);
}

/// `btrfs_ref_tree_mod`: "trying to do action %d to bytenr %llu num_bytes %llu but there is no existing entry!".
#[test]
fn add_and_drop_without_an_entry() {
    for kind in [ActionKind::Add, ActionKind::Drop] {
        refused(&mut shadow(), &action(kind, DATA), Code::RefNoExtentItem);
    }
}

/// `btrfs_ref_tree_mod`: "trying to do action %d for a bytenr that has 0 total references".
#[test]
fn add_and_drop_without_references() {
    for kind in [ActionKind::Add, ActionKind::Drop] {
        let mut shadow = shadow();
        shadow.modify(&action(ActionKind::Alloc, DATA)).unwrap();
        shadow.modify(&action(ActionKind::Drop, DATA)).unwrap();
        refused(&mut shadow, &action(kind, DATA), Code::RefNoReferences);
        // The same where the extent tree itself said that it is gone.
        shadow.load(BYTENR, None);
        refused(&mut shadow, &action(kind, DATA), Code::RefNoReferences);
    }
}

/// `btrfs_ref_tree_mod`: "dropping a ref for a existing root that doesn't have a ref on the block". Outside the
/// kernel several are dropped at once: more than there are.
#[test]
fn drop_of_more_than_there_are() {
    let mut shadow = shadow();
    shadow.load(BYTENR, Some(&record(BYTENR, None, &[(DATA, 2), (OTHER, 9)])));
    refused(&mut shadow, &Action { count: 3, ..action(ActionKind::Drop, DATA) }, Code::RefDropExhausted);
    shadow.modify(&Action { count: 2, ..action(ActionKind::Drop, DATA) }).unwrap();
    assert_eq!(counts(&shadow), (9, vec![(OTHER, 9)], vec![(5, 9)]));
}

/// The same message where a count of 0 was loaded.
#[test]
fn drop_of_a_recorded_count_of_zero() {
    let mut shadow = shadow();
    shadow.load(BYTENR, Some(&record(BYTENR, None, &[(DATA, 0), (OTHER, 1)])));
    refused(&mut shadow, &action(ActionKind::Drop, DATA), Code::RefDropExhausted);
}

/// `btrfs_ref_tree_mod`: "dropping a ref for a root that doesn't have a ref on the block". Every field of the key
/// counts (`comp_refs`).
#[test]
fn drop_of_an_unknown_reference() {
    let others = [
        OTHER,
        RefKey { root: 6, ..DATA },
        RefKey { offset: 4096, ..DATA },
        RefKey::shared_data(8192),
        RefKey::shared_tree(8192, 0),
    ];
    for other in others {
        let mut shadow = shadow();
        shadow.load(BYTENR, Some(&record(BYTENR, None, &[(DATA, 1)])));
        refused(&mut shadow, &action(ActionKind::Drop, other), Code::RefDropUnknown);
    }
}

/// `btrfs_ref_tree_mod`: "attempting to add another ref for an existing ref on a tree block".
#[test]
fn second_reference_on_a_tree_block() {
    for key in [tree(5), RefKey::shared_tree(8192, 0)] {
        let mut shadow = shadow();
        shadow.load(BYTENR, Some(&record(BYTENR, Some(0), &[(key, 1)])));
        refused(&mut shadow, &action(ActionKind::Add, key), Code::RefDuplicateTreeRef);
        shadow.modify(&action(ActionKind::Add, tree(6))).unwrap();
        let twice = Action { count: 2, ..action(ActionKind::Add, tree(7)) };
        refused(&mut shadow, &twice, Code::RefDuplicateTreeRef);
    }
    // Both at once, at the allocation.
    let twice = Action { count: 2, ..action(ActionKind::Alloc, tree(5)) };
    refused(&mut shadow(), &twice, Code::RefDuplicateTreeRef);
}

/// `btrfs_ref_tree_mod`: data may be referred to any number of times by one key.
#[test]
fn more_references_to_data() {
    let mut shadow = shadow();
    shadow.modify(&Action { count: 2, ..action(ActionKind::Alloc, DATA) }).unwrap();
    shadow.modify(&action(ActionKind::Add, DATA)).unwrap();
    shadow.modify(&action(ActionKind::Add, RefKey::shared_data(8192))).unwrap();
    // Shared references name no root.
    assert_eq!(counts(&shadow).0, 4);
    assert_eq!(counts(&shadow).2, [(5, 3)]);
    shadow.modify(&Action { count: 3, ..action(ActionKind::Drop, DATA) }).unwrap();
    assert_eq!(counts(&shadow), (1, vec![(RefKey::shared_data(8192), 1)], vec![(5, 0)]));
}

/// `btrfs_ref_tree_mod`: "failed to find root %llu for %llu" can't be reached: every action by a root makes its entry
/// first. Whether there is such a root is asked of the root tree, at each commit.
#[test]
fn an_action_makes_the_entry_of_its_root() {
    let mut shadow = shadow();
    shadow.load(BYTENR, Some(&record(BYTENR, None, &[(DATA, 1)])));
    shadow.modify(&action(ActionKind::Add, RefKey { root: 99, ..DATA })).unwrap();
    assert_eq!(counts(&shadow).2, [(5, 1), (99, 1)]);
}

/// Unlike the kernel's, the machine goes on after a violation.
#[test]
fn goes_on_after_a_violation() {
    let mut shadow = shadow();
    shadow.load(BYTENR, Some(&record(BYTENR, None, &[(DATA, 1)])));
    refused(&mut shadow, &action(ActionKind::Drop, OTHER), Code::RefDropUnknown);
    refused(&mut shadow, &action(ActionKind::Alloc, OTHER), Code::RefReallocated);
    shadow.modify(&action(ActionKind::Add, OTHER)).unwrap();
    shadow.modify(&action(ActionKind::Drop, DATA)).unwrap();
    shadow.modify(&action(ActionKind::Drop, OTHER)).unwrap();
    assert_eq!(entry(&shadow).num_refs, 0);
}

/// `btrfs_free_ref_tree_range`: "block entry overlaps a block group [%llu,%llu]!", at the start, where the entry
/// stays, and at the end, where it goes.
#[test]
fn free_range_with_overlaps() {
    let mut shadow = shadow();
    for bytenr in [BYTENR - 2048, BYTENR, BYTENR + LEN, BYTENR + 3 * LEN - 2048, BYTENR + 4 * LEN] {
        shadow.load(bytenr, Some(&record(bytenr, None, &[(DATA, 1)])));
    }
    let found = shadow.free_range(BYTENR, 3 * LEN);
    let found: Vec<_> = found.iter().map(|found| (found.code, found.bytenr)).collect();
    let code = Code::SpaceBlockGroupOverlap;
    assert_eq!(found, [(code, BYTENR - 2048), (code, BYTENR + 3 * LEN - 2048)]);
    let left: Vec<_> =
        (0..=64).filter_map(|n| shadow.entry(BYTENR - 2048 + n * 2048)).map(|e| e.bytenr).collect();
    assert_eq!(left, [BYTENR - 2048, BYTENR + 4 * LEN]);
}

/// `btrfs_free_ref_tree_range`: an empty block group, and one up to its very edges.
#[test]
fn free_range_without_overlaps() {
    let mut shadow = shadow();
    assert!(shadow.free_range(BYTENR, LEN).is_empty());
    for bytenr in [BYTENR - LEN, BYTENR, BYTENR + LEN] {
        shadow.load(bytenr, Some(&record(bytenr, None, &[(DATA, 1)])));
    }
    assert!(shadow.free_range(BYTENR, LEN).is_empty());
    assert!(shadow.entry(BYTENR).is_none());
    assert_eq!(shadow.len(), 2);
    assert!(shadow.free_range(0, u64::MAX).is_empty());
    assert_eq!((shadow.len(), shadow.memory()), (0, 0));
}

/// `dump_block_entry` and `dump_ref_action`: the block, its references, its roots, its history.
#[test]
fn dump_of_an_entry() {
    let mut shadow = shadow();
    shadow.load(BYTENR, Some(&record(BYTENR, None, &[(DATA, 2), (RefKey::shared_data(8192), 1)])));
    shadow.modify(&action(ActionKind::Add, RefKey { offset: 4096u64.wrapping_neg(), ..DATA })).unwrap();
    let dump = entry(&shadow).to_string();
    for line in [
        "block entry [1048576 4096], num_refs 4, metadata 0, from disk 1",
        "ref root 5, parent 0, owner 257, offset 0, num_refs 2",
        "ref root 0, parent 8192, owner 0, offset 0, num_refs 1",
        "offset -4096, num_refs 1",
        "root entry 5, num_refs 3",
        "generation 9: add, ref_root 5",
        "held by block 7340032 slot 3",
    ] {
        assert!(dump.contains(line), "no {line:?} in\n{dump}");
    }
}
