//! File extent items (`struct btrfs_file_extent_item`): key `(inode, EXTENT_DATA, file offset)`.

use crate::error::ParseError;
use crate::layout;

/// A file extent item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileExtent {
    /// The data stands in the leaf itself.
    Inline {
        /// Bytes once decompressed.
        ram_bytes: u64,
    },
    /// The data is (part of) an extent.
    Regular(ExtentRange),
    /// Space set aside by fallocate, read as zeros.
    Prealloc(ExtentRange),
}

/// Bytes of a file extent item before the data of an inline extent (`BTRFS_FILE_EXTENT_INLINE_DATA_START`).
pub const INLINE_DATA_START: usize = size_of::<layout::InlineFileExtent>();

/// How the data is encoded: what all types have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// Transaction that wrote the data.
    pub generation: u64,
    /// Bytes once decompressed.
    pub ram_bytes: u64,
    /// 0 none, 1 zlib, 2 lzo, 3 zstd.
    pub compression: u8,
    /// Always 0.
    pub encryption: u8,
}

impl Encoding {
    /// Reads it from a file extent item.
    ///
    /// # Errors
    /// [`ParseError`] when `data` is too short.
    pub fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let head: &layout::InlineFileExtent = layout::prefix("btrfs_file_extent_item", data)?;
        let (generation, ram_bytes) = (head.generation.get(), head.ram_bytes.get());
        Ok(Encoding { generation, ram_bytes, compression: head.compression, encryption: head.encryption })
    }
}

/// The part of a data extent that a file extent item refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentRange {
    /// Logical address of the extent; 0 is a hole.
    pub disk_bytenr: u64,
    /// Length of the whole extent on disk, in bytes.
    pub disk_num_bytes: u64,
    /// Where in the (decompressed) extent the file's data begins, in bytes.
    pub offset: u64,
    /// Bytes of the file.
    pub num_bytes: u64,
}

impl FileExtent {
    /// Reads a file extent item.
    ///
    /// # Errors
    /// [`ParseError`] for an unknown type or a wrong size.
    pub fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let what = "btrfs_file_extent_item";
        let head: &layout::InlineFileExtent = layout::prefix(what, data)?;
        let is_prealloc = match head.extent_type {
            0 => return Ok(FileExtent::Inline { ram_bytes: head.ram_bytes.get() }),
            1 => false,
            2 => true,
            other => return Err(ParseError::Invalid { what, field: "type", value: other.into() }),
        };
        let item: &layout::FileExtent = layout::exact(what, data)?;
        let range = ExtentRange {
            disk_bytenr: item.disk_bytenr.get(),
            disk_num_bytes: item.disk_num_bytes.get(),
            offset: item.offset.get(),
            num_bytes: item.num_bytes.get(),
        };
        Ok(if is_prealloc { FileExtent::Prealloc(range) } else { FileExtent::Regular(range) })
    }

    /// The extent the item holds a reference to: none for inline data and holes.
    #[must_use]
    pub fn extent(&self) -> Option<ExtentRange> {
        match self {
            FileExtent::Regular(range) | FileExtent::Prealloc(range) if range.disk_bytenr != 0 => {
                Some(*range)
            }
            _ => None,
        }
    }
}
