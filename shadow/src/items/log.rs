//! Ranges of directories that a log tree holds whole.

use parser::dir::LOG_ITEM_SIZE;
use parser::key::item::{DIR_LOG_INDEX, DIR_LOG_ITEM};

use super::{Context, Fault, Homes, Item, Rule, ensure_size};
use crate::codes::Code::TreeLogItem;

pub(super) const RULES: &[Rule] =
    &[Rule::new(DIR_LOG_ITEM, Homes::LOG, check), Rule::new(DIR_LOG_INDEX, Homes::LOG, check)];

fn check(_: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    ensure_size(item, LOG_ITEM_SIZE, TreeLogItem)
}
