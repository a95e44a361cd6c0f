//! Keys and item types (`struct btrfs_key`, `BTRFS_*_KEY`).

use core::fmt;

use crate::layout;

/// A key: unsigned lexicographic order of (objectid, type, offset).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key {
    /// What the item is about: an inode number, a tree id, a bytenr.
    pub objectid: u64,
    /// One of the item types of [`item`].
    pub item_type: u8,
    /// Meaning depends on the type.
    pub offset: u64,
}

impl Key {
    /// The smallest key.
    pub const MIN: Key = Key::new(0, 0, 0);
    /// The largest key.
    pub const MAX: Key = Key::new(u64::MAX, u8::MAX, u64::MAX);

    /// Makes a key.
    #[must_use]
    pub const fn new(objectid: u64, item_type: u8, offset: u64) -> Self {
        Key { objectid, item_type, offset }
    }
}

impl From<&layout::DiskKey> for Key {
    fn from(disk: &layout::DiskKey) -> Self {
        Key::new(disk.objectid.get(), disk.item_type, disk.offset.get())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} ", ObjectId(self.objectid))?;
        match item::name(self.item_type) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "UNKNOWN.{}", self.item_type)?,
        }
        write!(f, " {})", self.offset)
    }
}

/// Displays the reserved objectids near 2^64 as the small negative numbers they are defined as.
struct ObjectId(u64);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= crate::ids::LAST_FREE { write!(f, "{}", self.0 as i64) } else { write!(f, "{}", self.0) }
    }
}

/// Item types.
pub mod item {
    macro_rules! item_types {
        ($($name:ident = $value:literal,)*) => {
            $(
                #[doc = concat!("`BTRFS_", stringify!($name), "_KEY`.")]
                pub const $name: u8 = $value;
            )*

            /// Name of an item type as `btrfs inspect-internal dump-tree` prints it; `None` for one not known.
            #[must_use]
            pub const fn name(item_type: u8) -> Option<&'static str> {
                match item_type {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        };
    }

    item_types! {
        INODE_ITEM = 1,
        INODE_REF = 12,
        INODE_EXTREF = 13,
        XATTR_ITEM = 24,
        VERITY_DESC_ITEM = 36,
        VERITY_MERKLE_ITEM = 37,
        ORPHAN_ITEM = 48,
        DIR_LOG_ITEM = 60,
        DIR_LOG_INDEX = 72,
        DIR_ITEM = 84,
        DIR_INDEX = 96,
        EXTENT_DATA = 108,
        EXTENT_CSUM = 128,
        ROOT_ITEM = 132,
        ROOT_BACKREF = 144,
        ROOT_REF = 156,
        EXTENT_ITEM = 168,
        METADATA_ITEM = 169,
        EXTENT_OWNER_REF = 172,
        TREE_BLOCK_REF = 176,
        EXTENT_DATA_REF = 178,
        EXTENT_REF_V0 = 180,
        SHARED_BLOCK_REF = 182,
        SHARED_DATA_REF = 184,
        BLOCK_GROUP_ITEM = 192,
        FREE_SPACE_INFO = 198,
        FREE_SPACE_EXTENT = 199,
        FREE_SPACE_BITMAP = 200,
        DEV_EXTENT = 204,
        DEV_ITEM = 216,
        CHUNK_ITEM = 228,
        RAID_STRIPE = 230,
        QGROUP_STATUS = 240,
        QGROUP_INFO = 242,
        QGROUP_LIMIT = 244,
        QGROUP_RELATION = 246,
        TEMPORARY_ITEM = 248,
        PERSISTENT_ITEM = 249,
        DEV_REPLACE = 250,
        UUID_KEY_SUBVOL = 251,
        UUID_KEY_RECEIVED_SUBVOL = 252,
    }
}
