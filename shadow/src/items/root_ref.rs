//! Links between subvolumes: `ROOT_REF` and `ROOT_BACKREF`.

use parser::dir::NAME_MAX;
use parser::key::item::{ROOT_BACKREF, ROOT_REF};
use parser::root::RootRef;

use super::{Context, Fault, Homes, Item, Rule, ensure};
use crate::codes::Code::TreeRootRef;

pub(super) const RULES: &[Rule] =
    &[Rule::new(ROOT_REF, Homes::ROOT, check), Rule::new(ROOT_BACKREF, Homes::ROOT, check)];

fn check(_: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let code = TreeRootRef;
    let link = RootRef::parse(item.data).map_err(|error| Fault { code, message: error.to_string() })?;
    let len = link.name.len();
    ensure((1..=NAME_MAX).contains(&len), code, || {
        format!("invalid name length, have {len} expect [1, {NAME_MAX}]")
    })
}
