//! The model finds nothing on images that a kernel has written: at rest, half deleted, and in the middle of work.

use std::collections::BTreeSet;
use std::path::Path;

use oracle::{RefKey, Report, examine_file};
use testkit::{Spec, live, workload};

fn assert_clean(name: &str, path: &Path) -> Report {
    clean(name, examine_file(path))
}

fn clean(name: &str, result: Result<Report, String>) -> Report {
    let report = result.unwrap_or_else(|error| panic!("{name}: {error}"));
    let problems: Vec<_> = report.differences.iter().chain(&report.accounting).take(20).collect();
    assert!(problems.is_empty(), "{name}, generation {}: {problems:#?}", report.generation);
    report
}

/// How many references of each form were compared: tree, shared tree, data, shared data.
fn forms(report: &Report) -> [usize; 4] {
    let mut forms = [0; 4];
    for (_, key) in report.references.keys() {
        forms[match key {
            RefKey::Tree { .. } => 0,
            RefKey::SharedTree { .. } => 1,
            RefKey::Data { .. } => 2,
            RefKey::SharedData { .. } => 3,
        }] += 1;
    }
    forms
}

#[test]
fn nothing_to_find_in_any_format() {
    let all = workload::mixed(30) + &workload::deep();
    for (spec, script) in [
        (Spec::new("4K skinny", "-n 4096 -m dup"), &all),
        (Spec::new("4K fat", "-n 4096 -O ^skinny-metadata"), &all),
        (Spec::new("16K sha256 quota", "-n 16384 --csum sha256 -R quota"), &all),
        (
            Spec::new("v1", "-n 16384 -O ^no-holes -R ^free-space-tree").mounted("space_cache=v1"),
            &workload::mixed(20),
        ),
        (Spec::new("mixed", "--mixed -n 4096 -s 4096"), &workload::mixed(20)),
        (Spec::new("64K", "-n 65536"), &workload::mixed(20)),
        (Spec::new("empty", ""), &String::new()),
    ] {
        let image = spec.build(script);
        let report = assert_clean(spec.name, image.path());
        println!("{}: {} extents, forms {:?}", spec.name, report.extents.len(), forms(&report));
        if *script == all && spec.name.starts_with("4K") {
            assert!(forms(&report).iter().all(|count| *count > 50), "{:?}", forms(&report));
        }
    }
}

#[test]
fn half_deleted_subvolume() {
    for spec in [Spec::new("4K", "-n 4096 -m single"), Spec::new("16K", "-n 16384 -m single")] {
        let image = workload::half_deleted(&spec);
        let report = assert_clean(spec.name, image.path());
        println!("{} blocks, forms {:?}", report.tree_blocks.len(), forms(&report));
        assert!(forms(&report)[1] > 50, "shared tree blocks: {:?}", forms(&report));
        // The next mount goes on with the deletion.
        image.run("until_deleted; sync -f .");
        assert_clean(spec.name, image.path());
    }
}

/// Runs a script, up to forty times, and examines the image again and again meanwhile, as a power cut would leave it:
/// until `wanted` different commits have been seen.
fn watch(spec: &Spec, prepare: &str, script: &str, wanted: usize) {
    let image = spec.build(prepare);
    let mut generations = BTreeSet::new();
    for round in 1..=40 {
        let mut child = image.start(script);
        while child.try_wait().expect("the script's state").is_none() {
            let before = live::super_block(image.path());
            let result = examine_file(image.path());
            // Until the next super block is written, nothing of the last commit is overwritten.
            if before == live::super_block(image.path()) {
                generations.insert(clean(spec.name, result).generation);
            }
        }
        live::finish(child);
        assert_clean(spec.name, image.path());
        if generations.len() >= wanted {
            println!("{}: {} commits in {round} rounds", spec.name, generations.len());
            return;
        }
    }
    panic!("{}: only {} commits caught in the act", spec.name, generations.len());
}

#[test]
fn commits_in_the_middle_of_a_balance() {
    let prepare = workload::mixed(15) + &workload::deep();
    let balance = "btrfs balance start --full-balance . > /dev/null; sync -f .";
    watch(&Spec::new("balance 4K", "-n 4096 -m single"), &prepare, balance, 8);
    watch(&Spec::new("balance dup", "-n 16384 -m dup"), &workload::mixed(5), balance, 8);
}

#[test]
fn commits_in_the_middle_of_deletions() {
    let prepare = workload::mixed(15) + &workload::deep();
    let delete = r#"
        for i in 1 2 3 4 5 6; do
            btrfs -q subvolume snapshot deep new$i; touch new$i/f*a deep/fa?; sync -f .
            btrfs -q subvolume delete -c new$i; sync -f .
            dd if=/dev/urandom of=deep/fsynced bs=4k count=9 seek=$i conv=fsync,notrunc status=none
        done
        until_deleted
    "#;
    watch(&Spec::new("deletions", "-n 4096 -m single"), &prepare, delete, 12);
}

#[test]
fn simple_quotas_have_owner_refs_that_are_no_references() {
    let image = Spec::new("squota", "-n 16384").mkfs();
    image.run(&format!("{}\n{}", testkit::workload::enable_simple_quota(), workload::mixed(10)));
    let report = assert_clean("squota", image.path());
    assert!(report.owner_refs > 20, "{} owner refs", report.owner_refs);
}
