//! What was written where tree blocks may lie, since the last commits: completed or not, flushed or not.
//!
//! A flush makes durable what was completed before it began. The writes of the running transaction and of the one
//! before it are kept: a transaction may begin to write before the super block of the last one is there.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shadow::source::Origin;

use super::SECTOR;

/// Sectors that are kept: 16 GiB of tree blocks in one transaction. Beyond it nothing is said until the next commit.
const LIMIT: usize = 4 << 20;

/// Writes of one disk.
#[derive(Debug, Default)]
pub struct Writes {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By sector: how many flushes had begun when it was last written.
    now: HashMap<u64, u64>,
    /// The same, of the transaction before.
    before: HashMap<u64, u64>,
    /// Offset and end of writes that are not completed, and how many there are of each.
    in_flight: HashMap<(u64, u64), u32>,
    /// Flushes that have begun.
    begun: u64,
    /// The latest of those that are complete.
    flushed: u64,
    /// Whether everything was seen since the commit before last.
    whole: bool,
    /// Whether everything was seen since the last commit.
    since_commit: bool,
}

impl Writes {
    /// A frontend has connected: what the one before wrote is not known to have come from this guest.
    pub fn reset(&self) {
        *self.lock() = State::default();
    }

    /// A write was submitted.
    pub fn begins(&self, offset: u64, len: u64) {
        *self.lock().in_flight.entry((offset, offset.saturating_add(len))).or_insert(0) += 1;
    }

    /// It is complete.
    pub fn completed(&self, offset: u64, len: u64) {
        let mut state = self.lock();
        state.ends(offset, len);
        let stamp = state.begun;
        for sector in sectors(offset, len) {
            state.now.insert(sector, stamp);
        }
        if state.now.len() > LIMIT {
            state.now = HashMap::new();
            state.since_commit = false;
            state.whole = false;
        }
    }

    /// It failed, and may have been carried out in part.
    pub fn failed(&self, offset: u64, len: u64) {
        self.lock().ends(offset, len);
    }

    /// A flush is about to be carried out; returns its number.
    pub fn flush_begins(&self) -> u64 {
        let mut state = self.lock();
        state.begun += 1;
        state.begun
    }

    /// Number of the flush that begins next.
    pub fn next_flush(&self) -> u64 {
        self.lock().begun + 1
    }

    /// The flush with this number is complete.
    pub fn flushed(&self, number: u64) {
        let mut state = self.lock();
        state.flushed = state.flushed.max(number);
    }

    /// A transaction was committed.
    pub fn commit(&self) {
        let mut state = self.lock();
        state.before = std::mem::take(&mut state.now);
        state.whole = state.since_commit;
        state.since_commit = true;
    }

    /// How the bytes in a range came there.
    pub fn origin(&self, offset: u64, len: u64) -> Origin {
        let state = self.lock();
        let end = offset.saturating_add(len);
        if state.in_flight.keys().any(|&(from, to)| from < end && offset < to) {
            return Origin::InFlight;
        }
        let mut latest = 0;
        for sector in sectors(offset, len) {
            match state.now.get(&sector).or_else(|| state.before.get(&sector)) {
                Some(stamp) => latest = latest.max(*stamp),
                None if state.whole => return Origin::NotWritten,
                None => return Origin::Unknown,
            }
        }
        // A flush that began after the write was completed has a higher number than it.
        if state.flushed > latest { Origin::Durable } else { Origin::NotFlushed }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ends(&mut self, offset: u64, len: u64) {
        let range = (offset, offset.saturating_add(len));
        if let Some(count) = self.in_flight.get_mut(&range) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(&range);
            }
        }
    }
}

/// Numbers of the sectors that a range touches.
fn sectors(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / SECTOR..offset.saturating_add(len).div_ceil(SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: (u64, u64) = (1 << 20, 16384);

    fn followed() -> Writes {
        let writes = Writes::default();
        writes.commit();
        writes.commit();
        writes
    }

    fn origin(writes: &Writes) -> Origin {
        writes.origin(BLOCK.0, BLOCK.1)
    }

    #[test]
    fn a_write_is_durable_when_a_flush_that_began_after_it_is_complete() {
        let writes = followed();
        assert_eq!(origin(&writes), Origin::NotWritten);
        let early = writes.flush_begins();
        writes.begins(BLOCK.0, BLOCK.1);
        assert_eq!(origin(&writes), Origin::InFlight);
        writes.completed(BLOCK.0, BLOCK.1);
        writes.flushed(early);
        assert_eq!(origin(&writes), Origin::NotFlushed);
        let late = writes.flush_begins();
        assert_eq!(origin(&writes), Origin::NotFlushed);
        writes.flushed(late);
        assert_eq!(origin(&writes), Origin::Durable);
    }

    #[test]
    fn all_sectors_count() {
        let writes = followed();
        writes.completed(BLOCK.0, 12288);
        let flush = writes.flush_begins();
        writes.flushed(flush);
        assert_eq!(origin(&writes), Origin::NotWritten);
        writes.completed(BLOCK.0 + 12288, 4096);
        assert_eq!(origin(&writes), Origin::NotFlushed);
    }

    #[test]
    fn two_transactions_are_kept_and_what_was_not_seen_is_unknown() {
        let writes = Writes::default();
        assert_eq!(origin(&writes), Origin::Unknown);
        writes.completed(BLOCK.0, BLOCK.1);
        writes.commit();
        assert_eq!(origin(&writes), Origin::NotFlushed);
        assert_eq!(writes.origin(0, 4096), Origin::Unknown, "may have been written before the first commit");
        writes.commit();
        assert_eq!(origin(&writes), Origin::NotWritten);
        writes.reset();
        assert_eq!(origin(&writes), Origin::Unknown);
    }

    #[test]
    fn a_failed_write_is_none() {
        let writes = followed();
        writes.begins(BLOCK.0, BLOCK.1);
        writes.failed(BLOCK.0, BLOCK.1);
        assert_eq!(origin(&writes), Origin::NotWritten);
    }
}
