//! A block is written wrong once, while the guest's memory is right: one violation when it comes, none when the next
//! copy of the block mends it.

use parser::Key;
use parser::key::item;
use shadow::Code;
use shadow::forest::RootId;

use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };

/// A tree of three levels in the middle of a transaction that has written one path of it: the root, a node, a leaf.
fn prepare() -> (Rig, [u64; 3]) {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 60);
    let mut rig = Rig::attach(world);
    rig.world.write_file(TOP, 330, 0, 4096);
    let next = rig.world.next();
    let blocks = rig.world.tree_blocks(TOP);
    let path: Vec<u64> =
        blocks.into_iter().filter(|bytenr| rig.world.get(*bytenr).generation == next).collect();
    (rig, [path[0], path[path.len() - 2], path[path.len() - 1]])
}

/// Commits elsewhere, then mends the path, then goes on.
#[track_caller]
fn go_on(rig: &mut Rig) {
    for inode in [300, 331, 331, 355, 330] {
        rig.world.write_file(TOP, inode, 0, 4096);
        let report = rig.commit(&Fault::none());
        assert!(report.violations.is_empty(), "{:#?}", rig::messages(&report));
    }
    rig.world.unlink(TOP, 331);
    rig.clean();
}

/// Commits a node that lacks a pointer: the block it led to is the one finding, whether it is new or not.
#[test]
fn a_pointer_is_lost() {
    for new in [true, false] {
        let (mut rig, path) = prepare();
        let children = rig.world.get(path[1]).ptrs().to_vec();
        let lost = children.iter().position(|ptr| (ptr.bytenr == path[2]) == new).unwrap();
        let fault = Fault::block(path[1], |spec| match &mut spec.content {
            Content::Node(ptrs) => drop(ptrs.remove(lost)),
            Content::Leaf(_) => unreachable!(),
        });
        let report = rig.commit(&fault);
        let about = report.violations.iter().filter(|found| found.bytenr == children[lost].bytenr);
        // Where it was the first, the parent knows better.
        assert!(about.count() == 1 || lost == 0, "{:#?}", rig::messages(&report));
        assert_eq!(report.violations.len(), 1, "{:#?}", rig::messages(&report));
        go_on(&mut rig);
    }
}

#[test]
fn a_pointer_leads_to_the_neighbour() {
    let (mut rig, path) = prepare();
    let fault = Fault::block(path[1], |spec| match &mut spec.content {
        Content::Node(ptrs) => {
            let other = ptrs[0];
            (ptrs[1].bytenr, ptrs[1].generation) = (other.bytenr, other.generation);
        }
        Content::Leaf(_) => unreachable!(),
    });
    let report = rig.commit(&fault);
    assert_eq!(report.violations.len(), 1, "{:#?}", rig::messages(&report));
    assert_eq!(report.violations[0].code, Code::TreeFirstKey);
    go_on(&mut rig);
}

#[test]
fn a_pointer_names_another_generation() {
    let (mut rig, path) = prepare();
    let fault = Fault::block(path[1], |spec| match &mut spec.content {
        Content::Node(ptrs) => ptrs.iter_mut().for_each(|ptr| {
            if ptr.bytenr == path[2] {
                ptr.generation -= 1;
            }
        }),
        Content::Leaf(_) => unreachable!(),
    });
    rig.fault(&fault, Code::TreeGeneration, path[2]);
    go_on(&mut rig);
}

#[test]
fn a_file_extent_is_lost() {
    let (mut rig, path) = prepare();
    let mut extent = 0;
    for (key, data) in rig.world.get(path[2]).items() {
        if *key == Key::new(330, item::EXTENT_DATA, 0) {
            extent = parser::FileExtent::parse(data).unwrap().extent().unwrap().disk_bytenr;
        }
    }
    let fault = Fault::block(path[2], |spec| match &mut spec.content {
        Content::Leaf(items) => items.retain(|(key, _)| *key != Key::new(330, item::EXTENT_DATA, 0)),
        Content::Node(_) => unreachable!(),
    });
    let report = rig.commit(&fault);
    assert_eq!(report.violations.len(), 1, "{:#?}", rig::messages(&report));
    let found = &report.violations[0];
    assert!(found.bytenr == extent || found.code == Code::TreeFirstKey, "{found}");
    go_on(&mut rig);
}

/// The item names a transaction that has not been yet; when it names the right one again, nothing was allocated anew.
#[test]
fn a_data_extent_is_from_the_future() {
    let (mut rig, _) = prepare();
    let bytenr = rig.world.alloc_data(8192);
    let mut items = rig.world.items(TOP);
    items.insert(Key::new(340, item::EXTENT_DATA, 1 << 20), bytes::file_extent(bytenr, 8192, 0, 8192));
    rig.world.write_tree(TOP, items);
    let fault = Fault::records(|extents| extents.get_mut(&bytenr).unwrap().generation = 1 << 40);
    let report = rig.commit(&fault);
    let codes: Vec<Code> = report.violations.iter().map(|found| found.code).collect();
    assert_eq!(codes, [Code::TreeExtentItem], "{:#?}", rig::messages(&report));
    go_on(&mut rig);
}

#[test]
fn a_block_names_another_owner() {
    let (mut rig, path) = prepare();
    let fault = Fault::block(path[1], |spec| spec.owner = 7000);
    rig.fault(&fault, Code::TreeOwner, path[1]);
    go_on(&mut rig);
}

/// Several file extents share a backref; the wrong length of one is not hidden by the right ones after it.
#[test]
fn one_of_several_file_extents_names_another_length() {
    for wrong in [0, 4096, 8192] {
        let mut world = World::new(Config::default());
        world.fill(TOP, 300, 10);
        let mut rig = Rig::attach(world);
        let bytenr = rig.world.alloc_data(12288);
        let mut items = rig.world.items(TOP);
        for at in [0, 4096, 8192] {
            let len = if at == wrong { 16384 } else { 12288 };
            items.insert(Key::new(305, item::EXTENT_DATA, at), bytes::file_extent(bytenr, len, at, 4096));
        }
        let right = |at| bytes::file_extent(bytenr, 12288, at, 4096);
        rig.world.write_tree(TOP, items.clone());
        let fault = Fault::records(|extents| extents.get_mut(&bytenr).unwrap().len = 12288);
        rig.fault(&fault, Code::RefExtentLength, bytenr);
        items.insert(Key::new(305, item::EXTENT_DATA, wrong), right(wrong));
        rig.world.write_tree(TOP, items);
        rig.clean();
    }
}
