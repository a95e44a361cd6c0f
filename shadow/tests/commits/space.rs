//! Faults of space that leave all references right: each is found once, at its commit.

use parser::key::item;
use parser::{BlockFlags, Key, ids};
use shadow::Code;
use shadow::forest::RootId;

use crate::support::world::{DATA, tree};
use crate::support::*;

pub(super) const TOP: RootId = RootId { tree: 5, offset: 0 };
const MIB: u64 = 1 << 20;

fn world() -> World {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 10);
    world
}

/// Commits what `break_it` makes of the world, then goes on with the fault in place.
#[track_caller]
fn found(mut rig: Rig, code: Code, break_it: impl FnOnce(&mut World) -> u64) -> Rig {
    let bytenr = break_it(&mut rig.world);
    rig.fault(&Fault::none(), code, bytenr);
    rig.world.write_file(TOP, 900, 0, 4096);
    rig.clean();
    rig
}

#[test]
fn an_extent_overlaps_the_one_before_it_or_behind_it() {
    for (first, second) in [(0, 4096), (4096, 0)] {
        found(Rig::attach(world()), Code::SpaceExtentOverlap, |world| {
            let start = world.alloc_data(16384);
            world.link(TOP, 500, 0, start + first, 8192);
            world.link(TOP, 501, 0, start + second, 8192);
            start
        });
    }
}

#[test]
fn an_extent_overlaps_one_that_was_there() {
    let mut rig = Rig::attach(world());
    let there = rig.world.alloc_data(16384);
    rig.world.link(TOP, 500, 0, there, 8192);
    rig.clean();
    found(rig, Code::SpaceExtentOverlap, |world| {
        world.link(TOP, 501, 0, there + 4096, 8192);
        there
    });
}

#[test]
fn an_extent_leaves_its_block_group_or_lies_in_none() {
    for bytenr in [DATA + 16 * MIB - 4096, 1 << 40] {
        found(Rig::attach(world()), Code::SpaceExtentOutsideBlockGroup, |world| {
            world.link(TOP, 500, 0, bytenr, 8192);
            bytenr
        });
    }
}

/// Begins right behind the block group that all worlds have.
pub(super) const SECOND: u64 = DATA + 16 * MIB;
pub(super) const SECOND_LEN: u64 = 8 * MIB;

/// A world with a second block group of data, the extents of these files in it.
pub(super) fn with_two_groups(files: u64) -> Rig {
    let mut world = world();
    let mut chunk = world.chunks.iter().find(|chunk| chunk.logical == DATA).unwrap().clone();
    (chunk.logical, chunk.length) = (SECOND, SECOND_LEN);
    chunk.stripes = vec![chunk.stripes[0] + 64 * MIB];
    world.chunks.push(chunk);
    for file in 0..files {
        world.link(TOP, 400 + file, 0, SECOND + file * 8192, 4096);
    }
    Rig::attach(world)
}

pub(super) fn remove_second(world: &mut World) -> u64 {
    world.chunks.retain(|chunk| chunk.logical != SECOND);
    SECOND
}

/// The codes and addresses of what is found, in order.
#[track_caller]
pub(super) fn assert_found(rig: &mut Rig, wanted: &[(Code, u64)]) -> shadow::CommitReport {
    let report = rig.commit(&Fault::none());
    let mut found: Vec<_> = report.violations.iter().map(|found| (found.code, found.bytenr)).collect();
    let mut wanted = wanted.to_vec();
    found.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(found, wanted, "{:#?}", rig::messages(&report));
    report
}

#[test]
fn an_empty_block_group_is_removed() {
    let mut rig = with_two_groups(3);
    (400..403).for_each(|inode| rig.world.unlink(TOP, inode));
    rig.clean();
    remove_second(&mut rig.world);
    rig.clean();
    // In the commit that frees the last extent in it.
    let mut rig = with_two_groups(3);
    (400..403).for_each(|inode| rig.world.unlink(TOP, inode));
    remove_second(&mut rig.world);
    rig.clean();
}

#[test]
fn a_block_group_is_removed_while_it_holds_extents() {
    found(with_two_groups(20), Code::SpaceBlockGroupNotEmpty, remove_second);
    found(with_two_groups(1), Code::SpaceBlockGroupNotEmpty, remove_second);
}

