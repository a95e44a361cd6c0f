//! Items that violate a rule: reported by the commit that brings them, and by no other.

use parser::key::item;
use parser::layout as disk;
use parser::{Key, ids};
use shadow::Code;
use shadow::forest::RootId;
use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };

fn messages_of(rig: &mut Rig) -> Vec<(Code, String)> {
    let report = rig.commit(&Fault::none());
    report.violations.iter().map(|found| (found.code, found.message.clone())).collect()
}

/// An inode item without a kind of file; `size` makes it another one.
fn bad_inode(size: u64) -> Vec<u8> {
    disk::InodeItem { size: size.into(), ..disk::InodeItem::new_zeroed() }.as_bytes().to_vec()
}

fn put(rig: &mut Rig, id: RootId, key: Key, data: Vec<u8>) {
    let mut items = rig.world.items(id);
    items.insert(key, data);
    rig.world.write_tree(id, items);
}

#[test]
fn damage_is_reported_once_however_it_moves() {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 60);
    let mut rig = Rig::attach(world);
    let key = Key::new(330, item::INODE_ITEM, 0);
    put(&mut rig, TOP, key, bad_inode(0));
    let found = messages_of(&mut rig);
    assert!(matches!(&found[..], [(Code::TreeInodeItem, _)]), "{found:#?}");
    // Other items of the leaf, the item itself, the shape of the tree.
    rig.world.write_file(TOP, 329, 0, 4096);
    rig.clean();
    put(&mut rig, TOP, key, bad_inode(7));
    rig.clean();
    rig.world.shape.salt += 1;
    rig.world.shape.leaf += 3;
    let items = rig.world.items(TOP);
    rig.world.write_tree(TOP, items);
    rig.clean();
    // A snapshot, and what it changes.
    let snapshot = rig.world.snapshot(TOP, 400);
    rig.clean();
    rig.world.write_file(snapshot, 331, 0, 4096);
    rig.clean();
    // Mended, and broken again.
    put(&mut rig, TOP, key, bytes::inode_item());
    rig.clean();
    put(&mut rig, TOP, key, bad_inode(0));
    assert_eq!(messages_of(&mut rig).len(), 1);
}

#[test]
fn damage_that_was_there_at_attach_is_not_reported() {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 3);
    let mut items = world.items(TOP);
    items.insert(Key::new(301, item::INODE_ITEM, 0), bad_inode(0));
    world.write_tree(TOP, items);
    let mut rig = Rig::attach(world);
    rig.world.write_file(TOP, 300, 0, 4096);
    rig.clean();
    // A tree of a single leaf: a snapshot copies its items.
    rig.world.snapshot(TOP, 400);
    rig.clean();
}

#[test]
fn an_item_is_missing_before_another() {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 6);
    (world.shape.leaf, world.shape.every) = (100, u64::MAX);
    let items = world.items(TOP);
    world.write_tree(TOP, items);
    let mut rig = Rig::attach(world);
    rig.world.write_file(TOP, 305, 0, 4096);
    let leaf = *rig.world.tree_blocks(TOP).last().unwrap();
    let lost = Fault::block(leaf, |spec| {
        let Content::Leaf(items) = &mut spec.content else { panic!("a leaf") };
        items.retain(|(key, _)| *key != Key::new(302, item::INODE_ITEM, 0));
    });
    rig.fault(&lost, Code::TreeInodeOrder, leaf);
}

#[test]
fn keys_reach_into_the_next_block() {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 60);
    let mut rig = Rig::attach(world);
    rig.world.write_file(TOP, 310, 0, 4096);
    let next = rig.world.next();
    let blocks = rig.world.tree_blocks(TOP);
    let new = blocks.iter().filter(|bytenr| rig.world.get(**bytenr).generation == next);
    let leaf = *new.max_by_key(|bytenr| std::cmp::Reverse(rig.world.get(**bytenr).level)).unwrap();
    let beyond = Fault::block(leaf, |spec| {
        let Content::Leaf(items) = &mut spec.content else { panic!("a leaf") };
        items.last_mut().unwrap().0 = Key::new(358, item::INODE_ITEM, 0);
    });
    rig.fault(&beyond, Code::TreeKeyOrder, leaf);
}

