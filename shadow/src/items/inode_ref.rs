//! Names of inodes: `INODE_REF` and `INODE_EXTREF`.

use parser::csum::extref_hash;
use parser::dir::NAME_MAX;
use parser::inode_ref::InodeRefs;
use parser::key::item::{INODE_EXTREF, INODE_REF};

use super::{Context, Fault, Homes, Item, Rule, ensure, ensure_same_inode};
use crate::codes::Code::TreeInodeRef;

pub(super) const RULES: &[Rule] =
    &[Rule::new(INODE_REF, Homes::INODES, plain), Rule::new(INODE_EXTREF, Homes::INODES, extended)];

fn plain(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    ensure_same_inode(context, item)?;
    names(item, InodeRefs::new(item.key.offset, item.data))
}

fn extended(_: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    names(item, InodeRefs::extended(item.data))?;
    for entry in InodeRefs::extended(item.data).flatten() {
        let hash = extref_hash(entry.parent, entry.name);
        ensure(hash == item.key.offset, TreeInodeRef, || {
            format!("name hash mismatch with key, have {:#x} expect {hash:#x}", item.key.offset)
        })?;
    }
    Ok(())
}

fn names(item: &Item<'_>, refs: InodeRefs<'_>) -> Result<(), Fault> {
    ensure(!item.data.is_empty(), TreeInodeRef, || "invalid item size 0".to_owned())?;
    for entry in refs {
        let entry = entry.map_err(|error| Fault { code: TreeInodeRef, message: error.to_string() })?;
        let len = entry.name.len();
        ensure((1..=NAME_MAX).contains(&len), TreeInodeRef, || {
            format!("invalid name length, have {len} expect [1, {NAME_MAX}]")
        })?;
    }
    Ok(())
}
