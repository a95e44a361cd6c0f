//! Block group items. How much of one is used is compared with the extents elsewhere.

use parser::BlockFlags;
use parser::dev::BlockGroupItem;
use parser::ids;
use parser::key::item::BLOCK_GROUP_ITEM;

use super::chunk::profile_fault;
use super::{Context, Fault, Homes, Item, Rule, ensure};
use crate::codes::Code::TreeBlockGroupItem;

pub(super) const RULES: &[Rule] = &[Rule::new(BLOCK_GROUP_ITEM, Homes::EXTENT.or(Homes::BLOCK_GROUP), check)];

fn check(_: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let code = TreeBlockGroupItem;
    let group =
        BlockGroupItem::parse(item.data).map_err(|error| Fault { code, message: error.to_string() })?;
    ensure(item.key.offset != 0, code, || "invalid block group size 0".to_owned())?;
    let objectid = group.chunk_objectid;
    ensure(objectid == ids::FIRST_CHUNK_TREE, code, || {
        format!("invalid block group chunk objectid, have {objectid} expect {}", ids::FIRST_CHUNK_TREE)
    })?;
    let BlockFlags(flags) = group.flags;
    match profile_fault(flags) {
        Some(message) => Err(Fault { code, message }),
        None => Ok(()),
    }
}
