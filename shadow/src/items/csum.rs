//! Checksums of file data.

use parser::ids;
use parser::key::item::EXTENT_CSUM;

use super::{Context, Fault, Homes, Item, Rule, ensure};
use crate::codes::Code::TreeCsumItem;

/// Checksums of another algorithm, while btrfstune changes it (`BTRFS_CSUM_CHANGE_OBJECTID`).
const CSUM_CHANGE: u64 = -13i64 as u64;

pub(super) const RULES: &[Rule] = &[Rule::new(EXTENT_CSUM, Homes::CSUM.or(Homes::LOG), check)];

fn check(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let code = TreeCsumItem;
    let key = &item.key;
    if key.objectid == CSUM_CHANGE {
        return Ok(());
    }
    ensure(key.objectid == ids::EXTENT_CSUM, code, || {
        format!(
            "invalid key objectid for csum item, have {} expect {}",
            key.objectid as i64,
            ids::EXTENT_CSUM as i64
        )
    })?;
    ensure(context.is_aligned(key.offset), code, || {
        format!(
            "unaligned key offset for csum item, have {} should be aligned to {}",
            key.offset,
            context.sectorsize()
        )
    })?;
    let size = context.geometry.csum.size();
    ensure(item.data.len().is_multiple_of(size), code, || {
        format!("unaligned item size for csum item, have {} should be aligned to {size}", item.data.len())
    })
}
