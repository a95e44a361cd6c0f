//! Chunk items and what a chunk or block group is for (`struct btrfs_chunk`, `BTRFS_BLOCK_GROUP_*`).

use zerocopy::FromBytes as _;

use crate::Uuid;
use crate::error::ParseError;
use crate::layout;

/// The type and profile bits of a chunk or block group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BlockFlags(pub u64);

impl BlockFlags {
    /// Holds file data.
    pub const DATA: u64 = 1 << 0;
    /// Holds the chunk tree.
    pub const SYSTEM: u64 = 1 << 1;
    /// Holds all other trees.
    pub const METADATA: u64 = 1 << 2;
    /// All type bits.
    pub const TYPE_MASK: u64 = Self::DATA | Self::SYSTEM | Self::METADATA;
    /// Striped, no redundancy.
    pub const RAID0: u64 = 1 << 3;
    /// Two copies on two devices.
    pub const RAID1: u64 = 1 << 4;
    /// Two copies on one device.
    pub const DUP: u64 = 1 << 5;
    /// Striped mirrors.
    pub const RAID10: u64 = 1 << 6;
    /// Striped with one parity.
    pub const RAID5: u64 = 1 << 7;
    /// Striped with two parities.
    pub const RAID6: u64 = 1 << 8;
    /// Three copies on three devices.
    pub const RAID1C3: u64 = 1 << 9;
    /// Four copies on four devices.
    pub const RAID1C4: u64 = 1 << 10;
    /// Profiles whose every stripe is a whole copy.
    pub const MIRROR_MASK: u64 = Self::RAID1 | Self::DUP | Self::RAID1C3 | Self::RAID1C4;
    /// Profiles that spread a chunk over its stripes.
    pub const STRIPED_MASK: u64 = Self::RAID0 | Self::RAID10 | Self::RAID5 | Self::RAID6;
    /// All profile bits; none set is the single profile.
    pub const PROFILE_MASK: u64 = Self::MIRROR_MASK | Self::STRIPED_MASK;

    /// Whether the chunk may hold tree blocks.
    #[must_use]
    pub const fn holds_metadata(self) -> bool {
        self.0 & (Self::METADATA | Self::SYSTEM) != 0
    }

    /// Whether the chunk may hold file data.
    #[must_use]
    pub const fn holds_data(self) -> bool {
        self.0 & Self::DATA != 0
    }

    /// Whether logical addresses are spread over the stripes.
    #[must_use]
    pub const fn is_striped(self) -> bool {
        self.0 & Self::STRIPED_MASK != 0
    }
}

/// One stripe of a chunk (`struct btrfs_stripe`): where it lies on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stripe {
    /// Device.
    pub devid: u64,
    /// Byte offset on the device.
    pub offset: u64,
    /// UUID of the device.
    pub dev_uuid: Uuid,
}

/// A chunk item: key `(FIRST_CHUNK_TREE, CHUNK_ITEM, logical start)`.
#[derive(Debug, Clone, Copy)]
pub struct ChunkItem<'a> {
    fixed: &'a layout::Chunk,
    stripes: &'a [layout::Stripe],
    size: usize,
}

impl<'a> ChunkItem<'a> {
    /// Reads the chunk item at the start of `data`, which may go on: the super block's array holds several.
    ///
    /// # Errors
    /// [`ParseError`] where it is cut short or has no stripe.
    pub fn parse_prefix(data: &'a [u8]) -> Result<Self, ParseError> {
        let what = "btrfs_chunk";
        let fixed: &layout::Chunk = layout::prefix(what, data)?;
        let count = fixed.num_stripes.get();
        if count == 0 {
            return Err(ParseError::Invalid { what, field: "num_stripes", value: 0 });
        }
        let size = size_of::<layout::Chunk>() + usize::from(count) * size_of::<layout::Stripe>();
        let truncated = ParseError::Truncated { what, need: size, have: data.len() };
        let (_, rest) = data.split_at_checked(size_of::<layout::Chunk>()).ok_or(truncated)?;
        let (stripes, _) = <[layout::Stripe]>::ref_from_prefix_with_elems(rest, usize::from(count))
            .map_err(|_| truncated)?;
        Ok(ChunkItem { fixed, stripes, size })
    }

    /// Reads a chunk item that is all of `data`.
    ///
    /// # Errors
    /// [`ParseError`] where it is cut short, too long or has no stripe.
    pub fn parse(data: &'a [u8]) -> Result<Self, ParseError> {
        let item = Self::parse_prefix(data)?;
        if item.size != data.len() {
            return Err(ParseError::Oversized { what: "btrfs_chunk", need: item.size, have: data.len() });
        }
        Ok(item)
    }

    /// Size of the item in bytes, stripes included.
    #[must_use]
    pub fn item_size(&self) -> usize {
        self.size
    }

    /// Length of the logical range, in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.fixed.length.get()
    }

    /// Tree that owns the chunk: always the extent tree.
    #[must_use]
    pub fn owner(&self) -> u64 {
        self.fixed.owner.get()
    }

    /// Bytes on one stripe before the next takes over; 64 KiB in every file system so far.
    #[must_use]
    pub fn stripe_len(&self) -> u64 {
        self.fixed.stripe_len.get()
    }

    /// Bytes of a sector.
    #[must_use]
    pub fn sector_size(&self) -> u32 {
        self.fixed.sector_size.get()
    }

    /// Type and profile.
    #[must_use]
    pub fn flags(&self) -> BlockFlags {
        BlockFlags(self.fixed.chunk_type.get())
    }

    /// Stripes per mirror group: 2 for RAID10, otherwise 0 or 1.
    #[must_use]
    pub fn sub_stripes(&self) -> u16 {
        self.fixed.sub_stripes.get()
    }

    /// The stripes, at least one.
    pub fn stripes(&self) -> impl ExactSizeIterator<Item = Stripe> + use<'a> {
        self.stripes.iter().map(|stripe| Stripe {
            devid: stripe.devid.get(),
            offset: stripe.offset.get(),
            dev_uuid: stripe.dev_uuid,
        })
    }
}
