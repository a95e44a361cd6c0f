//! Blocks that can't be read for one reason that is not theirs: one report, at the commit that comes upon it first.

use shadow::forest::RootId;
use shadow::{Code, CommitReport, ReadError, Verdict};

use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };
const PAST_THE_END: ReadError = ReadError::OutOfBounds { devid: 1, offset: 0 };

/// Writes many leaves; their addresses.
fn write_leaves(world: &mut World, first: u64) -> Vec<u64> {
    world.fill(TOP, first, 60);
    let next = world.next();
    let blocks = world.tree_blocks(TOP);
    let is_new_leaf = |bytenr: &u64| {
        let block = world.get(*bytenr);
        block.level == 0 && block.generation == next
    };
    let mut leaves: Vec<u64> = blocks.into_iter().filter(is_new_leaf).collect();
    leaves.sort_unstable();
    assert!(leaves.len() > 8, "{}", leaves.len());
    leaves
}

/// Commits; reading these copies of these blocks fails.
fn commit(rig: &mut Rig, blocks: &[u64], copies: &[usize], error: &ReadError) -> CommitReport {
    let superblock = rig.world.commit();
    for bytenr in blocks {
        let places = rig.world.places(*bytenr);
        copies.iter().for_each(|copy| rig.world.image.fail(places[*copy], error.clone()));
    }
    rig.verifier.commit(&superblock, &rig.world.image)
}

fn rig() -> Rig {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 60);
    Rig::attach(world)
}

#[track_caller]
fn assert_found(report: &CommitReport, wanted: &[(Code, u64)]) {
    let mut found: Vec<_> = report.violations.iter().map(|found| (found.code, found.bytenr)).collect();
    found.sort_unstable_by_key(|(_, bytenr)| *bytenr);
    assert_eq!(found, wanted, "{:#?}", rig::messages(report));
}

/// Whether none of the copies can be read, or one of two.
#[test]
fn blocks_past_the_end_of_a_device_are_one_report() {
    for copies in [&[0, 1][..], &[0], &[1]] {
        let mut rig = rig();
        let leaves = write_leaves(&mut rig.world, 500);
        let report = commit(&mut rig, &leaves, copies, &PAST_THE_END);
        assert_found(&report, &[(Code::TreeUnreadable, leaves[0])]);
        let message = &report.violations[0].message;
        assert!(message.contains(&format!("{} more ({}, ", leaves.len() - 1, leaves[1])), "{message}");
        assert_eq!(report.violations[0].found, shadow::Worth::Number(leaves.len() as u64));
        assert_eq!(report.violation_count(), 1);
        // The next commit has more of them: nothing new.
        let leaves = write_leaves(&mut rig.world, 700);
        let report = commit(&mut rig, &leaves, copies, &PAST_THE_END);
        assert_found(&report, &[]);
        assert_eq!(report.verdict(), Verdict::Unverified);
        let told = report.unverified.iter().filter(|why| why.contains("devid 1 ends too early")).count();
        assert_eq!(told, 1, "{:?}", report.unverified);
    }
}

#[test]
fn a_block_with_a_fault_of_its_own_is_a_report_of_its_own() {
    let mut rig = rig();
    let mut leaves = write_leaves(&mut rig.world, 500);
    let (bad, worse) = (leaves.remove(3), leaves.remove(5));
    let superblock = rig.world.commit();
    for bytenr in [bad, worse] {
        rig.world.write(bytenr, &[0; 4096]);
    }
    for place in leaves.iter().flat_map(|bytenr| rig.world.places(*bytenr)).collect::<Vec<_>>() {
        rig.world.image.fail(place, PAST_THE_END);
    }
    let report = rig.verifier.commit(&superblock, &rig.world.image);
    let own = [(Code::TreeChecksum, bad), (Code::TreeChecksum, worse)];
    assert_found(&report, &[&[(Code::TreeUnreadable, leaves[0])], &own[..]].concat());
}

/// A chunk by whose item all of it lies past the end of the device is named.
#[test]
fn a_chunk_past_the_end_is_one_report() {
    let mut rig = rig();
    let leaves = write_leaves(&mut rig.world, 500);
    let metadata = &mut rig.world.chunks[1];
    metadata.stripes.iter_mut().for_each(|stripe| *stripe += 1 << 41);
    let chunk = metadata.logical;
    let report = commit(&mut rig, &leaves, &[0, 1], &PAST_THE_END);
    let unreadable: Vec<_> =
        report.violations.iter().filter(|found| found.code == Code::TreeUnreadable).collect();
    assert_eq!(unreadable.len(), 1, "{:#?}", rig::messages(&report));
    let message = &unreadable[0].message;
    assert!(message.contains(&format!("chunk {chunk} lies past the end of its device")), "{message}");
}

#[test]
fn what_is_not_known_for_one_reason_is_said_once() {
    for error in [ReadError::Io("gone".into()), ReadError::ForeignDevice(2)] {
        let mut rig = rig();
        let leaves = write_leaves(&mut rig.world, 500);
        let report = commit(&mut rig, &leaves, &[0, 1], &error);
        assert_found(&report, &[]);
        let wanted = format!("{} blocks ({}, ", leaves.len(), leaves[0]);
        let told: Vec<_> = report.unverified.iter().filter(|why| why.contains(&error.to_string())).collect();
        assert_eq!(told.len(), 1, "{:?}", report.unverified);
        assert!(told[0].starts_with(&wanted), "{told:?}");
    }
}
