//! Faults in headers, in the order of keys and in the layout of items.

use parser::Header;
use parser::block::HEADER_SIZE;
use parser::key::item;
use parser::{ids, layout};

use super::{Edit, Kind, Place, RawEdit};
use crate::edit::{self, Leaf};
use crate::rng::Rng;

/// Every fault of a header, and of the item array.
pub fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    let rows: [(&str, RawEdit, &[&'static str]); 8] = [
        ("fsid", |bytes, _| header(bytes, |header| header.fsid[3] ^= 0x40), &["tree/fsid"]),
        (
            "bytenr",
            |bytes, _| header(bytes, |header| header.bytenr = (header.bytenr.get() + 65536).into()),
            &["tree/bytenr"],
        ),
        (
            "level-plus-1",
            |bytes, _| header(bytes, |header| header.level += 1),
            &["tree/level", "tree/header", "tree/"],
        ),
        ("generation-plus-1", |bytes, _| generation(bytes, 1), &["tree/generation", "tree/"]),
        ("generation-minus-1", |bytes, _| generation(bytes, -1), &["tree/generation", "tree/"]),
        (
            "owner",
            |bytes, _| header(bytes, |header| header.owner = ids::DEV_TREE.into()),
            &["tree/owner", "tree/", "ref/"],
        ),
        (
            "nritems-huge",
            |bytes, _| header(bytes, |header| header.nritems = u32::MAX.into()),
            &["tree/header", "tree/"],
        ),
        ("nritems-minus-1", fewer_items, &["tree/", "ref/"]),
    ];
    for (name, edit, expected) in rows {
        for (tree, place) in [("file", Place::FileBlock), ("csum", Place::CsumBlock)] {
            // A checksum leaf without its last item still looks like one, and holds no reference.
            if (name, tree) != ("nritems-minus-1", "csum") {
                kinds.push(Kind::new(format!("{tree}-header-{name}"), place, Edit::Raw(edit), expected));
            }
        }
    }
    for (tree, place) in
        [("file", Place::FileBlock), ("csum", Place::CsumBlock), ("extent", Place::ExtentLeaf)]
    {
        let mut kind =
            Kind::new(format!("{tree}-checksum"), place, Edit::Raw(bad_checksum), &["tree/checksum"]);
        kind.leaves_checksum = true;
        kinds.push(kind);
    }
    let owner: &[&str] = &["ref/", "tree/owner"];
    kinds.push(
        Kind::new("file-header-owner-other-subvolume", Place::FileNode, Edit::Raw(other_subvolume), owner)
            .in_new_blocks(),
    );
    let owner: &[&str] = &["tree/owner"];
    kinds.push(
        Kind::new("file-leaf-owner-other-subvolume", Place::FileLeaf, Edit::Raw(other_subvolume), owner)
            .in_new_blocks()
            .beyond_the_model(),
    );
    let item = |name, place, edit, expected| Kind::new(name, place, Edit::Disorder(edit), expected);
    kinds.extend([
        item("file-key-order", Place::FileLeaf, key_order, &["tree/key-order"]),
        item("extent-key-order", Place::ExtentLeaf, key_order, &["tree/key-order"]),
        item("file-first-key", Place::FileLeaf, first_key, &["tree/first-key"]).below_the_root(),
    ]);
    let raw = |name, place, edit, expected| Kind::new(name, place, Edit::Raw(edit), expected);
    kinds.extend([
        raw(
            "file-item-hole",
            Place::FileLeaf,
            |bytes, rng| item_size(bytes, rng, -1),
            &["tree/item-bounds", "tree/"],
        ),
        raw(
            "file-item-overlap",
            Place::FileLeaf,
            |bytes, rng| item_size(bytes, rng, 1),
            &["tree/item-bounds", "tree/"],
        ),
        raw("extent-item-out-of-block", Place::ExtentLeaf, out_of_block, &["tree/item-bounds", "tree/"]),
    ]);
    kinds
}

fn header(bytes: &mut [u8], edit: impl FnOnce(&mut layout::Header)) -> Option<String> {
    let describe = |bytes: &[u8]| {
        let header: layout::Header = edit::read(bytes)?;
        let (bytenr, generation, owner) = (header.bytenr, header.generation, header.owner);
        Some(format!(
            "bytenr {bytenr} generation {generation} owner {owner} items {} level {}",
            header.nritems, header.level
        ))
    };
    let before = describe(bytes)?;
    edit::change(bytes, edit)?;
    Some(format!("header {before} became {}", describe(bytes)?))
}

fn generation(bytes: &mut [u8], by: i64) -> Option<String> {
    header(bytes, |header| {
        let new = header.generation.get().wrapping_add_signed(by);
        header.generation = new.into();
    })
}

/// The last item or pointer is forgotten, its bytes stay. Only where that takes a reference with it.
fn fewer_items(bytes: &mut [u8], _: &mut Rng) -> Option<String> {
    let holds_reference = match Leaf::parse(bytes) {
        Some(leaf) => leaf.items.last().is_some_and(|item| {
            let extent = parser::FileExtent::parse(&item.data).ok();
            item.key.item_type == item::EXTENT_DATA && extent.is_some_and(|extent| extent.extent().is_some())
        }),
        None => true,
    };
    let more_than_one = edit::read::<layout::Header>(bytes)?.nritems.get() > 1;
    if !(holds_reference && more_than_one) {
        return None;
    }
    header(bytes, |header| header.nritems = (header.nritems.get() - 1).into())
}

fn bad_checksum(bytes: &mut [u8], rng: &mut Rng) -> Option<String> {
    let at = HEADER_SIZE + rng.below(bytes.len() - HEADER_SIZE);
    bytes[at] ^= 1 << rng.below(8);
    Some(format!("byte {at} changed, the checksum left as it was"))
}

/// A subvolume id that no tree has.
fn other_subvolume(bytes: &mut [u8], _: &mut Rng) -> Option<String> {
    // It means nothing where the block's references are recorded by its address.
    (!Header::parse(bytes).ok()?.is_reloc()).then_some(())?;
    header(bytes, |header| header.owner = (header.owner.get() + 100_000).into())
}

fn key_order(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let before = slot.checked_sub(1)?;
    leaf.items.swap(before, slot);
    Some(format!("items {before} and {slot} swapped"))
}

/// The first item's key grows a little, but stays before the second: only the parent knows better.
fn first_key(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let second = leaf.items.get(1)?.key;
    let first = leaf.items.get_mut(0).filter(|item| slot == 0 && item.key.item_type != item::EXTENT_DATA)?;
    first.key.offset = first.key.offset.checked_add(1)?;
    (first.key < second).then(|| format!("first key became {}", first.key))
}

/// Changes the size of an item, so that there is a hole before the next or an overlap with it.
fn item_size(bytes: &mut [u8], rng: &mut Rng, by: i32) -> Option<String> {
    let items = Leaf::parse(bytes)?.items;
    let slot = rng.order(items.len()).into_iter().find(|slot| items[*slot].data.len() > 1)?;
    let at = HEADER_SIZE + slot * size_of::<layout::Item>();
    edit::change::<layout::Item>(bytes.get_mut(at..)?, |item| {
        item.size = item.size.get().wrapping_add_signed(by).into();
    })?;
    Some(format!("item {slot}: size changed by {by}"))
}

fn out_of_block(bytes: &mut [u8], rng: &mut Rng) -> Option<String> {
    let slot = rng.below(Leaf::parse(bytes)?.items.len().max(1));
    let at = HEADER_SIZE + slot * size_of::<layout::Item>();
    edit::change::<layout::Item>(bytes.get_mut(at..)?, |item| item.offset = (u32::MAX - 5).into())?;
    Some(format!("item {slot}: offset became {}", u32::MAX - 5))
}
