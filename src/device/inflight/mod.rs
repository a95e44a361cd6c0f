//! A record of the requests in flight, and of the guest's write cache, that outlives the process.
//!
//! A frontend that loses its backend in the middle of work knows no more of a ring than its used index, and completions
//! come in any order: without a record the next process would lose requests or carry them out that were answered. (The
//! vhost-user protocol has a message that makes the frontend keep such memory; the library doesn't support it.) So each
//! queue notes here which chains it has taken and not answered. The memory is a file that is mapped and shared, next to
//! the socket: what a killed process has stored is there for the next one.
//!
//! The layout is that of the specification's "inflight I/O tracking" for split rings, and so is the order of stores;
//! a process may end between any two of them. Added is what makes sure that a record is never applied to another ring:
//! where the ring lies and in which memory, and a fingerprint of each chain. Nor would a frontend that has to connect anew say
//! again that its guest has turned its write cache off. Knows nothing of what a request is, nor of guest memory.

mod cache;
mod file;
mod queue;

use std::io;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::limits::{MAX_QUEUE_SIZE, MAX_QUEUES};
use file::RecordFile;

pub(super) use cache::CacheRecord;
pub(super) use queue::{Place, QueueRecord, Ring, TakenUp};

/// Words of the header, a page: what kind of record this is, and the write cache.
const HEADER_WORDS: usize = 512;
/// Words of a queue.
const QUEUE_WORDS: usize = queue::HEADER_WORDS + queue::ENTRY_WORDS * MAX_QUEUE_SIZE;
/// Words of a record. Every queue that could be offered has room: the number of queues may differ after a restart.
const WORDS: usize = HEADER_WORDS + MAX_QUEUES * QUEUE_WORDS;
const BYTES: usize = WORDS * size_of::<u64>();

/// The record of one device.
pub(super) struct Record {
    words: NonNull<AtomicU64>,
    file: Option<RecordFile>,
}

// SAFETY: the memory is mapped as long as `self`, for all threads, and used as atomics only.
unsafe impl Send for Record {}
// SAFETY: see above.
unsafe impl Sync for Record {}

impl Record {
    /// The record at `path`, made if there is none and made anew if it can't be of use any more. Without a path it is
    /// kept in memory, and is there for the next connection only.
    ///
    /// # Errors
    /// When the file can't be used, belongs to another process, or is no record.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Arc<Self>> {
        let file = path.map(RecordFile::open).transpose()?;
        let words = map(file.as_ref())?;
        let this = Self { words, file };
        this.take_over();
        Ok(Arc::new(this))
    }

    /// The part of queue `number`, which must be below [`MAX_QUEUES`]. One at a time may be in use.
    pub(super) fn queue(self: &Arc<Self>, number: usize) -> QueueRecord {
        QueueRecord::new(self.clone(), number)
    }

    /// The part of the write cache. One at a time may be in use.
    pub(super) fn write_cache(self: &Arc<Self>) -> CacheRecord {
        CacheRecord::new(self.clone())
    }

    /// Makes a record of the version before this one out of what it is: requests in flight are noted alike, but each queue
    /// had the write cache to itself.
    fn take_over(&self) {
        let version = &self.words()[file::VERSION_WORD];
        if load(version) != file::VERSION_BEFORE {
            return;
        }
        let parts = || (0..MAX_QUEUES).map(|number| self.part(number));
        if parts().any(queue::was_write_through) {
            let mut files: Vec<_> = parts().filter_map(queue::file).collect();
            files.sort_unstable();
            files.dedup();
            cache::turn_off(self.words(), &files);
        }
        store(version, file::VERSION);
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is this long, and any word is a valid one. Only a file that others cut short could end it.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), WORDS) }
    }

    /// The words of queue `number`.
    pub(super) fn part(&self, number: usize) -> &[AtomicU64] {
        let at = HEADER_WORDS + number * QUEUE_WORDS;
        &self.words()[at..at + QUEUE_WORDS]
    }

    fn is_idle(&self) -> bool {
        (0..MAX_QUEUES).all(|number| queue::is_idle(self.part(number)))
    }
}

