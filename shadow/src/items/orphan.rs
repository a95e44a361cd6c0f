//! Orphan items: inodes and subvolumes that are to be deleted.

use parser::ids;
use parser::key::item::ORPHAN_ITEM;

use super::{Context, Fault, Homes, Item, Rule, ensure, ensure_size};
use crate::codes::Code::TreeOrphanItem;

pub(super) const RULES: &[Rule] = &[Rule::new(ORPHAN_ITEM, Homes::INODES, check)];

fn check(_: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let objectid = item.key.objectid;
    ensure(objectid == ids::ORPHAN, TreeOrphanItem, || {
        format!("invalid key objectid for orphan item, have {objectid} expect {}", ids::ORPHAN as i64)
    })?;
    ensure_size(item, 0, TreeOrphanItem)
}
