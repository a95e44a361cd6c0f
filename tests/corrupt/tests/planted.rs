//! Every kind of fault can be planted in real images, changes what it says and nothing else, and is a fault by the
//! model's account too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use corrupt::{Kind, Patches, Planted};
use oracle::{Report, Volume, examine};
use testkit::{Image, Spec, workload};

/// Reads an image as it would be with some bytes of it changed.
fn patched<'a>(file: &'a File, patches: &'a Patches) -> impl FnMut(u64, &mut [u8]) -> io::Result<()> + 'a {
    move |offset, bytes| {
        file.read_exact_at(bytes, offset)?;
        for (at, patch) in patches {
            let end = offset + bytes.len() as u64;
            for (index, byte) in patch.iter().enumerate() {
                let place = at + index as u64;
                if (offset..end).contains(&place) {
                    bytes[(place - offset) as usize] = *byte;
                }
            }
        }
        Ok(())
    }
}

fn images() -> Vec<(Spec, Image)> {
    // In this order: the last commit holds file extents, also where the script takes longer than the kernel's 30 s.
    let script = workload::deep() + &workload::mixed(40);
    let specs = [
        Spec::new("skinny dup", "-n 4096 -m dup -R quota"),
        Spec::new("fat single", "-n 4096 -m single -O ^skinny-metadata --csum xxhash"),
    ];
    specs
        .into_iter()
        .map(|spec| spec.mounted("commit=120"))
        .map(|spec| (spec.clone(), spec.build(&script)))
        .collect()
}

/// For what needs the whole root tree in one leaf.
fn small() -> (Spec, Image) {
    let spec = Spec::new("small dup", "-n 16384 -m dup");
    (spec.clone(), spec.build("btrfs -q subvolume create a; btrfs -q subvolume create b"))
}

/// Whether the model must see a fault of this kind: it knows about references and sums, and reads every tree, but
/// doesn't compare owners or the order of inline backrefs, and knows nothing of orphan items.
fn oracle_must_see(kind: &Kind) -> bool {
    let blind = ["header-owner", "out-of-order", "without-orphan"];
    !kind.expected.is_empty()
        && !kind.needs_past
        && !kind.is_beyond_model
        && !blind.iter().any(|name| kind.name.contains(name))
}

/// What is wrong with a planted fault; `None` when all is as it should be.
fn judge(kind: &Kind, planted: &Planted, result: &Result<Report, String>) -> Option<String> {
    let found = match result {
        Err(error) => vec![error.clone()],
        Ok(report) => report.differences.iter().chain(&report.accounting).cloned().collect(),
    };
    let change = &planted.change;
    if kind.expected.is_empty() && !found.is_empty() {
        return Some(format!("{}: harmless, but {found:?}: {change}", kind.name));
    }
    if oracle_must_see(kind) && found.is_empty() {
        return Some(format!("{}: not seen: {change}", kind.name));
    }
    None
}

#[test]
fn every_kind_is_a_fault_on_a_real_image() {
    let mut planted_in: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (spec, image) in images().into_iter().chain([small()]) {
        let file = File::open(image.path()).unwrap();
        let untouched = Patches::new();
        assert!(examine(&mut patched(&file, &untouched)).unwrap().differences.is_empty(), "{}", spec.name);
        for kind in corrupt::all().into_iter().filter(|kind| !kind.is_for_logs()) {
            let applied = planted_in.entry(kind.name.clone()).or_default();
            if spec.name == "small dup" && *applied > 0 {
                continue;
            }
            for seed in 0..2 {
                let Ok((planted, patches)) = corrupt::plan(&mut patched(&file, &untouched), &kind, seed)
                else {
                    continue;
                };
                *applied += 1;
                assert_eq!(patches.len(), if spec.name.ends_with("dup") { 2 } else { 1 }, "copies");
                let result = examine(&mut patched(&file, &patches));
                wrong.extend(judge(&kind, &planted, &result));
            }
        }
    }
    let unused: Vec<_> = planted_in.iter().filter(|(_, count)| **count == 0).collect();
    println!("{} kinds, {} faults", planted_in.len(), planted_in.values().sum::<usize>());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(unused.is_empty(), "kinds that apply nowhere: {unused:?}");
    assert!(planted_in.len() >= 40, "{} kinds", planted_in.len());
}

#[test]
fn blocks_are_put_together_as_the_kernel_does() {
    for (spec, image) in images() {
        let file = File::open(image.path()).unwrap();
        let mut read = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
        let mut volume = Volume::open(&mut read).unwrap();
        let blocks = corrupt::live_blocks(&mut volume).unwrap();
        for &bytenr in blocks.keys() {
            let mut bytes = volume.block(bytenr).unwrap().to_vec();
            bytes[..32].fill(0);
            let rebuilt = corrupt::rebuild(&bytes).unwrap();
            let first = bytes.iter().zip(&rebuilt).position(|(ours, theirs)| ours != theirs);
            assert_eq!(first, None, "{}: block {bytenr}: first byte that differs", spec.name);
        }
    }
}

#[test]
fn names_are_unique_and_families_known() {
    let kinds = corrupt::all();
    for (index, kind) in kinds.iter().enumerate() {
        assert!(kinds[..index].iter().all(|other| other.name != kind.name), "{}", kind.name);
        for family in kind.families() {
            assert!(["ref", "tree", "space", "root", "inode"].contains(&family), "{}: {family}", kind.name);
        }
        assert_eq!(corrupt::find(&kind.name).map(|found| found.name), Some(kind.name.clone()));
    }
}

#[test]
fn the_same_seed_plants_the_same_fault() {
    let (_, image) = images().swap_remove(0);
    let file = File::open(image.path()).unwrap();
    let untouched = Patches::new();
    for kind in corrupt::all().iter().step_by(7) {
        let plan = |seed| corrupt::plan(&mut patched(&file, &untouched), kind, seed);
        assert_eq!(plan(3), plan(3), "{}", kind.name);
    }
    let kind = corrupt::find("inline-data-wrong-root").unwrap();
    let changes: std::collections::BTreeSet<_> = (0..5)
        .map(|seed| corrupt::plan(&mut patched(&file, &untouched), &kind, seed).unwrap().0.change)
        .collect();
    assert!(changes.len() > 2, "{changes:?}");
}

#[test]
fn codes_and_families() {
    let planted = |expected: &[&'static str]| Planted {
        kind: String::new(),
        block: 0,
        change: String::new(),
        expected: expected.to_vec(),
    };
    assert!(planted(&["ref/count"]).is_found_in(["tree/level", "ref/count"]));
    assert!(!planted(&["ref/count"]).is_found_in(["ref/backref-count"]));
    assert!(planted(&["ref/"]).is_found_in(["ref/backref-count"]));
    assert!(!planted(&["ref/"]).is_found_in([]));
    assert!(planted(&[]).is_found_in([]));
    assert!(!planted(&[]).is_found_in(["ref/count"]));
}
