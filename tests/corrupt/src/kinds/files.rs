//! Faults in file extent items: references that the extent tree does not know of.

use parser::key::item;
use parser::{FileExtent, layout};

use super::{Edit, Kind, Place};
use crate::edit::{self, Leaf};
use crate::rng::Rng;

/// Every fault of a file extent item.
pub fn kinds() -> Vec<Kind> {
    let kind = |name, edit, expected| Kind::new(name, Place::FileLeaf, Edit::Item(edit), expected);
    vec![
        kind("file-extent-points-beside", points_beside, &["ref/no-extent-item", "ref/"]),
        kind("file-extent-points-to-another", points_to_another, &["ref/missing-backref", "ref/"]),
        kind("file-extent-points-nowhere", points_nowhere, &["ref/no-extent-item", "ref/"]),
        kind("file-extent-becomes-a-hole", becomes_a_hole, &["ref/stale-backref", "ref/"]),
        kind("file-extent-disk-length", disk_length, &["ref/extent-length", "ref/"]),
        // In a leaf with FULL_BACKREF the offset is no part of the reference.
        kind("file-extent-offset", offset, &["ref/wrong-offset", "ref/"]).in_new_blocks(),
        kind("file-extent-of-another-inode", another_inode, &["ref/wrong-owner", "ref/"]).in_new_blocks(),
        kind("file-extent-lost", lost, &["ref/stale-backref", "ref/"]),
        kind("file-extent-doubled", doubled, &["ref/backref-count", "ref/missing-backref", "ref/"]),
        kind("file-extent-type-unknown", unknown_type, &["tree/file-extent", "ref/"]),
        kind("file-extent-cut-short", cut_short, &["tree/file-extent", "ref/"]),
    ]
}

/// Edits a file extent that refers to an extent.
fn on_extent(leaf: &mut Leaf, slot: usize, edit: impl FnOnce(&mut layout::FileExtent)) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::EXTENT_DATA)?;
    FileExtent::parse(&item.data).ok()?.extent()?;
    let old = item.data.clone();
    edit::change(&mut item.data, edit)?;
    let parsed =
        |data: &[u8]| FileExtent::parse(data).map_or("malformed".to_owned(), |extent| format!("{extent:?}"));
    (item.data != old).then(|| format!("{}: {} became {}", item.key, parsed(&old), parsed(&item.data)))
}

fn points_beside(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    // A multiple of no extent's length, so that no other extent begins there by chance: inside the extent itself.
    on_extent(leaf, slot, |extent| {
        if extent.disk_num_bytes.get() > 4096 {
            extent.disk_bytenr = (extent.disk_bytenr.get() + 4096).into();
        }
    })
}

fn points_to_another(leaf: &mut Leaf, slot: usize, rng: &mut Rng) -> Option<String> {
    let own = FileExtent::parse(&leaf.items.get(slot)?.data).ok()?.extent()?.disk_bytenr;
    let other = rng.order(leaf.items.len()).into_iter().find_map(|slot| {
        let item = leaf.items.get(slot).filter(|item| item.key.item_type == item::EXTENT_DATA)?;
        FileExtent::parse(&item.data).ok()?.extent().filter(|range| range.disk_bytenr != own)
    })?;
    on_extent(leaf, slot, |extent| {
        extent.disk_bytenr = other.disk_bytenr.into();
        extent.disk_num_bytes = other.disk_num_bytes.into();
    })
}

fn points_nowhere(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    on_extent(leaf, slot, |extent| extent.disk_bytenr = (1 << 50).into())
}

fn becomes_a_hole(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    on_extent(leaf, slot, |extent| {
        extent.disk_bytenr = 0.into();
        extent.disk_num_bytes = 0.into();
        extent.offset = 0.into();
    })
}

fn disk_length(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    on_extent(leaf, slot, |extent| extent.disk_num_bytes = (extent.disk_num_bytes.get() + 4096).into())
}

fn offset(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    on_extent(leaf, slot, |extent| extent.offset = (extent.offset.get() + 4096).into())
}

/// Gives the file extent to the inode after its own. No file needs it there: only the reference counts.
fn another_inode(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::EXTENT_DATA)?;
    FileExtent::parse(&item.data).ok()?.extent()?;
    let old = item.key;
    item.key.objectid += 1;
    item.key.offset += 1 << 40;
    // The reference's offset stays what it was.
    edit::change::<layout::FileExtent>(&mut item.data, |extent| {
        extent.offset = (extent.offset.get() + (1 << 40)).into();
    })?;
    Some(format!("{old} became {}", item.key))
}

fn lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let note = leaf.items.get(slot).filter(|item| item.key.item_type == item::EXTENT_DATA)?.key.to_string();
    FileExtent::parse(&leaf.items[slot].data).ok()?.extent()?;
    leaf.items.remove(slot);
    Some(format!("{note}: lost"))
}

/// A second file extent item for the same extent, far behind the end of the file.
fn doubled(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let mut item = leaf.items.get(slot).filter(|item| item.key.item_type == item::EXTENT_DATA)?.clone();
    FileExtent::parse(&item.data).ok()?.extent()?;
    item.key.offset += 1 << 40;
    let note = format!("{}: a second reference to the extent", item.key);
    leaf.items.push(item);
    Some(note)
}

fn unknown_type(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    on_extent(leaf, slot, |extent| extent.head.extent_type = 7)
}

fn cut_short(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::EXTENT_DATA)?;
    FileExtent::parse(&item.data).ok()?.extent()?;
    item.data.truncate(40);
    Some(format!("{}: cut short to 40 bytes", item.key))
}
