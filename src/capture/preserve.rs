//! Keeps what the guest overwrites while an audit of the state before is still reading it.
//!
//! An audit looks at one commit. The guest goes on: once its next commit is acknowledged it may write over whatever
//! that one has freed. While an audit runs, every copied write first saves the sectors it is about to overwrite.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parser::map::Physical;
use shadow::{BlockSource, Geometry, ReadError, TreeBlock};

use crate::image::Image;

/// Bytes that are saved at a time; the smallest sector size there is.
const SECTOR: u64 = 4096;

/// Saved sectors, by byte offset.
pub struct Preserve {
    image: Arc<dyn Image>,
    limit: usize,
    active: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sectors: HashMap<u64, Box<[u8]>>,
    /// More was overwritten than may be kept, or could not be read: the audit is void.
    lost: bool,
}

impl Preserve {
    /// Saves at most about `limit` bytes of what is in `image`.
    #[must_use]
    pub fn new(image: Arc<dyn Image>, limit: usize) -> Self {
        Preserve { image, limit, active: AtomicBool::new(false), state: Mutex::default() }
    }

    /// From now on, what is about to be overwritten is saved.
    pub fn begin(&self) {
        *self.lock() = State::default();
        self.active.store(true, Ordering::SeqCst);
    }

    /// No more is saved, and what was is forgotten. Says whether everything overwritten meanwhile had been saved.
    pub fn end(&self) -> bool {
        self.active.store(false, Ordering::SeqCst);
        !std::mem::take(&mut *self.lock()).lost
    }

    /// A write of `len` bytes at `offset` is about to be made.
    pub fn before_write(&self, offset: u64, len: u64) {
        if !self.active.load(Ordering::SeqCst) {
            return;
        }
        let mut state = self.lock();
        // Once: the image may be made smaller at any time.
        let image_len = self.image.len();
        let end = offset.saturating_add(len).min(image_len);
        let mut at = offset / SECTOR * SECTOR;
        while at < end && !state.lost {
            if !state.sectors.contains_key(&at) {
                if state.sectors.len().saturating_mul(SECTOR as usize) >= self.limit {
                    state.lost = true;
                    state.sectors = HashMap::new();
                    return;
                }
                let size = SECTOR.min(image_len - at) as usize;
                let mut sector = vec![0; size].into_boxed_slice();
                match self.image.read_at(&mut sector, at) {
                    Ok(()) => drop(state.sectors.insert(at, sector)),
                    Err(_) => state.lost = true,
                }
            }
            at += SECTOR;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads tree blocks as they were when [`Preserve::begin`] was called.
pub struct PreservedSource {
    preserve: Arc<Preserve>,
    geometry: Geometry,
}

impl PreservedSource {
    /// A source for blocks that look like `geometry` says.
    #[must_use]
    pub fn new(preserve: Arc<Preserve>, geometry: Geometry) -> Self {
        PreservedSource { preserve, geometry }
    }
}

impl BlockSource for PreservedSource {
    fn read(&self, place: Physical) -> Result<Arc<TreeBlock>, ReadError> {
        let Geometry { nodesize, sectorsize, csum, devid, .. } = self.geometry;
        if place.devid != devid {
            return Err(ReadError::ForeignDevice(place.devid));
        }
        let image = &self.preserve.image;
        let end = place.offset.checked_add(nodesize.into()).filter(|end| *end <= image.len());
        let Some(end) = end else {
            return Err(ReadError::OutOfBounds { devid: place.devid, offset: place.offset });
        };
        let mut bytes = vec![0; nodesize as usize].into_boxed_slice();
        image.read_at(&mut bytes, place.offset).map_err(|error| ReadError::Io(error.to_string()))?;
        // A write that began before the read has saved what it overwrote; one that begins later was not seen.
        let state = self.preserve.lock();
        let mut at = place.offset;
        while at < end {
            if let Some(saved) = state.sectors.get(&at) {
                let from = (at - place.offset) as usize;
                if let Some(target) = bytes.get_mut(from..from + saved.len()) {
                    target.copy_from_slice(saved);
                }
            }
            at += SECTOR;
        }
        drop(state);
        Ok(Arc::new(TreeBlock::new(bytes, csum, sectorsize)))
    }
}