#[test]
fn a_header_of_the_wrong_kind() {
    for (at, bit) in [(56, 1u8), (63, 1)] {
        let mut rig = Rig::attach(World::new(Config::default()));
        rig.world.write_file(TOP, 300, 0, 4096);
        let leaf = *rig.world.tree_blocks(TOP).last().unwrap();
        let fault = Fault::bytes(leaf, move |bytes| {
            bytes[at] ^= bit;
            parser::ChecksumType::Crc32c.seal(bytes);
        });
        rig.fault(&fault, Code::TreeHeader, leaf);
    }
    let mut rig = Rig::attach(World::new(Config::default()));
    rig.world.write_file(TOP, 300, 0, 4096);
    let leaf = *rig.world.tree_blocks(TOP).last().unwrap();
    let report = rig.commit(&Fault::block(leaf, |spec| spec.content = Content::Leaf(Vec::new())));
    assert!(
        report.violations.iter().any(|found| found.code == Code::TreeHeader),
        "{:#?}",
        rig::messages(&report)
    );
}

/// What no recorded guest has, or nothing else would notice.
#[test]
fn single_items() {
    use shadow::items::{Context, Item, check};
    let orphan = Key::new(ids::ORPHAN, item::ORPHAN_ITEM, 300);
    let extref = |hash| Key::new(300, item::INODE_EXTREF, hash);
    let name = |parent: u64, name: &[u8]| {
        let fixed = disk::InodeExtRef {
            parent_objectid: parent.into(),
            index: 3.into(),
            name_len: u16::try_from(name.len()).unwrap().into(),
        };
        [fixed.as_bytes(), name].concat()
    };
    let hash = parser::csum::extref_hash(256, b"name");
    let stripe = |start| Key::new(start, item::RAID_STRIPE, 65536);
    let log = Key::new(300, item::DIR_LOG_INDEX, 5);
    let relation = Key::new(257, item::QGROUP_RELATION, 1 << 48);
    let status = Key::new(0, item::QGROUP_STATUS, 0);
    let bitmap = |bits: u64| Key::new(1 << 20, item::FREE_SPACE_BITMAP, bits * 4096);
    let root = |id: u64, offset| Key::new(id, item::ROOT_ITEM, offset);
    let empty = vec![0; size_of::<disk::LegacyRootItem>()];
    let rows: Vec<(u64, Key, Vec<u8>, Option<Code>)> = vec![
        (5, orphan, vec![], None),
        (5, orphan, vec![0], Some(Code::TreeOrphanItem)),
        (1, Key { objectid: 300, ..orphan }, vec![], Some(Code::TreeOrphanItem)),
        (5, extref(hash), name(256, b"name"), None),
        (5, extref(hash), [name(256, b"name"), name(256, b"name")].concat(), None),
        (5, extref(hash), name(257, b"name"), Some(Code::TreeInodeRef)),
        (5, extref(hash), name(256, b""), Some(Code::TreeInodeRef)),
        (5, extref(hash), vec![], Some(Code::TreeInodeRef)),
        (12, stripe(65536), vec![0; 16], Some(Code::TreeRaidStripe)),
        (12, stripe(65537), vec![0; 16], Some(Code::TreeRaidStripe)),
        (ids::TREE_LOG, log, vec![0; 8], None),
        (ids::TREE_LOG, log, vec![0; 9], Some(Code::TreeLogItem)),
        (5, log, vec![0; 8], Some(Code::TreeItemPlace)),
        (8, relation, vec![], None),
        (8, relation, vec![0; 8], Some(Code::TreeQgroupItem)),
        (8, status, vec![0; 32], None),
        (8, status, vec![0; 40], None),
        (8, status, vec![0; 24], Some(Code::TreeQgroupItem)),
        (10, bitmap(2048), vec![0; 256], None),
        (10, bitmap(100), vec![0; 13], None),
        (10, bitmap(100), vec![0; 12], Some(Code::TreeFreeSpaceItem)),
        (10, bitmap(2056), vec![0; 257], Some(Code::TreeFreeSpaceItem)),
        (1, root(ids::CSUM_TREE, 0), empty.clone(), None),
        (1, root(ids::CSUM_TREE, 2), empty.clone(), Some(Code::TreeRootItem)),
        // As btrfs-convert and every snapshot have it.
        (1, root(ids::DATA_RELOC_TREE, 2), empty.clone(), None),
        (1, root(257, 7), empty, None),
        // A tree, and an item type, of the future.
        (14, orphan, vec![0], Some(Code::TreeOrphanItem)),
        (14, stripe(0), vec![], Some(Code::TreeRaidStripe)),
        (5, Key::new(300, 77, 0), vec![1, 2, 3], None),
    ];
    let rig = Rig::attach(World::new(Config::default()));
    let snapshot = rig.verifier.snapshot().unwrap();
    for (owner, key, data, code) in rows {
        let context = Context::new(&snapshot.geometry, snapshot.generation, owner);
        let found = check(&context, &Item { key, data: &data, previous: None });
        assert_eq!(found.as_ref().err().map(|fault| fault.code), code, "{key} in {owner}: {found:?}");
    }
}