impl Drop for Record {
    /// With nothing in flight, and the write cache as it is at first, the file says nothing that the ring doesn't.
    fn drop(&mut self) {
        if self.is_idle()
            && !cache::is_off(self.words())
            && let Some(file) = &self.file
        {
            file.remove();
        }
        // SAFETY: mapped with this length; nobody can have a reference to it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), BYTES) };
    }
}

fn map(file: Option<&RecordFile>) -> io::Result<NonNull<AtomicU64>> {
    let (flags, fd) = match file {
        Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, where the kernel wants it.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, access, flags, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
}

/// A store that is made in its turn, and seen so by whoever comes after this process.
fn store(word: &AtomicU64, value: u64) {
    #[cfg(test)]
    if !lifetime::spend() {
        return;
    }
    word.store(value, Ordering::Release);
}

fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}

/// A process that ends in the middle: after so many stores there are no more of this thread.
#[cfg(test)]
mod lifetime {
    use std::cell::Cell;

    thread_local!(static LEFT: Cell<Option<u64>> = const { Cell::new(Some(u64::MAX)) });

    pub(super) fn set(stores: u64) {
        LEFT.set(Some(stores));
    }

    /// Makes a store, if there is one left.
    pub(super) fn spend() -> bool {
        let left = LEFT.get().and_then(|left| left.checked_sub(1));
        LEFT.set(left);
        left.is_some()
    }

    /// Whether every store so far was made.
    pub(super) fn all_made() -> bool {
        LEFT.get().is_some()
    }

    /// Whether there is a store left.
    pub(super) fn alive() -> bool {
        LEFT.get().is_some_and(|left| left > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn set(bytes: &mut [u8], word: usize, value: u64) {
        bytes[word * 8..][..8].copy_from_slice(&value.to_ne_bytes());
    }

    /// A file of version 1, as a process of then that was killed left it. Queue 3 has a ring in file (7, 9), and a chain of
    /// it in flight, if it is to have one; the write cache is off, as far as the queues among `off` say so.
    fn left_by_version_1(path: &Path, has_ring: bool, off: &[usize]) {
        let _ = fs::remove_file(path);
        drop(RecordFile::open(path).unwrap());
        let mut bytes = fs::read(path).unwrap();
        set(&mut bytes, 1, 1);
        let part = |number: usize| HEADER_WORDS + number * QUEUE_WORDS;
        if has_ring {
            for (word, value) in [8, 0x1000, 0x2000, 0x3000, 7, 9].into_iter().enumerate() {
                set(&mut bytes, part(3) + word, value);
            }
            set(&mut bytes, part(3) + queue::HEADER_WORDS + 2 * queue::ENTRY_WORDS, 1);
            set(&mut bytes, part(3) + queue::HEADER_WORDS + 2 * queue::ENTRY_WORDS + 1, 77);
        }
        for number in off {
            set(&mut bytes, part(*number) + 8, 1);
        }
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_record_of_version_1_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        for off in [&[][..], &[3], &[0, 3, 63]] {
            left_by_version_1(&path, true, off);
            for _ in 0..2 {
                let record = Record::open(Some(&path)).unwrap();
                let cache = record.write_cache();
                assert_eq!((cache.is_off(), cache.is_of(&[(7, 8)])), (!off.is_empty(), off.is_empty()));
                let place = Place { size: 8, table: 0x1000, avail: 0x2000, used: 0x3000, memory: (7, 9) };
                let ring = Ring { place, used_index: 0, next_avail: 0, offered: vec![2] };
                let mut heads = Vec::new();
                assert_eq!(record.queue(3).take_up(&ring, &mut heads, |_| 77), TakenUp::Same);
                assert_eq!(heads, [2]);
            }
        }
        // Of a guest that was stopped nothing was left but what was forgotten to be cleared: it may be any guest's.
        left_by_version_1(&path, false, &[1, 2]);
        let record = Record::open(Some(&path)).unwrap();
        assert!(record.write_cache().is_off() && record.write_cache().is_of(&[(7, 8)]));
    }

    #[test]
    fn a_file_is_kept_as_long_as_it_says_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let record = || Record::open(Some(&path)).unwrap();
        drop(record());
        assert!(!path.exists());
        record().write_cache().turn_off(&[(1, 2)]);
        assert!(record().write_cache().is_off() && path.exists());
        record().write_cache().turn_on();
        assert!(!path.exists());
    }
}
