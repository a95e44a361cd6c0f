//! References in the name of a root that does not exist: held by nobody, or by blocks that should not be there any more.

use parser::ids;
use shadow::forest::RootId;
use shadow::{Code, Worth};

use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };
const GONE: u64 = 401;

fn filled() -> Rig {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 80);
    Rig::attach(world)
}

/// Data, and the leaf that refers to it.
fn data_and_leaf(world: &World) -> (u64, u64) {
    let leaf = world.tree_blocks(TOP).into_iter().find(|bytenr| world.get(*bytenr).level == 0).unwrap();
    let mut items = world.get(leaf).items().to_vec().into_iter();
    let extent = items.find_map(|(_, data)| parser::FileExtent::parse(&data).ok()?.extent());
    (extent.unwrap().disk_bytenr, leaf)
}

#[test]
fn a_backref_of_a_root_that_is_gone() {
    for of_data in [true, false] {
        let mut rig = filled();
        let (data, leaf) = data_and_leaf(&rig.world);
        let (bytenr, holder) = match of_data {
            true => (data, Holder::Data { root: GONE, inode: 300, offset: 0 }),
            false => (leaf, Holder::Tree(GONE)),
        };
        let fault = Fault::records(|extents| {
            extents.get_mut(&bytenr).unwrap().refs.insert(holder, 1);
        });
        let report = rig.fault(&fault, Code::RefUnknownRoot, bytenr);
        assert_eq!(report.violations[0].key.map(|key| key.root), Some(GONE));
        // Left, then mended.
        rig.world.write_file(TOP, 2000, 0, 4096);
        let report = rig.commit(&fault);
        assert_eq!(rig::messages(&report), [""; 0]);
        rig.clean();
    }
}

/// One bug, one report; whatever else is wrong is another.
#[test]
fn many_backrefs_of_one_root_that_is_gone() {
    let mut rig = filled();
    let blocks = rig.world.tree_blocks(TOP);
    let leaves: Vec<u64> =
        blocks.into_iter().filter(|bytenr| rig.world.get(*bytenr).level == 0).take(4).collect();
    let data = data_and_leaf(&rig.world).0;
    let fault = Fault::records(|extents| {
        for leaf in &leaves[..3] {
            extents.get_mut(leaf).unwrap().refs.insert(Holder::Tree(GONE), 1);
        }
        extents.get_mut(&leaves[3]).unwrap().refs.insert(Holder::Tree(GONE + 1), 1);
        extents.get_mut(&data).unwrap().refs.pop_last();
        extents.get_mut(&data).unwrap().refs.insert(Holder::Data { root: 5, inode: 9000, offset: 0 }, 1);
    });
    let report = rig.commit(&fault);
    let mut found: Vec<_> =
        report.violations.iter().map(|found| (found.code, found.bytenr, found.found.clone())).collect();
    found.retain(|(code, ..)| *code == Code::RefUnknownRoot);
    let first = *leaves[..3].iter().min().unwrap();
    let mut wanted = [(first, Worth::Number(3)), (leaves[3], Worth::Number(1))]
        .map(|(at, n)| (Code::RefUnknownRoot, at, n));
    wanted.sort_by_key(|(_, bytenr, _)| *bytenr);
    assert_eq!(found, wanted);
    assert_eq!(report.violations.len(), 3, "{:#?}", rig::messages(&report));
}

/// Both sides agree: a block that was left in the name of a root that is gone refers to its data in that name.
#[test]
fn a_block_in_the_name_of_a_root_that_is_gone() {
    let mut rig = filled();
    let world = &mut rig.world;
    let (data, leaf) = data_and_leaf(world);
    let (mut replaced, mut by) = (leaf, world.copy_block(leaf, GONE));
    world.forgotten.insert(by.bytenr);
    // The blocks above it are copied for it.
    while replaced != world.roots[&TOP].bytenr {
        let mut above = world.tree_blocks(TOP).into_iter().map(|bytenr| world.get(bytenr));
        let parent = above.find(|block| block.ptrs().iter().any(|ptr| ptr.bytenr == replaced)).unwrap();
        let mut ptrs = parent.ptrs().to_vec();
        ptrs.iter_mut().filter(|ptr| ptr.bytenr == replaced).for_each(|ptr| *ptr = by);
        (replaced, by) = (parent.bytenr, world.block(TOP.tree, parent.level, Content::Node(ptrs)));
    }
    world.set_root(TOP, by);
    let report = rig.fault(&Fault::none(), Code::RefUnknownRoot, data);
    assert_eq!(report.violations[0].key.map(|key| key.root), Some(GONE));
    // It was there before, from now on.
    rig.world.write_file(TOP, 2000, 0, 4096);
    rig.clean();
}

/// The last commit of a subvolume: its root item goes with its last reference, and another one begins.
#[test]
fn subvolumes_that_come_and_go() {
    let mut rig = filled();
    let first = rig.world.snapshot(TOP, 300);
    rig.clean();
    let second = rig.world.snapshot(first, 301);
    rig.world.write_file(first, 700, 0, 4096);
    rig.clean();
    rig.world.roots.remove(&first);
    rig.world.snapshot(second, 302);
    rig.clean();
    rig.world.roots.remove(&second);
    rig.clean();
    rig.world.roots.retain(|id, _| !ids::is_fs_tree(id.tree) || *id == TOP);
    rig.clean();
}
