//! Faults in extent items themselves, and in block group items.

use parser::extent::{FLAG_DATA, FLAG_FULL_BACKREF, FLAG_TREE_BLOCK};
use parser::key::item;
use parser::{BackRef, Key, layout};

use super::{Edit, Kind, Place};
use crate::backref::{Extent, Form, keyed};
use crate::edit::{self, Item, Leaf};
use crate::rng::Rng;

const MALFORMED: &[&str] = &["tree/extent-item", "ref/invalid-backref", "ref/"];

/// Every fault of an extent item.
pub fn kinds() -> Vec<Kind> {
    let kind = |name, edit, expected| Kind::new(name, Place::ExtentLeaf, Edit::Item(edit), expected);
    vec![
        kind(
            "data-refs-plus-1",
            |leaf, slot, _| data(leaf, slot, |extent| refs(extent, |refs| refs + 1)),
            &["ref/count"],
        ),
        kind(
            "data-refs-minus-1",
            |leaf, slot, _| {
                data(leaf, slot, |extent| {
                    (extent.fixed.refs.get() > 1).then(|| refs(extent, |refs| refs - 1))?
                })
            },
            &["ref/count"],
        ),
        kind(
            "data-refs-0",
            |leaf, slot, _| data(leaf, slot, |extent| refs(extent, |_| 0)),
            &["ref/count", "tree/extent-item"],
        ),
        kind(
            "data-refs-huge",
            |leaf, slot, _| data(leaf, slot, |extent| refs(extent, |refs| refs | 1 << 40)),
            &["ref/count", "tree/extent-item"],
        ),
        kind(
            "tree-refs-plus-1",
            |leaf, slot, _| tree(leaf, slot, |extent| refs(extent, |refs| refs + 1)),
            &["ref/count"],
        ),
        kind(
            "tree-refs-minus-1",
            |leaf, slot, _| {
                tree(leaf, slot, |extent| {
                    (extent.fixed.refs.get() > 1).then(|| refs(extent, |refs| refs - 1))?
                })
            },
            &["ref/count"],
        ),
        kind(
            "tree-refs-0",
            |leaf, slot, _| tree(leaf, slot, |extent| refs(extent, |_| 0)),
            &["ref/count", "tree/extent-item"],
        ),
        kind("data-extent-item-lost", data_item_lost, &["ref/no-extent-item", "ref/"]),
        kind("tree-extent-item-lost", tree_item_lost, &["ref/no-extent-item", "ref/"]),
        kind("extent-item-lost-but-keyed-refs", item_lost_but_keyed, &["ref/no-extent-item", "ref/"]),
        // At a place where another extent has just been freed, it seems to be that one.
        kind(
            "data-extent-item-stale",
            stale_data,
            &["ref/stale-extent", "ref/reallocated", "ref/extent-length"],
        ),
        kind(
            "tree-extent-item-stale",
            stale_tree,
            &["ref/stale-extent", "ref/reallocated", "ref/extent-generation"],
        ),
        kind("data-extent-too-long", too_long, &["ref/extent-length", "ref/", "space/"]),
        kind(
            "full-backref-set",
            |leaf, slot, _| node(leaf, slot, |extent| flag(extent, FLAG_FULL_BACKREF, true)),
            &["ref/full-backref", "ref/"],
        ),
        kind(
            "full-backref-cleared",
            |leaf, slot, _| node(leaf, slot, |extent| flag(extent, FLAG_FULL_BACKREF, false)),
            &["ref/full-backref", "ref/"],
        ),
        kind("data-flagged-tree-block", data_as_tree, &["ref/extent-type", "tree/extent-item", "ref/"]),
        kind(
            "tree-block-flagged-data",
            |leaf, slot, _| {
                tree(leaf, slot, |extent| {
                    flag(extent, FLAG_TREE_BLOCK, false)?;
                    flag(extent, FLAG_DATA, true)
                })
            },
            &["ref/extent-type", "tree/extent-item", "ref/"],
        ),
        kind("data-recorded-as-tree-block", data_becomes_tree, &["ref/extent-type"]),
        kind("tree-block-recorded-as-data", tree_becomes_data, &["ref/extent-type"]),
        kind(
            "data-backref-of-no-root",
            |leaf, slot, _| {
                let backref = BackRef::ExtentData { root: NOWHERE, objectid: 257, offset: 0, count: 1 };
                data(leaf, slot, |extent| added(extent, backref))
            },
            &["ref/unknown-root"],
        ),
        kind(
            "tree-backref-of-no-root",
            |leaf, slot, _| tree(leaf, slot, |extent| added(extent, BackRef::TreeBlock { root: NOWHERE })),
            &["ref/unknown-root"],
        ),
        kind(
            "no-type-flag",
            |leaf, slot, _| data(leaf, slot, |extent| flag(extent, FLAG_DATA, false)),
            &["tree/extent-item", "ref/extent-type", "ref/"],
        ),
        kind(
            "data-with-full-backref",
            |leaf, slot, _| data(leaf, slot, |extent| flag(extent, FLAG_FULL_BACKREF, true)),
            &["tree/extent-item", "ref/extent-type", "ref/"],
        ),
        kind(
            "extent-generation-in-the-future",
            |leaf, slot, _| tree(leaf, slot, |extent| generation(extent, |old| old + (1 << 30))),
            &["ref/extent-generation", "tree/extent-item"],
        ),
        kind("data-extent-generation-changed", older_data, &["ref/reallocated"]).against_the_past(),
        kind(
            "tree-extent-generation-minus-1",
            |leaf, slot, _| tree(leaf, slot, |extent| generation(extent, |old| old - 1)),
            &["ref/extent-generation"],
        ),
        kind(
            "extent-level-plus-1",
            |leaf, slot, _| level(leaf, slot, |old| old + 1),
            &["tree/extent-item", "tree/level", "ref/"],
        ),
        kind(
            "extent-level-out-of-range",
            |leaf, slot, _| level(leaf, slot, |_| 200),
            &["tree/extent-item", "tree/level", "ref/"],
        ),
        kind(
            "inline-type-unknown",
            |leaf, slot, _| inline_type(leaf, slot, 179),
            &["ref/invalid-backref", "tree/extent-item"],
        ),
        kind(
            "inline-type-0",
            |leaf, slot, _| inline_type(leaf, slot, 0),
            &["ref/invalid-backref", "tree/extent-item"],
        ),
        kind("inline-tree-becomes-shared", tree_becomes_shared, &["ref/"]),
        kind("inline-data-ref-on-tree-block", data_ref_on_tree, &["ref/", "tree/extent-item"]),
        kind("inline-ref-cut-short", cut_short, MALFORMED),
        kind("inline-refs-out-of-order", out_of_order, &["tree/extent-item"]),
        kind("owner-ref-without-simple-quotas", owner_ref, &["ref/owner-ref"]),
        kind("keyed-ref-cut-short", keyed_cut_short, MALFORMED),
        kind("keyed-ref-without-extent-item", keyed_alone, &["ref/no-extent-item", "ref/"]),
        kind("data-extent-item-doubled", data_doubled, &["ref/extent-overlap"]),
        kind("tree-extent-item-doubled", tree_doubled, &["ref/extent-overlap"]),
        kind("keyed-data-doubled", keyed_doubled, &["ref/duplicate-backref", "ref/"]),
    ]
}

