//! The super block, its copies and its feature bits.

use alloc::vec::Vec;

use zerocopy::IntoBytes as _;

use crate::Uuid;
use crate::chunk::ChunkItem;
use crate::dev::DevItem;
use crate::error::ParseError;
use crate::key::{Key, item};
use crate::layout;

/// Size of a super block in bytes (`BTRFS_SUPER_INFO_SIZE`).
pub const SIZE: usize = size_of::<layout::SuperBlock>();

/// Byte offsets of the super block's copies on each device; the first is the primary. A copy is there only where
/// its end lies before the end of the device as the file system knows it.
pub const OFFSETS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];

/// Byte offset of the primary super block.
pub const PRIMARY: u64 = OFFSETS[0];

/// "_BHRfS_M".
pub const MAGIC: [u8; 8] = *b"_BHRfS_M";
/// What mkfs writes until it is done: such a super block is no file system yet.
pub const MAGIC_IN_PROGRESS: [u8; 8] = *b"!BHRfS_M";

/// A super block (`struct btrfs_super_block`) with the magic, whose geometry fields make sense.
#[derive(Debug, Clone, Copy)]
pub struct SuperBlock<'a>(&'a layout::SuperBlock);

/// What is at a super block's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MagicKind {
    /// A btrfs.
    Btrfs,
    /// mkfs is at work.
    InProgress,
    /// Something else, or nothing.
    Other,
}

/// Tells what kind of super block `bytes` begin with, looking at the magic alone.
#[must_use]
pub fn magic_kind(bytes: &[u8]) -> MagicKind {
    let at = layout::MAGIC_AT;
    match bytes.get(at..at + MAGIC.len()) {
        Some(magic) if magic == MAGIC => MagicKind::Btrfs,
        Some(magic) if magic == MAGIC_IN_PROGRESS => MagicKind::InProgress,
        _ => MagicKind::Other,
    }
}

fn invalid(field: &'static str, value: u64) -> ParseError {
    ParseError::Invalid { what: "btrfs_super_block", field, value }
}

