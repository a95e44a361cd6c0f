//! Devices, device extents and block groups.

use crate::Uuid;
use crate::chunk::BlockFlags;
use crate::error::ParseError;
use crate::layout;

/// A device item (`struct btrfs_dev_item`): key `(DEV_ITEMS, DEV_ITEM, devid)`, and in every super block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevItem {
    /// Device id.
    pub devid: u64,
    /// Bytes of the device that the file system may use.
    pub total_bytes: u64,
    /// Bytes taken by device extents.
    pub bytes_used: u64,
    /// UUID of the device.
    pub uuid: Uuid,
    /// Metadata UUID of the file system the device belongs to.
    pub fsid: Uuid,
}

impl DevItem {
    /// Reads a device item.
    ///
    /// # Errors
    /// [`ParseError`] when `data` does not have its size.
    pub fn parse(data: &[u8]) -> Result<Self, ParseError> {
        layout::exact::<layout::DevItem>("btrfs_dev_item", data).map(DevItem::from)
    }
}

impl From<&layout::DevItem> for DevItem {
    fn from(item: &layout::DevItem) -> Self {
        DevItem {
            devid: item.devid.get(),
            total_bytes: item.total_bytes.get(),
            bytes_used: item.bytes_used.get(),
            uuid: item.uuid,
            fsid: item.fsid,
        }
    }
}

/// A device extent (`struct btrfs_dev_extent`): key `(devid, DEV_EXTENT, byte offset on the device)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevExtent {
    /// Always the chunk tree.
    pub chunk_tree: u64,
    /// Always `FIRST_CHUNK_TREE`.
    pub chunk_objectid: u64,
    /// Logical address of the chunk.
    pub chunk_offset: u64,
    /// Length in bytes.
    pub length: u64,
}

impl DevExtent {
    /// Reads a device extent.
    ///
    /// # Errors
    /// [`ParseError`] when `data` does not have its size.
    pub fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let item: &layout::DevExtent = layout::exact("btrfs_dev_extent", data)?;
        Ok(DevExtent {
            chunk_tree: item.chunk_tree.get(),
            chunk_objectid: item.chunk_objectid.get(),
            chunk_offset: item.chunk_offset.get(),
            length: item.length.get(),
        })
    }
}

/// A block group item (`struct btrfs_block_group_item`): key `(logical start, BLOCK_GROUP_ITEM, length)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockGroupItem {
    /// Bytes taken by extents.
    pub used: u64,
    /// Always `FIRST_CHUNK_TREE`.
    pub chunk_objectid: u64,
    /// Type and profile, those of the chunk.
    pub flags: BlockFlags,
}

impl BlockGroupItem {
    /// Reads a block group item.
    ///
    /// # Errors
    /// [`ParseError`] when `data` does not have its size.
    pub fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let item: &layout::BlockGroupItem = layout::exact("btrfs_block_group_item", data)?;
        Ok(BlockGroupItem {
            used: item.used.get(),
            chunk_objectid: item.chunk_objectid.get(),
            flags: BlockFlags(item.flags.get()),
        })
    }
}
