//! Items of the UUID tree: the subvolumes that have a UUID.

use parser::key::item::{UUID_KEY_RECEIVED_SUBVOL, UUID_KEY_SUBVOL};

use super::{Context, Fault, Homes, Item, Rule, ensure};
use crate::codes::Code::TreeUuidItem;

/// Bytes of a subvolume's id.
const ID_SIZE: usize = size_of::<u64>();

pub(super) const RULES: &[Rule] = &[
    Rule::new(UUID_KEY_SUBVOL, Homes::UUID, check),
    Rule::new(UUID_KEY_RECEIVED_SUBVOL, Homes::UUID, check),
];

fn check(_: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let have = item.data.len();
    ensure(have != 0 && have.is_multiple_of(ID_SIZE), TreeUuidItem, || {
        format!("uuid item with illegal size {have}, expect a multiple of {ID_SIZE}")
    })
}