/// A subvolume that no file system of the tests has.
const NOWHERE: u64 = 1 << 40;

/// One more backref, and one more reference.
fn added(extent: &mut Extent, backref: BackRef) -> Option<String> {
    extent.inline.push(backref);
    Some(format!("{backref:?} added, {}", refs(extent, |refs| refs + 1)?))
}

/// The whole item of a data extent that is as long as a tree block becomes one of a leaf, well-formed.
fn data_becomes_tree(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let nodesize = leaf.nodesize as u64;
    let item = leaf.items.get_mut(slot).filter(|item| item.key.offset == nodesize)?;
    let old = Extent::parse(item).filter(|extent| extent.is_data() && extent.is_whole())?;
    let key = layout::DiskKey { objectid: 256.into(), item_type: item::INODE_ITEM, offset: 0.into() };
    let fixed = layout::ExtentItem { refs: 1.into(), flags: FLAG_TREE_BLOCK.into(), ..old.fixed };
    let info = Some(layout::TreeBlockInfo { key, level: 0 });
    item.data = Extent { fixed, info, inline: vec![BackRef::TreeBlock { root: 5 }] }.build();
    Some(format!("extent {}: recorded as a leaf of root 5", item.key.objectid))
}

/// The whole item of a tree block becomes one of data, well-formed.
fn tree_becomes_data(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let nodesize = leaf.nodesize as u64;
    let item = leaf.items.get_mut(slot)?;
    let old = Extent::parse(item).filter(|extent| extent.is_tree_block() && extent.is_whole())?;
    let fixed = layout::ExtentItem { refs: 1.into(), flags: FLAG_DATA.into(), ..old.fixed };
    let backref = BackRef::ExtentData { root: 5, objectid: 257, offset: 0, count: 1 };
    item.data = Extent { fixed, info: None, inline: vec![backref] }.build();
    item.key = Key::new(item.key.objectid, item::EXTENT_ITEM, nodesize);
    Some(format!("extent {}: recorded as data of root 5", item.key.objectid))
}

