//! Raid stripe extents. In a file system without the feature there is no tree for them, so wherever one stands it is the
//! feature that is missing, as the kernel says; only with the feature it can be in the wrong tree.

use parser::key::item::RAID_STRIPE;
use parser::superblock::incompat;

use super::{Context, Fault, Homes, Item, Rule, ensure, ensure_place};
use crate::codes::Code::TreeRaidStripe;

pub(super) const RULES: &[Rule] = &[Rule::new(RAID_STRIPE, Homes::ALL, check)];

fn check(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let (start, len) = (item.key.objectid, item.key.offset);
    ensure(context.is_aligned(start | len), TreeRaidStripe, || {
        format!("invalid range, start {start} length {len}, should be aligned to {}", context.sectorsize())
    })?;
    ensure(context.geometry.has_incompat(incompat::RAID_STRIPE_TREE), TreeRaidStripe, || {
        "RAID_STRIPE_EXTENT present but RAID_STRIPE_TREE incompat bit unset".to_owned()
    })?;
    ensure_place(context, Homes::RAID_STRIPE)
}
