//! One fault in what the extent tree records: one violation, with this code, about this extent. The next commit is
//! clean, whether it mends the fault or leaves it.

use parser::Key;
use parser::key::item;
use shadow::Code;
use shadow::forest::RootId;

use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };

/// Extents of every kind, of which the commit to come touches some.
struct Targets {
    /// Written by the commit.
    new_data: u64,
    /// Written by the commit, two references with different keys.
    new_twice: u64,
    /// Not touched.
    old_data: u64,
    /// Not touched, two references with one key.
    old_counted: u64,
    /// Referred to by a FULL_BACKREF leaf.
    shared_data: u64,
    /// A leaf of this commit.
    new_leaf: u64,
    /// A leaf that stays, referred to by its owner.
    old_leaf: u64,
    /// Referred to by a FULL_BACKREF node.
    shared_leaf: u64,
    /// A FULL_BACKREF node.
    full_node: u64,
    /// A FULL_BACKREF leaf.
    full_leaf: u64,
    /// A node of this commit.
    new_node: u64,
}

/// A file system with a snapshot, in the middle of a transaction.
fn prepare() -> (Rig, Targets) {
    let mut world = World::new(Config::default());
    let old = world.fill(TOP, 300, 80);
    let counted = world.alloc_data(8192);
    let mut items = world.items(TOP);
    for at in [0, 4096] {
        items.insert(Key::new(377, item::EXTENT_DATA, at), bytes::file_extent(counted, 8192, at, 4096));
    }
    world.write_tree(TOP, items);
    let mut rig = Rig::attach(world);
    rig.world.snapshot(TOP, 400);
    rig.clean();
    rig.world.write_file(TOP, 300, 0, 4096);
    rig.clean();
    let world = &mut rig.world;
    let new_data = world.write_file(TOP, 310, 0, 4096);
    let new_twice = world.write_file(TOP, 340, 0, 16384);
    world.link(TOP, 341, 0, new_twice, 16384);
    // Once more without a fault, to see what is where.
    let next = world.next();
    world.flag_lost_blocks();
    let blocks: Vec<_> = world.tree_blocks(TOP).into_iter().map(|bytenr| world.get(bytenr)).collect();
    let find = |level: u8, new: bool| {
        let mut found = blocks.iter().filter(|b| b.level == level && (b.generation == next) == new);
        found.find(|b| level == 0 || b.ptrs().len() > 1).unwrap().bytenr
    };
    let in_snapshot: Vec<_> =
        world.tree_blocks(RootId { tree: 400, offset: 11 }).into_iter().map(|b| world.get(b)).collect();
    let full = |level: u8| {
        let mut found = in_snapshot.iter().filter(|b| b.level == level && world.full.contains(&b.bytenr));
        let extents =
            |b: &BlockSpec| b.items().iter().filter(|(key, _)| key.item_type == item::EXTENT_DATA).count();
        let owned =
            |b: &&BlockSpec| world.committed[&b.bytenr].full && (b.ptrs().len() > 1 || extents(b) > 1);
        found.find(owned).unwrap().clone()
    };
    let (full_node, full_leaf) = (full(1), full(0));
    let of_leaf = |leaf: &BlockSpec, nth: usize| {
        let data = leaf.items().iter().filter(|(key, _)| key.item_type == item::EXTENT_DATA);
        let data: Vec<_> =
            data.map(|(_, data)| parser::FileExtent::parse(data).unwrap().extent().unwrap()).collect();
        data[nth].disk_bytenr
    };
    let targets = Targets {
        new_data,
        new_twice,
        old_data: old[75],
        old_counted: counted,
        shared_data: of_leaf(&full_leaf, 1),
        new_leaf: find(0, true),
        old_leaf: find(0, false),
        shared_leaf: full_node.ptrs()[1].bytenr,
        full_node: full_node.bytenr,
        full_leaf: full_leaf.bytenr,
        new_node: find(1, true),
    };
    (rig, targets)
}

