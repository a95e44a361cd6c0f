//! Operations that the page cache can answer: tried with a system call before the ring is asked.
//!
//! A read that would have to wait for the disk isn't made. Whether a write would is something that many file systems
//! can't say (ext4): there it is made all the same, since it is nearly always a copy; one that did wait means that the
//! kernel holds writers back, and then they go to the ring for a while, where they hold up nobody else.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use super::super::calls::{Direction, Wait, call, is_unsupported};
use super::op::{Next, Op};

/// Reads that would have had to wait, one after the other, from which on only each [`PROBE`]th is tried.
const COLD: u32 = 8;
const PROBE: u32 = 16;

/// A write that took this long has waited.
const SLOW: Duration = Duration::from_millis(2);

/// How long writes go to the ring then.
const PENALTY: Duration = Duration::from_millis(50);

/// Bytes that may be copied on the spot. What is longer would hold up other requests.
const LONGEST: usize = 1 << 20;

/// What came of it.
pub(super) enum Attempt {
    Done(io::Result<()>),
    /// It would have to wait, in whole or for the rest.
    Wait,
}

/// What has been learnt about the file.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// Never try: for tests.
    off: bool,
    reads: Hits,
    writes: Hits,
    slow_until: Option<Instant>,
}

/// How well one direction does.
#[derive(Debug, Default)]
struct Hits {
    misses: u32,
    /// The file system can't tell whether it would have to wait.
    blind: bool,
}

impl Hits {
    fn is_worth_it(&mut self) -> bool {
        if self.misses >= COLD && !self.misses.is_multiple_of(PROBE) {
            self.misses = self.misses.wrapping_add(1).max(COLD);
            return false;
        }
        true
    }
}

impl Attempts {
    /// Leaves everything to the ring.
    #[cfg(test)]
    pub(super) fn never() -> Self {
        Attempts { off: true, ..Self::default() }
    }

    /// Tries to do all of `op` without waiting for the disk.
    pub(super) fn attempt(&mut self, file: &File, direction: Direction, op: &mut Op) -> Attempt {
        let len = op.with_memory(|slices| slices.iter().map(|slice| slice.iov_len).sum::<usize>());
        if len == 0 {
            return Attempt::Done(Ok(()));
        }
        if self.off || len > LONGEST {
            return Attempt::Wait;
        }
        match direction {
            Direction::Read if self.reads.blind => Attempt::Wait,
            Direction::Write if self.writes.blind => self.write_anyway(file, op),
            _ => self.without_waiting(file, direction, op),
        }
    }

    fn hits(&mut self, direction: Direction) -> &mut Hits {
        match direction {
            Direction::Read => &mut self.reads,
            Direction::Write => &mut self.writes,
        }
    }

    fn without_waiting(&mut self, file: &File, direction: Direction, op: &mut Op) -> Attempt {
        if !self.hits(direction).is_worth_it() {
            return Attempt::Wait;
        }
        let hits = self.hits(direction);
        match op.with_memory(|slices| call(file, direction, op.offset(), slices, Wait::Never)) {
            // What the end of the file is, the ring finds out.
            Ok(0) => Attempt::Wait,
            Ok(moved) => match op.moved(direction, moved) {
                Next::Done(result) => {
                    hits.misses = 0;
                    Attempt::Done(result)
                }
                Next::More => Attempt::Wait,
            },
            Err(error) if is_unsupported(&error) => {
                hits.blind = true;
                if direction == Direction::Write { self.write_anyway(file, op) } else { Attempt::Wait }
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::WouldBlock {
                    hits.misses = hits.misses.saturating_add(1);
                }
                // Other errors are for the ring to find again: there they come with all that was moved before.
                Attempt::Wait
            }
        }
    }

    fn write_anyway(&mut self, file: &File, op: &mut Op) -> Attempt {
        let begun = Instant::now();
        if self.slow_until.is_some_and(|until| begun < until) {
            return Attempt::Wait;
        }
        let written =
            op.with_memory(|slices| call(file, Direction::Write, op.offset(), slices, Wait::Allowed));
        let took = begun.elapsed();
        self.slow_until = (took > SLOW).then(|| begun + took + PENALTY);
        match written {
            Ok(moved) => match op.moved(Direction::Write, moved) {
                Next::Done(result) => Attempt::Done(result),
                Next::More => Attempt::Wait,
            },
            Err(error) => Attempt::Done(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_reads_are_tried_now_and_then() {
        let mut hits = Hits { misses: COLD, blind: false };
        let tried = (0..PROBE * 4).filter(|_| {
            let worth = hits.is_worth_it();
            if worth {
                hits.misses += 1;
            }
            worth
        });
        assert!((1..=5).contains(&tried.count()));
    }
}
