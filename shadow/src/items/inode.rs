//! Inode items.

use parser::ids;
use parser::inode::{InodeItem, MODE_MASK, MODE_TYPE, MODE_TYPES};
use parser::key::item::INODE_ITEM;

use super::{Context, Fault, Homes, Item, Rule, ensure};
use crate::codes::Code::TreeInodeItem;

/// Inodes of the version 1 inode number cache (`BTRFS_FREE_INO_OBJECTID`).
const FREE_INO: u64 = -12i64 as u64;

pub(super) const RULES: &[Rule] = &[Rule::new(INODE_ITEM, Homes::INODES, check)];

/// Whether `objectid` is an inode number.
pub(super) fn is_inode(objectid: u64) -> bool {
    (ids::FIRST_FREE..=ids::LAST_FREE).contains(&objectid)
        || objectid == ids::ROOT_TREE_DIR
        || objectid == FREE_INO
}

fn check(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let code = TreeInodeItem;
    let inode = InodeItem::parse(item.data).map_err(|error| Fault { code, message: error.to_string() })?;
    let key = &item.key;
    ensure(is_inode(key.objectid), code, || format!("invalid key objectid {}", key.objectid as i64))?;
    ensure(key.offset == 0, code, || format!("invalid key offset, have {} expect 0", key.offset))?;
    let last = context.last_generation();
    for (what, value) in [("generation", inode.generation), ("transid", inode.transid)] {
        ensure(value <= last, code, || format!("invalid inode {what}, have {value} expect [0, {last}]"))?;
    }
    let mode = inode.mode;
    ensure(mode & !MODE_MASK == 0, code, || format!("unknown mode bit detected: {:#x}", mode & !MODE_MASK))?;
    ensure(MODE_TYPES.contains(&(mode & MODE_TYPE)), code, || {
        format!("invalid mode, have {mode:#o} expect one kind of file")
    })?;
    ensure(!inode.is_dir() || inode.nlink <= 1, code, || {
        format!("invalid nlink, have {} expect no more than 1 for dir", inode.nlink)
    })
}
