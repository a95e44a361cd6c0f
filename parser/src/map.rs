//! The map between logical addresses and places on devices, in both directions, made from chunk items.
//!
//! Single and the mirrored profiles are mapped. The interface is made for every profile: one logical address may
//! have several copies, each on some device, and a place on a device belongs to one stripe of one chunk. A profile
//! that is not mapped yet is refused with [`MapError::Unsupported`], never guessed at.

use alloc::vec::Vec;

use thiserror::Error;

use crate::chunk::{BlockFlags, ChunkItem, Stripe};

/// A chunk, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// First logical address.
    pub logical: u64,
    /// Length of the logical range, in bytes.
    pub length: u64,
    /// Type and profile.
    pub flags: BlockFlags,
    /// Bytes on one stripe before the next takes over.
    pub stripe_len: u64,
    /// Stripes per mirror group.
    pub sub_stripes: u16,
    /// Where the stripes lie.
    pub stripes: Vec<Stripe>,
}

impl Chunk {
    /// From the item with key offset `logical`.
    #[must_use]
    pub fn new(logical: u64, item: &ChunkItem<'_>) -> Self {
        Chunk {
            logical,
            length: item.length(),
            flags: item.flags(),
            stripe_len: item.stripe_len(),
            sub_stripes: item.sub_stripes(),
            stripes: item.stripes().collect(),
        }
    }

    /// Whether the stripes of both lie at the same places, in the same order.
    #[must_use]
    pub fn is_where(&self, other: &Chunk) -> bool {
        let place = |stripe: &Stripe| (stripe.devid, stripe.offset);
        self.stripes.iter().map(place).eq(other.stripes.iter().map(place))
    }

    /// First logical address past the chunk.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.logical.saturating_add(self.length)
    }

    /// Bytes each stripe takes on its device; `None` for a profile that is not mapped yet.
    #[must_use]
    pub fn stripe_size(&self) -> Option<u64> {
        (!self.flags.is_striped()).then_some(self.length)
    }
}

/// A place on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Physical {
    /// Device.
    pub devid: u64,
    /// Byte offset on the device.
    pub offset: u64,
}

/// Why an address has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MapError {
    /// No chunk covers the whole range.
    #[error("no chunk covers logical [{bytenr}, {len}]")]
    Unmapped {
        /// Start of the range.
        bytenr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The chunk has a profile that is not mapped yet.
    #[error("chunk {logical} has a profile that is not supported (type {flags:#x})")]
    Unsupported {
        /// Start of the chunk.
        logical: u64,
        /// Its type and profile bits.
        flags: u64,
    },
}

/// Two chunks that claim the same logical range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("chunk {second} overlaps chunk {first}")]
pub struct Overlap {
    /// Start of the lower chunk.
    pub first: u64,
    /// Start of the higher one.
    pub second: u64,
}

/// All chunks of a file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChunkMap {
    /// Sorted by logical address.
    chunks: Vec<Chunk>,
    /// Sorted by device and offset.
    extents: Vec<DevRange>,
}

/// A stripe's range on its device, and the chunk it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevRange {
    /// Where it begins.
    pub start: Physical,
    /// Length in bytes.
    pub length: u64,
    chunk: usize,
    stripe: usize,
}

impl ChunkMap {
    /// A map of `chunks`, in any order. Chunks with a profile that is not mapped are kept, and refused by
    /// [`ChunkMap::copies`].
    ///
    /// # Errors
    /// [`Overlap`] when two claim the same logical range.
    pub fn new(mut chunks: Vec<Chunk>) -> Result<Self, Overlap> {
        chunks.sort_by_key(|chunk| chunk.logical);
        for pair in chunks.windows(2) {
            if let [first, second] = pair
                && first.end() > second.logical
            {
                return Err(Overlap { first: first.logical, second: second.logical });
            }
        }
        let mut extents = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            let Some(length) = chunk.stripe_size() else { continue };
            for (stripe, place) in chunk.stripes.iter().enumerate() {
                let start = Physical { devid: place.devid, offset: place.offset };
                extents.push(DevRange { start, length, chunk: index, stripe });
            }
        }
        extents.sort_by_key(|range| range.start);
        Ok(ChunkMap { chunks, extents })
    }

    /// All chunks by logical address.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The chunk that covers `bytenr`.
    #[must_use]
    pub fn chunk_at(&self, bytenr: u64) -> Option<&Chunk> {
        let index = self.chunks.partition_point(|chunk| chunk.logical <= bytenr).checked_sub(1)?;
        self.chunks.get(index).filter(|chunk| bytenr < chunk.end())
    }

    /// Every place that holds the byte at `bytenr`, the first copy first. The `len` bytes from `bytenr` must lie in
    /// one chunk, and are contiguous at each place.
    ///
    /// # Errors
    /// [`MapError`] when no chunk covers them or its profile is not mapped.
    pub fn copies(&self, bytenr: u64, len: u64) -> Result<impl Iterator<Item = Physical> + '_, MapError> {
        let unmapped = MapError::Unmapped { bytenr, len };
        let chunk = self.chunk_at(bytenr).ok_or(unmapped)?;
        if len > chunk.end() - bytenr {
            return Err(unmapped);
        }
        if chunk.flags.is_striped() {
            return Err(MapError::Unsupported { logical: chunk.logical, flags: chunk.flags.0 });
        }
        let within = bytenr - chunk.logical;
        Ok(chunk.stripes.iter().map(move |stripe| Physical {
            devid: stripe.devid,
            offset: stripe.offset.saturating_add(within),
        }))
    }

    /// The chunk whose stripe covers a place, and the logical address of it.
    #[must_use]
    pub fn logical(&self, place: Physical) -> Option<(&Chunk, u64)> {
        let index = self.extents.partition_point(|range| range.start <= place).checked_sub(1)?;
        let range = self.extents.get(index)?;
        let within = place.offset.checked_sub(range.start.offset)?;
        if range.start.devid != place.devid || within >= range.length {
            return None;
        }
        let chunk = self.chunks.get(range.chunk)?;
        Some((chunk, chunk.logical.checked_add(within)?))
    }

    /// The ranges that chunks take on device `devid`, by offset, with the chunk each belongs to.
    pub fn device_ranges(&self, devid: u64) -> impl Iterator<Item = (DevRange, &Chunk)> {
        let of_device = self.extents.iter().filter(move |range| range.start.devid == devid);
        of_device.filter_map(|range| Some((*range, self.chunks.get(range.chunk)?)))
    }
}