/// Whatever the commit does to extents in it is not wrong beside that; what is wrong elsewhere is.
#[test]
fn a_block_group_is_removed_while_its_extents_come_and_go() {
    let work = |world: &mut World| {
        remove_second(world);
        world.unlink(TOP, 400);
        world.link(TOP, 500, 0, SECOND + 8192, 4096);
        world.link(TOP, 501, 0, SECOND + 4096, 4096);
        world.write_file(TOP, 402, 0, 4096);
        SECOND
    };
    let mut rig = with_two_groups(20);
    work(&mut rig.world);
    let report = assert_found(&mut rig, &[(Code::SpaceBlockGroupNotEmpty, SECOND)]);
    // One that was freed, one that was written, and one that was replaced, of twenty.
    assert_eq!(report.violations[0].found, shadow::Worth::Number(19));

    let mut rig = with_two_groups(20);
    work(&mut rig.world);
    let there = rig.world.alloc_data(16384);
    rig.world.link(TOP, 502, 0, there, 8192);
    rig.world.link(TOP, 503, 0, there + 4096, 8192);
    rig.world.link(TOP, 504, 0, 1 << 40, 4096);
    assert_found(
        &mut rig,
        &[
            (Code::SpaceBlockGroupNotEmpty, SECOND),
            (Code::SpaceExtentOverlap, there),
            (Code::SpaceExtentOutsideBlockGroup, 1 << 40),
        ],
    );

    // A reference to an extent in it that is not recorded.
    let mut rig = with_two_groups(20);
    work(&mut rig.world);
    let fault = Fault::records(|extents| {
        extents.get_mut(&(SECOND + 8192)).unwrap().refs.pop_last();
    });
    let report = rig.commit(&fault);
    let codes: Vec<_> = report.violations.iter().map(|found| (found.code, found.bytenr)).collect();
    let wanted = [(Code::RefMissingBackref, SECOND + 8192), (Code::SpaceBlockGroupNotEmpty, SECOND)];
    assert_eq!(codes, wanted, "{:#?}", rig::messages(&report));
}

#[test]
fn an_extent_lies_over_the_edge_of_a_block_group_that_is_removed() {
    found(with_two_groups(0), Code::SpaceBlockGroupOverlap, |world| {
        remove_second(world);
        world.link(TOP, 500, 0, SECOND - 4096, 8192);
        SECOND - 4096
    });
    let mut rig = with_two_groups(0);
    remove_second(&mut rig.world);
    let last = SECOND + SECOND_LEN - 4096;
    rig.world.link(TOP, 500, 0, last, 8192);
    assert_found(&mut rig, &[(Code::SpaceBlockGroupNotEmpty, SECOND), (Code::SpaceBlockGroupOverlap, last)]);
}

#[test]
fn data_lies_among_tree_blocks() {
    found(Rig::attach(world()), Code::SpaceExtentType, |world| {
        let bytenr = world.alloc(BlockFlags::METADATA, 4096, 4096);
        world.link(TOP, 500, 0, bytenr, 4096);
        bytenr
    });
}

#[test]
fn an_extent_lies_over_a_super_block() {
    let mut world = world();
    let data = world.chunks.iter_mut().find(|chunk| chunk.logical == DATA).unwrap();
    data.stripes = vec![63 * MIB];
    let mut rig = Rig::attach(world);
    // Right before it and right behind it are as good as any other place.
    rig.world.link(TOP, 498, 0, DATA + MIB - 4096, 4096);
    rig.world.link(TOP, 499, 0, DATA + MIB + 65536, 4096);
    rig.clean();
    found(rig, Code::SpaceExtentOnSuperBlock, |world| {
        world.link(TOP, 500, 0, DATA + MIB + 8192, 4096);
        DATA + MIB + 8192
    });
}

fn csum_key(bytenr: u64) -> Key {
    Key::new(ids::EXTENT_CSUM, item::EXTENT_CSUM, bytenr)
}

/// A file system whose one large file has checksums in three items, and their keys.
fn with_checksums() -> (Rig, [Key; 3]) {
    let mut world = world();
    let data = world.write_file(TOP, 400, 0, 6 * 8192);
    let keys = [0, 1, 2].map(|n| csum_key(data + n * 2 * 8192));
    let items = keys.map(|key| (key, vec![7; 4 * 4]));
    world.write_tree(tree(ids::CSUM_TREE), Items::from(items));
    (Rig::attach(world), keys)
}

fn edit(world: &mut World, edit: impl FnOnce(&mut Items)) {
    let mut items = world.items(tree(ids::CSUM_TREE));
    edit(&mut items);
    world.write_tree(tree(ids::CSUM_TREE), items);
}