/// Commits with the fault in the record of one extent, then goes on in both ways.
#[track_caller]
fn check(of: impl Fn(&Targets) -> u64, code: Code, edit: impl Fn(&mut Extent)) {
    check_at(&of, &of, code, edit);
}

#[track_caller]
fn check_at(
    of: impl Fn(&Targets) -> u64,
    reported: impl Fn(&Targets) -> u64,
    code: Code,
    edit: impl Fn(&mut Extent),
) {
    for mended in [true, false] {
        let (mut rig, targets) = prepare();
        let (bytenr, reported) = (of(&targets), reported(&targets));
        let fault = Fault::records(|extents| {
            if let Some(extent) = extents.get_mut(&bytenr) {
                edit(extent);
            }
        });
        rig.fault(&fault, code, reported);
        go_on(&mut rig, &fault, mended);
    }
}

/// Two commits more: mended at once, or after another one.
#[track_caller]
fn go_on(rig: &mut Rig, fault: &Fault<'_>, mended: bool) {
    rig.world.write_file(TOP, 2000, 0, 4096);
    if !mended {
        let report = rig.commit(fault);
        rig::assert_clean(&report);
    }
    rig.clean();
    rig.world.write_file(TOP, 310, 0, 4096);
    rig.clean();
}

/// Replaces one holder by another.
fn rename(from: impl Fn(&Holder) -> Option<Holder>) -> impl Fn(&mut Extent) {
    move |extent| {
        let (old, new) = extent.refs.keys().find_map(|old| Some((*old, from(old)?))).expect("no such holder");
        let count = extent.refs.remove(&old).unwrap();
        extent.refs.insert(new, count);
    }
}

#[test]
fn a_backref_of_data_is_lost() {
    check(
        |t| t.new_twice,
        Code::RefMissingBackref,
        |extent| {
            extent.refs.pop_last();
        },
    );
}

#[test]
fn a_backref_of_data_is_left() {
    let holder = Holder::Data { root: 5, inode: 9999, offset: 0 };
    for of in [|t: &Targets| t.new_data, |t: &Targets| t.old_data] {
        check(of, Code::RefStaleBackref, move |extent| {
            extent.refs.insert(holder, 1);
        });
    }
}

#[test]
fn a_backref_of_a_tree_block_is_left() {
    let holder = Holder::Tree(400);
    for of in [|t: &Targets| t.new_leaf, |t: &Targets| t.old_leaf] {
        check(of, Code::RefStaleBackref, move |extent| {
            extent.refs.insert(holder, 1);
        });
    }
}

#[test]
fn the_count_of_a_backref_is_wrong() {
    check(|t| t.new_data, Code::RefBackrefCount, |extent| *extent.refs.values_mut().next().unwrap() += 1);
    check(|t| t.old_data, Code::RefBackrefCount, |extent| *extent.refs.values_mut().next().unwrap() += 1);
    check(
        |t| t.old_counted,
        Code::RefBackrefCount,
        |extent| {
            let count = extent.refs.values_mut().next().unwrap();
            *count = if *count > 1 { *count - 1 } else { 2 };
        },
    );
}

#[test]
fn a_backref_names_the_wrong_root() {
    for of in [|t: &Targets| t.new_data, |t: &Targets| t.new_twice] {
        let other = |holder: &Holder| match *holder {
            Holder::Data { inode, offset, .. } => Some(Holder::Data { root: 6000, inode, offset }),
            _ => None,
        };
        check(of, Code::RefWrongRoot, rename(other));
    }
    for of in [|t: &Targets| t.new_leaf, |t: &Targets| t.new_node] {
        let other = |holder: &Holder| matches!(holder, Holder::Tree(_)).then_some(Holder::Tree(6000));
        check(of, Code::RefWrongRoot, rename(other));
    }
}

