//! Faults in what says where space is used: block groups, chunks, device extents, devices, free space, checksums.

use parser::free_space::FreeSpaceInfo;
use parser::key::item;
use parser::{BlockFlags, Key, ids, layout};

use super::{Edit, Kind, Place};
use crate::edit::{self, Item, Leaf};
use crate::rng::Rng;

const SECTOR: u64 = 4096;

const FREE_SPACE: &[&str] = &["space/free-space-tree"];
const COUNT: &[&str] = &["space/free-space-count"];
const GROUP_CHUNK: &[&str] = &["space/block-group-chunk"];
const DEV_EXTENT: &[&str] = &["space/dev-extent"];
const DEVICE_UUID: &[&str] = &["space/device-uuid"];

/// Every fault of this kind.
pub fn kinds() -> Vec<Kind> {
    let kind = |name, place, edit, expected| Kind::new(name, place, Edit::Item(edit), expected);
    let group = |name, edit, expected| kind(name, Place::GroupLeaf, edit, expected);
    let free = |name, edit, expected| kind(name, Place::FREE_SPACE_LEAF, edit, expected);
    let device = |name, edit, expected| kind(name, Place::DEV_LEAF, edit, expected);
    let chunk = |name, edit, expected| kind(name, Place::CHUNK_LEAF, edit, expected);
    let csum = |name, edit| kind(name, Place::CSUM_LEAF, edit, &["space/csum-changed"]).in_old_items();
    let kinds = vec![
        group(
            "block-group-used-plus-1-block",
            |leaf, slot, _| used(leaf, slot, 4096),
            &["space/block-group-used"],
        ),
        group(
            "block-group-used-minus-1-sector",
            |leaf, slot, _| used(leaf, slot, -4096),
            &["space/block-group-used"],
        ),
        group(
            "block-group-used-huge",
            |leaf, slot, _| used(leaf, slot, 1 << 60),
            &["space/block-group-used"],
        ),
        group("block-group-other-profile", group_profile, GROUP_CHUNK),
        group("block-group-lost", group_lost, GROUP_CHUNK),
        group("block-group-shorter", group_shorter, GROUP_CHUNK),
        free("free-space-extent-lost", free_lost, FREE_SPACE),
        free("free-space-extent-shorter", |leaf, slot, _| free_extent(leaf, slot, 0, -1), FREE_SPACE),
        free("free-space-extent-longer", |leaf, slot, _| free_extent(leaf, slot, 0, 1), FREE_SPACE),
        free("free-space-extent-moved", |leaf, slot, _| free_extent(leaf, slot, -1, 0), FREE_SPACE),
        free("free-space-extent-added", free_added, FREE_SPACE),
        free("free-space-bit-set", |leaf, slot, rng| bit(leaf, slot, rng, true), FREE_SPACE),
        free("free-space-bit-cleared", |leaf, slot, rng| bit(leaf, slot, rng, false), FREE_SPACE),
        free("free-space-count-plus-1", |leaf, slot, _| count(leaf, slot, 1), COUNT),
        free("free-space-count-minus-1", |leaf, slot, _| count(leaf, slot, -1), COUNT),
        free("free-space-info-lost", info_lost, FREE_SPACE),
        free("free-space-info-of-another-form", other_form, FREE_SPACE).beyond_the_model(),
        device("dev-extent-lost", dev_extent_lost, DEV_EXTENT),
        device(
            "dev-extent-of-another-chunk",
            |leaf, slot, _| dev_extent(leaf, slot, |extent| extent.chunk_offset = (1 << 50).into()),
            DEV_EXTENT,
        ),
        device(
            "dev-extent-shorter",
            |leaf, slot, _| {
                dev_extent(leaf, slot, |extent| extent.length = (extent.length.get() - 65536).into())
            },
            DEV_EXTENT,
        ),
        device(
            "dev-extent-past-the-end",
            |leaf, slot, _| {
                // Over the next one it would be another fault.
                let is_last = slot + 1 == leaf.items.len();
                is_last.then(|| dev_extent(leaf, slot, |extent| extent.length = (1 << 50).into()))?
            },
            &["space/dev-extent-bounds"],
        ),
        device("dev-extent-over-the-next", over_the_next, &["space/dev-extent-overlap"]),
        // In one that holds no block yet, nothing is read.
        chunk("metadata-chunk-past-the-device", past_the_device, &["tree/unreadable", "space/dev-extent"]),
        chunk("chunk-stripe-of-another-device", stripe_uuid, DEVICE_UUID),
        chunk(
            "dev-item-with-another-uuid",
            |leaf, slot, _| device_item(leaf, slot, |item| item.uuid[3] ^= 0x40),
            DEVICE_UUID,
        ),
        chunk(
            "dev-item-of-another-file-system",
            |leaf, slot, _| device_item(leaf, slot, |item| item.fsid[15] ^= 1),
            DEVICE_UUID,
        ),
        csum("csum-flipped", csum_flipped),
        csum("csum-item-lost", csum_lost),
        chunk(
            "device-bytes-used-plus-64k",
            |leaf, slot, _| {
                device_item(leaf, slot, |item| item.bytes_used = (item.bytes_used.get() + 65536).into())
            },
            &["space/device-bytes-used"],
        ),
        chunk(
            "device-total-bytes-plus-1m",
            |leaf, slot, _| {
                device_item(leaf, slot, |item| item.total_bytes = (item.total_bytes.get() + (1 << 20)).into())
            },
            &["space/total-bytes"],
        ),
        chunk("data-chunk-shorter", chunk_shorter, &["space/block-group-chunk", "space/"]),
        Kind::new(
            "csum-for-no-extent",
            Place::CSUM_LEAF,
            Edit::Disorder(csum_stray),
            // In the last leaf; in another one they stand behind the first of the next.
            &["space/csum-without-extent", "tree/key-order"],
        ),
    ];
    let outside = |kind: Kind| if is_in_model(&kind) { kind } else { kind.beyond_the_model() };
    kinds.into_iter().map(outside).collect()
}

