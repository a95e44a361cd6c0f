//! Whether a write is durable before it is answered. Knows nothing of how it is made so.
//!
//! There are two reasons for it: a guest that has not negotiated flushes can't ask for anything else, and one that has may
//! turn its write cache off. What it has set lasts until the device is reset, as the virtio specification says, and not
//! only until features are negotiated again: a frontend does that whenever its virtual machine goes on after a stop, and
//! its guest doesn't set anything again.

use std::sync::atomic::{AtomicU8, Ordering};

/// The guest has not negotiated flushes.
const NO_FLUSH: u8 = 1;
/// The guest has turned its write cache off.
const OFF: u8 = 2;

/// The write cache of one session's disk: on at first.
#[derive(Debug, Default)]
pub(super) struct WriteCache(AtomicU8);

impl WriteCache {
    fn put(&self, bit: u8, on: bool) {
        if on {
            self.0.fetch_or(bit, Ordering::AcqRel);
        } else {
            self.0.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// Features are negotiated, flushes among them or not.
    pub(super) fn negotiated(&self, flush: bool) {
        self.put(NO_FLUSH, !flush);
    }

    /// The guest turns it on or off.
    pub(super) fn turn(&self, on: bool) {
        self.put(OFF, !on);
    }

    /// Whether the guest has turned it off.
    pub(super) fn is_turned_off(&self) -> bool {
        self.0.load(Ordering::Acquire) & OFF != 0
    }

    /// Whether a write is durable before it is answered.
    pub(super) fn is_write_through(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    /// The device is reset; features are negotiated anew then.
    pub(super) fn reset(&self) {
        self.turn(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_has_set_lasts_until_a_reset() {
        let cache = WriteCache::default();
        assert!(!cache.is_write_through());
        cache.negotiated(true);
        cache.turn(false);
        for flush in [true, false, true] {
            cache.negotiated(flush);
            assert!(cache.is_write_through() && cache.is_turned_off());
        }
        cache.turn(true);
        assert!(!cache.is_write_through());
        cache.turn(false);
        cache.reset();
        assert!(!cache.is_write_through() && !cache.is_turned_off());
    }

    #[test]
    fn a_guest_without_flushes_has_no_cache() {
        let cache = WriteCache::default();
        cache.negotiated(false);
        assert!(cache.is_write_through() && !cache.is_turned_off());
        cache.turn(true);
        assert!(cache.is_write_through());
        cache.negotiated(true);
        assert!(!cache.is_write_through());
    }
}
