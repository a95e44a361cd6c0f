//! Whether a write is durable before it is answered. Knows nothing of how it is made so.
//!
//! There are two reasons for it: a guest that has not negotiated flushes can't ask for anything else, and one that has may
//! turn its write cache off. QEMU keeps what the guest has set, and tells the guest's next driver so as well, after any
//! reset; it tells us once, and never again: not when its virtual machine goes on after a stop, nor after a reset, nor when it
//! has to connect anew. So the setting lasts as long as the guest, and is on record for the next session or process.
//!
//! What is on record may be of another guest. Until that can be told, by the memory that a ring starts in, writes are durable.
//! Being wrong about it is slow one way, and loses acknowledged writes the other way.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::info;

use super::Memory;
use super::identity::{self, FileId};
use super::inflight::CacheRecord;

/// The guest has not negotiated flushes.
const NO_FLUSH: u8 = 1;
/// The guest has turned its write cache off.
const OFF: u8 = 2;
/// That is on record, and it isn't known yet whether it was this guest.
const RECALLED: u8 = 4;
/// The guest has negotiated to be told of a cache, but no flushes: it is told that there is none.
const NONE_TO_TELL: u8 = 8;

/// The write cache of one session's disk.
pub(super) struct WriteCache {
    state: AtomicU8,
    record: Mutex<CacheRecord>,
}

impl WriteCache {
    pub(super) fn new(record: CacheRecord) -> Self {
        let state = if record.is_off() { OFF | RECALLED } else { 0 };
        Self { state: AtomicU8::new(state), record: Mutex::new(record) }
    }

    /// Features are negotiated: flushes, and that the guest is told of its cache and may turn it off.
    pub(super) fn negotiated(&self, flush: bool, told: bool) {
        self.put(NO_FLUSH, !flush);
        self.put(NONE_TO_TELL, !flush && told);
    }

    /// The guest with this memory turns it on or off.
    pub(super) fn turn(&self, on: bool, memory: &Memory) {
        let record = self.record();
        if on {
            record.turn_on();
        } else {
            record.turn_off(&identity::files(memory));
        }
        self.put(OFF, !on);
        self.put(RECALLED, false);
    }

    /// The frontend has said where guest memory is, or a part of it.
    pub(super) fn memory_is(&self, memory: &Memory) {
        if self.has(OFF) {
            let (record, files) = (self.record(), identity::files(memory));
            if !files.is_empty() && (!self.has(RECALLED) || record.is_of(&files)) {
                self.stays_off(&record, &files);
            }
        }
    }

    /// A ring starts in this memory, all of which is known by now.
    pub(super) fn ring_starts(&self, memory: &Memory) {
        if !self.has(RECALLED) {
            return;
        }
        let (record, files) = (self.record(), identity::files(memory));
        if !self.has(RECALLED) {
            return;
        }
        if record.is_of(&files) {
            return self.stays_off(&record, &files);
        }
        info!("another guest had turned its write cache off; it is on");
        record.turn_on();
        self.put(OFF | RECALLED, false);
    }

    /// It is this guest's setting. Its memory may have changed since.
    fn stays_off(&self, record: &CacheRecord, files: &[FileId]) {
        if self.has(RECALLED) {
            info!("the guest has turned its write cache off before; it stays off");
            self.put(RECALLED, false);
        }
        if !files.is_empty() {
            record.turn_off(files);
        }
    }

    /// Whether the frontend is to be told that the cache is on. One that was told that it is off may tell its guest so at any
    /// time: then it is off. Until it is known whose setting is on record, the guest is taken for one that knows of none;
    /// the other one doesn't ask.
    pub(super) fn tell(&self, memory: &Memory) -> bool {
        if self.has(NONE_TO_TELL) {
            self.turn(false, memory);
        }
        !self.has(OFF) || self.has(RECALLED)
    }

    /// Whether a write is durable before it is answered.
    pub(super) fn is_write_through(&self) -> bool {
        self.has(NO_FLUSH | OFF)
    }

    fn has(&self, bits: u8) -> bool {
        self.state.load(Ordering::Acquire) & bits != 0
    }

    fn put(&self, bits: u8, on: bool) {
        if on {
            self.state.fetch_or(bits, Ordering::AcqRel);
        } else {
            self.state.fetch_and(!bits, Ordering::AcqRel);
        }
    }

    /// Whoever has it may change what the guest has set. Nothing that it guards can be left half done by a panic.
    fn record(&self) -> MutexGuard<'_, CacheRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::identity::tests::{file, memory};
    use super::super::inflight::Record;
    use super::*;

