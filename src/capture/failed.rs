//! Where the last write failed, as the guest was told.
//!
//! A file system with two copies of a tree block goes on when one of them could not be written. What lies there is
//! then older, or anything: no fault of the guest, and nothing to be read while another copy can be. Knows nothing of
//! what was to be written.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a sector: the smallest there is, and the unit of what is kept here.
const SECTOR: u64 = 4096;

/// Sectors that are kept: 4 GiB of failed writes. Beyond it every sector counts as one of them.
const LIMIT: usize = 1 << 20;

/// The sectors of one disk whose last write failed.
#[derive(Debug, Default)]
pub struct FailedWrites {
    /// Whether there are any; spares the lock, on the path of every write and every read of a tree block.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sectors: BTreeSet<u64>,
    /// There were more than are kept.
    everywhere: bool,
}

impl FailedWrites {
    /// A write of `len` bytes at `offset` failed, in whole or in part.
    pub fn add(&self, offset: u64, len: u64) {
        let mut state = self.lock();
        for sector in offset / SECTOR..offset.saturating_add(len).div_ceil(SECTOR) {
            if state.sectors.len() >= LIMIT {
                *state = State { sectors: BTreeSet::new(), everywhere: true };
            }
            if state.everywhere {
                break;
            }
            state.sectors.insert(sector);
        }
        self.any.store(state.everywhere || !state.sectors.is_empty(), Ordering::Release);
    }

    /// A write of `len` bytes at `offset` was carried out. A sector that it covers in part is still what it was.
    pub fn remove(&self, offset: u64, len: u64) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.lock();
        let (from, to) = (offset.div_ceil(SECTOR), offset.saturating_add(len) / SECTOR);
        while let Some(&sector) = state.sectors.range(from..to.max(from)).next() {
            state.sectors.remove(&sector);
        }
        self.any.store(state.everywhere || !state.sectors.is_empty(), Ordering::Release);
    }

    /// Whether the last write to any part of `[offset, offset + len)` failed.
    #[must_use]
    pub fn touch(&self, offset: u64, len: u64) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let state = self.lock();
        let (from, to) = (offset / SECTOR, offset.saturating_add(len).div_ceil(SECTOR));
        state.everywhere || state.sectors.range(from..to.max(from)).next().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_fails_until_it_is_written_as_a_whole() {
        let failed = FailedWrites::default();
        assert!(!failed.touch(0, u64::MAX / 2));
        failed.add(8192, 8192);
        assert!(failed.touch(0, 8193) && failed.touch(16383, 1));
        assert!(!failed.touch(0, 8192) && !failed.touch(16384, 4096));
        failed.remove(8192 + 512, 4096);
        assert!(failed.touch(8192, 4096) && failed.touch(12288, 4096));
        failed.remove(8192, 4096);
        assert!(!failed.touch(8192, 4096) && failed.touch(12288, 4096));
        failed.remove(0, 1 << 20);
        assert!(!failed.any.load(Ordering::Relaxed));
    }

    #[test]
    fn beyond_the_limit_nothing_is_known_to_be_right() {
        let failed = FailedWrites::default();
        failed.add(0, (LIMIT as u64 + 1) * SECTOR);
        failed.remove(0, u64::MAX / 2);
        assert!(failed.touch(1 << 60, 1));
        assert!(failed.lock().sectors.is_empty());
    }
}
