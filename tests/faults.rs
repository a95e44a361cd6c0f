//! Faults planted in commits of a real kernel, replayed through the built program: every one is found at the commit
//! that carries it, and by `check`; the same commits without a fault are clean.
//!
//! A subset of what `vm-scripts/fault-table` does.

use std::path::Path;

use replay::campaign::{Campaign, Clean};
use replay::{catalogue, table};

/// Faults of each kind.
const EACH: usize = 2;

#[test]
fn every_planted_fault_is_found_at_its_commit_and_no_sound_commit_is_accused() {
    let program = Path::new(env!("CARGO_BIN_EXE_btrfs-shadow"));
    let campaign = Campaign::record(&catalogue::plans());
    let Clean { clean, wrong } = campaign.replay_clean(program);
    assert!(wrong.is_empty(), "sound commits that were not found clean: {wrong:#?}");
    assert!(clean >= 60, "only {clean} commits were replayed");
    let trials = campaign.trials(EACH, |_| true);
    let findings = campaign.run(program, &trials);
    println!("{clean} commits replayed clean; {}", table::summary(&findings));
    let complaints = table::complaints(&findings);
    assert!(complaints.misses.is_empty(), "{}", complaints.misses.join("\n"));
    let (faults, kinds) = table::counted(&findings);
    assert!(faults >= 200 && kinds >= 40, "only {faults} faults of {kinds} kinds");
    // The places are chosen anew in each run, and now and then one makes more of a fault than it is.
    let oddities = complaints.oddities;
    assert!(oddities.len() * 100 <= faults, "{}", oddities.join("\n"));
}
