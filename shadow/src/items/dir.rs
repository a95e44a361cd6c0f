//! Directory entries and extended attributes: `DIR_ITEM`, `DIR_INDEX` and `XATTR_ITEM`.

use parser::block::HEADER_SIZE;
use parser::csum::name_hash;
use parser::dir::{DirEntries, DirEntry, ENTRY_SIZE, NAME_MAX, TYPE_MAX, TYPE_XATTR};
use parser::key::item::{DIR_INDEX, DIR_ITEM, INODE_ITEM, ROOT_ITEM, XATTR_ITEM};
use parser::{Key, ids};

use super::inode::is_inode;
use super::{Context, Fault, Homes, Item, Rule, ensure, ensure_same_inode};
use crate::codes::Code::TreeDirItem;

/// Bytes that an item takes in the item array of its leaf.
const ITEM_SIZE: usize = 25;

pub(super) const RULES: &[Rule] = &[
    Rule::new(DIR_ITEM, Homes::INODES, check),
    Rule::new(DIR_INDEX, Homes::INODES, check),
    Rule::new(XATTR_ITEM, Homes::INODES, check),
];

fn check(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    ensure_same_inode(context, item)?;
    ensure(!item.data.is_empty(), TreeDirItem, || "invalid item size 0".to_owned())?;
    for entry in DirEntries::new(item.data) {
        let entry = entry.map_err(|error| Fault { code: TreeDirItem, message: error.to_string() })?;
        entry_of(context, &item.key, &entry)?;
    }
    Ok(())
}

fn entry_of(context: &Context<'_>, key: &Key, entry: &DirEntry<'_>) -> Result<(), Fault> {
    let code = TreeDirItem;
    location(key, &entry.location)?;
    let dir_type = entry.dir_type;
    ensure((1..TYPE_MAX).contains(&dir_type), code, || {
        format!("invalid dir item type, have {dir_type} expect (0, {TYPE_MAX})")
    })?;
    ensure((dir_type == TYPE_XATTR) == (key.item_type == XATTR_ITEM), code, || {
        format!("invalid dir item type {dir_type} for this key")
    })?;
    let (name_len, data_len) = (entry.name.len(), entry.data.len());
    ensure((1..=NAME_MAX).contains(&name_len), code, || {
        format!("invalid name length, have {name_len} expect [1, {NAME_MAX}]")
    })?;
    ensure(data_len == 0 || dir_type == TYPE_XATTR, code, || {
        format!("dir item with invalid data len, have {data_len} expect 0")
    })?;
    let max = (context.geometry.nodesize as usize).saturating_sub(HEADER_SIZE + ITEM_SIZE + ENTRY_SIZE);
    ensure(name_len + data_len <= max, code, || {
        format!("dir item name and data len too long, have {} max {max}", name_len + data_len)
    })?;
    if key.item_type == DIR_INDEX {
        return Ok(());
    }
    let hash = name_hash(entry.name);
    ensure(key.offset == hash, code, || {
        format!("name hash mismatch with key, have {:#018x} expect {hash:#018x}", key.offset)
    })
}

/// An entry leads to an inode or to a subvolume, an extended attribute nowhere.
fn location(key: &Key, location: &Key) -> Result<(), Fault> {
    let holds = match location.item_type {
        _ if key.item_type == XATTR_ITEM => *location == Key::MIN,
        ROOT_ITEM => ids::is_fs_tree(location.objectid),
        INODE_ITEM => is_inode(location.objectid) && location.offset == 0,
        _ => false,
    };
    ensure(holds, TreeDirItem, || format!("invalid location key {location}"))
}