/// Edits a parsed extent item that `wanted` lets through.
fn extent(
    leaf: &mut Leaf,
    slot: usize,
    wanted: impl Fn(&Extent, &Key) -> bool,
    edit: impl FnOnce(&mut Extent) -> Option<String>,
) -> Option<String> {
    let item = leaf.items.get_mut(slot)?;
    let mut extent = Extent::parse(item).filter(|extent| wanted(extent, &item.key))?;
    let note = edit(&mut extent)?;
    item.data = extent.build();
    Some(format!("extent {}: {note}", item.key.objectid))
}

fn data(leaf: &mut Leaf, slot: usize, edit: impl FnOnce(&mut Extent) -> Option<String>) -> Option<String> {
    extent(leaf, slot, |extent, _| extent.is_data(), edit)
}

fn tree(leaf: &mut Leaf, slot: usize, edit: impl FnOnce(&mut Extent) -> Option<String>) -> Option<String> {
    extent(leaf, slot, |extent, _| extent.is_tree_block(), edit)
}

/// A tree block that has pointers for sure.
fn node(leaf: &mut Leaf, slot: usize, edit: impl FnOnce(&mut Extent) -> Option<String>) -> Option<String> {
    extent(leaf, slot, |extent, key| extent.is_tree_block() && extent.level(key) > 0, edit)
}

fn refs(extent: &mut Extent, change: impl FnOnce(u64) -> u64) -> Option<String> {
    let old = extent.fixed.refs.get();
    let new = change(old);
    extent.fixed.refs = new.into();
    Some(format!("refs {old} became {new}"))
}

fn generation(extent: &mut Extent, change: impl FnOnce(u64) -> u64) -> Option<String> {
    let old = extent.fixed.generation.get();
    let new = change(old);
    extent.fixed.generation = new.into();
    Some(format!("generation {old} became {new}"))
}

/// Sets or clears a flag; `None` when it is so already.
fn flag(extent: &mut Extent, flag: u64, set: bool) -> Option<String> {
    let old = extent.fixed.flags.get();
    let new = if set { old | flag } else { old & !flag };
    extent.fixed.flags = new.into();
    (new != old).then(|| format!("flags {old:#x} became {new:#x}"))
}

fn has_keyed(leaf: &Leaf, bytenr: u64) -> bool {
    leaf.items.iter().any(|item| item.key.objectid == bytenr && BackRef::is_keyed_type(item.key.item_type))
}

fn lose(leaf: &mut Leaf, slot: usize, wanted: impl Fn(&Leaf, &Extent, u64) -> bool) -> Option<String> {
    let item = leaf.items.get(slot)?;
    let bytenr = item.key.objectid;
    let extent = Extent::parse(item)?;
    // The last item of the leaf may have keyed backrefs in the next one.
    if slot + 1 >= leaf.items.len() || !wanted(leaf, &extent, bytenr) {
        return None;
    }
    leaf.items.remove(slot);
    Some(format!("extent {bytenr}: extent item lost"))
}

