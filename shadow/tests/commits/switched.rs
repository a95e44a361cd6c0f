//! Rules that are switched: off is silent, a warning changes no verdict, and a block that can't be used is never
//! called verified.

use std::sync::Arc;

use parser::Key;
use parser::key::item;
use shadow::forest::RootId;
use shadow::{CommitReport, Rules, Severity, Verdict, Verifier};

use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };

/// Commits a fault with rules switched; the commits after it have nothing to say.
fn commit_with(switches: &[&str], fault: impl Fn(u64) -> Fault<'static>) -> CommitReport {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 60);
    let mut rig = Rig::attach(world);
    let switches: Vec<_> = switches.iter().map(|text| text.parse().unwrap()).collect();
    let superblock = rig.verifier.snapshot().unwrap().superblock.clone();
    rig.verifier = Verifier::new(1 << 20).with_rules(Arc::new(Rules::new(&switches))).revocable(true);
    rig.verifier.attach(&superblock, &rig.world.image).unwrap();
    rig.world.write_file(TOP, 330, 0, 4096);
    let next = rig.world.next();
    let leaf =
        rig.world.tree_blocks(TOP).into_iter().rfind(|at| rig.world.get(*at).generation == next).unwrap();
    let report = rig.commit(&fault(leaf));
    rig.world.write_file(TOP, 330, 0, 4096);
    let after = rig.commit(&Fault::none());
    assert!(after.violations.is_empty(), "{:#?}", rig::messages(&after));
    report
}

fn lost_file_extent(leaf: u64) -> Fault<'static> {
    Fault::block(leaf, |spec| match &mut spec.content {
        Content::Leaf(items) => items.retain(|(key, _)| *key != Key::new(330, item::EXTENT_DATA, 0)),
        Content::Node(_) => unreachable!(),
    })
}

fn bad_checksum(leaf: u64) -> Fault<'static> {
    Fault::bytes(leaf, |bytes| bytes[4000] ^= 1)
}

#[test]
fn a_rule_that_is_off_is_silent_and_a_warning_changes_no_verdict() {
    let plain = commit_with(&[], lost_file_extent);
    assert_eq!(plain.verdict(), Verdict::Violations);
    let off = commit_with(&["ref/*=off", "tree/*=off"], lost_file_extent);
    assert!(off.violations.is_empty());
    assert_eq!((off.verdict(), off.violation_count()), (Verdict::Clean, 0));
    let warned = commit_with(&["ref/*=warn", "tree/*=warn"], lost_file_extent);
    assert_eq!((warned.verdict(), warned.violation_count()), (Verdict::Clean, 0));
    assert_eq!(warned.warning_count(), plain.violation_count());
    assert!(warned.violations.iter().all(|found| found.severity == Severity::Warning));
}

#[test]
fn a_block_that_cannot_be_used_stays_unverified() {
    for (switch, warnings) in [("tree/checksum=off", 0), ("tree/checksum=warn", 1)] {
        let report = commit_with(&[switch], bad_checksum);
        assert_eq!((report.verdict(), report.warning_count()), (Verdict::Unverified, warnings), "{switch}");
        assert!(report.unverified.iter().any(|reason| reason.contains("tree/checksum")), "{report:?}");
    }
}