#[test]
fn a_backref_names_the_wrong_inode_or_offset() {
    check(
        |t| t.new_data,
        Code::RefWrongOwner,
        rename(|holder| match *holder {
            Holder::Data { root, offset, .. } => Some(Holder::Data { root, inode: 311, offset }),
            _ => None,
        }),
    );
    check(
        |t| t.new_data,
        Code::RefWrongOffset,
        rename(|holder| match *holder {
            Holder::Data { root, inode, .. } => Some(Holder::Data { root, inode, offset: 4096 }),
            _ => None,
        }),
    );
}

#[test]
fn a_backref_names_the_wrong_parent() {
    check(
        |t| t.shared_leaf,
        Code::RefWrongParent,
        rename(|holder| match *holder {
            Holder::SharedTree(parent) => Some(Holder::SharedTree(parent + 4096)),
            _ => None,
        }),
    );
    check(
        |t| t.shared_data,
        Code::RefWrongParent,
        rename(|holder| match *holder {
            Holder::SharedData(parent) => Some(Holder::SharedData(parent + 4096)),
            _ => None,
        }),
    );
}

#[test]
fn an_extent_item_is_missing() {
    for of in [
        (|t: &Targets| t.new_data) as fn(&Targets) -> u64,
        |t| t.new_twice,
        |t| t.old_data,
        |t| t.new_leaf,
        |t| t.old_leaf,
        |t| t.shared_data,
    ] {
        for mended in [true, false] {
            let (mut rig, targets) = prepare();
            let bytenr = of(&targets);
            let fault = Fault::records(|extents| drop(extents.remove(&bytenr)));
            let report = rig.commit(&fault);
            // An address that was in use before, and is remembered, has an entry without references.
            let codes = [Code::RefNoExtentItem, Code::RefNoReferences];
            assert!(
                matches!(report.violations.as_slice(), [found] if codes.contains(&found.code)
                && found.bytenr == bytenr),
                "{:#?}",
                rig::messages(&report)
            );
            go_on(&mut rig, &fault, mended);
        }
    }
}

/// The extent tree keeps an extent that nothing refers to: data, a leaf that was copied, an invention.
#[test]
fn an_extent_item_is_left() {
    let (mut rig, _) = prepare();
    let before = rig.world.committed.clone();
    let superblock = rig.world.commit();
    let mut died: Vec<(u64, Extent)> =
        before.into_iter().filter(|(bytenr, _)| !rig.world.committed.contains_key(bytenr)).collect();
    rig::assert_clean(&rig.verifier.commit(&superblock, &rig.world.image));
    let leaf = died.iter().position(|(_, extent)| extent.level == Some(0)).unwrap();
    died.swap(0, leaf);
    died.truncate(2);
    for (bytenr, extent) in died {
        for mended in [true, false] {
            let (mut rig, _) = prepare();
            rig.world.leaked.insert(bytenr, extent.len);
            let fault = Fault::records(|extents| {
                extents.entry(bytenr).or_insert_with(|| extent.clone());
            });
            rig.fault(&fault, Code::RefStaleExtent, bytenr);
            go_on(&mut rig, &fault, mended);
        }
    }
    let invention = Extent {
        len: 4096,
        generation: 12,
        refs: [(Holder::Data { root: 5, inode: 400, offset: 0 }, 1)].into(),
        ..Extent::default()
    };
    let (mut rig, _) = prepare();
    let bytenr = world::DATA + (8 << 20);
    let fault = Fault::records(|extents| drop(extents.insert(bytenr, invention.clone())));
    rig.fault(&fault, Code::RefStaleExtent, bytenr);
    go_on(&mut rig, &fault, false);
}

