//! Chunk items (`btrfs_check_chunk_valid`).

use parser::key::item::CHUNK_ITEM;
use parser::superblock::incompat;
use parser::{BlockFlags, ChunkItem, ids};

use super::{Context, Fault, Homes, Item, Rule, ensure};
use crate::codes::Code::TreeChunkItem;

/// `BTRFS_STRIPE_LEN`: the only one there is.
const STRIPE_LEN: u64 = 64 << 10;

pub(super) const RULES: &[Rule] = &[Rule::new(CHUNK_ITEM, Homes::CHUNK, check)];

fn check(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let code = TreeChunkItem;
    // One that can't be read is reported by who makes the chunk map.
    let Ok(chunk) = ChunkItem::parse(item.data) else { return Ok(()) };
    let (objectid, logical, length) = (item.key.objectid, item.key.offset, chunk.length());
    ensure(objectid == ids::FIRST_CHUNK_TREE, code, || {
        format!("invalid chunk key objectid, have {objectid} expect {}", ids::FIRST_CHUNK_TREE)
    })?;
    ensure(context.is_aligned(logical), code, || {
        format!("invalid chunk logical, have {logical} should be aligned to {}", context.sectorsize())
    })?;
    let (have, want) = (chunk.sector_size(), context.geometry.sectorsize);
    ensure(have == want, code, || format!("invalid chunk sectorsize, have {have} expect {want}"))?;
    ensure(length != 0 && context.is_aligned(length), code, || {
        format!("invalid chunk length, have {length}")
    })?;
    ensure(logical.checked_add(length).is_some(), code, || {
        format!("invalid chunk logical start and length, have logical start {logical} length {length}")
    })?;
    let stripe_len = chunk.stripe_len();
    ensure(stripe_len == STRIPE_LEN, code, || {
        format!("invalid chunk stripe length {stripe_len} expect {STRIPE_LEN}")
    })?;
    let BlockFlags(flags) = chunk.flags();
    if let Some(message) = profile_fault(flags) {
        return Err(Fault { code, message });
    }
    let mixed = BlockFlags::DATA | BlockFlags::METADATA;
    ensure(flags & mixed != mixed || context.geometry.has_incompat(incompat::MIXED_GROUPS), code, || {
        format!("mixed chunk type in non-mixed mode: {flags:#x}")
    })?;
    let (stripes, sub_stripes) = (chunk.stripes().len(), chunk.sub_stripes());
    ensure(stripes_fit(flags, stripes, sub_stripes), code, || {
        format!("invalid num_stripes:sub_stripes {stripes}:{sub_stripes} for profile {:#x}", profile(flags))
    })
}

fn profile(flags: u64) -> u64 {
    flags & BlockFlags::PROFILE_MASK
}

/// What is wrong with the type and profile of a chunk or block group.
pub(super) fn profile_fault(flags: u64) -> Option<String> {
    let kind = flags & BlockFlags::TYPE_MASK;
    if flags & !(BlockFlags::TYPE_MASK | BlockFlags::PROFILE_MASK) != 0 {
        Some(format!("unrecognized type {flags:#x}"))
    } else if profile(flags).count_ones() > 1 {
        Some(format!("invalid profile flags {:#x}, expect no more than 1 bit set", profile(flags)))
    } else if kind == 0 || (kind & BlockFlags::SYSTEM != 0 && kind != BlockFlags::SYSTEM) {
        Some(format!("invalid type {kind:#x}, expect data, metadata, both of them, or system"))
    } else {
        None
    }
}

fn stripes_fit(flags: u64, stripes: usize, sub_stripes: u16) -> bool {
    match profile(flags) {
        BlockFlags::RAID10 => sub_stripes == 2 && stripes >= 2 && stripes.is_multiple_of(2),
        BlockFlags::RAID1 | BlockFlags::DUP => stripes == 2,
        BlockFlags::RAID1C3 => stripes == 3,
        BlockFlags::RAID1C4 => stripes == 4,
        BlockFlags::RAID5 => stripes >= 2,
        BlockFlags::RAID6 => stripes >= 3,
        0 => stripes == 1,
        _ => true,
    }
}