    /// The record of a process and of those that come after it.
    struct Processes(Arc<Record>);

    impl Processes {
        fn new() -> Self {
            Self(Record::open(None).unwrap())
        }

        /// A session begins, and the guest negotiates as most do.
        fn session(&self) -> WriteCache {
            let cache = WriteCache::new(self.0.write_cache());
            cache.negotiated(true, true);
            cache
        }
    }

    #[test]
    fn what_a_guest_has_set_lasts_until_it_sets_it_again() {
        let (processes, ram, nothing) = (Processes::new(), file(), Memory::new());
        let ram = memory(&[&ram]);
        let cache = processes.session();
        assert!(!cache.is_write_through() && cache.tell(&nothing));
        cache.turn(false, &ram);
        for flush in [true, false, true] {
            cache.negotiated(flush, true);
            assert!(cache.is_write_through() && !cache.tell(&ram));
        }
        for _ in 0..3 {
            let cache = processes.session();
            // A frontend that has to connect anew doesn't ask.
            assert!(cache.is_write_through() && cache.tell(&nothing));
            cache.memory_is(&ram);
            assert!(cache.is_write_through() && !cache.tell(&ram));
            cache.ring_starts(&ram);
            assert!(cache.is_write_through() && !cache.tell(&ram));
        }
        let cache = processes.session();
        cache.memory_is(&ram);
        cache.turn(true, &ram);
        assert!(!cache.is_write_through() && cache.tell(&ram));
        assert!(!processes.session().is_write_through());
    }

    #[test]
    fn another_guest_begins_with_it_on() {
        let (processes, first, second) = (Processes::new(), file(), file());
        let (first, second) = (memory(&[&first]), memory(&[&second]));
        processes.session().turn(false, &first);
        let cache = processes.session();
        cache.memory_is(&second);
        assert!(cache.is_write_through(), "more memory may follow");
        assert!(cache.tell(&second));
        cache.ring_starts(&second);
        assert!(!cache.is_write_through() && cache.tell(&second));
        let cache = processes.session();
        assert!(!cache.is_write_through(), "and so it is on record");
        cache.memory_is(&first);
        cache.ring_starts(&first);
        assert!(!cache.is_write_through());
    }

    #[test]
    fn memory_that_comes_and_goes_makes_no_other_guest() {
        let (processes, ram, plugged, later) = (Processes::new(), file(), file(), file());
        let cache = processes.session();
        cache.turn(false, &memory(&[&ram]));
        cache.memory_is(&memory(&[]));
        cache.memory_is(&memory(&[&plugged]));
        cache.memory_is(&memory(&[&plugged, &ram]));
        // The next one is told of a region after the other.
        let cache = processes.session();
        cache.memory_is(&memory(&[&later]));
        cache.memory_is(&memory(&[&later, &plugged]));
        assert!(!cache.tell(&memory(&[])));
        cache.ring_starts(&memory(&[&later, &plugged]));
        let cache = processes.session();
        cache.ring_starts(&memory(&[&later]));
        assert!(cache.is_write_through());
    }

    #[test]
    fn set_before_there_is_memory_it_is_the_next_guests() {
        let (processes, ram, other) = (Processes::new(), file(), file());
        processes.session().turn(false, &memory(&[]));
        let cache = processes.session();
        cache.memory_is(&memory(&[&ram]));
        assert!(cache.is_write_through() && !cache.tell(&memory(&[])));
        let cache = processes.session();
        cache.ring_starts(&memory(&[&other]));
        assert!(!cache.is_write_through());
    }

    #[test]
    fn a_guest_without_flushes_has_no_cache() {
        let (processes, ram) = (Processes::new(), file());
        let ram = memory(&[&ram]);
        let cache = WriteCache::new(processes.0.write_cache());
        cache.negotiated(false, false);
        // It isn't told, but what the frontend hears is for the next driver, too.
        assert!(cache.is_write_through() && cache.tell(&ram));
        cache.turn(true, &ram);
        assert!(cache.is_write_through());
        cache.negotiated(true, true);
        assert!(!cache.is_write_through());
        cache.negotiated(false, true);
        assert!(cache.is_write_through() && !cache.tell(&ram));
        cache.negotiated(true, true);
        assert!(cache.is_write_through(), "the frontend was told that it is off");
        cache.turn(true, &ram);
        assert!(!cache.is_write_through());
    }
}
