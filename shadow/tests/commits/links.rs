//! Subvolumes, their links and orphan items: what is wrong with them is found by the commit that brings it, and stays
//! known.

use parser::key::item;
use parser::{Key, ids};
use shadow::forest::{Forest, RootId};
use shadow::{Code, roots};

use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };

/// A file system with two snapshots.
fn two() -> Rig {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 20);
    world.snapshot(TOP, 400);
    world.snapshot(TOP, 401);
    Rig::attach(world)
}

/// Commits something with the leaf of the root tree changed. What is found by the commit, and in the whole.
fn commit(rig: &mut Rig, edit: impl Fn(&mut Items)) -> [Vec<Code>; 2] {
    rig.world.write_file(TOP, 300, 0, 4096);
    let fault = Fault {
        blocks: Some(Box::new(move |blocks| {
            let leaves =
                blocks.values_mut().filter(|block| block.owner == ids::ROOT_TREE && block.level == 0);
            for leaf in leaves {
                let Content::Leaf(items) = &mut leaf.content else { panic!("a leaf") };
                let mut changed: Items = items.drain(..).collect();
                edit(&mut changed);
                items.extend(changed);
            }
        })),
        ..Fault::default()
    };
    let report = rig.commit(&fault);
    assert!(report.unverified.is_empty(), "{:?} {:?}", report.unverified, rig::messages(&report));
    let online = report.violations.iter().map(|found| found.code).collect();
    let forest = Forest::new(rig.verifier.snapshot().unwrap(), &rig.world.image);
    [online, roots::verify_all(&forest).iter().map(|found| found.code).collect()]
}

/// The fault is found once, by the commit that brings it; in the whole it is found again.
#[track_caller]
fn check(edit: impl Fn(&mut Items) + Copy, code: Code) {
    let mut rig = two();
    rig.world.shape.leaf = 100;
    rig.world.shape.every = u64::MAX;
    assert_eq!(commit(&mut rig, |_| ()), [vec![], vec![]]);
    assert_eq!(commit(&mut rig, edit), [vec![code], vec![code]]);
    assert_eq!(commit(&mut rig, edit), [vec![], vec![code]]);
    assert_eq!(commit(&mut rig, |_| ()), [vec![], vec![]]);
}

const REF: Key = Key::new(5, item::ROOT_REF, 400);
const BACKREF: Key = Key::new(400, item::ROOT_BACKREF, 5);

#[test]
fn links_are_broken() {
    check(|items| drop(items.remove(&REF)), Code::RootRef);
    check(|items| items.get_mut(&REF).unwrap()[0] ^= 1, Code::RootRef);
    check(|items| items.get_mut(&BACKREF).unwrap()[8] ^= 1, Code::RootRef);
    check(
        |items| {
            items.remove(&REF);
            items.remove(&BACKREF);
        },
        Code::RootUnreferenced,
    );
    let both = |items: &mut Items, edit: fn(&mut Vec<u8>)| {
        edit(items.get_mut(&REF).unwrap());
        edit(items.get_mut(&BACKREF).unwrap());
    };
    check(move |items| both(items, |link| link[18] ^= 1), Code::RootDirItem);
    check(move |items| both(items, |link| link[8] ^= 64), Code::RootDirItem);
    check(
        |items| {
            items.insert(Key::new(5, item::ROOT_REF, 499), bytes::subvolume_ref(499));
            items.insert(Key::new(499, item::ROOT_BACKREF, 5), bytes::subvolume_ref(499));
        },
        Code::RootUnknown,
    );
}

/// A backref that is lost leaves a subvolume that none says it links to as well.
#[test]
fn a_backref_is_lost() {
    let mut rig = two();
    let [online, _] = commit(&mut rig, |items| drop(items.remove(&BACKREF)));
    assert_eq!(online, [Code::RootUnreferenced, Code::RootRef]);
}

/// A subvolume is lost with its root item: the link that leads to it did not change, and is found all the same.
#[test]
fn a_root_item_is_lost() {
    let mut rig = two();
    let lost =
        |items: &mut Items| items.retain(|key, _| key.objectid != 400 || key.item_type != item::ROOT_ITEM);
    assert_eq!(
        commit(&mut rig, lost),
        [vec![Code::RefUnknownRoot, Code::RootUnknown], vec![Code::RootUnknown]]
    );
    assert_eq!(commit(&mut rig, lost), [vec![], vec![Code::RootUnknown]]);
}

#[test]
fn a_deletion_is_forgotten() {
    let mut rig = two();
    rig.world.roots.iter_mut().find(|(id, _)| id.tree == 401).unwrap().1.refs = 0;
    let lost = |items: &mut Items| drop(items.remove(&Key::new(ids::ORPHAN, item::ORPHAN_ITEM, 401)));
    assert_eq!(commit(&mut rig, lost), [vec![Code::RootNoOrphan], vec![Code::RootNoOrphan]]);
    // Found again by a later one: the deletion goes on.
    assert_eq!(commit(&mut rig, |_| ()), [vec![], vec![]]);
    rig.world.roots.retain(|id, _| id.tree != 401);
    assert_eq!(commit(&mut rig, |_| ()), [vec![], vec![]]);
}