fn data_item_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    lose(leaf, slot, |leaf, extent, bytenr| extent.is_data() && !has_keyed(leaf, bytenr))
}

fn tree_item_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    lose(leaf, slot, |leaf, extent, bytenr| extent.is_tree_block() && !has_keyed(leaf, bytenr))
}

fn item_lost_but_keyed(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    lose(leaf, slot, |leaf, _, bytenr| has_keyed(leaf, bytenr))
}

/// A free range of `length` bytes between the extent at `slot` and the next one, both in one block group.
fn gap_behind(leaf: &Leaf, slot: usize, length: u64) -> Option<u64> {
    let (item, next) = (leaf.items.get(slot)?, leaf.items.get(slot + 1)?);
    Extent::parse(next)?;
    let own = match item.key.item_type {
        item::EXTENT_ITEM => item.key.offset,
        item::METADATA_ITEM => leaf.nodesize as u64,
        _ => return None,
    };
    let start = item.key.objectid.checked_add(own)?;
    (next.key.objectid.checked_sub(start)? >= length).then_some(start)
}

fn stale_data(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let length = 4096;
    let model = Extent::parse(leaf.items.get(slot)?).filter(Extent::is_data)?;
    let bytenr = gap_behind(leaf, slot, length)?;
    let backref = BackRef::ExtentData { root: 5, objectid: 257, offset: 0, count: 1 };
    let fixed = layout::ExtentItem { refs: 1.into(), ..model.fixed };
    let extent = Extent { fixed, info: None, inline: vec![backref] };
    let key = Key::new(bytenr, item::EXTENT_ITEM, length);
    leaf.items.push(Item { key, data: extent.build() });
    Some(format!("extent {bytenr}: an extent item that nothing refers to"))
}

fn stale_tree(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get(slot)?.clone();
    let mut extent = Extent::parse(&item).filter(Extent::is_tree_block)?;
    let bytenr = gap_behind(leaf, slot, leaf.nodesize as u64)?;
    extent.inline = vec![BackRef::TreeBlock { root: 5 }];
    extent.fixed.refs = 1.into();
    leaf.items.push(Item { key: Key { objectid: bytenr, ..item.key }, data: extent.build() });
    Some(format!("extent {bytenr}: an extent item that nothing refers to"))
}

fn too_long(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    gap_behind(leaf, slot, 4096)?;
    let item = leaf.items.get_mut(slot)?;
    Extent::parse(item).filter(Extent::is_data)?;
    item.key.offset += 4096;
    Some(format!("extent {}: length became {}", item.key.objectid, item.key.offset))
}

fn data_as_tree(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot)?;
    Extent::parse(item).filter(Extent::is_data)?;
    edit::change::<layout::ExtentItem>(&mut item.data, |fixed| fixed.flags = FLAG_TREE_BLOCK.into())?;
    Some(format!("extent {}: flags became those of a tree block", item.key.objectid))
}

fn level(leaf: &mut Leaf, slot: usize, change: impl FnOnce(u8) -> u8) -> Option<String> {
    let item = leaf.items.get_mut(slot)?;
    let mut extent = Extent::parse(item).filter(Extent::is_tree_block)?;
    let old = u8::try_from(extent.level(&item.key)).ok()?;
    let new = change(old);
    match &mut extent.info {
        Some(info) => info.level = new,
        None => item.key.offset = new.into(),
    }
    item.data = extent.build();
    Some(format!("extent {}: level {old} became {new}", item.key.objectid))
}

/// Overwrites the type of the first inline backref.
fn inline_type(leaf: &mut Leaf, slot: usize, value: u8) -> Option<String> {
    let item = leaf.items.get_mut(slot)?;
    let at = first_inline(item)?;
    let old = std::mem::replace(item.data.get_mut(at)?, value);
    Some(format!("extent {}: type {old} of an inline backref became {value}", item.key.objectid))
}

