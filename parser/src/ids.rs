//! Well-known object ids: trees and the objectids of special items (`BTRFS_*_OBJECTID`).

/// The tree of tree roots.
pub const ROOT_TREE: u64 = 1;
/// The extent tree.
pub const EXTENT_TREE: u64 = 2;
/// The chunk tree.
pub const CHUNK_TREE: u64 = 3;
/// The device tree.
pub const DEV_TREE: u64 = 4;
/// The top-level subvolume.
pub const FS_TREE: u64 = 5;
/// Objectid of the default subvolume's directory item in the root tree.
pub const ROOT_TREE_DIR: u64 = 6;
/// The checksum tree.
pub const CSUM_TREE: u64 = 7;
/// The quota tree.
pub const QUOTA_TREE: u64 = 8;
/// The UUID tree.
pub const UUID_TREE: u64 = 9;
/// The free space tree.
pub const FREE_SPACE_TREE: u64 = 10;
/// The block group tree (compat_ro feature).
pub const BLOCK_GROUP_TREE: u64 = 11;
/// The raid stripe tree (incompat feature).
pub const RAID_STRIPE_TREE: u64 = 12;
/// The remap tree (incompat feature).
pub const REMAP_TREE: u64 = 13;
/// Objectid of device items in the chunk tree.
pub const DEV_ITEMS: u64 = 1;
/// First objectid free for subvolumes and inodes.
pub const FIRST_FREE: u64 = 256;
/// Objectid of chunk items.
pub const FIRST_CHUNK_TREE: u64 = 256;
/// Last objectid free for subvolumes and inodes.
pub const LAST_FREE: u64 = -256i64 as u64;
/// Balance item.
pub const BALANCE: u64 = -4i64 as u64;
/// Orphan items.
pub const ORPHAN: u64 = -5i64 as u64;
/// Log trees.
pub const TREE_LOG: u64 = -6i64 as u64;
/// Relocation trees.
pub const TREE_RELOC: u64 = -8i64 as u64;
/// The data relocation tree.
pub const DATA_RELOC_TREE: u64 = -9i64 as u64;
/// Checksum items.
pub const EXTENT_CSUM: u64 = -10i64 as u64;
/// Version 1 space cache inodes.
pub const FREE_SPACE: u64 = -11i64 as u64;

/// Whether `tree` holds files: the top-level subvolume or any other (`is_fstree`).
#[must_use]
pub const fn is_fs_tree(tree: u64) -> bool {
    tree == FS_TREE || (tree >= FIRST_FREE && tree >> 48 == 0)
}
