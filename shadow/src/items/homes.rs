//! Which trees may hold which items.

use parser::ids;

/// A set of kinds of trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Homes(u32);

impl Homes {
    pub(super) const ROOT: Homes = Homes(1 << 0);
    pub(super) const EXTENT: Homes = Homes(1 << 1);
    pub(super) const CHUNK: Homes = Homes(1 << 2);
    pub(super) const DEV: Homes = Homes(1 << 3);
    pub(super) const CSUM: Homes = Homes(1 << 4);
    pub(super) const QUOTA: Homes = Homes(1 << 5);
    pub(super) const UUID: Homes = Homes(1 << 6);
    pub(super) const FREE_SPACE: Homes = Homes(1 << 7);
    pub(super) const BLOCK_GROUP: Homes = Homes(1 << 8);
    pub(super) const RAID_STRIPE: Homes = Homes(1 << 9);
    pub(super) const LOG: Homes = Homes(1 << 10);
    /// Subvolumes, and relocation trees, which are copies of them.
    pub(super) const FILES: Homes = Homes(1 << 11);
    pub(super) const DATA_RELOC: Homes = Homes(1 << 12);
    /// All trees that hold inodes: the root tree has the default directory and the version 1 space cache.
    pub(super) const INODES: Homes = Self::FILES.or(Self::ROOT).or(Self::DATA_RELOC).or(Self::LOG);
    pub(super) const ALL: Homes = Homes(u32::MAX);

    pub(super) const fn or(self, other: Homes) -> Homes {
        Homes(self.0 | other.0)
    }

    /// The kind of the tree with this id; all kinds, of one that is not known.
    pub(super) fn of_tree(tree: u64) -> Homes {
        match tree {
            ids::ROOT_TREE => Self::ROOT,
            ids::EXTENT_TREE => Self::EXTENT,
            ids::CHUNK_TREE => Self::CHUNK,
            ids::DEV_TREE => Self::DEV,
            ids::CSUM_TREE => Self::CSUM,
            ids::QUOTA_TREE => Self::QUOTA,
            ids::UUID_TREE => Self::UUID,
            ids::FREE_SPACE_TREE => Self::FREE_SPACE,
            ids::BLOCK_GROUP_TREE => Self::BLOCK_GROUP,
            ids::RAID_STRIPE_TREE => Self::RAID_STRIPE,
            ids::TREE_LOG => Self::LOG,
            ids::TREE_RELOC => Self::FILES,
            ids::DATA_RELOC_TREE => Self::DATA_RELOC,
            tree if ids::is_fs_tree(tree) => Self::FILES,
            _ => Self::ALL,
        }
    }

    pub(super) fn intersects(self, other: Homes) -> bool {
        self.0 & other.0 != 0
    }
}
