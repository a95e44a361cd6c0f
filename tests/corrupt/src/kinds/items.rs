//! Faults in single items, each against what the kernel's tree checker says of the item's type.

use parser::dir::{DirEntries, TYPE_XATTR};
use parser::file_extent::Encoding;
use parser::inode::{InodeItem, MODE_TYPE};
use parser::key::item;
use parser::{FileExtent, block, ids, layout};

use super::{Edit, Kind, LeafEdit, Place};
use crate::backref::Extent;
use crate::edit::{self, Item, Leaf};
use crate::rng::Rng;

/// A generation that no transaction has come to.
const FUTURE: u64 = 1 << 40;

/// Every fault of a single item.
pub fn kinds() -> Vec<Kind> {
    let rows: &[(&str, Place, LeafEdit, &[&'static str])] = &[
        ("inode-item-without-type", Place::FileLeaf, inode_without_type, &["tree/inode-item"]),
        ("inode-item-from-the-future", Place::FileLeaf, inode_future, &["tree/inode-item"]),
        ("inode-item-of-a-directory-with-links", Place::FileLeaf, directory_links, &["tree/inode-item"]),
        ("inode-item-cut-short", Place::FileLeaf, inode_cut_short, &["tree/inode-item"]),
        ("inode-item-lost", Place::FileLeaf, inode_lost, &["tree/inode-order"]),
        ("inode-ref-name-too-long", Place::FileLeaf, ref_name, &["tree/inode-ref"]),
        ("dir-item-name-flipped", Place::FileLeaf, dir_name, &["tree/dir-item"]),
        ("dir-index-type-unknown", Place::FileLeaf, dir_type, &["tree/dir-item"]),
        ("dir-item-leads-nowhere", Place::FileLeaf, dir_location, &["tree/dir-item"]),
        ("dir-item-cut-short", Place::FileLeaf, dir_cut_short, &["tree/dir-item"]),
        ("xattr-name-flipped", Place::FileLeaf, xattr_name, &["tree/dir-item"]),
        ("file-extent-compression-unknown", Place::FileLeaf, compression, &["tree/file-extent"]),
        ("file-extent-encrypted", Place::FileLeaf, encryption, &["tree/file-extent"]),
        ("file-extent-length-unaligned", Place::FileLeaf, length_unaligned, &["tree/file-extent"]),
        ("file-extent-overlaps-the-next", Place::FileLeaf, overlaps, &["tree/file-extent"]),
        ("file-extent-from-the-future", Place::FileLeaf, extent_future, &["tree/file-extent"]),
        ("file-extent-past-its-end", Place::FileLeaf, past_its_end, &["tree/file-extent"]),
        ("inline-extent-size", Place::FileLeaf, inline_size, &["tree/file-extent"]),
        ("csum-item-unaligned", Place::CSUM_LEAF, csum_unaligned, &["tree/csum-item"]),
        ("csum-item-half-a-sum", Place::CSUM_LEAF, csum_half, &["tree/csum-item"]),
        (
            "csum-item-overlaps-the-next",
            Place::CSUM_LEAF,
            csum_overlaps,
            &["space/csum-overlap", "space/csum-without-extent"],
        ),
        ("root-item-cursor-without-level", Place::RootLeaf, cursor_without_level, &["tree/root-item"]),
        ("root-item-offset", Place::RootLeaf, root_offset, &["tree/root-item"]),
        ("root-item-directory", Place::RootLeaf, root_directory, &["tree/root-item"]),
        ("root-item-flags-unknown", Place::RootLeaf, root_flags, &["tree/root-item"]),
        ("root-item-snapshot-in-the-future", Place::RootLeaf, root_future, &["tree/root-item"]),
        ("root-ref-name-length", Place::RootLeaf, root_ref_name, &["tree/root-ref"]),
        ("block-group-without-type", Place::ExtentLeaf, group_type, &["tree/block-group-item"]),
        ("block-group-of-another-chunk-tree", Place::ExtentLeaf, group_owner, &["tree/block-group-item"]),
        ("data-generation-in-the-future", Place::ExtentLeaf, data_future, &["tree/extent-item"]),
        ("free-space-unaligned", Place::FREE_SPACE_LEAF, free_unaligned, &["tree/free-space-item"]),
        ("free-space-info-cut-short", Place::FREE_SPACE_LEAF, free_cut_short, &["tree/free-space-item"]),
        ("free-space-becomes-a-device-extent", Place::FREE_SPACE_LEAF, out_of_place, &["tree/item-place"]),
        ("dev-item-of-another-device", Place::CHUNK_LEAF, device_id, &["tree/dev-item"]),
        ("dev-item-more-used-than-there-is", Place::CHUNK_LEAF, device_used, &["tree/dev-item"]),
        ("chunk-sector-size", Place::CHUNK_LEAF, chunk_sector_size, &["tree/chunk-item"]),
        ("dev-extent-of-another-tree", Place::DEV_LEAF, dev_extent_tree, &["tree/dev-extent"]),
        ("raid-stripe-unaligned", Place::ExtentLeaf, stripe_unaligned, &["tree/raid-stripe"]),
        ("raid-stripe-without-the-feature", Place::ExtentLeaf, stripe_alone, &["tree/raid-stripe"]),
        ("uuid-item-cut-short", Place::UUID_LEAF, uuid_cut_short, &["tree/uuid-item"]),
        ("orphan-item-of-an-inode", Place::FileLeaf, orphan_inode, &["tree/orphan-item"]),
        ("log-item-cut-short", Place::LOG_LEAF, log_cut_short, &["tree/log-item"]),
        ("qgroup-info-cut-short", Place::QUOTA_LEAF, qgroup_cut_short, &["tree/qgroup-item"]),
    ];
    let mut kinds: Vec<Kind> = rows
        .iter()
        .map(|&(name, place, edit, expected)| Kind::new(name, place, Edit::Item(edit), expected))
        .collect();
    let header = |name, place, edit| Kind::new(name, place, Edit::Raw(edit), &["tree/header"]);
    kinds.push(header("file-header-not-written", Place::FileBlock, not_written));
    kinds.push(header("csum-header-backref-revision", Place::CsumBlock, backref_revision));
    kinds.into_iter().map(Kind::beyond_the_model).collect()
}

/// Edits the item in `slot` if it is of the type.
fn on(
    leaf: &mut Leaf,
    slot: usize,
    item_type: u8,
    edit: impl FnOnce(&mut Item) -> Option<()>,
) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item_type)?;
    let old = item.clone();
    edit(item)?;
    (*item != old).then(|| {
        format!("{}: {} bytes, now {} of {} bytes", old.key, old.data.len(), item.key, item.data.len())
    })
}

