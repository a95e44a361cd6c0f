//! Inode items (`struct btrfs_inode_item`): key `(inode, INODE_ITEM, 0)`.

use crate::dir;
use crate::error::ParseError;
use crate::layout;

/// The bits of the mode that say what kind of file it is (`S_IFMT`).
pub const MODE_TYPE: u32 = 0o170_000;
/// A directory.
pub const MODE_DIR: u32 = 0o040_000;
/// A regular file.
pub const MODE_REGULAR: u32 = 0o100_000;
/// A symbolic link.
pub const MODE_LINK: u32 = 0o120_000;
/// All kinds of files there are: pipe, character device, directory, block device, file, link, socket.
pub const MODE_TYPES: [u32; 7] =
    [0o010_000, 0o020_000, MODE_DIR, 0o060_000, MODE_REGULAR, MODE_LINK, 0o140_000];
/// All bits a mode may have.
pub const MODE_MASK: u32 = MODE_TYPE | 0o7777;

/// Its data has no checksums (`BTRFS_INODE_NODATASUM`).
pub const FLAG_NODATASUM: u64 = 1 << 0;

/// An inode item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeItem {
    /// Transaction that made the inode.
    pub generation: u64,
    /// Transaction that changed it last.
    pub transid: u64,
    /// Size in bytes; of a directory, twice the sum of the lengths of its names.
    pub size: u64,
    /// Bytes of the extents and inline data it refers to.
    pub nbytes: u64,
    /// Number of names.
    pub nlink: u32,
    /// Kind of file and permissions.
    pub mode: u32,
    /// `BTRFS_INODE_*`.
    pub flags: u64,
}

impl InodeItem {
    /// Reads an inode item.
    ///
    /// # Errors
    /// [`ParseError`] when `data` does not have its size.
    pub fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let item: &layout::InodeItem = layout::exact("btrfs_inode_item", data)?;
        Ok(InodeItem {
            generation: item.generation.get(),
            transid: item.transid.get(),
            size: item.size.get(),
            nbytes: item.nbytes.get(),
            nlink: item.nlink.get(),
            mode: item.mode.get(),
            flags: item.flags.get(),
        })
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.mode & MODE_TYPE == MODE_DIR
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_regular(&self) -> bool {
        self.mode & MODE_TYPE == MODE_REGULAR
    }

    /// Whether it has data of its own: a regular file or a symbolic link.
    #[must_use]
    pub fn has_data(&self) -> bool {
        self.is_regular() || self.mode & MODE_TYPE == MODE_LINK
    }

    /// Whether its data has no checksums.
    #[must_use]
    pub fn is_nodatasum(&self) -> bool {
        self.flags & FLAG_NODATASUM != 0
    }

    /// The type of its directory entries (`BTRFS_FT_*`); `None` for a mode that no kind of file has.
    #[must_use]
    pub fn dir_type(&self) -> Option<u8> {
        match self.mode & MODE_TYPE {
            MODE_REGULAR => Some(1),
            MODE_DIR => Some(dir::TYPE_DIR),
            0o020_000 => Some(3),
            0o060_000 => Some(4),
            0o010_000 => Some(5),
            0o140_000 => Some(6),
            MODE_LINK => Some(7),
            _ => None,
        }
    }
}
