//! `btrfs_build_ref_tree`: records out of the items of the extent tree, and entries out of records.

use parser::key::item;
use parser::superblock::incompat;
use parser::{ChecksumType, Key};
use shadow::record::{BuiltRecord, RecordBuilder, Site};
use shadow::{BlockEntry, Code, Geometry, RefKey};

use super::{BYTENR, LEN};
use crate::support::model::{inline_bytes, keyed_item};
use crate::support::{Config, Extent, Holder, model};

fn geometry(config: &Config) -> Geometry {
    Geometry {
        nodesize: 4096,
        sectorsize: 4096,
        csum: ChecksumType::Crc32c,
        fsid: [0; 16],
        metadata_uuid: [0; 16],
        incompat: config.incompat(),
        compat_ro: 0,
        devid: 1,
    }
}

fn build(config: &Config, items: &[(Key, Vec<u8>)]) -> BuiltRecord {
    let geometry = geometry(config);
    let mut builder = RecordBuilder::new(&geometry, BYTENR);
    let mut items = items.to_vec();
    items.sort();
    for (slot, (key, data)) in items.iter().enumerate() {
        // Every item on a leaf of its own.
        builder.push(key, data, Site { block: slot as u64 * 4096, slot });
    }
    builder.finish()
}

fn extent(level: Option<u8>, refs: &[(Holder, u32)]) -> Extent {
    Extent { len: LEN, level, generation: 7, full: false, refs: refs.iter().copied().collect() }
}

fn data(root: u64) -> Holder {
    Holder::Data { root, inode: 257, offset: 0 }
}

fn codes(built: &BuiltRecord) -> Vec<Code> {
    built.violations.iter().map(|violation| violation.code).collect()
}

/// An extent item with `inline` behind it.
fn raw(level: Option<u8>, refs: u64, inline: &[&[u8]]) -> (Key, Vec<u8>) {
    let config = Config::default();
    let mut items = model::record(BYTENR, &extent(level, &[]), &config, false);
    let (key, mut bytes) = items.pop().unwrap();
    bytes[..8].copy_from_slice(&refs.to_le_bytes());
    inline.iter().for_each(|inline| bytes.extend(*inline));
    (key, bytes)
}

/// `process_extent_item` and `process_leaf`: every kind of backref, inline, keyed, and keyed on the next leaf, in
/// skinny and old items: the same record.
#[test]
fn every_kind_of_backref() {
    let tree =
        extent(Some(1), &[(Holder::Tree(5), 1), (Holder::Tree(300), 1), (Holder::SharedTree(8192), 1)]);
    let file = extent(None, &[(data(5), 3), (data(300), 1), (Holder::SharedData(8192), 2)]);
    for (extent, total) in [(&tree, 3), (&file, 6)] {
        for skinny in [true, false] {
            let config = Config { skinny, ..Config::default() };
            let inline = build(&config, &model::record(BYTENR, extent, &config, false));
            let keyed = build(&config, &model::record(BYTENR, extent, &config, true));
            for built in [&inline, &keyed] {
                assert_eq!(codes(built), []);
                let record = built.record.as_ref().unwrap();
                assert_eq!(
                    (record.bytenr, record.len, record.level, record.refs),
                    (BYTENR, LEN, extent.level, total)
                );
                assert_eq!((record.generation, record.backrefs.len(), record.backref_sum()), (7, 3, total));
                let entry = BlockEntry::from_record(record);
                assert_eq!(
                    (entry.num_refs, entry.metadata, entry.from_disk),
                    (total, extent.level.is_some(), true)
                );
                // Shared references name no root (`add_tree_block`, `add_shared_data_ref`).
                let roots: Vec<_> = entry.roots().iter().map(|root| root.root).collect();
                assert_eq!(roots, [5, 300]);
            }
            let keys = |built: &BuiltRecord| {
                let record = built.record.as_ref().unwrap();
                BlockEntry::from_record(record).refs().to_vec()
            };
            assert_eq!(keys(&inline), keys(&keyed));
        }
    }
}

/// `add_tree_block`: the level of the item is the owner of its references.
#[test]
fn the_level_is_the_owner() {
    let config = Config::default();
    let built =
        build(&config, &model::record(BYTENR, &extent(Some(3), &[(Holder::Tree(5), 1)]), &config, true));
    assert_eq!(built.record.unwrap().backrefs[0].key, RefKey::tree(5, 3));
}

/// `process_extent_item`: "found extent owner ref without simple quotas enabled".
#[test]
fn owner_refs() {
    let owner = [&[item::EXTENT_OWNER_REF][..], &5u64.to_le_bytes()].concat();
    let backref = inline_bytes(&data(5), 1);
    let items = [raw(None, 1, &[&owner, &backref])];
    assert_eq!(codes(&build(&Config::default(), &items)), [Code::RefOwnerRef]);
    let config = Config { simple_quota: true, ..Config::default() };
    assert_eq!(config.incompat() & incompat::SIMPLE_QUOTA, incompat::SIMPLE_QUOTA);
    let built = build(&config, &items);
    assert_eq!(codes(&built), []);
    assert_eq!(built.record.unwrap().backrefs.len(), 1, "an owner ref is no reference");
}

