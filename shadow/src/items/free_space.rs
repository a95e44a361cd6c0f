//! Items of the free space tree. Whether they say what is free is asked elsewhere.

use parser::free_space::{BITMAP_SIZE, FreeSpaceInfo};
use parser::key::item::{FREE_SPACE_BITMAP, FREE_SPACE_EXTENT, FREE_SPACE_INFO};

use super::{Context, Fault, Homes, Item, Rule, ensure, ensure_size};
use crate::codes::Code::TreeFreeSpaceItem;

pub(super) const RULES: &[Rule] = &[
    Rule::new(FREE_SPACE_INFO, Homes::FREE_SPACE, info),
    Rule::new(FREE_SPACE_EXTENT, Homes::FREE_SPACE, extent),
    Rule::new(FREE_SPACE_BITMAP, Homes::FREE_SPACE, bitmap),
];

fn range(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let (start, len) = (item.key.objectid, item.key.offset);
    let holds = context.is_aligned(start | len) && len != 0 && start.checked_add(len).is_some();
    ensure(holds, TreeFreeSpaceItem, || {
        format!("invalid range, start {start} length {len}, should be aligned to {}", context.sectorsize())
    })
}

fn info(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    range(context, item)?;
    FreeSpaceInfo::parse(item.data)
        .map(drop)
        .map_err(|error| Fault { code: TreeFreeSpaceItem, message: error.to_string() })
}

fn extent(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    range(context, item)?;
    ensure_size(item, 0, TreeFreeSpaceItem)
}

fn bitmap(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    range(context, item)?;
    let bits = item.key.offset / context.sectorsize();
    let max = BITMAP_SIZE as u64 * 8;
    ensure(bits <= max, TreeFreeSpaceItem, || format!("bitmap of {bits} bits, expect no more than {max}"))?;
    ensure_size(item, bits.div_ceil(8) as usize, TreeFreeSpaceItem)
}
