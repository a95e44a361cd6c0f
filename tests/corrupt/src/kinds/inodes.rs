//! Faults in the inodes of a subvolume, and what only they show to be one: each item is well formed, but they disagree.
//! Only `check --inodes` looks.

use parser::file_extent::Encoding;
use parser::inode::{FLAG_NODATASUM, InodeItem, MODE_DIR, MODE_TYPE};
use parser::key::item;
use parser::{FileExtent, Key, ids, layout};

use super::{Edit, Kind, LeafEdit, Place};
use crate::edit::{self, Item, Leaf};
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
        ("inode-nbytes-of-a-link", nbytes_of_a_link, &["inode/nbytes"]),
        ("inode-nodatasum-with-checksums", nodatasum, &["inode/nodatasum"]),
        ("inode-directory-with-extents", directory_with_extents, &["inode/odd-item"]),
        ("dir-item-filetype", |leaf, slot, _| filetype(leaf, slot, item::DIR_ITEM), &["inode/filetype"]),
        ("dir-index-filetype", |leaf, slot, _| filetype(leaf, slot, item::DIR_INDEX), &["inode/filetype"]),
        ("top-directory-index", top_index, &["inode/top-directory"]),
        ("top-directory-name", top_name, &["inode/top-directory"]),
    ];
    let elsewhere: &[(&str, Place, LeafEdit, &[&'static str])] = &[
        ("csum-item-of-files-lost", Place::CSUM_LEAF, sums_lost, &["inode/csum-missing"]),
        ("csum-item-of-files-halved", Place::CSUM_LEAF, sums_halved, &["inode/csum-missing"]),
        ("data-reloc-top-directory-name", Place::DATA_RELOC_LEAF, top_name, &["inode/top-directory"]),
        ("data-reloc-top-directory-ref-lost", Place::DATA_RELOC_LEAF, top_lost, &["inode/link-count"]),
    ];
    let in_files = rows.iter().map(|&(name, edit, expected)| (name, Place::FileLeaf, edit, expected));
    let kind =
        |(name, place, edit, expected)| Kind::new(name, place, Edit::Item(edit), expected).beyond_the_model();
    in_files.chain(elsewhere.iter().copied()).map(kind).collect()
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

fn nbytes_of_a_link(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let is_link = |inode: &InodeItem| inode.has_data() && !inode.is_regular();
    inode(leaf, slot, is_link, |inode| inode.nbytes = (inode.nbytes.get() | 1 << 56).into())
}

/// Whether the inode in `slot` has data on disk in the same leaf.
fn has_extents(leaf: &Leaf, slot: usize) -> bool {
    let Some(inode) = leaf.items.get(slot).map(|item| item.key.objectid) else { return false };
    let mut own = leaf.items.iter().filter(|item| item.key.objectid == inode);
    own.any(|item| {
        item.key.item_type == item::EXTENT_DATA
            && matches!(FileExtent::parse(&item.data), Ok(FileExtent::Regular(range)) if range.disk_bytenr != 0)
    })
}

fn nodatasum(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    has_extents(leaf, slot).then_some(())?;
    inode(leaf, slot, InodeItem::is_regular, |inode| {
        inode.flags = (inode.flags.get() | FLAG_NODATASUM).into()
    })
}

fn directory_with_extents(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    has_extents(leaf, slot).then_some(())?;
    let is_file = |inode: &InodeItem| inode.is_regular() && inode.nlink == 1;
    inode(leaf, slot, is_file, |inode| inode.mode = (inode.mode.get() & !MODE_TYPE | MODE_DIR).into())
}

/// Another type that exists: a file becomes a socket, all else a file.
fn filetype(leaf: &mut Leaf, slot: usize, item_type: u8) -> Option<String> {
    is_of_inode(leaf, slot).then_some(())?;
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item_type)?;
    let mut types = None;
    edit::change::<layout::DirItem>(&mut item.data, |entry| {
        let old = entry.dir_type;
        entry.dir_type = if old == 1 { 6 } else { 1 };
        types = Some((old, entry.dir_type));
    })?;
    Some(format!("{}: filetype {types:?}", item.key))
}

/// The item that holds the name of the top directory.
fn top(leaf: &mut Leaf, slot: usize) -> Option<&mut Item> {
    let key = Key::new(ids::FIRST_FREE, item::INODE_REF, ids::FIRST_FREE);
    leaf.items.get_mut(slot).filter(|item| item.key == key)
}

fn top_index(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = top(leaf, slot)?;
    edit::change::<layout::InodeRef>(&mut item.data, |name| name.index = 2.into())?;
    Some(format!("{}: index 2", item.key))
}

fn top_name(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = top(leaf, slot)?;
    *item.data.last_mut()? = b'x';
    Some(format!("{}: another name than '..'", item.key))
}

fn top_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let key = top(leaf, slot)?.key;
    leaf.items.remove(slot);
    Some(format!("{key}: lost"))
}

/// The largest checksum item of a leaf, from slot `first` on: what a small one covers may be in no file any more.
fn sums(leaf: &mut Leaf, slot: usize, first: usize) -> Option<&mut Item> {
    let size = |item: &Item| (item.key.item_type == item::EXTENT_CSUM).then_some(item.data.len());
    let largest = leaf.items.iter().skip(first).filter_map(size).max()?;
    leaf.items.get_mut(slot).filter(|item| slot >= first && size(item) == Some(largest))
}

/// Not the first: the leaf keeps its place.
fn sums_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let key = sums(leaf, slot, 1)?.key;
    leaf.items.remove(slot);
    Some(format!("{key}: lost"))
}

fn sums_halved(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = sums(leaf, slot, 0)?;
    // A whole number of checksums of every size.
    let len = item.data.len() / 64 * 32;
    item.data.truncate(len);
    (len > 0).then(|| format!("{}: {len} bytes are left", item.key))
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