/// Edits the structure that an item of the type begins with.
fn field<T>(leaf: &mut Leaf, slot: usize, item_type: u8, change: impl FnOnce(&mut T)) -> Option<String>
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::KnownLayout,
{
    on(leaf, slot, item_type, |item| edit::change(&mut item.data, change))
}

fn truncate(leaf: &mut Leaf, slot: usize, item_type: u8, by: usize) -> Option<String> {
    on(leaf, slot, item_type, |item| {
        let len = item.data.len().checked_sub(by).filter(|len| *len > 0)?;
        item.data.truncate(len);
        Some(())
    })
}

fn inode_without_type(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::InodeItem>(leaf, slot, item::INODE_ITEM, |inode| {
        inode.mode = (inode.mode.get() & !MODE_TYPE).into();
    })
}

fn inode_future(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::InodeItem>(leaf, slot, item::INODE_ITEM, |inode| inode.transid = FUTURE.into())
}

fn directory_links(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    InodeItem::parse(&leaf.items.get(slot)?.data).ok().filter(InodeItem::is_dir)?;
    field::<layout::InodeItem>(leaf, slot, item::INODE_ITEM, |inode| inode.nlink = 2.into())
}

fn inode_cut_short(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    truncate(leaf, slot, item::INODE_ITEM, 8)
}

/// The inode item of an inode that has more items, behind another inode.
pub(super) fn inode_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let key = leaf.items.get(slot).filter(|item| item.key.item_type == item::INODE_ITEM)?.key;
    leaf.items.get(slot.checked_sub(1)?)?;
    let follows = [item::INODE_REF, item::XATTR_ITEM, item::EXTENT_DATA];
    let next = leaf.items.get(slot + 1)?.key;
    (next.objectid == key.objectid && follows.contains(&next.item_type)).then_some(())?;
    leaf.items.remove(slot);
    Some(format!("{key}: lost"))
}

fn ref_name(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::InodeRef>(leaf, slot, item::INODE_REF, |name| {
        name.name_len = (name.name_len.get() + 7).into();
    })
}

fn flip_last_byte(
    leaf: &mut Leaf,
    slot: usize,
    item_type: u8,
    of: impl FnOnce(&[u8]) -> Option<usize>,
) -> Option<String> {
    on(leaf, slot, item_type, |item| {
        let at = of(&item.data)?;
        *item.data.get_mut(at)? ^= 1;
        Some(())
    })
}

