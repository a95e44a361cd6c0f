//! Commits that are verified before their super block is there: taken up where it is as foretold, and nothing else is
//! to be seen of it. That reports are the same is compared at every commit of every test ([`Rig::commit`]).

use parser::layout;
use parser::superblock::SIZE;
use shadow::forest::RootId;
use shadow::{Code, CommitReport, Origin};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::support::rig::{assert_clean, root_of};
use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };

/// A file system, and a commit to it that has been foreseen.
fn foreseen() -> (Rig, Vec<u8>) {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 60);
    let mut rig = Rig::attach(world);
    rig.world.write_file(TOP, 330, 0, 4096);
    let superblock = rig.world.commit();
    assert!(rig.verifier.foresee(root_of(&superblock), &rig.world.image));
    (rig, superblock)
}

/// Commits, and says how many blocks were read for it.
fn commit(rig: &mut Rig, superblock: &[u8]) -> (CommitReport, usize) {
    rig.world.image.take_reads();
    let report = rig.verifier.commit(superblock, &rig.world.image);
    (report, rig.world.image.take_reads().1)
}

/// The super block with something else in it.
fn changed(superblock: &[u8], change: impl Fn(&mut layout::SuperBlock)) -> Vec<u8> {
    let mut raw = layout::SuperBlock::read_from_bytes(&superblock[..SIZE]).unwrap();
    change(&mut raw);
    let mut bytes = raw.as_bytes().to_vec();
    Config::default().csum.seal(&mut bytes);
    bytes
}

#[track_caller]
fn assert_found(report: &CommitReport, code: Code) {
    let found: Vec<_> = report.violations.iter().map(|found| found.code).collect();
    assert_eq!(found, [code], "{report:#?}");
}

#[test]
fn what_was_foreseen_is_not_looked_at_again() {
    let (mut rig, superblock) = foreseen();
    let (report, reads) = commit(&mut rig, &superblock);
    assert_clean(&report);
    assert_eq!(reads, 0);
    assert!(rig.verifier.was_foreseen());
    assert!(report.blocks_born > 2 && report.actions.alloc > 2 && report.live.is_some(), "{report:#?}");
    assert_eq!(*rig.verifier.snapshot().unwrap().superblock, superblock);
    // Taken back, it is a commit like any other.
    rig.verifier.revoke();
    let (again, reads) = commit(&mut rig, &superblock);
    assert!(reads > 0 && !rig.verifier.was_foreseen());
    assert_eq!(format!("{report:#?}"), format!("{again:#?}"));
    rig.world.write_file(TOP, 331, 0, 4096);
    rig.clean();
}

#[test]
fn what_says_nothing_about_the_trees_may_change() {
    let (mut rig, superblock) = foreseen();
    let superblock = changed(&superblock, |raw| {
        raw.cache_generation = 7.into();
        raw.super_roots[2].tree_root = 12345.into();
    });
    let (report, reads) = commit(&mut rig, &superblock);
    assert_clean(&report);
    assert_eq!(reads, 0);
    assert_eq!(*rig.verifier.snapshot().unwrap().superblock, superblock);
}

#[test]
fn another_root_is_another_commit() {
    let (mut rig, superblock) = foreseen();
    let root = root_of(&superblock);
    // A block of another tree, one of another level, one of the last commit, and nothing at all.
    let last = root_of(&rig.verifier.snapshot().unwrap().superblock.clone());
    for wrong in [(rig.world.tree_blocks(TOP)[0], 0), (root.0, root.1 + 1), last, (1 << 40, 0)] {
        assert!(!rig.verifier.foresee(wrong, &rig.world.image), "{wrong:?}");
    }
    let (report, reads) = commit(&mut rig, &superblock);
    assert_clean(&report);
    assert!(reads > 0);
}

#[test]
fn a_block_that_is_written_afterwards_is_looked_at() {
    let (mut rig, superblock) = foreseen();
    let (bytenr, _) = root_of(&superblock);
    rig.world.write(bytenr, &[1; 4096]);
    let (report, _) = commit(&mut rig, &superblock);
    assert_found(&report, Code::TreeChecksum);
}

#[test]
fn a_wrong_sum_in_the_super_block_is_found() {
    let (mut rig, superblock) = foreseen();
    let wrong = changed(&superblock, |raw| raw.bytes_used = (raw.bytes_used.get() + 4096).into());
    let (report, reads) = commit(&mut rig, &wrong);
    assert!(reads > 0);
    let plain = {
        rig.verifier.revoke();
        rig.verifier.commit(&wrong, &rig.world.image)
    };
    assert_eq!(format!("{report:#?}"), format!("{plain:#?}"));

    let (mut rig, superblock) = foreseen();
    let wrong = changed(&superblock, |raw| raw.total_bytes = 4096.into());
    let (report, reads) = commit(&mut rig, &wrong);
    assert!(reads > 0, "{report:#?}");
}

#[test]
fn a_super_block_with_a_wrong_checksum_is_not_taken_up() {
    let (mut rig, mut superblock) = foreseen();
    superblock[0] ^= 1;
    let (report, _) = commit(&mut rig, &superblock);
    assert_found(&report, Code::TreeSuperBlock);
}

#[test]
fn a_block_that_was_not_flushed_or_is_not_there_yet_is_seen_when_the_super_block_comes() {
    for (origin, code) in [
        (Origin::Durable, None),
        (Origin::NotFlushed, None),
        (Origin::InFlight, Some(Code::WriteNotCompleted)),
        (Origin::NotWritten, Some(Code::WriteNotWritten)),
    ] {
        let (mut rig, superblock) = foreseen();
        let place = rig.world.places(root_of(&superblock).0)[0];
        rig.world.image.origins.insert(place, origin);
        let (report, _) = commit(&mut rig, &superblock);
        match code {
            Some(code) => assert_found(&report, code),
            None => assert_clean(&report),
        }
        assert_eq!(report.not_flushed.is_some(), origin == Origin::NotFlushed);
    }
}

#[test]
fn damage_that_becomes_known_in_between_counts() {
    let (mut rig, superblock) = foreseen();
    rig.verifier.know_damage(shadow::delta::references::Residuals::default());
    let (report, reads) = commit(&mut rig, &superblock);
    assert_clean(&report);
    assert!(reads > 0);
}

#[test]
fn what_may_still_be_taken_back_is_not_built_upon() {
    let (mut rig, superblock) = foreseen();
    commit(&mut rig, &superblock);
    rig.world.write_file(TOP, 331, 0, 4096);
    let next = rig.world.commit();
    assert!(!rig.verifier.foresee(root_of(&next), &rig.world.image));
    rig.verifier.settle();
    assert!(rig.verifier.foresee(root_of(&next), &rig.world.image));
    let (report, reads) = commit(&mut rig, &next);
    assert_clean(&report);
    assert_eq!(reads, 0);
}