/// The model knows block groups' sums and the free space tree, and nothing of chunks, devices and checksums.
fn is_in_model(kind: &Kind) -> bool {
    let sums = ["space/block-group-used", "space/free-space-tree", "space/free-space-count"];
    kind.expected.iter().any(|code| sums.contains(code))
}

fn item_of(leaf: &mut Leaf, slot: usize, item_type: u8) -> Option<&mut Item> {
    leaf.items.get_mut(slot).filter(|item| item.key.item_type == item_type)
}

/// Where mkfs puts no block group that stays. Its older versions leave entries for one there in the free space tree.
const TEMPORARY: u64 = 13 << 20;

fn free_item(leaf: &mut Leaf, slot: usize, item_type: u8) -> Option<&mut Item> {
    item_of(leaf, slot, item_type).filter(|item| item.key.objectid >= TEMPORARY)
}

fn used(leaf: &mut Leaf, slot: usize, by: i64) -> Option<String> {
    let item = item_of(leaf, slot, item::BLOCK_GROUP_ITEM)?;
    let mut used = None;
    edit::change::<layout::BlockGroupItem>(&mut item.data, |group| {
        used = group.used.get().checked_add_signed(by);
        group.used = used.unwrap_or_default().into();
    })?;
    used.map(|used| format!("block group {}: used became {used}", item.key.objectid))
}

fn group_profile(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = item_of(leaf, slot, item::BLOCK_GROUP_ITEM)?;
    let mut flags = 0;
    edit::change::<layout::BlockGroupItem>(&mut item.data, |group| {
        flags = group.flags.get() ^ BlockFlags::DUP;
        group.flags = flags.into();
    })?;
    Some(format!("block group {}: flags became {flags:#x}", item.key.objectid))
}

