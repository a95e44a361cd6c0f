//! Situations of ordinary life, each posed exactly; every commit of them must be clean.

use parser::key::item;
use parser::{BlockFlags, ChecksumType, Key, ids};
use shadow::forest::RootId;

use crate::support::world::{DATA, METADATA};
use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };

/// A file system with a tree of three levels or so.
fn filled() -> Rig {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 60);
    assert!(world.roots[&TOP].level >= 2);
    Rig::attach(world)
}

/// Writes, overwrites, deletes; addresses are used again as soon as they may be.
#[test]
fn files_come_and_go() {
    let mut rig = filled();
    for round in 0..12 {
        rig.world.write_file(TOP, 300 + round, 0, 8192);
        rig.world.unlink(TOP, 359 - round);
        rig.world.fill(TOP, 1000 + 10 * round, 4);
        let report = rig.clean();
        assert!(report.actions.alloc > 0 && report.actions.free > 0);
        assert!(report.references.add > 0 && report.references.drop > 0);
    }
}

/// Every geometry: node sizes, checksums, profiles, skinny metadata or not, owner refs of simple quotas.
#[test]
fn every_geometry() {
    let csums = [ChecksumType::Crc32c, ChecksumType::XxHash64, ChecksumType::Sha256, ChecksumType::Blake2b];
    for (n, csum) in csums.into_iter().enumerate() {
        for nodesize in [4096, 16384, 65536] {
            let odd = n % 2 == 1;
            let config =
                Config { nodesize, sectorsize: 4096, csum, dup: odd, skinny: !odd, simple_quota: odd };
            let mut rig = Rig::attach(World::new(config));
            rig.world.fill(TOP, 300, 20);
            rig.clean();
            rig.world.snapshot(TOP, 400);
            rig.clean();
            rig.world.unlink(TOP, 305);
            rig.clean();
        }
    }
}

/// A snapshot shares everything below its root; what the source copies becomes FULL_BACKREF without being written.
#[test]
fn snapshots_and_flags_set_without_a_write() {
    let mut rig = filled();
    let snapshot = rig.world.snapshot(TOP, 400);
    rig.clean();
    for inode in [310, 320, 330, 345] {
        let flags = rig.world.full.len();
        rig.world.write_file(TOP, inode, 0, 4096);
        rig.clean();
        assert!(rig.world.full.len() > flags, "no block became FULL_BACKREF");
    }
    // The snapshot copies what it does not own, and what is FULL with one reference.
    for inode in [301, 316, 331, 346] {
        rig.world.write_file(snapshot, inode, 0, 4096);
        rig.clean();
    }
    let nested = rig.world.snapshot(snapshot, 401);
    rig.clean();
    rig.world.unlink(nested, 320);
    rig.clean();
    rig.world.roots.remove(&snapshot);
    rig.clean();
    rig.world.roots.remove(&nested);
    rig.clean();
    rig.world.fill(TOP, 1000, 5);
    rig.clean();
}

/// The source of a snapshot is deleted: what is left of it is FULL_BACKREF and owned by a tree that is gone.
#[test]
fn the_owner_is_deleted_before_its_snapshot() {
    let mut rig = filled();
    let own = tree(300);
    rig.world.write_tree(own, Items::new());
    rig.world.fill(own, 256, 30);
    rig.clean();
    let snapshot = rig.world.snapshot(own, 301);
    rig.clean();
    rig.world.roots.remove(&own);
    rig.clean();
    assert!(!rig.world.full.is_empty());
    rig.world.unlink(snapshot, 260);
    rig.clean();
    rig.world.roots.remove(&snapshot);
    rig.clean();
}

/// A flag may be set on any shared block, and its references change their form while no block is written.
#[test]
fn a_flag_flips_alone() {
    let mut rig = filled();
    rig.world.snapshot(TOP, 400);
    rig.clean();
    for bytenr in rig.world.tree_blocks(TOP).into_iter().skip(1) {
        rig.world.full.insert(bytenr);
        rig.clean();
    }
}