impl<'a> SuperBlock<'a> {
    /// Reads a super block: checks the magic and what later access relies on (sizes that are powers of two and
    /// within bounds, the checksum type, the extent of the system chunk array). The checksum is
    /// [`SuperBlock::verify_csum`]'s business.
    ///
    /// # Errors
    /// [`ParseError`] naming the first field that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let raw: &layout::SuperBlock = layout::prefix("btrfs_super_block", bytes)?;
        if raw.magic != MAGIC {
            return Err(invalid("magic", layout::magic_value(raw)));
        }
        let (sectorsize, nodesize) = (raw.sectorsize.get(), raw.nodesize.get());
        if !sectorsize.is_power_of_two() || !(4096..=65536).contains(&sectorsize) {
            return Err(invalid("sectorsize", sectorsize.into()));
        }
        if !nodesize.is_power_of_two() || !(sectorsize..=65536).contains(&nodesize) {
            return Err(invalid("nodesize", nodesize.into()));
        }
        if raw.csum_type.get() > 3 {
            return Err(invalid("csum_type", raw.csum_type.get().into()));
        }
        for (field, level) in [
            ("root_level", raw.root_level),
            ("chunk_root_level", raw.chunk_root_level),
            ("log_root_level", raw.log_root_level),
        ] {
            if level > crate::block::MAX_LEVEL {
                return Err(invalid(field, level.into()));
            }
        }
        let array_size = raw.sys_chunk_array_size.get();
        if array_size as usize > raw.sys_chunk_array.len() {
            return Err(invalid("sys_chunk_array_size", array_size.into()));
        }
        Ok(SuperBlock(raw))
    }

    /// All 4096 bytes.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.0.as_bytes()
    }

    /// UUID that the user sees.
    #[must_use]
    pub fn fsid(&self) -> &'a Uuid {
        &self.0.fsid
    }

    /// UUID in every tree block: `metadata_uuid` where that feature is on, else the fsid.
    #[must_use]
    pub fn metadata_uuid(&self) -> &'a Uuid {
        if self.incompat_flags() & incompat::METADATA_UUID != 0 {
            &self.0.metadata_uuid
        } else {
            &self.0.fsid
        }
    }

    /// Byte offset of this copy on its device.
    #[must_use]
    pub fn bytenr(&self) -> u64 {
        self.0.bytenr.get()
    }

    /// `BTRFS_SUPER_FLAG_*`.
    #[must_use]
    pub fn flags(&self) -> u64 {
        self.0.flags.get()
    }

    /// The transaction that this super block commits.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation.get()
    }

    /// Logical address and level of the root tree's root.
    #[must_use]
    pub fn root(&self) -> (u64, u8) {
        (self.0.root.get(), self.0.root_level)
    }

    /// Logical address and level of the chunk tree's root.
    #[must_use]
    pub fn chunk_root(&self) -> (u64, u8) {
        (self.0.chunk_root.get(), self.0.chunk_root_level)
    }

    /// Generation of the chunk tree's root.
    #[must_use]
    pub fn chunk_root_generation(&self) -> u64 {
        self.0.chunk_root_generation.get()
    }

    /// Logical address and level of the log root tree's root; `None` where nothing was logged.
    #[must_use]
    pub fn log_root(&self) -> Option<(u64, u8)> {
        let bytenr = self.0.log_root.get();
        (bytenr != 0).then_some((bytenr, self.0.log_root_level))
    }

    /// Bytes of all devices together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.0.total_bytes.get()
    }

    /// Bytes taken by extents, in all block groups.
    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        self.0.bytes_used.get()
    }

    /// Number of devices.
    #[must_use]
    pub fn num_devices(&self) -> u64 {
        self.0.num_devices.get()
    }

    /// Bytes of a sector: a power of two from 4 KiB to 64 KiB.
    #[must_use]
    pub fn sectorsize(&self) -> u32 {
        self.0.sectorsize.get()
    }

    /// Bytes of a tree block: a power of two from the sector size to 64 KiB.
    #[must_use]
    pub fn nodesize(&self) -> u32 {
        self.0.nodesize.get()
    }

    /// `compat_flags`.
    #[must_use]
    pub fn compat_flags(&self) -> u64 {
        self.0.compat_flags.get()
    }

    /// `compat_ro_flags`: see [`compat_ro`].
    #[must_use]
    pub fn compat_ro_flags(&self) -> u64 {
        self.0.compat_ro_flags.get()
    }

    /// `incompat_flags`: see [`incompat`].
    #[must_use]
    pub fn incompat_flags(&self) -> u64 {
        self.0.incompat_flags.get()
    }

    /// `csum_type`, from 0 to 3.
    #[must_use]
    pub fn csum_type(&self) -> u16 {
        self.0.csum_type.get()
    }

    /// The device this super block stands on.
    #[must_use]
    pub fn dev_item(&self) -> DevItem {
        DevItem::from(&self.0.dev_item)
    }

    /// Label, up to its terminating zero.
    #[must_use]
    pub fn label(&self) -> &'a [u8] {
        let label = &self.0.label;
        let end = label.iter().position(|&byte| byte == 0).unwrap_or(label.len());
        label.get(..end).unwrap_or(label)
    }

    /// The system chunks that bootstrap the chunk map: logical address and item. Ends after the first error.
    #[must_use]
    pub fn sys_chunks(&self) -> SysChunks<'a> {
        let size = self.0.sys_chunk_array_size.get() as usize;
        SysChunks { rest: self.0.sys_chunk_array.get(..size).unwrap_or(&[]) }
    }

    /// Whether the checksum is right.
    #[cfg(feature = "checksum")]
    #[must_use]
    pub fn verify_csum(&self) -> bool {
        self.csum().is_ok_and(|csum| csum.verify(self.bytes()))
    }

    /// The checksum algorithm of the file system.
    ///
    /// # Errors
    /// Never for a super block that [`SuperBlock::parse`] has let through.
    #[cfg(feature = "checksum")]
    pub fn csum(&self) -> Result<crate::ChecksumType, ParseError> {
        crate::ChecksumType::from_disk(self.csum_type())
    }

    /// The super block of the next transaction, if nothing but the root tree is another: its root block and level.
    /// `bytes_used`, which changes with nearly every one, and the checksum are left as they are.
    #[must_use]
    pub fn foretold(&self, root: (u64, u8)) -> Vec<u8> {
        let generation = self.generation().saturating_add(1);
        let (root, root_level) = (root.0.into(), root.1);
        let next = layout::SuperBlock { generation: generation.into(), root, root_level, ..*self.0 };
        next.as_bytes().to_vec()
    }

    /// Whether a super block that was [foretold](Self::foretold) says the same as this one, but for what says nothing
    /// about trees, chunks or devices (the log's root and the old roots that are kept in case of need, among others),
    /// and `bytes_used`.
    #[must_use]
    pub fn is_as_foretold(&self, foretold: &SuperBlock<'_>) -> bool {
        let (this, other) = (self.0, foretold.0);
        let same = layout::SuperBlock {
            csum: other.csum,
            log_root: other.log_root,
            log_root_level: other.log_root_level,
            bytes_used: other.bytes_used,
            cache_generation: other.cache_generation,
            uuid_tree_generation: other.uuid_tree_generation,
            super_roots: other.super_roots,
            ..*this
        };
        same.as_bytes() == other.as_bytes()
    }

    /// Whether two super blocks differ in nothing but the log root: what an fsync writes.
    #[must_use]
    pub fn same_but_log_root(&self, other: &SuperBlock<'_>) -> bool {
        let without_log = |raw: &layout::SuperBlock| layout::SuperBlock {
            csum: [0; 32],
            log_root: 0.into(),
            log_root_level: 0,
            ..*raw
        };
        without_log(self.0).as_bytes() == without_log(other.0).as_bytes()
    }
}

