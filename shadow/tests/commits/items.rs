//! One malformed item in the extent tree: one violation, and clean afterwards.

use parser::key::item;
use parser::{Key, layout};
use shadow::Code;
use shadow::forest::RootId;
use zerocopy::FromBytes as _;

use crate::support::model::{inline_bytes, keyed_item};
use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };

/// Commits a new data extent (or its leaf) with its item changed by `edit`.
#[track_caller]
fn check_with(config: Config, keyed: bool, leaf: bool, code: Code, edit: impl Fn(&mut Items, Key)) {
    let mut world = World::new(config);
    world.fill(TOP, 300, 20);
    let mut rig = Rig::attach(world);
    let data = rig.world.write_file(TOP, 305, 0, 4096);
    let bytenr = if leaf { rig.world.tree_blocks(TOP).pop().unwrap() } else { data };
    let bytenr = match leaf {
        true => {
            let next = rig.world.next();
            let mut blocks = rig.world.tree_blocks(TOP).into_iter().map(|bytenr| rig.world.get(bytenr));
            blocks.find(|block| block.level == 0 && block.generation == next).unwrap().bytenr
        }
        false => bytenr,
    };
    if keyed {
        rig.world.keyed.insert(bytenr);
    }
    let fault = Fault::extents(|items| {
        let types = [item::EXTENT_ITEM, item::METADATA_ITEM];
        let key = items.keys().find(|key| key.objectid == bytenr && types.contains(&key.item_type)).copied();
        edit(items, key.expect("no extent item"));
    });
    rig.fault(&fault, code, bytenr);
    rig.world.write_file(TOP, 2000, 0, 4096);
    rig.clean();
    rig.world.write_file(TOP, 305, 0, 4096);
    rig.clean();
}

#[track_caller]
fn check(leaf: bool, code: Code, edit: impl Fn(&mut Items, Key)) {
    check_with(Config::default(), false, leaf, code, edit);
}

fn head(items: &mut Items, key: Key) -> &mut layout::ExtentItem {
    layout::ExtentItem::mut_from_prefix(items.get_mut(&key).unwrap()).unwrap().0
}

#[test]
fn the_refs_field_is_wrong() {
    for refs in [0, 2, u64::MAX] {
        check(false, Code::RefCount, |items, key| head(items, key).refs = refs.into());
        check(true, Code::RefCount, |items, key| head(items, key).refs = refs.into());
    }
}

#[test]
fn a_backref_is_recorded_twice() {
    let data = inline_bytes(&Holder::Data { root: 5, inode: 305, offset: 0 }, 1);
    check(false, Code::RefDuplicateBackref, |items, key| items.get_mut(&key).unwrap().extend(&data));
    let tree = inline_bytes(&Holder::Tree(5), 1);
    check(true, Code::RefDuplicateBackref, |items, key| items.get_mut(&key).unwrap().extend(&tree));
    check(true, Code::RefDuplicateBackref, |items, key| {
        items.extend([keyed_item(key.objectid, &Holder::Tree(5), 1)]);
    });
}

#[test]
fn a_backref_is_invalid() {
    for bytes in [&[180u8, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0; 9], &[176, 5], &[255]] {
        for leaf in [false, true] {
            check(leaf, Code::RefInvalidBackref, |items, key| items.get_mut(&key).unwrap().extend(bytes));
        }
    }
    check(false, Code::RefInvalidBackref, |items, key| {
        items.get_mut(&key).unwrap().extend(inline_bytes(&Holder::SharedData(4096), 0));
    });
    check(false, Code::RefInvalidBackref, |items, key| {
        items.get_mut(&key).unwrap().extend(inline_bytes(&Holder::SharedTree(4096), 1));
    });
}

#[test]
fn an_owner_ref_without_simple_quotas() {
    let owner: Vec<u8> = [&[item::EXTENT_OWNER_REF][..], &5u64.to_le_bytes()].concat();
    check(false, Code::RefOwnerRef, |items, key| {
        let data = items.get_mut(&key).unwrap();
        data.splice(24..24, owner.iter().copied());
    });
}

#[test]
fn inline_backrefs_out_of_order() {
    let config = Config { simple_quota: true, ..Config::default() };
    check_with(config, false, false, Code::TreeExtentItem, |items, key| {
        let data = items.get_mut(&key).unwrap();
        data[24..].rotate_left(9);
    });
}

#[test]
fn an_extent_item_is_cut_short_or_has_impossible_flags() {
    for leaf in [false, true] {
        check(leaf, Code::TreeExtentItem, |items, key| items.get_mut(&key).unwrap().truncate(20));
        for flags in [0, 3, 1 << 40] {
            let sane = if leaf { 2 } else { 1 };
            check(leaf, Code::TreeExtentItem, |items, key| {
                head(items, key).flags = (flags | if flags > 3 { sane } else { 0 }).into();
            });
        }
    }
}

#[test]
fn a_keyed_backref_is_wrong() {
    let config = Config::default;
    check_with(config(), true, false, Code::RefInvalidBackref, |items, key| {
        let keyed = items.keys().find(|k| k.objectid == key.objectid && k.item_type == item::EXTENT_DATA_REF);
        let keyed = *keyed.unwrap();
        items.get_mut(&keyed).unwrap().push(0);
    });
    // Under a hash that is smaller than its own.
    check_with(config(), true, false, Code::TreeExtentItem, |items, key| {
        let keyed = items.keys().find(|k| k.objectid == key.objectid && k.item_type == item::EXTENT_DATA_REF);
        let keyed = *keyed.unwrap();
        let data = items.remove(&keyed).unwrap();
        items.insert(Key { offset: keyed.offset - 1, ..keyed }, data);
    });
    check_with(config(), false, false, Code::RefInvalidBackref, |items, key| {
        items.insert(Key::new(key.objectid, item::EXTENT_REF_V0, 5), vec![0; 28]);
    });
}

/// The extent item is gone, its keyed backref is left.
#[test]
fn a_keyed_backref_without_an_extent_item() {
    for leaf in [false, true] {
        check_with(Config::default(), true, leaf, Code::RefNoExtentItem, |items, key| {
            drop(items.remove(&key))
        });
    }
}

/// Two extent items for one address: data of another length, and both kinds of item for a tree block.
#[test]
fn two_extent_items_for_one_address() {
    check(false, Code::RefExtentOverlap, |items, key| {
        let data = items[&key].clone();
        items.insert(Key { offset: key.offset + 4096, ..key }, data);
    });
    check(true, Code::RefExtentOverlap, |items, key| {
        let data = items[&key].clone();
        items.insert(Key { offset: key.offset + 1, ..key }, data);
    });
}
