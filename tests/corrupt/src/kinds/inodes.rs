//! Faults in the inodes of a subvolume: each item is well formed, but they disagree. Only `check --inodes` looks.

use parser::file_extent::Encoding;
use parser::inode::InodeItem;
use parser::key::item;
use parser::{FileExtent, layout};

use super::{Edit, Kind, LeafEdit, Place};
use crate::edit::{self, Leaf};
use crate::rng::Rng;

/// Every fault of an inode.
pub fn kinds() -> Vec<Kind> {
    let rows: &[(&str, LeafEdit, &[&'static str])] = &[
        ("inode-link-count", link_count, &["inode/link-count"]),
        ("inode-without-link-or-orphan-item", unlinked, &["inode/no-orphan-item"]),
        ("inode-nbytes", nbytes, &["inode/nbytes"]),
        ("inode-directory-size", directory_size, &["inode/dir-size"]),
        ("inode-ref-index", ref_index, &["inode/name"]),
        ("inode-ref-lost", |leaf, slot, _| lost(leaf, slot, item::INODE_REF), &["inode/link-count"]),
        (
            "dir-index-lost",
            |leaf, slot, _| lost(leaf, slot, item::DIR_INDEX),
            &["inode/name", "inode/dir-size"],
        ),
        (
            "dir-item-lost",
            |leaf, slot, _| lost(leaf, slot, item::DIR_ITEM),
            &["inode/name", "inode/dir-size"],
        ),
        ("inode-without-inode-item", super::items::inode_lost, &["inode/no-item"]),
        ("inode-extent-shorter", extent_shorter, &["inode/extents"]),
        ("dir-index-of-another-inode", another_inode, &["inode/name"]),
    ];
    rows.iter()
        .map(|&(name, edit, expected)| {
            Kind::new(name, Place::FileLeaf, Edit::Item(edit), expected).beyond_the_model()
        })
        .collect()
}

/// Edits the inode item of a file (or a directory) that is linked.
fn inode(
    leaf: &mut Leaf,
    slot: usize,
    wanted: impl Fn(&InodeItem) -> bool,
    edit: impl FnOnce(&mut layout::InodeItem),
) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::INODE_ITEM)?;
    let before = InodeItem::parse(&item.data).ok().filter(|inode| inode.nlink > 0 && wanted(inode))?;
    edit::change(&mut item.data, edit)?;
    let after = InodeItem::parse(&item.data).ok()?;
    Some(format!("{}: {before:?} became {after:?}", item.key))
}

fn link_count(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    inode(leaf, slot, InodeItem::is_regular, |inode| inode.nlink = (inode.nlink.get() + 1).into())
}

fn unlinked(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    inode(leaf, slot, InodeItem::is_regular, |inode| inode.nlink = 0.into())
}

fn nbytes(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    inode(leaf, slot, InodeItem::is_regular, |inode| inode.nbytes = (inode.nbytes.get() + 4096).into())
}

fn directory_size(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    inode(leaf, slot, InodeItem::is_dir, |inode| inode.size = (inode.size.get() + 2).into())
}

/// Names of files: an item of a subvolume's entry belongs to the rules about links.
fn is_of_inode(leaf: &Leaf, slot: usize) -> bool {
    let Some(item) = leaf.items.get(slot) else { return false };
    let mut entries = parser::dir::DirEntries::new(&item.data).flatten();
    item.key.item_type == item::INODE_REF
        || entries.next().is_some_and(|entry| entry.location.item_type == item::INODE_ITEM)
}

fn ref_index(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::INODE_REF)?;
    (item.key.objectid != item.key.offset).then_some(())?;
    edit::change::<layout::InodeRef>(&mut item.data, |name| name.index = (name.index.get() + 1000).into())?;
    Some(format!("{}: another index", item.key))
}

fn lost(leaf: &mut Leaf, slot: usize, item_type: u8) -> Option<String> {
    let key = leaf.items.get(slot).filter(|item| item.key.item_type == item_type)?.key;
    (is_of_inode(leaf, slot) && key.objectid != key.offset).then_some(())?;
    leaf.items.remove(slot);
    Some(format!("{key}: lost"))
}

fn another_inode(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    is_of_inode(leaf, slot).then_some(())?;
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::DIR_INDEX)?;
    edit::change::<layout::DirItem>(&mut item.data, |entry| {
        entry.location.objectid = (entry.location.objectid.get() + 1).into();
    })?;
    Some(format!("{}: leads to another inode", item.key))
}

/// A file extent that ends a sector before the next one begins. Where holes need no extent that is none.
fn extent_shorter(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::EXTENT_DATA)?;
    Encoding::parse(&item.data).ok().filter(|encoding| encoding.compression == 0)?;
    let len =
        FileExtent::parse(&item.data).ok()?.extent()?.num_bytes.checked_sub(4096).filter(|len| *len > 0)?;
    edit::change::<layout::FileExtent>(&mut item.data, |extent| extent.num_bytes = len.into())?;
    Some(format!("{}: num_bytes became {len}", item.key))
}
