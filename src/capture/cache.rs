//! Tree blocks by their place on the disk: those the guest wrote, and those that were read back.
//!
//! Always says what the image holds: a completed write replaces or removes what was there before the guest is told
//! of it. Bounded; what was put in first goes first, and is read again from the image when it is asked for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parser::ChecksumType;
use parser::map::Physical;
use parser::superblock::{OFFSETS, SIZE};
use shadow::{BlockSource, Geometry, ReadError, TreeBlock};

use crate::capture::FailedWrites;
use crate::image::Image;

/// Largest tree block there is.
const MAX_NODESIZE: u64 = 65536;

/// Blocks by place, in front of an image.
pub struct BlockCache {
    image: Arc<dyn Image>,
    failed: Arc<FailedWrites>,
    limit: usize,
    state: Mutex<State>,
}

struct State {
    blocks: BTreeMap<u64, Entry>,
    /// In the order they were put in. May name places that have been replaced since.
    order: VecDeque<(u64, u64)>,
    clock: u64,
    bytes: usize,
    format: Option<Format>,
    /// Counts changes of what the image holds, so that a block read from it in the meantime is not kept.
    epoch: u64,
    /// Counts those that a tree block can be touched by: writes of super blocks are none.
    changes: u64,
}

struct Entry {
    block: Arc<TreeBlock>,
    stamp: u64,
}

/// What must be known to read a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Format {
    nodesize: u32,
    sectorsize: u32,
    csum: ChecksumType,
    devid: u64,
}

impl BlockCache {
    /// An empty cache that keeps about `limit` bytes, of a disk on which these writes failed.
    #[must_use]
    pub fn new(image: Arc<dyn Image>, failed: Arc<FailedWrites>, limit: usize) -> Self {
        let state = State {
            blocks: BTreeMap::new(),
            order: VecDeque::new(),
            clock: 0,
            bytes: 0,
            format: None,
            epoch: 0,
            changes: 0,
        };
        BlockCache { image, failed, limit, state: Mutex::new(state) }
    }

    /// Says what blocks look like from now on, and forgets those of another format.
    pub fn set_geometry(&self, geometry: &Geometry) {
        let format = Format {
            nodesize: geometry.nodesize,
            sectorsize: geometry.sectorsize,
            csum: geometry.csum,
            devid: geometry.devid,
        };
        let mut state = self.lock();
        if state.format.replace(format) != Some(format) {
            state.clear();
        }
    }

    /// Forgets every block: the image may have changed behind the program's back.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Forgets every block that touches `len` bytes at `offset`: they hold something else now.
    pub fn invalidate(&self, offset: u64, len: u64) {
        let mut state = self.lock();
        let end = offset.saturating_add(len);
        let in_super = |place: &u64| *place <= offset && end <= place.saturating_add(SIZE as u64);
        state.epoch += 1;
        state.changes += u64::from(!OFFSETS.iter().any(in_super));
        let first = offset.saturating_sub(MAX_NODESIZE);
        let touched: Vec<u64> = state
            .blocks
            .range(first..end)
            .filter(|(place, entry)| *place + entry.block.bytes().len() as u64 > offset)
            .map(|(place, _)| *place)
            .collect();
        for place in touched {
            state.remove(place);
        }
    }

    /// The block that is kept for one of these places and has these bytes, if there is one.
    #[must_use]
    pub fn find(&self, mut places: impl Iterator<Item = u64>, bytes: &[u8]) -> Option<Arc<TreeBlock>> {
        let state = self.lock();
        let kept = places.find_map(|place| state.blocks.get(&place).map(|entry| Arc::clone(&entry.block)))?;
        drop(state);
        (kept.bytes() == bytes).then_some(kept)
    }

    /// Puts in a block that the image holds at `place`.
    pub fn insert(&self, place: u64, block: Arc<TreeBlock>) {
        self.lock().insert(place, block, self.limit);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn clear(&mut self) {
        self.blocks.clear();
        self.order.clear();
        self.bytes = 0;
        self.epoch += 1;
        self.changes += 1;
    }

    fn remove(&mut self, place: u64) {
        if let Some(entry) = self.blocks.remove(&place) {
            self.bytes = self.bytes.saturating_sub(entry.block.bytes().len());
        }
    }

    fn insert(&mut self, place: u64, block: Arc<TreeBlock>, limit: usize) {
        self.remove(place);
        self.clock += 1;
        self.bytes += block.bytes().len();
        self.blocks.insert(place, Entry { block, stamp: self.clock });
        self.order.push_back((place, self.clock));
        while self.bytes > limit {
            let Some((oldest, stamp)) = self.order.pop_front() else { break };
            if self.blocks.get(&oldest).is_some_and(|entry| entry.stamp == stamp) {
                self.remove(oldest);
            }
        }
        // Places that were written over and over leave their old names in the queue.
        if self.order.len() > 2 * self.blocks.len() + 1024 {
            let State { order, blocks, .. } = self;
            order.retain(|(place, stamp)| blocks.get(place).is_some_and(|entry| entry.stamp == *stamp));
        }
    }
}

impl BlockSource for BlockCache {
    fn epoch(&self) -> Option<u64> {
        Some(self.lock().changes)
    }

    fn read(&self, place: Physical) -> Result<Arc<TreeBlock>, ReadError> {
        let (format, epoch) = {
            let state = self.lock();
            let Some(format) = state.format else { return Err(ReadError::Io("no file system".to_owned())) };
            if place.devid != format.devid {
                return Err(ReadError::ForeignDevice(place.devid));
            }
            if let Some(entry) = state.blocks.get(&place.offset)
                && entry.block.bytes().len() == format.nodesize as usize
            {
                return Ok(Arc::clone(&entry.block));
            }
            (format, state.epoch)
        };
        let end = place.offset.checked_add(u64::from(format.nodesize));
        if end.is_none_or(|end| end > self.image.len()) {
            return Err(ReadError::OutOfBounds { devid: place.devid, offset: place.offset });
        }
        let mut bytes = vec![0; format.nodesize as usize].into_boxed_slice();
        self.image.read_at(&mut bytes, place.offset).map_err(|error| ReadError::Io(error.to_string()))?;
        let block = Arc::new(TreeBlock::new(bytes, format.csum, format.sectorsize));
        let mut state = self.lock();
        if state.epoch == epoch {
            state.insert(place.offset, Arc::clone(&block), self.limit);
        }
        Ok(block)
    }

    fn write_failed(&self, place: Physical, len: u64) -> bool {
        // Of other devices nothing is written here; what is read of them is nothing either.
        self.failed.touch(place.offset, len)
    }
}