/// Iterator over the system chunk array.
#[derive(Debug, Clone)]
pub struct SysChunks<'a> {
    rest: &'a [u8],
}

impl<'a> SysChunks<'a> {
    fn parse_one(&self) -> Result<(u64, ChunkItem<'a>), ParseError> {
        let key = Key::from(layout::prefix::<layout::DiskKey>("sys_chunk_array", self.rest)?);
        if key.item_type != item::CHUNK_ITEM || key.objectid != crate::ids::FIRST_CHUNK_TREE {
            return Err(invalid("sys_chunk_array key type", key.item_type.into()));
        }
        let data = self.rest.get(size_of::<layout::DiskKey>()..).unwrap_or(&[]);
        Ok((key.offset, ChunkItem::parse_prefix(data)?))
    }
}

impl<'a> Iterator for SysChunks<'a> {
    type Item = Result<(u64, ChunkItem<'a>), ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = self.parse_one();
        self.rest = match &parsed {
            Ok((_, chunk)) => {
                self.rest.get(size_of::<layout::DiskKey>() + chunk.item_size()..).unwrap_or(&[])
            }
            Err(_) => &[],
        };
        Some(parsed)
    }
}

/// Names of feature bits, for messages: each set bit with its name, `None` for one not known.
fn bit_names<'a>(
    flags: u64,
    names: &'a [(u64, &'static str)],
) -> impl Iterator<Item = (u64, Option<&'static str>)> + 'a {
    (0..64).map(|bit| 1u64 << bit).filter(move |bit| flags & bit != 0).map(|bit| {
        let name = names.iter().find(|(known, _)| *known == bit).map(|(_, name)| *name);
        (bit, name)
    })
}

macro_rules! feature_bits {
    ($prefix:literal; $($name:ident = $bit:literal,)*) => {
        $(
            #[doc = concat!("`", $prefix, stringify!($name), "`.")]
            pub const $name: u64 = 1 << $bit;
        )*

        /// Each set bit with its kernel name; `None` for one that is not known.
        pub fn names(flags: u64) -> impl Iterator<Item = (u64, Option<&'static str>)> {
            super::bit_names(flags, &[$(($name, stringify!($name)),)*])
        }
    };
}

/// Features that a program must know to read the file system at all.
pub mod incompat {
    feature_bits! { "BTRFS_FEATURE_INCOMPAT_";
        MIXED_BACKREF = 0,
        DEFAULT_SUBVOL = 1,
        MIXED_GROUPS = 2,
        COMPRESS_LZO = 3,
        COMPRESS_ZSTD = 4,
        BIG_METADATA = 5,
        EXTENDED_IREF = 6,
        RAID56 = 7,
        SKINNY_METADATA = 8,
        NO_HOLES = 9,
        METADATA_UUID = 10,
        RAID1C34 = 11,
        ZONED = 12,
        EXTENT_TREE_V2 = 13,
        RAID_STRIPE_TREE = 14,
        SIMPLE_QUOTA = 16,
        REMAP_TREE = 17,
    }
}

/// Features that a program must know to write to the file system.
pub mod compat_ro {
    feature_bits! { "BTRFS_FEATURE_COMPAT_RO_";
        FREE_SPACE_TREE = 0,
        FREE_SPACE_TREE_VALID = 1,
        VERITY = 2,
        BLOCK_GROUP_TREE = 3,
    }
}

/// `BTRFS_SUPER_FLAG_*` that matter to a reader.
pub mod super_flags {
    /// The device is a seed: read-only, the base of another file system.
    pub const SEEDING: u64 = 1 << 32;
    /// The image is a metadata dump: file data is missing.
    pub const METADUMP: u64 = 1 << 33;
    /// A metadata dump of version 2.
    pub const METADUMP_V2: u64 = 1 << 34;
    /// btrfstune is changing the fsid.
    pub const CHANGING_FSID: u64 = 1 << 35;
    /// btrfstune is changing the metadata UUID.
    pub const CHANGING_FSID_V2: u64 = 1 << 36;
    /// btrfstune is moving the block group items to a tree of their own, or back.
    pub const CHANGING_BG_TREE: u64 = 1 << 38;
    /// btrfstune is changing the checksums of data.
    pub const CHANGING_DATA_CSUM: u64 = 1 << 39;
    /// btrfstune is changing the checksums of tree blocks.
    pub const CHANGING_META_CSUM: u64 = 1 << 40;
    /// All that btrfstune sets while it rewrites tree blocks where they are.
    pub const REWRITING: u64 =
        CHANGING_FSID | CHANGING_FSID_V2 | CHANGING_BG_TREE | CHANGING_DATA_CSUM | CHANGING_META_CSUM;
}
