//! Items of the quota tree, as far as their sizes go.

use crate::layout;

/// Bytes of `struct btrfs_qgroup_status_item`; with simple quotas it has one more field of eight.
pub const STATUS_SIZE: usize = size_of::<layout::QgroupStatus>();
/// Bytes of `struct btrfs_qgroup_info_item`.
pub const INFO_SIZE: usize = size_of::<layout::QgroupInfo>();
/// Bytes of `struct btrfs_qgroup_limit_item`.
pub const LIMIT_SIZE: usize = size_of::<layout::QgroupLimit>();
