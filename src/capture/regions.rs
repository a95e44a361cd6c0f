//! Which ranges of the disk may hold tree blocks.
//!
//! Made from the chunk map at each commit and replaced as a whole, so that the data path reads it without a lock.

use std::sync::Arc;

use parser::map::Physical;
use parser::{ChunkMap, Header};
use shadow::{Geometry, Snapshot, TreeBlock};

/// The region map of one file system on one device.
#[derive(Debug)]
pub struct Regions {
    /// What holds for all its tree blocks.
    pub geometry: Geometry,
    /// Transaction of the last commit.
    pub generation: u64,
    /// UUIDs that a tree block may carry.
    uuids: Vec<parser::Uuid>,
    /// Where the copies of a block lie.
    chunks: Arc<ChunkMap>,
    /// Ranges of data, by start; whatever lies in none of them may hold tree blocks.
    data: Vec<(u64, u64)>,
}

impl Regions {
    /// The regions of `snapshot`.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let geometry = snapshot.geometry.clone();
        let mut uuids = vec![geometry.metadata_uuid];
        uuids.extend_from_slice(&snapshot.seed_uuids);
        let chunks = Arc::clone(&snapshot.chunks);
        Regions {
            data: data_ranges(&chunks, geometry.devid),
            generation: snapshot.generation,
            chunks,
            geometry,
            uuids,
        }
    }

    /// Whether both mean the same ranges.
    #[must_use]
    pub fn same_ranges(&self, other: &Regions) -> bool {
        self.data == other.data && self.geometry == other.geometry
    }

    /// Whether any byte of `[start, end)` may belong to a tree block: it lies in a metadata or system chunk, in a
    /// mixed one, or in none that is known. A chunk may be written to before any chunk tree on disk names it.
    #[must_use]
    pub fn may_hold_metadata(&self, start: u64, end: u64) -> bool {
        let index = self.data.partition_point(|&(from, _)| from <= start);
        let before = index.checked_sub(1).and_then(|index| self.data.get(index));
        before.is_none_or(|&(_, to)| end > to)
    }

    /// A block that has these bytes.
    #[must_use]
    pub fn parse(&self, bytes: &[u8]) -> TreeBlock {
        TreeBlock::new(bytes.into(), self.geometry.csum, self.geometry.sectorsize)
    }

    /// Where on this device the other copies of the block at `place` lie.
    pub fn other_copies(&self, place: u64) -> impl Iterator<Item = u64> {
        let devid = self.geometry.devid;
        let found = self.chunks.logical(Physical { devid, offset: place });
        let copies =
            found.and_then(|(_, bytenr)| self.chunks.copies(bytenr, self.geometry.nodesize.into()).ok());
        let here = copies.into_iter().flatten().filter(move |copy| copy.devid == devid);
        here.map(|copy| copy.offset).filter(move |offset| *offset != place)
    }

    /// The candidates among the bytes written at `offset`: place, and the bytes of one block. Tree blocks begin at
    /// sector boundaries; one that is not wholly inside the write is left to be read back.
    pub fn candidates<'a>(&self, offset: u64, bytes: &'a [u8]) -> impl Iterator<Item = (u64, &'a [u8])> {
        let sectorsize = u64::from(self.geometry.sectorsize);
        let nodesize = self.geometry.nodesize as usize;
        let mut at = (offset.next_multiple_of(sectorsize) - offset) as usize;
        let sector = sectorsize as usize;
        std::iter::from_fn(move || {
            loop {
                let block = bytes.get(at..at.checked_add(nodesize)?)?;
                let place = offset + at as u64;
                let is_candidate = Header::parse(block)
                    .is_ok_and(|header| self.uuids.contains(header.fsid()) && header.bytenr() != 0);
                if is_candidate {
                    at += nodesize;
                    return Some((place, block));
                }
                at += sector;
            }
        })
    }
}

/// Adjacent ranges that hold nothing but data, put together.
fn data_ranges(chunks: &ChunkMap, devid: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (range, chunk) in chunks.device_ranges(devid) {
        if chunk.flags.holds_metadata() || !chunk.flags.holds_data() {
            continue;
        }
        let (start, end) = (range.start.offset, range.start.offset.saturating_add(range.length));
        match ranges.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => ranges.push((start, end)),
        }
    }
    ranges
}
