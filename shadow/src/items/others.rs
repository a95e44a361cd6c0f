//! Items whose content is not looked at: new kernels may write something new there. Only their trees are known.

use parser::key::item::{DEV_REPLACE, PERSISTENT_ITEM, TEMPORARY_ITEM, VERITY_DESC_ITEM, VERITY_MERKLE_ITEM};

use super::{Context, Fault, Homes, Item, Rule};

pub(super) const RULES: &[Rule] = &[
    Rule::new(TEMPORARY_ITEM, Homes::ROOT, nothing),
    Rule::new(PERSISTENT_ITEM, Homes::DEV, nothing),
    Rule::new(DEV_REPLACE, Homes::DEV, nothing),
    Rule::new(VERITY_DESC_ITEM, Homes::INODES, nothing),
    Rule::new(VERITY_MERKLE_ITEM, Homes::INODES, nothing),
];

/// No rule.
pub(super) fn nothing(_: &Context<'_>, _: &Item<'_>) -> Result<(), Fault> {
    Ok(())
}