/// Where the name of the first entry ends.
fn last_of_name(data: &[u8]) -> Option<usize> {
    let entry = DirEntries::new(data).next()?.ok()?;
    (parser::dir::ENTRY_SIZE + entry.name.len()).checked_sub(1)
}

fn dir_name(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    flip_last_byte(leaf, slot, item::DIR_ITEM, last_of_name)
}

fn xattr_name(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    flip_last_byte(leaf, slot, item::XATTR_ITEM, last_of_name)
}

fn dir_type(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::DirItem>(leaf, slot, item::DIR_INDEX, |entry| entry.dir_type = TYPE_XATTR)
}

fn dir_location(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::DirItem>(leaf, slot, item::DIR_ITEM, |entry| entry.location.item_type = item::DIR_ITEM)
}

fn dir_cut_short(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    truncate(leaf, slot, item::DIR_ITEM, 1)
}

/// Edits a file extent that refers to an extent, in no way that changes the reference.
fn extent(leaf: &mut Leaf, slot: usize, change: impl FnOnce(&mut layout::FileExtent)) -> Option<String> {
    FileExtent::parse(&leaf.items.get(slot)?.data).ok()?.extent()?;
    field::<layout::FileExtent>(leaf, slot, item::EXTENT_DATA, change)
}

fn compression(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    extent(leaf, slot, |extent| extent.head.compression = 9)
}

fn encryption(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    extent(leaf, slot, |extent| extent.head.encryption = 1)
}

fn length_unaligned(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    extent(leaf, slot, |extent| extent.num_bytes = (extent.num_bytes.get() - 1).into())
}

fn overlaps(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let (key, next) = (leaf.items.get(slot)?.key, leaf.items.get(slot + 1)?.key);
    ((next.objectid, next.item_type) == (key.objectid, key.item_type)).then_some(())?;
    FileExtent::parse(&leaf.items[slot + 1].data).ok()?.extent()?;
    let beyond = next.offset - key.offset + (1 << 20);
    extent(leaf, slot, |extent| extent.num_bytes = beyond.into())
}

fn extent_future(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    extent(leaf, slot, |extent| extent.head.generation = FUTURE.into())
}

/// A part of an extent that is longer than the whole.
fn past_its_end(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let range = FileExtent::parse(&leaf.items.get(slot)?.data).ok()?.extent()?;
    let less = (range.offset + range.num_bytes).checked_sub(4096)?;
    extent(leaf, slot, |extent| extent.head.ram_bytes = less.into())
}

fn inline_size(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let data = &leaf.items.get(slot)?.data;
    let plain = Encoding::parse(data).ok().filter(|encoding| encoding.compression == 0)?;
    matches!(FileExtent::parse(data), Ok(FileExtent::Inline { .. })).then_some(())?;
    field::<layout::InlineFileExtent>(leaf, slot, item::EXTENT_DATA, |extent| {
        extent.ram_bytes = (plain.ram_bytes + 1).into();
    })
}

fn csum_unaligned(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    slot.checked_sub(1)?;
    on(leaf, slot, item::EXTENT_CSUM, |item| {
        item.key.offset -= 1;
        Some(())
    })
}

fn csum_half(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    truncate(leaf, slot, item::EXTENT_CSUM, 2)
}

/// The sums of the next item once more, at the end of this one.
fn csum_overlaps(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let next = leaf.items.get(slot + 1).filter(|item| item.key.item_type == item::EXTENT_CSUM)?.clone();
    let room = leaf.items.get(slot)?;
    let gap = next.key.offset.checked_sub(room.key.offset)?;
    on(leaf, slot, item::EXTENT_CSUM, |item| {
        // As many bytes as would do if a sum were of one byte and a sector of 4 KiB: more than enough for any.
        let more = usize::try_from(gap / 4096).ok()?.checked_mul(32).filter(|more| *more < 2048)?;
        item.data.extend(next.data.iter().cycle().take(more));
        Some(())
    })
}

/// Edits the root item of a subvolume.
fn root(leaf: &mut Leaf, slot: usize, change: impl FnOnce(&mut layout::LegacyRootItem)) -> Option<String> {
    leaf.items.get(slot).filter(|item| ids::is_fs_tree(item.key.objectid))?;
    field::<layout::LegacyRootItem>(leaf, slot, item::ROOT_ITEM, change)
}

fn cursor_without_level(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    root(leaf, slot, |root| {
        if root.refs.get() > 0 {
            root.drop_progress.objectid = 300.into();
            root.drop_level = 0;
        }
    })
}

fn root_flags(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    root(leaf, slot, |root| root.flags = (root.flags.get() | 1 << 5).into())
}