fn group_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let key = item_of(leaf, slot, item::BLOCK_GROUP_ITEM)?.key;
    leaf.items.remove(slot);
    Some(format!("{key}: lost"))
}

fn group_shorter(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = item_of(leaf, slot, item::BLOCK_GROUP_ITEM)?;
    item.key.offset = item.key.offset.checked_sub(65536)?;
    Some(format!("block group {}: length became {}", item.key.objectid, item.key.offset))
}

fn free_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let key = free_item(leaf, slot, item::FREE_SPACE_EXTENT)?.key;
    leaf.items.remove(slot);
    Some(format!("{key}: lost"))
}

/// Changes the start and the length of a free extent by so many sectors.
fn free_extent(leaf: &mut Leaf, slot: usize, start: i64, len: i64) -> Option<String> {
    let item = free_item(leaf, slot, item::FREE_SPACE_EXTENT)?;
    let old = item.key;
    let sectors = |count: i64| count * SECTOR as i64;
    item.key.objectid = old.objectid.checked_add_signed(sectors(start))?;
    item.key.offset = old.offset.checked_add_signed(sectors(len)).filter(|len| *len > 0)?;
    Some(format!("{old} became {}", item.key))
}

/// A sector of free space right behind a free extent, where there is an extent.
fn free_added(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let key = free_item(leaf, slot, item::FREE_SPACE_EXTENT)?.key;
    let next = leaf.items.get(slot + 1).filter(|next| next.key.item_type == item::FREE_SPACE_EXTENT)?.key;
    let start = key.objectid + key.offset;
    if start + SECTOR > next.objectid {
        return None;
    }
    let key = Key::new(start, item::FREE_SPACE_EXTENT, SECTOR);
    leaf.items.push(Item { key, data: Vec::new() });
    Some(format!("{key}: added"))
}

/// Sets or clears one bit of a bitmap.
fn bit(leaf: &mut Leaf, slot: usize, rng: &mut Rng, set: bool) -> Option<String> {
    let item = free_item(leaf, slot, item::FREE_SPACE_BITMAP)?;
    let bits = usize::try_from(item.key.offset / SECTOR).ok()?.min(item.data.len() * 8);
    let is_set = |n: usize| item.data[n / 8] >> (n % 8) & 1 == 1;
    let n = rng.order(bits).into_iter().find(|&n| is_set(n) != set)?;
    item.data[n / 8] ^= 1 << (n % 8);
    Some(format!("{}: bit {n} became {}", item.key, u8::from(set)))
}

fn count(leaf: &mut Leaf, slot: usize, by: i32) -> Option<String> {
    let item = free_item(leaf, slot, item::FREE_SPACE_INFO)?;
    let told = FreeSpaceInfo::parse(&item.data).ok()?.extent_count;
    let count = told.checked_add_signed(by)?;
    edit::change::<layout::FreeSpaceInfo>(&mut item.data, |info| info.extent_count = count.into())?;
    Some(format!("{}: count {told} became {count}", item.key))
}

fn info_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let key = free_item(leaf, slot, item::FREE_SPACE_INFO)?.key;
    leaf.items.remove(slot);
    Some(format!("{key}: lost"))
}

/// Bitmaps for extents, or the other way round. A block group without free space has neither.
fn other_form(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let next = leaf.items.get(slot + 1)?.key;
    let item = free_item(leaf, slot, item::FREE_SPACE_INFO)?;
    (next.item_type != item::FREE_SPACE_INFO).then_some(())?;
    edit::change::<layout::FreeSpaceInfo>(&mut item.data, |info| info.flags = (info.flags.get() ^ 1).into())?;
    Some(format!("{}: extents for bitmaps, or bitmaps for extents", item.key))
}

fn dev_extent(leaf: &mut Leaf, slot: usize, edit: impl FnOnce(&mut layout::DevExtent)) -> Option<String> {
    let item = item_of(leaf, slot, item::DEV_EXTENT)?;
    let mut after = None;
    edit::change::<layout::DevExtent>(&mut item.data, |extent| {
        edit(extent);
        after = Some((extent.chunk_offset.get(), extent.length.get()));
    })?;
    let (chunk, length) = after?;
    Some(format!("{}: chunk {chunk}, length {length}", item.key))
}