/// Items that are put together or cut in two say the same; those of a file go with it, and come with another.
#[test]
fn checksums_that_come_and_go_with_their_data() {
    let (mut rig, [first, second, third]) = with_checksums();
    edit(&mut rig.world, |items| {
        items.remove(&second);
        items.insert(first, vec![7; 8 * 4]);
    });
    rig.clean();
    edit(&mut rig.world, |items| {
        items.insert(first, vec![7; 3 * 4]);
        items.insert(csum_key(first.offset + 3 * 4096), vec![7; 5 * 4]);
    });
    rig.clean();
    rig.world.unlink(TOP, 400);
    edit(&mut rig.world, Items::clear);
    let data = rig.world.write_file(TOP, 401, 0, 8192);
    edit(&mut rig.world, |items| drop(items.insert(csum_key(data), vec![1; 2 * 4])));
    rig.clean();
    assert_ne!(data, third.offset);
}

#[test]
fn checksums_of_data_that_stays_are_lost_or_changed_and_come_back() {
    let edits: [fn(&mut Items, Key); 3] = [
        |items, key| drop(items.remove(&key)),
        |items, key| items.get_mut(&key).unwrap().truncate(8),
        |items, key| items.get_mut(&key).unwrap()[9] ^= 1,
    ];
    for (edit_item, sector) in edits.into_iter().zip([0, 2, 2]) {
        let (rig, [_, second, _]) = with_checksums();
        let mut rig = found(rig, Code::SpaceCsumChanged, |world| {
            edit(world, |items| edit_item(items, second));
            second.offset + sector * 4096
        });
        edit(&mut rig.world, |items| drop(items.insert(second, vec![7; 4 * 4])));
        rig.clean();
    }
}

#[test]
fn checksums_without_data() {
    let (rig, [_, _, third]) = with_checksums();
    let free = DATA + 9 * MIB;
    found(rig, Code::SpaceCsumWithoutExtent, |world| {
        edit(world, |items| drop(items.insert(csum_key(free), vec![7; 4])));
        free
    });
    // One that goes on behind the end of its extent.
    let (rig, _) = with_checksums();
    found(rig, Code::SpaceCsumWithoutExtent, |world| {
        edit(world, |items| drop(items.insert(third, vec![7; 5 * 4])));
        third.offset + 4 * 4096
    });
    // Those of data that is gone.
    let (rig, [first, ..]) = with_checksums();
    found(rig, Code::SpaceCsumWithoutExtent, |world| {
        world.unlink(TOP, 400);
        first.offset
    });
}

/// Of an extent whose item says nothing that can be relied on, checksums may be missing or too many; not of others.
#[test]
fn a_malformed_extent_item_hides_no_checksums_in_another_block_group() {
    let mut rig = with_two_groups(0);
    rig.world.write_tree(tree(ids::CSUM_TREE), Items::new());
    rig.clean();
    let (malformed, near, far) = (SECOND + 4096, SECOND + MIB, DATA + 9 * MIB);
    rig.world.link(TOP, 500, 0, malformed, 4096);
    edit(&mut rig.world, |items| items.extend([near, far].map(|free| (csum_key(free), vec![7; 4]))));
    let fault = Fault::extents(|items| {
        let (_, data) = items.iter_mut().find(|(key, _)| key.objectid == malformed).expect("its item");
        data.truncate(20);
    });
    let report = rig.commit(&fault);
    let mut found: Vec<_> = report.violations.iter().map(|found| (found.code, found.bytenr)).collect();
    found.sort_unstable_by_key(|(_, bytenr)| *bytenr);
    assert_eq!(found, [(Code::SpaceCsumWithoutExtent, far), (Code::TreeExtentItem, malformed)]);
}

#[test]
fn two_leaves_have_checksums_for_the_same_sector() {
    let (mut rig, [_, second, third]) = with_checksums();
    rig.world.shape.leaf = 1;
    edit(&mut rig.world, |items| drop(items.insert(csum_key(DATA + 10 * MIB), vec![1; 4])));
    rig.world.link(TOP, 402, 0, DATA + 10 * MIB, 4096);
    rig.clean();
    found(rig, Code::SpaceCsumOverlap, |world| {
        edit(world, |items| drop(items.insert(second, vec![7; 5 * 4])));
        third.offset
    });
}
