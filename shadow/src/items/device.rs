//! Device items and device extents. Whether they agree with the chunks is asked elsewhere.

use parser::dev::{DevExtent, DevItem};
use parser::ids;
use parser::key::item::{DEV_EXTENT, DEV_ITEM};

use super::{Context, Fault, Homes, Item, Rule, ensure};
use crate::codes::Code::{TreeDevExtent, TreeDevItem};

pub(super) const RULES: &[Rule] =
    &[Rule::new(DEV_ITEM, Homes::CHUNK, device), Rule::new(DEV_EXTENT, Homes::DEV, extent)];

fn device(_: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let code = TreeDevItem;
    let device = DevItem::parse(item.data).map_err(|error| Fault { code, message: error.to_string() })?;
    let key = &item.key;
    ensure(key.objectid == ids::DEV_ITEMS, code, || {
        format!("invalid objectid, have {} expect {}", key.objectid, ids::DEV_ITEMS)
    })?;
    ensure(device.devid == key.offset, code, || {
        format!("devid mismatch, key has {} item has {}", key.offset, device.devid)
    })?;
    let DevItem { bytes_used, total_bytes, .. } = device;
    ensure(bytes_used <= total_bytes, code, || {
        format!("invalid bytes used, have {bytes_used} expect [0, {total_bytes}]")
    })
}

fn extent(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let code = TreeDevExtent;
    let extent = DevExtent::parse(item.data).map_err(|error| Fault { code, message: error.to_string() })?;
    let DevExtent { chunk_tree, chunk_objectid, chunk_offset, length } = extent;
    ensure(chunk_tree == ids::CHUNK_TREE, code, || {
        format!("invalid dev extent chunk tree id, have {chunk_tree} expect {}", ids::CHUNK_TREE)
    })?;
    ensure(chunk_objectid == ids::FIRST_CHUNK_TREE, code, || {
        format!("invalid dev extent chunk objectid, have {chunk_objectid} expect {}", ids::FIRST_CHUNK_TREE)
    })?;
    let start = item.key.offset;
    ensure(context.is_aligned(start | chunk_offset | length) && length != 0, code, || {
        format!(
            "invalid dev extent: offset {start}, chunk offset {chunk_offset} and length {length} should be aligned \
             to {}",
            context.sectorsize()
        )
    })
}
