//! Items of the quota tree. Sizes and keys only: what they count is the kernel's business, and often not true.

use parser::key::item::{QGROUP_INFO, QGROUP_LIMIT, QGROUP_RELATION, QGROUP_STATUS};
use parser::quota::{INFO_SIZE, LIMIT_SIZE, STATUS_SIZE};

use super::{Context, Fault, Homes, Item, Rule, ensure, ensure_size};
use crate::codes::Code::TreeQgroupItem;

pub(super) const RULES: &[Rule] = &[
    Rule::new(QGROUP_STATUS, Homes::QUOTA, status),
    Rule::new(QGROUP_INFO, Homes::QUOTA, |_, item| ensure_size(item, INFO_SIZE, TreeQgroupItem)),
    Rule::new(QGROUP_LIMIT, Homes::QUOTA, |_, item| ensure_size(item, LIMIT_SIZE, TreeQgroupItem)),
    Rule::new(QGROUP_RELATION, Homes::QUOTA, |_, item| ensure_size(item, 0, TreeQgroupItem)),
];

/// It has grown once, for simple quotas, and may grow again.
fn status(_: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let have = item.data.len();
    ensure(have >= STATUS_SIZE, TreeQgroupItem, || {
        format!("invalid item size, have {have} expect at least {STATUS_SIZE}")
    })
}
