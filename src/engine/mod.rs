//! I/O engines: how bytes get between memory and an image, asynchronously.
//!
//! An engine belongs to one thread at a time. What is submitted is owned by the engine until its completion is
//! taken, so memory cannot disappear under the kernel. Nothing here knows what the bytes mean or who asked.

mod calls;
mod sync;
mod uring;

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use sync::SyncEngine;
pub use uring::{Direct, Files, Rings, UringEngine};

/// Submits reads, writes and flushes and hands out their completions.
///
/// Submitting never fails: what can't be submitted completes with an error. Nothing is ordered: an operation that
/// must follow another is submitted after the other's completion was taken.
pub trait Engine: Send {
    /// Fills `buffer` from `offset`. Completes with `UnexpectedEof` where the image ends before the buffer does.
    fn read_vectored(&mut self, offset: u64, buffer: Buffer, token: u64);

    /// Writes all of `buffer` at `offset`.
    fn write_vectored(&mut self, offset: u64, buffer: Buffer, token: u64);

    /// Erases `len` bytes from `offset`.
    fn erase(&mut self, kind: Erase, offset: u64, len: u64, token: u64);

    /// Makes durable every write whose completion was taken before, on this engine or another of the same image.
    fn flush(&mut self, token: u64);

    /// Hands over to the kernel what the calls above have queued. Called once per batch.
    fn submit(&mut self);

    /// Moves what has completed to the end of `into`, and resets the notifier.
    fn completions(&mut self, into: &mut Vec<Completion>);

    /// Whether [`Self::completions`] would yield something, as far as that can be told without a system call.
    fn has_completions(&mut self) -> bool;

    /// Becomes readable when there are completions. `None`: every operation is complete when `submit` returns.
    fn notifier(&self) -> Option<BorrowedFd<'_>>;
}

/// How a range is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erase {
    /// What is in it isn't needed any more; reads return zeros or what was there.
    Discard,
    /// Reads return zeros.
    Zeroes {
        /// Whether its space may be given back.
        unmap: bool,
    },
}

/// The end of one operation.
#[derive(Debug)]
pub struct Completion {
    /// What the caller gave at submission.
    pub token: u64,
    /// All of it or an error; never cut short.
    pub result: io::Result<()>,
    /// The buffer of a read or write, given back.
    pub buffer: Option<Buffer>,
}

/// Memory to read into or write from.
#[derive(Debug)]
pub enum Buffer {
    /// Memory that others may change at any time.
    Shared(SharedSlices),
    /// Memory of our own.
    Owned(Vec<u8>),
}

impl Buffer {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Buffer::Shared(slices) => slices.len(),
            Buffer::Owned(bytes) => bytes.len(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Scattered memory that is shared with somebody else, and what keeps it mapped.
pub struct SharedSlices {
    slices: Vec<libc::iovec>,
    len: usize,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the pointers are to memory that `_owner`, itself Send and Sync, keeps mapped for every thread.
unsafe impl Send for SharedSlices {}

impl SharedSlices {
    /// # Safety
    ///
    /// Every slice must stay mapped, readable and (where it is to be read into) writable while `owner` lives, and no
    /// Rust reference to the memory may exist meanwhile. Other processes may change its contents.
    pub unsafe fn new(slices: Vec<libc::iovec>, owner: Arc<dyn Any + Send + Sync>) -> Self {
        let len = slices.iter().map(|slice| slice.iov_len).sum();
        Self { slices, len, _owner: owner }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, for a system call. Valid as long as `self`.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.slices
    }

    /// A copy of the contents, each byte read once.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::with_capacity(self.len);
        for slice in &self.slices {
            let at = bytes.len();
            // SAFETY: the source is mapped (see `new`); the vector has room for the sum of all slices, and what is
            // counted as its length has just been filled.
            unsafe {
                let to = bytes.as_mut_ptr().add(at);
                std::ptr::copy_nonoverlapping(slice.iov_base.cast::<u8>(), to, slice.iov_len);
                bytes.set_len(at + slice.iov_len);
            }
        }
        bytes
    }

    /// Copies `bytes` to the beginning; returns how many found room.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        for slice in &self.slices {
            let len = rest.len().min(slice.iov_len);
            // SAFETY: the destination is mapped and writable (see `new`) and at least `len` long.
            unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), slice.iov_base.cast::<u8>(), len) };
            rest = &rest[len..];
        }
        bytes.len() - rest.len()
    }
}

impl std::fmt::Debug for SharedSlices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedSlices").field("slices", &self.slices.len()).field("len", &self.len).finish()
    }
}

#[cfg(test)]
pub(crate) mod tests;