/// Of a subtree that goes with its subvolume the extent tree keeps the node, and nothing that it refers to.
#[test]
fn the_extent_item_of_a_node_is_left_alone() {
    let (mut rig, targets) = prepare();
    let (node, extent) = (targets.full_node, rig.world.committed[&targets.full_node].clone());
    rig.world.roots.retain(|id, _| id.tree != 400);
    rig.world.leaked.insert(node, extent.len);
    let fault = Fault::records(|extents| drop(extents.insert(node, extent.clone())));
    let report = rig.commit(&fault);
    // Its only backref is of a block that is gone, or of the subvolume.
    let found: Vec<_> = report.violations.iter().map(|found| found.bytenr).collect();
    assert_eq!(found, [node], "{:#?}", rig::messages(&report));
    go_on(&mut rig, &fault, true);
}

#[test]
fn the_full_backref_flag_is_wrong() {
    for of in
        [(|t: &Targets| t.full_node) as fn(&Targets) -> u64, |t| t.full_leaf, |t| t.new_node, |t| t.old_leaf]
    {
        check(of, Code::RefFullBackref, |extent| extent.full = !extent.full);
    }
}

#[test]
fn the_level_is_wrong() {
    check(|t| t.new_leaf, Code::RefWrongOwner, |extent| extent.level = Some(1));
    check(|t| t.old_leaf, Code::RefWrongOwner, |extent| extent.level = Some(3));
}

#[test]
fn the_length_is_wrong() {
    check(|t| t.new_data, Code::RefExtentLength, |extent| extent.len = 8192);
    check(|t| t.new_twice, Code::RefExtentLength, |extent| extent.len = 4096);
}

#[test]
fn the_length_of_an_extent_that_stays_is_changed() {
    check(|t| t.old_data, Code::RefExtentLength, |extent| extent.len = 8192);
}

#[test]
fn the_generation_of_a_new_block_is_wrong() {
    check(|t| t.new_leaf, Code::RefExtentGeneration, |extent| extent.generation -= 1);
}

/// ref-verify's "re-allocated" seen from outside: the item of an extent that stays names another generation.
#[test]
fn the_generation_of_an_extent_that_stays_is_changed() {
    check(|t| t.old_leaf, Code::RefExtentGeneration, |extent| extent.generation += 1);
}

#[test]
fn data_that_is_recorded_as_a_tree_block_is_referred_to_again() {
    let (mut rig, targets) = prepare();
    let bytenr = targets.new_twice;
    let fault = Fault::records(|extents| {
        if let Some(extent) = extents.get_mut(&bytenr) {
            (extent.level, extent.refs) = (Some(0), [(Holder::Tree(5), 1)].into());
        }
    });
    rig.fault(&fault, Code::RefExtentType, bytenr);
    // What was said is not said again of each reference.
    let mut items = rig.world.items(TOP);
    for at in [0, 4096] {
        items.insert(Key::new(340, item::EXTENT_DATA, at), bytes::file_extent(bytenr, 16384, at, 4096));
    }
    rig.world.write_tree(TOP, items);
    rig::assert_clean(&rig.commit(&fault));
}

#[test]
fn data_is_recorded_as_a_tree_block_and_a_tree_block_as_data() {
    let (mut rig, targets) = prepare();
    let bytenr = targets.new_leaf;
    let fault = Fault::records(|extents| {
        if let Some(extent) = extents.get_mut(&bytenr) {
            extent.level = None;
            extent.refs = [(Holder::Data { root: 5, inode: 300, offset: 0 }, 1)].into();
        }
    });
    rig.fault(&fault, Code::RefExtentType, bytenr);
    go_on(&mut rig, &fault, true);
    let (mut rig, targets) = prepare();
    let bytenr = targets.new_data;
    let fault = Fault::records(|extents| {
        if let Some(extent) = extents.get_mut(&bytenr) {
            (extent.level, extent.refs) = (Some(0), [(Holder::Tree(5), 1)].into());
        }
    });
    rig.fault(&fault, Code::RefExtentType, bytenr);
    go_on(&mut rig, &fault, true);
}
