//! A record of the requests in flight that outlives the process.
//!
//! A frontend that loses its backend in the middle of work knows no more of a ring than its used index, and completions
//! come in any order: without a record the next process would lose requests or carry them out that were answered. (The
//! vhost-user protocol has a message that makes the frontend keep such memory; the library doesn't support it.) So each
//! queue notes here which chains it has taken and not answered. The memory is a file that is mapped and shared, next to
//! the socket: what a killed process has stored is there for the next one.
//!
//! The layout is that of the specification's "inflight I/O tracking" for split rings, and so is the order of stores;
//! a process may end between any two of them. Added is what makes sure that a record is never applied to another ring:
//! where the ring lies and in which memory, and a fingerprint of each chain. Knows nothing of what a request is, nor of
//! guest memory.

mod file;
mod queue;

use std::io;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::limits::{MAX_QUEUE_SIZE, MAX_QUEUES};
use file::RecordFile;

pub(super) use queue::{Place, QueueRecord, Ring, TakenUp};

/// Words of the header: what kind of record this is. The rest of a page is kept free.
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
        Ok(Arc::new(Self { words, file }))
    }

    /// The part of queue `number`, which must be below [`MAX_QUEUES`]. One at a time may be in use.
    pub(super) fn queue(self: &Arc<Self>, number: usize) -> QueueRecord {
        QueueRecord::new(self.clone(), number)
    }

    /// The guest has turned its write cache on or off, on all queues, which the next process has no other way to know.
    pub(super) fn set_write_through(&self, on: bool) {
        (0..MAX_QUEUES).for_each(|number| queue::set_write_through(self.part(number), on));
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
    /// With nothing in flight the file says nothing that the ring doesn't.
    fn drop(&mut self) {
        if self.is_idle()
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
