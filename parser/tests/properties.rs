//! No input makes the parser panic: every view and every accessor on arbitrary bytes, on bytes with a plausible
//! header, and on real blocks with some of their bytes changed. And what the views say of real blocks holds together.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::LazyLock;

use oracle::Volume;
use parser::block::HEADER_SIZE;
use parser::csum::extent_data_ref_hash;
use parser::key::item;
use parser::{BackRef, Block, ExtentItem, Key, check};
use proptest::prelude::*;
use testkit::{Spec, workload};

/// The fuzz target's.
#[path = "../../tests/fuzz/src/views.rs"]
mod views;

#[path = "../../tests/common/cases.rs"]
mod cases;

use cases::cases;
use views::{use_block, use_item, use_super_block};

/// A leaf of 1000 bytes with these items, their data from the end of the block on.
fn leaf_of(items: &[(Key, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; 1000];
    bytes[96..100].copy_from_slice(&(items.len() as u32).to_le_bytes());
    let mut end = bytes.len();
    for (slot, (key, data)) in items.iter().enumerate() {
        end -= data.len();
        bytes[end..end + data.len()].copy_from_slice(data);
        let item = &mut bytes[HEADER_SIZE + slot * 25..][..25];
        item[..8].copy_from_slice(&key.objectid.to_le_bytes());
        item[8] = key.item_type;
        item[9..17].copy_from_slice(&key.offset.to_le_bytes());
        item[17..21].copy_from_slice(&((end - HEADER_SIZE) as u32).to_le_bytes());
        item[21..25].copy_from_slice(&(data.len() as u32).to_le_bytes());
    }
    bytes
}

/// Up to 16 items with few different keys and data, so that two leaves have much in common.
fn few_items() -> impl Strategy<Value = Vec<(Key, Vec<u8>)>> {
    let data =
        prop_oneof![3 => Just(vec![1; 20]), 1 => Just(vec![2; 20]), 1 => Just(vec![]), 1 => Just(vec![3; 7])];
    proptest::collection::btree_map(0..20u64, data, 0..16)
        .prop_map(|items| items.into_iter().map(|(id, data)| (Key::new(id, 1, 0), data)).collect())
}

/// Asserts that both blocks have as much in common, from each pair of slots on, as a look at each slot says.
fn compare_runs(one: &[u8], other: &[u8]) {
    fn run(count: usize, same: impl Fn(usize) -> bool) -> usize {
        (0..count).take_while(|n| same(*n)).count()
    }
    match (Block::parse(one).unwrap(), Block::parse(other).unwrap()) {
        (Block::Leaf(a), Block::Leaf(b)) => {
            for (at, of) in (0..=a.len()).flat_map(|at| (0..=b.len()).map(move |of| (at, of))) {
                let same = |n| a.key(at + n) == b.key(of + n) && a.data(at + n) == b.data(of + n);
                let count = (a.len() - at).min(b.len() - of);
                assert_eq!(a.common_run(at, &b, of), run(count, same), "slots {at} and {of}");
            }
        }
        (Block::Node(a), Block::Node(b)) => {
            for (at, of) in (0..=a.len()).flat_map(|at| (0..=b.len()).map(move |of| (at, of))) {
                let same = |n| a.ptr(at + n) == b.ptr(of + n);
                let count = (a.len() - at).min(b.len() - of);
                assert_eq!(a.common_run(at, &b, of), run(count, same), "slots {at} and {of}");
            }
        }
        _ => {}
    }
}

/// The live tree blocks and the super block of a real image.
struct Real {
    super_block: Vec<u8>,
    blocks: Vec<Vec<u8>>,
}

static REAL: LazyLock<Real> = LazyLock::new(|| {
    let spec = Spec::new("properties", "-n 4096 -m dup -O ^skinny-metadata");
    let image = spec.build(&(workload::mixed(30) + &workload::deep()));
    let file = File::open(image.path()).unwrap();
    let mut read = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
    let report = oracle::examine(&mut read).unwrap();
    let mut volume = Volume::open(&mut read).unwrap();
    let blocks: Vec<_> = report.tree_blocks.iter().map(|&at| volume.block(at).unwrap().to_vec()).collect();
    assert!(blocks.len() > 200, "{} blocks", blocks.len());
    Real { super_block: volume.super_block().bytes().to_vec(), blocks }
});

/// Changes of single bytes: place (modulo the length) and new value. Half of them hit the header and the first items.
fn mutations() -> impl Strategy<Value = Vec<(usize, u8)>> {
    let place = prop_oneof![0..400usize, any::<usize>()];
    let value = prop_oneof![Just(0), Just(1), Just(0xff), Just(0x80), any::<u8>()];
    proptest::collection::vec((place, value), 1..12)
}

fn mutated(original: &[u8], mutations: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for (place, value) in mutations {
        let place = place % bytes.len();
        bytes[place] = *value;
    }
    bytes
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn arbitrary_bytes_as_a_block(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
        use_block(&bytes);
        use_super_block(&bytes);
    }

    #[test]
    fn arbitrary_items_under_a_plausible_header(
        mut bytes in proptest::collection::vec(any::<u8>(), HEADER_SIZE..1500),
        nritems in 0..60u8,
        level in 0..9u8,
    ) {
        bytes[96..101].copy_from_slice(&[nritems, 0, 0, 0, level]);
        use_block(&bytes);
    }

    #[test]
    fn arbitrary_bytes_as_an_item(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        objectid: u64,
        item_type: u8,
        offset: u64,
    ) {
        use_item(&Key::new(objectid, item_type, offset), &bytes);
    }

    #[test]
    fn real_blocks_with_changed_bytes(index: prop::sample::Index, mutations in mutations()) {
        let original: &Vec<u8> = index.get(&REAL.blocks);
        use_block(&mutated(original, &mutations));
    }

    #[test]
    fn real_blocks_cut_short(index: prop::sample::Index, length in 0..4096usize) {
        use_block(&index.get(&REAL.blocks)[..length]);
    }

    #[test]
    fn real_super_block_with_changed_bytes(mutations in mutations()) {
        let bytes = mutated(&REAL.super_block, &mutations);
        use_super_block(&bytes);
        // The system chunk array and what bounds it.
        let mut bytes = REAL.super_block.clone();
        for (place, value) in mutations {
            bytes[811 + place % 140] = value;
        }
        use_super_block(&bytes);
    }

    #[test]
    fn leaves_have_in_common_what_each_slot_says(one in few_items(), other in few_items()) {
        let (one, other) = (leaf_of(&one), leaf_of(&other));
        for leaf in [&one, &other] {
            check::block(&Block::parse(leaf).unwrap(), 4096).unwrap();
        }
        compare_runs(&one, &other);
        compare_runs(&one, &one);
    }

    #[test]
    fn a_real_block_and_its_copy_have_in_common_what_each_slot_says(
        index: prop::sample::Index,
        places in proptest::collection::vec(any::<usize>(), 0..3),
    ) {
        let original: &Vec<u8> = index.get(&REAL.blocks);
        let mut copy = original.clone();
        for place in places {
            // Anywhere behind the header of a node, in the data of a leaf: it stays well formed.
            let from = match Block::parse(original).unwrap() {
                Block::Node(_) => HEADER_SIZE,
                Block::Leaf(leaf) => HEADER_SIZE + 25 * leaf.len(),
            };
            let place = from + place % (copy.len() - from);
            copy[place] ^= 0x10;
        }
        let (one, other) = (Block::parse(original).unwrap(), Block::parse(&copy).unwrap());
        if check::block(&other, 1).is_ok() && one.first_key().is_some() {
            compare_runs(original, &copy);
        }
    }

    #[test]
    fn keys_are_ordered_as_on_disk(a: (u64, u8, u64), b: (u64, u8, u64)) {
        let key = |(objectid, item_type, offset)| Key::new(objectid, item_type, offset);
        prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
        prop_assert!(Key::MIN <= key(a) && key(a) <= Key::MAX);
    }
}

#[test]
fn real_blocks_are_well_formed() {
    for bytes in &REAL.blocks {
        let block = Block::parse(bytes).unwrap();
        check::block(&block, 4096).unwrap();
        use_block(bytes);
        let Block::Leaf(leaf) = block else { continue };
        for (slot, (key, _)) in leaf.items().enumerate() {
            assert_eq!(leaf.lower_bound(&key), slot);
        }
    }
}

/// Keyed data backrefs lie at the hash of what they say; after a collision at one of the places behind it.
#[test]
fn keyed_data_backrefs_lie_at_their_hash() {
    let mut distances: BTreeMap<u64, usize> = BTreeMap::new();
    for bytes in &REAL.blocks {
        let Block::Leaf(leaf) = Block::parse(bytes).unwrap() else { continue };
        for (key, data) in leaf.items().filter(|(key, _)| key.item_type == item::EXTENT_DATA_REF) {
            let BackRef::ExtentData { root, objectid, offset, .. } =
                BackRef::parse_keyed(&key, data).unwrap()
            else {
                panic!("{key} is no data backref")
            };
            *distances.entry(key.offset - extent_data_ref_hash(root, objectid, offset)).or_default() += 1;
        }
    }
    let exact = distances.get(&0).copied().unwrap_or(0);
    assert!(exact > 200, "{distances:?}");
    assert!(distances.keys().all(|distance| *distance < 4), "{distances:?}");
}

/// Inline data backrefs of one item stand in descending order of their hash.
#[test]
fn inline_data_backrefs_are_ordered_by_hash() {
    let mut pairs = 0;
    for bytes in &REAL.blocks {
        let Block::Leaf(leaf) = Block::parse(bytes).unwrap() else { continue };
        for (key, data) in leaf.items().filter(|(key, _)| key.item_type == item::EXTENT_ITEM) {
            let hashes: Vec<u64> = ExtentItem::parse(key.item_type, data)
                .unwrap()
                .inline_refs()
                .filter_map(|backref| match backref.unwrap() {
                    BackRef::ExtentData { root, objectid, offset, .. } => {
                        Some(extent_data_ref_hash(root, objectid, offset))
                    }
                    _ => None,
                })
                .collect();
            assert!(hashes.windows(2).all(|pair| pair[0] > pair[1]), "{key}: {hashes:?}");
            pairs += hashes.len().saturating_sub(1);
        }
    }
    assert!(pairs > 100, "{pairs} pairs");
}
