//! Extent items. What can be wrong with an extent's record as a whole is found where the record is put together, by
//! `crate::record`.

use parser::ExtentItem;
use parser::extent::FLAG_DATA;
use parser::key::item::{
    EXTENT_DATA_REF, EXTENT_ITEM, METADATA_ITEM, SHARED_BLOCK_REF, SHARED_DATA_REF, TREE_BLOCK_REF,
};

use super::others::nothing;
use super::{Context, Fault, Homes, Item, Rule, ensure};
use crate::codes::Code::TreeExtentItem;

pub(super) const RULES: &[Rule] = &[
    Rule::new(EXTENT_ITEM, Homes::EXTENT, check),
    Rule::new(METADATA_ITEM, Homes::EXTENT, nothing),
    Rule::new(TREE_BLOCK_REF, Homes::EXTENT, nothing),
    Rule::new(EXTENT_DATA_REF, Homes::EXTENT, nothing),
    Rule::new(SHARED_BLOCK_REF, Homes::EXTENT, nothing),
    Rule::new(SHARED_DATA_REF, Homes::EXTENT, nothing),
];

/// The generation of a tree block's item is compared with the block.
fn check(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let Ok(extent) = ExtentItem::parse(item.key.item_type, item.data) else { return Ok(()) };
    let (have, last) = (extent.generation(), context.last_generation());
    ensure(extent.flags() & FLAG_DATA == 0 || have <= last, TreeExtentItem, || {
        format!("invalid generation, have {have} expect (0, {last}]")
    })
}