impl DevRange {
    /// Index of the stripe in its chunk.
    #[must_use]
    pub fn stripe(&self) -> usize {
        self.stripe
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn chunk(logical: u64, length: u64, flags: u64, offsets: &[u64]) -> Chunk {
        let stripes = offsets.iter().map(|&offset| Stripe { devid: 1, offset, dev_uuid: [0; 16] }).collect();
        Chunk { logical, length, flags: BlockFlags(flags), stripe_len: 65536, sub_stripes: 0, stripes }
    }

    fn map() -> ChunkMap {
        ChunkMap::new(vec![
            chunk(1000, 100, BlockFlags::METADATA | BlockFlags::DUP, &[5000, 7000]),
            chunk(100, 50, BlockFlags::DATA, &[300]),
            chunk(2000, 100, BlockFlags::DATA | BlockFlags::RAID0, &[9000]),
        ])
        .unwrap()
    }

    #[test]
    fn dup_has_two_copies_and_both_lead_back() {
        let map = map();
        let copies: Vec<_> = map.copies(1010, 90).unwrap().collect();
        assert_eq!(copies, [Physical { devid: 1, offset: 5010 }, Physical { devid: 1, offset: 7010 }]);
        for copy in copies {
            assert_eq!(map.logical(copy).map(|(chunk, bytenr)| (chunk.logical, bytenr)), Some((1000, 1010)));
        }
    }

    #[test]
    fn edges_are_exclusive() {
        let map = map();
        assert!(map.copies(1010, 91).is_err());
        assert!(map.copies(150, 1).is_err());
        assert!(map.copies(99, 1).is_err());
        assert!(map.logical(Physical { devid: 1, offset: 349 }).is_some());
        assert!(map.logical(Physical { devid: 1, offset: 350 }).is_none());
        assert!(map.logical(Physical { devid: 2, offset: 300 }).is_none());
        assert!(map.logical(Physical { devid: 1, offset: 299 }).is_none());
    }

    #[test]
    fn striped_profiles_are_refused_not_guessed() {
        assert!(matches!(
            map().copies(2000, 1).map(|_| ()),
            Err(MapError::Unsupported { logical: 2000, .. })
        ));
        assert!(map().logical(Physical { devid: 1, offset: 9000 }).is_none());
    }

    #[test]
    fn overlapping_chunks_are_an_error() {
        let chunks = vec![chunk(0, 100, 1, &[0]), chunk(99, 10, 1, &[500])];
        assert_eq!(ChunkMap::new(chunks), Err(Overlap { first: 0, second: 99 }));
    }

    #[test]
    fn a_chunk_at_the_end_of_the_address_space_does_not_overflow() {
        let map = ChunkMap::new(vec![chunk(u64::MAX - 5, 100, 1, &[u64::MAX - 1])]).unwrap();
        assert!(map.copies(u64::MAX - 5, 6).is_err());
        assert_eq!(map.copies(u64::MAX - 5, 5).unwrap().count(), 1);

        let map = ChunkMap::new(vec![chunk(u64::MAX - 5, u64::MAX, 1, &[0])]).unwrap();
        assert!(map.logical(Physical { devid: 1, offset: 5 }).is_some());
        assert!(map.logical(Physical { devid: 1, offset: 6 }).is_none());
    }
}