/// A subvolume is dropped from left to right over many commits; no block of it is written.
#[test]
fn a_drop_cursor_moves() {
    for drop_level in [1, 2] {
        let mut rig = filled();
        let id = tree(300);
        rig.world.shape.node = 3;
        rig.world.write_tree(id, Items::new());
        rig.world.fill(id, 256, 60);
        rig.clean();
        // Half of what is dropped is shared with a snapshot.
        let snapshot = rig.world.snapshot(id, 301);
        rig.clean();
        rig.world.unlink(snapshot, 256);
        rig.clean();
        let nodes = rig.world.tree_blocks(id).into_iter().map(|bytenr| rig.world.get(bytenr));
        let mut cursors: Vec<Key> = nodes
            .filter(|block| block.level == drop_level)
            .flat_map(|block| block.ptrs().iter().map(|ptr| ptr.key).collect::<Vec<_>>())
            .collect();
        cursors.sort();
        assert!(cursors.len() > 3);
        // What is shared must not be on the path: deletion copies its backrefs first.
        rig.world.roots.remove(&snapshot);
        rig.clean();
        for cursor in cursors {
            let root = rig.world.roots.get_mut(&id).unwrap();
            (root.refs, root.cursor) = (0, Some((cursor, drop_level)));
            rig.clean();
            if cursor.objectid % 2 == 0 {
                rig.world.write_file(TOP, 300, 0, 4096);
            }
        }
        rig.world.roots.remove(&id);
        rig.clean();
    }
}

/// The cursor of a relocation tree that is being merged (refs above 0) masks nothing.
#[test]
fn a_merge_cursor_masks_nothing() {
    let mut rig = filled();
    let key = rig.world.get(rig.world.roots[&TOP].bytenr).ptrs()[1].key;
    rig.world.roots.get_mut(&TOP).unwrap().cursor = Some((key, 1));
    rig.clean();
    rig.world.write_file(TOP, 310, 0, 4096);
    let root = rig.world.roots.get_mut(&TOP).unwrap();
    root.cursor = Some((key, 2));
    rig.clean();
}

/// A relocation tree: a FULL_BACKREF copy of the subvolume's root that is its own parent; then pointers are swapped,
/// so that new parents point to blocks of old generations; then it is dropped.
#[test]
fn a_relocation_tree() {
    let mut rig = filled();
    let world = &mut rig.world;
    let root = world.copy_block(world.roots[&TOP].bytenr, ids::FS_TREE);
    world.blocks.get_mut(&root.bytenr).unwrap().reloc = true;
    let reloc = RootId { tree: ids::TREE_RELOC, offset: 5 };
    world.set_root(reloc, root);
    world.roots.get_mut(&reloc).unwrap().refs = 0;
    // The subvolume's own root is copied with it.
    let top = world.copy_block(world.roots[&TOP].bytenr, ids::FS_TREE);
    world.set_root(TOP, top);
    rig.clean();
    assert!(rig.world.full.contains(&root.bytenr));

    // Relocated: a child of the relocation tree is copied.
    let world = &mut rig.world;
    let child = world.get(root.bytenr).ptrs()[0];
    let copied = world.copy_block(child.bytenr, ids::FS_TREE);
    world.blocks.get_mut(&copied.bytenr).unwrap().reloc = true;
    let mut content = world.get(root.bytenr).content;
    let Content::Node(ptrs) = &mut content else { panic!() };
    ptrs[0] = copied;
    let root = world.block(ids::FS_TREE, world.roots[&reloc].level, content);
    world.blocks.get_mut(&root.bytenr).unwrap().reloc = true;
    world.set_root(reloc, root);
    rig.clean();

    // Merged: the copy moves into the subvolume, the original into the relocation tree.
    let world = &mut rig.world;
    for (id, ptr, reloc) in [(TOP, copied, false), (reloc, child, true)] {
        let spec = world.get(world.roots[&id].bytenr);
        let Content::Node(mut ptrs) = spec.content else { panic!() };
        ptrs[0] = ptr;
        let root = world.block(ids::FS_TREE, spec.level, Content::Node(ptrs));
        world.blocks.get_mut(&root.bytenr).unwrap().reloc = reloc;
        world.set_root(id, root);
    }
    let root = world.roots.get_mut(&reloc).unwrap();
    (root.refs, root.cursor) = (1, Some((child.key, 1)));
    rig.clean();

    rig.world.roots.remove(&reloc);
    rig.clean();
    rig.world.fill(TOP, 1000, 3);
    rig.clean();
}

