//! How long a queue's thread looks for something to do before it goes to sleep.
//!
//! Being woken costs more than a short look, on both sides: the guest need not notify, which is an exit of its virtual
//! CPU. What is worth it is learnt from what sleeping has brought, as QEMU's event loops do: a sleep that was short
//! makes the next look longer, one that was long makes it end. Knows only the clock.

use std::time::{Duration, Instant};

/// Where looking begins once it is worth it.
const SHORTEST: Duration = Duration::from_micros(4);

/// Looks between two glances at the clock.
const LOOKS: u32 = 8;

/// What a queue has learnt.
pub(super) struct Poll {
    longest: Duration,
    now: Duration,
    slept_since: Option<Instant>,
}

impl Poll {
    /// Looks for `longest` at most; not at all if that is zero.
    pub(super) fn new(longest: Duration) -> Self {
        Poll { longest, now: Duration::ZERO, slept_since: None }
    }

    /// The thread has been woken.
    pub(super) fn awake(&mut self) {
        if let Some(since) = self.slept_since.take() {
            self.learn(since.elapsed());
        }
    }

    fn learn(&mut self, slept: Duration) {
        if slept > self.longest {
            self.now = Duration::ZERO;
        } else {
            self.now = (self.now * 2).clamp(SHORTEST.min(self.longest), self.longest);
        }
    }

    /// The thread goes to sleep.
    pub(super) fn asleep(&mut self) {
        if !self.longest.is_zero() {
            self.slept_since = Some(Instant::now());
        }
    }

    /// Begins a look, if it is worth it.
    pub(super) fn begin(&self) -> Option<Look> {
        (!self.now.is_zero()).then(|| Look { until: Instant::now() + self.now, looks: 0 })
    }
}

/// One look.
pub(super) struct Look {
    until: Instant,
    looks: u32,
}

impl Look {
    /// Whether there is time for another.
    pub(super) fn goes_on(&mut self) -> bool {
        self.looks += 1;
        !self.looks.is_multiple_of(LOOKS) || Instant::now() < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sleeps_make_it_look_longer_and_a_long_one_ends_it() {
        let longest = Duration::from_micros(32);
        let mut poll = Poll::new(longest);
        assert!(poll.begin().is_none());
        for _ in 0..5 {
            poll.learn(Duration::from_micros(20));
        }
        assert_eq!(poll.now, longest);
        assert!(poll.begin().is_some());
        poll.learn(Duration::from_millis(1));
        assert!(poll.begin().is_none());
    }

    #[test]
    fn it_can_be_turned_off() {
        let mut poll = Poll::new(Duration::ZERO);
        poll.learn(Duration::ZERO);
        assert!(poll.begin().is_none());
        poll.asleep();
        assert!(poll.slept_since.is_none());
    }
}
