//! The plain engine: every operation is carried out with a system call as it is submitted. For where io_uring is not
//! allowed.
//!
//! Knows files, nothing of formats.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::calls::{Direction, erase, transfer};
use super::{Buffer, Completion, Engine, Erase};

/// Carries out operations on a file with preadv, pwritev and fdatasync.
pub struct SyncEngine {
    file: Arc<File>,
    done: Vec<Completion>,
}

impl SyncEngine {
    /// An engine on `file`.
    #[must_use]
    pub fn new(file: Arc<File>) -> Self {
        Self { file, done: Vec::new() }
    }

    fn transfer(&mut self, direction: Direction, offset: u64, buffer: Buffer, token: u64) {
        let (result, buffer) = match buffer {
            Buffer::Shared(slices) => {
                let mut iovecs = slices.iovecs().to_vec();
                (transfer(&self.file, direction, offset, &mut iovecs), Buffer::Shared(slices))
            }
            Buffer::Owned(mut bytes) => {
                let mut iovecs = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
                (transfer(&self.file, direction, offset, &mut iovecs), Buffer::Owned(bytes))
            }
        };
        self.done.push(Completion { token, result, buffer: Some(buffer) });
    }
}

impl Engine for SyncEngine {
    fn read_vectored(&mut self, offset: u64, buffer: Buffer, token: u64) {
        self.transfer(Direction::Read, offset, buffer, token);
    }

    fn write_vectored(&mut self, offset: u64, buffer: Buffer, token: u64) {
        self.transfer(Direction::Write, offset, buffer, token);
    }

    fn erase(&mut self, kind: Erase, offset: u64, len: u64, token: u64) {
        self.done.push(Completion { token, result: erase(&self.file, kind, offset, len), buffer: None });
    }

    fn flush(&mut self, token: u64) {
        let result = self.file.sync_data();
        self.done.push(Completion { token, result, buffer: None });
    }

    fn submit(&mut self) {}

    fn completions(&mut self, into: &mut Vec<Completion>) {
        into.append(&mut self.done);
    }

    fn has_completions(&mut self) -> bool {
        !self.done.is_empty()
    }

    fn notifier(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
