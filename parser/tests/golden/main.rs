//! The parser's views against `btrfs inspect-internal dump-tree` and `dump-super`, block by block and item by item, on
//! images that the kernel has written.
//!
//! Both sides are brought into one normal form, lines of text with numbers in place of names ([`dump`] from the tool's
//! output, [`views`] from the parser), and must be equal for every tree block of the image.

mod dump;
mod views;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use oracle::Volume;
use testkit::{Image, Spec, tool, workload};

/// Lines of each block, by bytenr.
type Blocks = BTreeMap<u64, Vec<String>>;

/// Compares all blocks of an image; returns how many lines there were of each item type (blocks under "block").
fn compare(spec: &Spec, image: &Image) -> BTreeMap<String, usize> {
    let path = image.path().to_str().unwrap();
    let theirs = dump::tree(&tool::stdout("btrfs", ["inspect-internal", "dump-tree", path]));
    let file = File::open(path).unwrap();
    let mut read = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
    let mut volume = Volume::open(&mut read).unwrap();
    let ours = views::tree(&mut volume);

    let super_block = tool::stdout("btrfs", ["inspect-internal", "dump-super", "-f", path]);
    assert_eq!(views::super_block(&volume.super_block()), dump::super_block(&super_block), "{}", spec.name);
    assert!(volume.super_block().verify_csum());

    let addresses = |blocks: &Blocks| blocks.keys().copied().collect::<Vec<_>>();
    assert_eq!(addresses(&ours), addresses(&theirs), "{}: tree blocks", spec.name);
    let mut seen = BTreeMap::new();
    for (bytenr, lines) in &ours {
        for (ours, theirs) in lines.iter().zip(&theirs[bytenr]) {
            assert_eq!(ours, theirs, "{}: block {bytenr}", spec.name);
            *seen.entry(kind(ours).to_owned()).or_default() += 1;
        }
        assert_eq!(lines.len(), theirs[bytenr].len(), "{}: block {bytenr}: lines", spec.name);
    }
    seen
}

/// The item type of a line, or "block", "pointer".
fn kind(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// Compares and asserts that enough items of each named type were among them, and none of those with a count of 0.
fn check(spec: &Spec, image: &Image, counts: &[&[(&str, usize)]]) {
    let seen = compare(spec, image);
    println!("{}: {seen:?}", spec.name);
    for (kind, count) in counts.iter().copied().flatten() {
        let found = seen.get(*kind).copied().unwrap_or(0);
        assert!(*count > 0 || found == 0, "{}: {found} of {kind}: {seen:?}", spec.name);
        assert!(found >= *count, "{}: {found} of {kind}, at least {count} wanted: {seen:?}", spec.name);
    }
}

/// What every image holds that [`workload::mixed`] has filled.
const EVERYWHERE: [(&str, usize); 12] = [
    ("block", 80),
    ("pointer", 50),
    ("EXTENT_DATA", 500),
    ("EXTENT_DATA_REF", 20),
    ("ROOT_ITEM", 25),
    ("ROOT_REF", 20),
    ("ROOT_BACKREF", 20),
    ("BLOCK_GROUP_ITEM", 2),
    ("DEV_EXTENT", 2),
    ("CHUNK_ITEM", 2),
    ("DEV_ITEM", 1),
    ("UUID_KEY_SUBVOL", 20),
];

#[test]
fn small_nodes_skinny_dup_crc32c() {
    let spec = Spec::new("4K skinny", "-n 4096 -m dup --csum crc32c");
    let image = spec.build(&(workload::mixed(60) + &workload::deep()));
    let every_form = [
        ("METADATA_ITEM", 200),
        ("TREE_BLOCK_REF", 20),
        ("SHARED_BLOCK_REF", 20),
        ("SHARED_DATA_REF", 5),
        ("data-ref", 100),
        ("tree-ref", 100),
        ("shared-ref", 100),
        ("shared-data-ref", 20),
        ("FREE_SPACE_INFO", 3),
        ("FREE_SPACE_EXTENT", 3),
        ("FREE_SPACE_BITMAP", 1),
    ];
    check(&spec, &image, &[&EVERYWHERE, &every_form]);
}

#[test]
fn large_nodes_skinny_single_xxhash() {
    let spec = Spec::new("16K skinny", "-n 16384 -m single --csum xxhash");
    let image = spec.build(&workload::mixed(130));
    check(&spec, &image, &[&EVERYWHERE, &[("METADATA_ITEM", 100), ("TREE_BLOCK_REF", 20)]]);
}

#[test]
fn small_nodes_without_skinny_metadata_sha256() {
    let spec = Spec::new("4K fat", "-n 4096 -m dup -O ^skinny-metadata --csum sha256");
    let image = spec.build(&(workload::mixed(40) + &workload::deep()));
    let fat = [("TREE_BLOCK_REF", 20), ("SHARED_BLOCK_REF", 20), ("METADATA_ITEM", 0)];
    check(&spec, &image, &[&EVERYWHERE, &fat]);
}

#[test]
fn large_nodes_without_skinny_metadata_blake2() {
    let spec = Spec::new("16K fat", "-n 16384 -O ^skinny-metadata --csum blake2");
    let image = spec.build(&workload::mixed(40));
    check(&spec, &image, &[&EVERYWHERE]);
}

#[test]
fn version_1_space_cache_holes_and_quotas() {
    let spec =
        Spec::new("v1 cache", "-n 16384 -O ^no-holes -R ^free-space-tree,quota").mounted("space_cache=v1");
    let image = spec.build(&workload::mixed(20));
    check(&spec, &image, &[&EVERYWHERE, &[("QGROUP_INFO", 20), ("FREE_SPACE_INFO", 0)]]);
}

#[test]
fn mixed_block_groups() {
    let spec = Spec::new("mixed", "--mixed -n 4096 -s 4096");
    let image = spec.build(&workload::mixed(20));
    check(&spec, &image, &[&EVERYWHERE]);
}

#[test]
fn half_deleted_subvolume() {
    let spec = Spec::new("half deleted", "-n 4096 -m single");
    let image = workload::half_deleted(&spec);
    check(&spec, &image, &[&[("block", 1000), ("ORPHAN_ITEM", 1), ("drop-cursor", 1), ("shared-ref", 100)]]);
}

#[test]
fn sixty_four_kilobyte_nodes() {
    let spec = Spec::new("64K", "-n 65536");
    let image = spec.build(&workload::mixed(20));
    check(&spec, &image, &[&[("block", 40), ("EXTENT_DATA", 500)]]);
}