/// A chunk is removed and another one takes its logical range in the same commit: the same addresses stand for
/// other extents.
#[test]
fn a_chunk_is_recreated_at_its_address() {
    let mut world = World::new(Config::default());
    let second = METADATA + (16 << 20);
    let data = DATA + (16 << 20);
    let len = 1 << 20;
    let chunk = |logical, flags, at| bytes::ChunkSpec { logical, length: len, flags, stripes: vec![at] };
    world.chunks.push(chunk(second, BlockFlags::METADATA, 1 << 32));
    world.chunks.push(chunk(data, BlockFlags::DATA, 2 << 32));
    let leaf = |world: &mut World, extent: u64| {
        let item = bytes::file_extent(extent, 4096, 0, 4096);
        let content = Content::Leaf(vec![(Key::new(256, item::EXTENT_DATA, 0), item)]);
        world.block_at(second, 300, 0, content)
    };
    let root = leaf(&mut world, data);
    world.set_root(tree(300), root);
    let mut rig = Rig::attach(world);
    for at in 3..6u64 {
        let world = &mut rig.world;
        world.chunks[3].stripes = vec![at << 33];
        world.chunks[4].stripes = vec![(at << 33) + (1 << 32)];
        // The same content, the same addresses, another place.
        let root = leaf(world, data);
        world.set_root(tree(300), root);
        rig.clean();
        rig.world.fill(TOP, 300 + 10 * at, 3);
        rig.clean();
    }
    // And at last nothing takes their place.
    rig.world.roots.remove(&tree(300));
    rig.world.chunks.truncate(3);
    rig.clean();
    rig.world.fill(TOP, 500, 3);
    rig.clean();
}

/// Splits, merges, pushes between neighbours, trees growing and shrinking by levels, down to one that is as good as empty.
#[test]
fn trees_change_their_shape() {
    let mut rig = filled();
    for salt in 0..10 {
        let shape = &mut rig.world.shape;
        (shape.salt, shape.leaf, shape.node) = (salt, 2 + salt as usize, 2 + salt as usize % 5);
        let items = rig.world.items(TOP);
        rig.world.write_tree(TOP, items);
        rig.clean();
    }
    rig.world.write_tree(TOP, Items::new());
    rig.clean();
    rig.world.fill(TOP, 300, 80);
    rig.clean();
}

/// A node is replaced by two that share its pointers: all children move to other parents unread.
#[test]
fn pointers_move_between_parents() {
    let mut rig = filled();
    let world = &mut rig.world;
    let root = world.get(world.roots[&TOP].bytenr);
    let parents: Vec<_> = root.ptrs().iter().map(|ptr| world.get(ptr.bytenr)).collect();
    let mut ptrs: Vec<Ptr> = parents.iter().flat_map(|parent| parent.ptrs().to_vec()).collect();
    let moved: Vec<Ptr> = ptrs.drain(..ptrs.len() / 2).collect();
    let level = parents[0].level;
    let halves = [moved, ptrs].map(|half| world.block(5, level, Content::Node(half)));
    let root = world.block(5, level + 1, Content::Node(halves.to_vec()));
    world.set_root(TOP, root);
    rig.clean();
}

