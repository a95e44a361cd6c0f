//! How long a queue's thread looks for something to do before it goes to sleep.
//!
//! Being woken costs more than a short look, on both sides: the guest need not notify, which is an exit of its virtual
//! CPU. What is worth it is learnt from what sleeping has brought, as QEMU's event loops do: a sleep that was short
//! makes the next look longer, one that was long makes it end. But a sleep has in it what going to sleep and being woken
//! take, on an idle machine more than all else: so one that was not much too long is reason enough to try, now and then,
//! whether it is short without. Knows only the clock.

use std::time::{Duration, Instant};

/// Where looking begins once it is worth it.
const SHORTEST: Duration = Duration::from_micros(4);

/// A sleep that took no more than so many times the longest look may have been for the most part falling asleep and waking.
const SLUGGISH: u32 = 4;

/// Such sleeps from one look that was for nothing to the next try: what is wasted is little beside what they take.
const REST: u32 = 16;

/// Looks between two glances at the clock.
const LOOKS: u32 = 8;

/// What a queue has learnt.
pub(super) struct Poll {
    longest: Duration,
    now: Duration,
    /// Sleeps until it is tried again.
    rest: u32,
    slept_since: Option<Instant>,
}

impl Poll {
    /// Looks for `longest` at most; not at all if that is zero.
    pub(super) fn new(longest: Duration) -> Self {
        Poll { longest, now: Duration::ZERO, rest: 0, slept_since: None }
    }

    /// The thread has been woken.
    pub(super) fn awake(&mut self) {
        if let Some(since) = self.slept_since.take() {
            self.learn(since.elapsed());
        }
    }

    fn learn(&mut self, slept: Duration) {
        if slept <= self.longest {
            self.now = (self.now * 2).clamp(SHORTEST.min(self.longest), self.longest);
        } else if !self.now.is_zero() {
            self.now = Duration::ZERO;
            self.rest = REST;
        } else if slept <= self.longest * SLUGGISH {
            match self.rest.checked_sub(1) {
                Some(rest) => self.rest = rest,
                None => self.now = self.longest,
            }
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
    fn sleeps_that_are_mostly_waking_are_tried_without_now_and_then() {
        let longest = Duration::from_micros(32);
        let sluggish = Duration::from_micros(60);
        let mut poll = Poll::new(longest);
        poll.learn(sluggish);
        assert_eq!(poll.now, longest);
        for _ in 0..2 {
            // For nothing.
            poll.learn(sluggish);
            for _ in 0..REST {
                assert!(poll.begin().is_none());
                poll.learn(sluggish);
            }
            assert!(poll.begin().is_none());
            poll.learn(longest * SLUGGISH + Duration::from_micros(1));
            assert!(poll.begin().is_none(), "a sleep that was really long is no reason to try");
            poll.learn(sluggish);
            assert_eq!(poll.now, longest);
        }
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