fn dev_extent_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let key = item_of(leaf, slot, item::DEV_EXTENT)?.key;
    leaf.items.remove(slot);
    Some(format!("{key}: lost"))
}

fn device_item(leaf: &mut Leaf, slot: usize, edit: impl FnOnce(&mut layout::DevItem)) -> Option<String> {
    let item = item_of(leaf, slot, item::DEV_ITEM)?;
    let mut after = None;
    edit::change::<layout::DevItem>(&mut item.data, |device| {
        edit(device);
        after = Some((device.total_bytes.get(), device.bytes_used.get()));
    })?;
    let (total, used) = after?;
    Some(format!("{}: total_bytes {total} bytes_used {used}", item.key))
}

/// Only a chunk without tree blocks: what can't be read is another fault.
fn chunk_shorter(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = item_of(leaf, slot, item::CHUNK_ITEM)?;
    let mut length = None;
    edit::change::<layout::Chunk>(&mut item.data, |chunk| {
        let flags = BlockFlags(chunk.chunk_type.get());
        length = chunk.length.get().checked_sub(65536).filter(|_| !flags.holds_metadata());
        chunk.length = length.unwrap_or_default().into();
    })?;
    length.map(|length| format!("chunk {}: length became {length}", item.key.offset))
}

/// Checksums for an address that no file system of the tests has.
fn csum_stray(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let mut item = item_of(leaf, slot, item::EXTENT_CSUM)?.clone();
    let last = slot + 1 == leaf.items.len();
    item.key = Key::new(ids::EXTENT_CSUM, item::EXTENT_CSUM, 1 << 50);
    leaf.items.push(item);
    last.then(|| format!("checksums for {}", 1u64 << 50))
}

/// A device extent that ends a little behind the beginning of the next one.
fn over_the_next(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let next = leaf.items.get(slot + 1).filter(|next| next.key.item_type == item::DEV_EXTENT)?.key;
    let own = leaf.items.get(slot)?.key;
    let gap = next.offset.checked_sub(own.offset).filter(|_| next.objectid == own.objectid)?;
    dev_extent(leaf, slot, |extent| extent.length = (gap + 65536).into())
}

/// The chunk of the tree blocks of all trees but its own, where no device has anything.
fn past_the_device(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = item_of(leaf, slot, item::CHUNK_ITEM)?;
    let chunk = edit::read::<layout::Chunk>(&item.data)?;
    (chunk.chunk_type.get() & BlockFlags::METADATA != 0).then_some(())?;
    let stripes = item.data.get_mut(size_of::<layout::Chunk>()..)?;
    for stripe in stripes.chunks_mut(size_of::<layout::Stripe>()) {
        edit::change::<layout::Stripe>(stripe, |stripe| stripe.offset = (1 << 50).into())?;
    }
    Some(format!("chunk {}: its stripes lie past the end of the device", item.key.offset))
}

fn stripe_uuid(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = item_of(leaf, slot, item::CHUNK_ITEM)?;
    let stripe = item.data.get_mut(size_of::<layout::Chunk>()..)?.get_mut(..size_of::<layout::Stripe>())?;
    edit::change::<layout::Stripe>(stripe, |stripe| stripe.dev_uuid[0] ^= 1)?;
    Some(format!("chunk {}: the first stripe names a device by another UUID", item.key.offset))
}

fn csum_flipped(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = item_of(leaf, slot, item::EXTENT_CSUM)?;
    *item.data.first_mut()? ^= 0x10;
    Some(format!("{}: a bit of the first checksum", item.key))
}

fn csum_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let key = item_of(leaf, slot, item::EXTENT_CSUM)?.key;
    leaf.items.remove(slot);
    Some(format!("{key}: lost"))
}