/// Backrefs in items of their own, on the leaf after the extent item's, with a block group item between extents.
#[test]
fn keyed_backrefs_on_the_next_leaf() {
    let mut rig = filled();
    let extent = rig.world.write_file(TOP, 300, 0, 4096);
    rig.world.keyed.insert(extent);
    let first_block = rig.world.alloc(BlockFlags::METADATA, 4096, 4096);
    for bytenr in [extent, first_block] {
        rig.world.shape.cuts.insert(Key::new(bytenr, item::TREE_BLOCK_REF, 0));
        rig.world.shape.cuts.insert(Key::new(bytenr, item::EXTENT_DATA_REF, 0));
    }
    rig.world.link(TOP, 301, 0, extent, 4096);
    // A cut before every backref of the extent.
    let mut hashes: Vec<u64> =
        (300..320).map(|inode| parser::csum::extent_data_ref_hash(5, inode, 0)).collect();
    hashes.sort_unstable();
    rig.world.shape.cuts.extend(hashes.iter().map(|&hash| Key::new(extent, item::EXTENT_DATA_REF, hash)));
    rig.clean();
    for inode in 302..312 {
        rig.world.link(TOP, inode, 0, extent, 4096);
        rig.clean();
    }
    for inode in 300..306 {
        rig.world.unlink(TOP, inode);
        rig.clean();
    }
    // The same backrefs move into the item and out again.
    rig.world.keyed.clear();
    rig.clean();
    rig.world.keyed.insert(extent);
    rig.clean();
}

/// More references than fit inline: the rest is keyed.
#[test]
fn backrefs_overflow_into_items() {
    let mut rig = filled();
    let extent = rig.world.write_file(TOP, 300, 0, 4096);
    for inode in 400..430 {
        rig.world.link(TOP, inode, 0, extent, 4096);
    }
    rig.clean();
    for inode in 400..420 {
        rig.world.unlink(TOP, inode);
    }
    rig.clean();
}

/// Equal references count; an offset into the extent may make a reference's offset negative.
#[test]
fn parts_of_an_extent() {
    let mut rig = filled();
    let extent = rig.world.alloc_data(1 << 16);
    let mut items = rig.world.items(TOP);
    for slot in 0..8u64 {
        let at = slot * 4096;
        // In order, in reverse (offsets differ), and all at a file offset below the offset in the extent.
        items.insert(Key::new(2000, item::EXTENT_DATA, at), bytes::file_extent(extent, 1 << 16, at, 4096));
        items.insert(
            Key::new(2001, item::EXTENT_DATA, at),
            bytes::file_extent(extent, 1 << 16, 61440 - at, 4096),
        );
    }
    rig.world.write_tree(TOP, items.clone());
    rig.clean();
    items.retain(|key, _| key.objectid != 2000 || key.offset % 8192 == 0);
    rig.world.write_tree(TOP, items);
    rig.clean();
}

/// Holes and inline data refer to nothing; version 1 space cache inodes lie in the root tree; the data relocation
/// tree is a tree like others.
#[test]
fn other_holders_of_data() {
    let mut rig = filled();
    let mut items = rig.world.items(TOP);
    items.insert(Key::new(2000, item::EXTENT_DATA, 0), bytes::inline_extent(b"inline"));
    items.insert(Key::new(2001, item::EXTENT_DATA, 0), bytes::file_extent(0, 0, 0, 4096));
    rig.world.write_tree(TOP, items);
    let cache = rig.world.alloc_data(65536);
    let item = bytes::file_extent(cache, 65536, 0, 65536);
    rig.world.root_tree_items.insert(Key::new(256, item::EXTENT_DATA, 0), item);
    rig.clean();
    let relocation = tree(ids::DATA_RELOC_TREE);
    rig.world.write_tree(relocation, Items::new());
    rig.world.fill(relocation, 257, 3);
    rig.clean();
    rig.world.root_tree_items.clear();
    rig.world.write_tree(relocation, Items::new());
    rig.clean();
}

/// Only a root item changes: an orphan item comes, refs go to 0.
#[test]
fn a_root_item_changes_alone() {
    let mut rig = filled();
    let id = rig.world.snapshot(TOP, 400);
    rig.clean();
    rig.world.roots.get_mut(&id).unwrap().refs = 0;
    rig.world.root_tree_items.insert(Key::new(ids::ORPHAN, item::ORPHAN_ITEM, 400), Vec::new());
    rig.clean();
    rig.world.roots.remove(&id);
    rig.world.root_tree_items.clear();
    rig.clean();
}

/// Nothing at all happens.
#[test]
fn an_empty_commit() {
    let mut rig = filled();
    let report = rig.clean();
    assert!(report.blocks_born > 0, "the root tree is always written");
    assert_eq!(rig.verifier.snapshot().map(|snapshot| snapshot.generation), Some(rig.world.generation));
}