/// `add_extent_data_ref`, `add_shared_data_ref`: "existing (shared) ref when reading from disk?". The kernel only
/// counts up where a tree block's is recorded twice; a second one can't be right either.
#[test]
fn duplicate_backrefs() {
    for (level, holder) in [
        (None, data(5)),
        (None, Holder::SharedData(8192)),
        (Some(0), Holder::Tree(5)),
        (Some(0), Holder::SharedTree(8192)),
    ] {
        let backref = inline_bytes(&holder, 1);
        let twice = build(&Config::default(), &[raw(level, 2, &[&backref, &backref])]);
        assert_eq!(codes(&twice), [Code::RefDuplicateBackref]);
        let also_keyed = [raw(level, 2, &[&backref]), keyed_item(BYTENR, &holder, 1)];
        let also_keyed = build(&Config::default(), &also_keyed);
        assert_eq!(codes(&also_keyed), [Code::RefDuplicateBackref]);
        assert_eq!(also_keyed.record.unwrap().backref_sum(), 2);
    }
}

/// `process_extent_item`: "invalid key type in iref"; what comes before it is taken.
#[test]
fn invalid_types() {
    for invalid in [0, 168, 180, 192, 255] {
        let backref = inline_bytes(&data(5), 1);
        let built =
            build(&Config::default(), &[raw(None, 1, &[&backref, &[invalid, 0, 0, 0, 0, 0, 0, 0, 0]])]);
        assert_eq!(codes(&built), [Code::RefInvalidBackref]);
        assert_eq!(built.record.unwrap().backrefs.len(), 1);
    }
    let v0 = (Key::new(BYTENR, item::EXTENT_REF_V0, 5), vec![0; 20]);
    let built = build(&Config::default(), &[raw(None, 1, &[&inline_bytes(&data(5), 1)]), v0]);
    assert_eq!(codes(&built), [Code::RefInvalidBackref]);
}

/// Cut short anywhere: a violation, never a panic.
#[test]
fn truncated_items() {
    for (level, holder) in [(None, data(5)), (None, Holder::SharedData(8192)), (Some(0), Holder::Tree(5))] {
        let (key, bytes) = raw(level, 1, &[&inline_bytes(&holder, 1)]);
        for len in 0..bytes.len() {
            let built = build(&Config::default(), &[(key, bytes[..len].to_vec())]);
            let expected = if len < 24 {
                vec![Code::TreeExtentItem]
            } else if len == 24 {
                vec![Code::RefCount]
            } else {
                vec![Code::RefInvalidBackref, Code::RefCount]
            };
            assert_eq!(codes(&built), expected, "{holder:?} cut to {len}");
        }
        let (keyed, data) = keyed_item(BYTENR, &holder, 1);
        for len in (0..data.len() + 2).filter(|len| *len != data.len()) {
            let mut data = data.clone();
            data.resize(len, 0);
            let built = build(&Config::default(), &[raw(level, 0, &[]), (keyed, data)]);
            assert_eq!(codes(&built), [Code::RefInvalidBackref, Code::RefCount]);
        }
    }
}

/// A count of 0 is no reference.
#[test]
fn counts_of_zero() {
    for holder in [data(5), Holder::SharedData(8192)] {
        let built = build(&Config::default(), &[raw(None, 0, &[&inline_bytes(&holder, 0)])]);
        assert_eq!(codes(&built), [Code::RefInvalidBackref, Code::RefCount]);
    }
}

/// The refs field against the sum of the backrefs.
#[test]
fn refs_and_sum() {
    for refs in [0, 1, 3, u64::MAX] {
        let backref = inline_bytes(&data(5), 2);
        assert_eq!(codes(&build(&Config::default(), &[raw(None, refs, &[&backref])])), [Code::RefCount]);
    }
    let huge: Vec<Vec<u8>> = (0..9).map(|root| inline_bytes(&data(root), u32::MAX)).collect();
    let huge: Vec<&[u8]> = huge.iter().map(Vec::as_slice).collect();
    let built = build(&Config::default(), &[raw(None, 9 * u64::from(u32::MAX), &huge)]);
    assert!(!codes(&built).contains(&Code::RefCount));
}

/// `process_leaf` reads a keyed backref with whatever extent item came last; here it is told apart.
#[test]
fn keyed_backrefs_without_an_extent_item() {
    for holder in [data(5), Holder::SharedData(8192), Holder::Tree(5), Holder::SharedTree(8192)] {
        let built = build(&Config::default(), &[keyed_item(BYTENR, &holder, 1)]);
        assert_eq!(codes(&built), [Code::RefNoExtentItem]);
        assert!(built.record.is_none());
    }
}

#[test]
fn very_many_backrefs_are_filed_like_a_few() {
    let config = Config::default();
    let holder = |inode| Holder::Data { root: 5, inode, offset: 0 };
    let refs: Vec<(Holder, u32)> =
        (0..20_000).map(|number| (holder(257 + number * 7919 % 20_011), 1)).collect();
    let mut items = model::record(BYTENR, &extent(None, &refs), &config, false);
    items.sort();
    let built = build(&config, &items);
    assert_eq!(codes(&built), []);
    let record = built.record.unwrap();
    assert_eq!(record.backrefs.len(), 20_000);
    let entry = BlockEntry::from_record(&record);
    assert!(entry.refs().is_sorted() && entry.refs().len() == 20_000);
    assert_eq!((entry.num_refs, entry.roots().len()), (20_000, 1));
    // The same again is still found out.
    let again = items.iter().find(|(key, _)| key.item_type == item::EXTENT_DATA_REF).unwrap().clone();
    let geometry = geometry(&config);
    let mut builder = RecordBuilder::new(&geometry, BYTENR);
    for (key, data) in items.iter().chain([&again]) {
        builder.push(key, data, Site { block: 0, slot: 0 });
    }
    assert!(codes(&builder.finish()).contains(&Code::RefDuplicateBackref));
}