/// Where the first inline backref begins.
fn first_inline(item: &Item) -> Option<usize> {
    let extent = Extent::parse(item).filter(|extent| !extent.inline.is_empty())?;
    Some(extent.build_as_is(&[]).len())
}

fn tree_becomes_shared(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    tree(leaf, slot, |extent| {
        let found = extent.inline.iter_mut().find_map(|backref| match *backref {
            BackRef::TreeBlock { root } => Some((backref, root)),
            _ => None,
        });
        let (backref, root) = found?;
        *backref = BackRef::SharedBlock { parent: root << 16 };
        Some(format!("the backref of root {root} became a shared one"))
    })
}

fn data_ref_on_tree(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    tree(leaf, slot, |extent| {
        let backref = extent.inline.first_mut()?;
        *backref = BackRef::ExtentData { root: 5, objectid: 257, offset: 0, count: 1 };
        Some("a tree block with a data backref".to_owned())
    })
}

fn cut_short(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot)?;
    first_inline(item)?;
    item.data.truncate(item.data.len() - 3);
    Some(format!("extent {}: item cut short by 3 bytes", item.key.objectid))
}

fn out_of_order(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot)?;
    let extent = Extent::parse(item).filter(|extent| extent.inline.len() > 1)?;
    let mut inline = extent.inline.clone();
    inline.swap(0, 1);
    item.data = extent.build_as_is(&inline);
    Some(format!("extent {}: the first two inline backrefs swapped", item.key.objectid))
}

fn owner_ref(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    data(leaf, slot, |extent| {
        let has_owner = extent.inline.iter().any(|backref| matches!(backref, BackRef::Owner { .. }));
        extent.inline.push(BackRef::Owner { root: 5 });
        (!has_owner).then(|| "an owner ref of root 5".to_owned())
    })
}

fn keyed_cut_short(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot)?;
    let is_counted = [item::EXTENT_DATA_REF, item::SHARED_DATA_REF].contains(&item.key.item_type);
    is_counted.then(|| item.data.pop())?;
    Some(format!("{}: cut short by a byte", item.key))
}

/// A keyed backref for an address in a gap, where no extent is.
fn keyed_alone(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let bytenr = gap_behind(leaf, slot, 4096)?;
    leaf.items.push(keyed(bytenr, &BackRef::ExtentData { root: 5, objectid: 257, offset: 0, count: 1 }));
    Some(format!("extent {bytenr}: a keyed backref without an extent item"))
}

/// The same keyed data backref again, at the place behind it, as after a collision of hashes.
fn keyed_doubled(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let mut item = leaf.items.get(slot)?.clone();
    let backref =
        crate::backref::parse_keyed(&item).filter(|backref| Form::of(backref) == Some(Form::Data))?;
    item.key.offset += 1;
    let bytenr = item.key.objectid;
    leaf.items.push(item);
    Some(format!("extent {bytenr}: keyed {backref:?} doubled"))
}

/// The generation of an extent that was there before. Any is possible; but it changes with the extent only.
fn older_data(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let newest = leaf.generation();
    data(leaf, slot, |extent| {
        let old = extent.fixed.generation.get();
        (1 < old && old < newest).then(|| generation(extent, |old| old - 1))?
    })
}

/// A second extent item of the same extent, a sector shorter.
fn data_doubled(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let mut item = leaf.items.get(slot)?.clone();
    Extent::parse(&item).filter(Extent::is_data)?;
    item.key.offset = item.key.offset.checked_sub(4096).filter(|len| *len > 0)?;
    let note = format!("{}: added", item.key);
    leaf.items.push(item);
    Some(note)
}

/// A second extent item of the same tree block, of another level.
fn tree_doubled(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let mut item = leaf.items.get(slot)?.clone();
    Extent::parse(&item).filter(Extent::is_tree_block)?;
    // The offset of a skinny item is the level, that of another one the length.
    item.key.offset += 1;
    let note = format!("{}: added", item.key);
    leaf.items.push(item);
    Some(note)
}
