//! Limits of requests and bytes a second, shared by all queues.
//!
//! A bucket that leaks: each request puts in what it costs, and while there is more in it than a burst, no queue takes a
//! request from its ring. What was taken is carried out without delay, so completions, a ring that is stopped and the
//! end of a session wait for nothing here. Knows nothing of rings; of the clock only what it is told.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::limits::THROTTLE_BURST;

/// Limits; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Reads, writes, discards and write zeroes requests a second, and those that are refused.
    pub iops: Option<u64>,
    /// Bytes that are read and written a second, zeros by write zeroes requests among them.
    pub bps: Option<u64>,
}

/// Both limits, at work.
pub(super) struct Throttle {
    limits: Limits,
    begun: Instant,
    buckets: Mutex<[Bucket; 2]>,
}

/// One limit: until when it takes to leak what is in it. Times are since the beginning.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    empty_at: Duration,
}

impl Bucket {
    /// How long until a request may be taken. One that may is taken at once, whatever it costs: the next has to wait
    /// for it.
    fn wait(self, now: Duration) -> Duration {
        self.empty_at.saturating_sub(now)
    }

    /// Puts in what takes `cost` to leak. What was not used is kept for a burst's length.
    fn put(&mut self, now: Duration, cost: Duration) {
        let idle = now.saturating_sub(THROTTLE_BURST);
        self.empty_at = self.empty_at.max(idle).saturating_add(cost);
    }
}

impl Throttle {
    /// `None` where nothing is limited.
    pub(super) fn new(limits: Limits) -> Option<Self> {
        let is_limited = limits.iops.is_some() || limits.bps.is_some();
        is_limited.then(|| Throttle { limits, begun: Instant::now(), buckets: Mutex::default() })
    }

    /// How long until a request may be taken; zero for now.
    pub(super) fn wait(&self) -> Duration {
        let now = self.begun.elapsed();
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.iter().map(|bucket| bucket.wait(now)).max().unwrap_or_default()
    }

    /// A request of `bytes` was taken.
    pub(super) fn put(&self, bytes: u64) {
        let now = self.begun.elapsed();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let [requests, volume] = &mut *buckets;
        if let Some(iops) = self.limits.iops {
            requests.put(now, cost(1, iops));
        }
        if let Some(bps) = self.limits.bps {
            volume.put(now, cost(bytes, bps));
        }
    }
}

/// How long `amount` takes at `rate` a second; never nothing for something.
fn cost(amount: u64, rate: u64) -> Duration {
    let nanos = (u128::from(amount) * 1_000_000_000).div_ceil(u128::from(rate.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Wakes a queue's thread when it may go on: a timer that an epoll can wait for.
pub(super) struct Alarm {
    timer: OwnedFd,
    is_set: bool,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and ours.
        Ok(Alarm { timer: unsafe { OwnedFd::from_raw_fd(fd) }, is_set: false })
    }

    /// Readable when it goes off.
    pub(super) fn notifier(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Goes off in `wait`, unless it is set already. One that goes off too early is set again.
    pub(super) fn set(&mut self, wait: Duration) {
        if self.is_set {
            return;
        }
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // Zero would turn it off. A day is long enough: nothing is lost by looking once a day.
        let wait = wait.clamp(Duration::from_nanos(1), Duration::from_secs(86_400));
        let value = libc::timespec {
            tv_sec: wait.as_secs() as libc::time_t,
            tv_nsec: wait.subsec_nanos() as libc::c_long,
        };
        let setting = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: the descriptor is a timer of ours, the setting a valid one; the old one isn't wanted.
        let done = unsafe { libc::timerfd_settime(self.notifier(), 0, &setting, std::ptr::null_mut()) };
        self.is_set = done == 0;
    }

    /// The thread has been woken, by this or something else.
    pub(super) fn reset(&mut self) {
        if !self.is_set {
            return;
        }
        let mut count = 0u64;
        // SAFETY: a timer yields eight bytes, or nothing when it hasn't gone off.
        let read = unsafe { libc::read(self.notifier(), (&raw mut count).cast(), size_of::<u64>()) };
        self.is_set = read < 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Takes requests as fast as the bucket lets them for so long; how many.
    fn taken(bucket: &mut Bucket, from: Duration, length: Duration, cost: Duration) -> u32 {
        let (mut now, mut count) = (from, 0);
        while now < from + length {
            match bucket.wait(now) {
                Duration::ZERO => {
                    bucket.put(now, cost);
                    count += 1;
                }
                wait => now += wait,
            }
        }
        count
    }

    #[test]
    fn the_rate_is_kept_and_a_burst_is_bounded() {
        let mut bucket = Bucket::default();
        let cost = cost(1, 1000);
        assert_eq!(cost, MS);
        let burst = (THROTTLE_BURST.as_micros() / MS.as_micros()) as u32;
        // From the beginning of time there is nothing to be made up for.
        assert_eq!(taken(&mut bucket, Duration::ZERO, 1000 * MS, cost), 1000);
        assert_eq!(taken(&mut bucket, 1000 * MS, 1000 * MS, cost), 1000);
        // After a long pause, a burst more, and no more than that.
        let many = taken(&mut bucket, 100_000 * MS, 1000 * MS, cost);
        assert!((1000 + burst..=1001 + burst).contains(&many), "{many}");
    }

    #[test]
    fn what_costs_more_than_a_burst_is_taken_and_paid_for() {
        let mut bucket = Bucket::default();
        let now = 10_000 * MS;
        assert_eq!(bucket.wait(now), Duration::ZERO);
        bucket.put(now, cost(10 << 20, 1 << 20));
        assert_eq!(bucket.wait(now), 10_000 * MS - THROTTLE_BURST);
        assert_eq!(bucket.wait(now + 20_000 * MS), Duration::ZERO);
    }

    #[test]
    fn costs_are_never_nothing_and_never_overflow() {
        assert_eq!(cost(1, u64::MAX), Duration::from_nanos(1));
        assert_eq!(cost(0, 1), Duration::ZERO);
        let mut bucket = Bucket::default();
        bucket.put(Duration::ZERO, cost(u64::MAX, 1));
        bucket.put(Duration::MAX, Duration::MAX);
        assert!(bucket.wait(Duration::ZERO) > Duration::ZERO);
    }

    #[test]
    fn the_stricter_limit_counts() {
        assert!(Throttle::new(Limits::default()).is_none());
        let throttle = Throttle::new(Limits { iops: Some(1_000_000_000), bps: Some(1) }).unwrap();
        assert_eq!(throttle.wait(), Duration::ZERO);
        throttle.put(4096);
        assert!(throttle.wait() > Duration::from_secs(3000));
    }

    #[test]
    fn an_alarm_goes_off_and_can_be_set_again() {
        let mut alarm = Alarm::new().unwrap();
        for _ in 0..2 {
            alarm.set(MS);
            alarm.set(Duration::from_secs(1000));
            super::super::stop::wait_readable(&[alarm.notifier()]).unwrap();
            alarm.reset();
            assert!(!alarm.is_set);
        }
        alarm.set(Duration::from_secs(1000));
        alarm.reset();
        assert!(alarm.is_set, "it hasn't gone off");
    }
}