fn root_future(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    root(leaf, slot, |root| root.last_snapshot = FUTURE.into())
}

fn root_directory(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    root(leaf, slot, |root| root.root_dirid = 257.into())
}

/// A tree of which there is one, where nobody looks for it.
fn root_offset(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::ROOT_ITEM)?;
    [ids::CSUM_TREE, ids::UUID_TREE, ids::FREE_SPACE_TREE].contains(&item.key.objectid).then_some(())?;
    item.key.offset = 4096;
    Some(format!("{}: it was 0", item.key))
}

fn root_ref_name(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::RootRef>(leaf, slot, item::ROOT_REF, |link| {
        link.name_len = (link.name_len.get() + 1).into();
    })
}

fn group_type(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::BlockGroupItem>(leaf, slot, item::BLOCK_GROUP_ITEM, |group| group.flags = 0.into())
}

fn group_owner(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::BlockGroupItem>(leaf, slot, item::BLOCK_GROUP_ITEM, |group| {
        group.chunk_objectid = 255.into();
    })
}

fn data_future(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    Extent::parse(leaf.items.get(slot)?).filter(|extent| extent.info.is_none())?;
    let flags = edit::read::<layout::ExtentItem>(&leaf.items.get(slot)?.data)?.flags.get();
    (flags & parser::extent::FLAG_DATA != 0).then_some(())?;
    field::<layout::ExtentItem>(leaf, slot, item::EXTENT_ITEM, |extent| extent.generation = FUTURE.into())
}

fn free_unaligned(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    on(leaf, slot, item::FREE_SPACE_EXTENT, |item| {
        item.key.offset -= 1;
        Some(())
    })
}

fn free_cut_short(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    truncate(leaf, slot, item::FREE_SPACE_INFO, 1)
}

/// One flipped bit in the type of an item that has no data.
fn out_of_place(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    on(leaf, slot, item::FREE_SPACE_EXTENT, |item| {
        item.key.item_type = item::DEV_EXTENT;
        Some(())
    })
}

fn device_id(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::DevItem>(leaf, slot, item::DEV_ITEM, |device| device.devid = 77.into())
}

fn device_used(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::DevItem>(leaf, slot, item::DEV_ITEM, |device| {
        device.bytes_used = (device.total_bytes.get() + 1).into();
    })
}

fn chunk_sector_size(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::Chunk>(leaf, slot, item::CHUNK_ITEM, |chunk| chunk.sector_size = 512.into())
}

fn dev_extent_tree(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    field::<layout::DevExtent>(leaf, slot, item::DEV_EXTENT, |extent| extent.chunk_tree = 7.into())
}

/// A raid stripe extent for an extent. No stock kernel makes any, and every tree checker that knows them looks at them,
/// wherever they stand.
fn stripe(leaf: &mut Leaf, slot: usize, beside: u64) -> Option<String> {
    let extent = leaf.items.get(slot).filter(|item| item.key.item_type == item::EXTENT_ITEM)?.key;
    let key = parser::Key::new(extent.objectid, item::RAID_STRIPE, extent.offset + beside);
    leaf.items.push(Item { key, data: vec![0; 16] });
    Some(format!("{key}: added"))
}

fn stripe_unaligned(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    stripe(leaf, slot, 512)
}

fn stripe_alone(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    stripe(leaf, slot, 0)
}

fn uuid_cut_short(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    truncate(leaf, slot, item::UUID_KEY_SUBVOL, 3)
}

/// An item of the type of orphan items behind the last item of an inode.
fn orphan_inode(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let inode = leaf.items.get(slot).filter(|item| item.key.item_type == item::INODE_ITEM)?.key.objectid;
    let key = parser::Key::new(inode, item::ORPHAN_ITEM, 0);
    leaf.items.push(Item { key, data: Vec::new() });
    Some(format!("{key}: added"))
}

fn log_cut_short(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    truncate(leaf, slot, item::DIR_LOG_INDEX, 1)
}

fn qgroup_cut_short(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    truncate(leaf, slot, item::QGROUP_INFO, 8)
}

fn not_written(bytes: &mut [u8], _: &mut Rng) -> Option<String> {
    edit::change::<layout::Header>(bytes, |header| {
        header.flags = (header.flags.get() & !block::FLAG_WRITTEN).into();
    })?;
    Some("header without WRITTEN".to_owned())
}

fn backref_revision(bytes: &mut [u8], _: &mut Rng) -> Option<String> {
    edit::change::<layout::Header>(bytes, |header| header.flags = (header.flags.get() & 0xff).into())?;
    Some("header of backref revision 0".to_owned())
}
