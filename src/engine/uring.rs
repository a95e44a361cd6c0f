//! The fast engine: io_uring, with what the page cache can answer at once done on the spot.
//!
//! Through the page cache most operations need no disk: a read of cached bytes and nearly every write are copies in
//! memory. Those are made by a plain system call that must not wait; only what would have to wait goes to the ring,
//! where it takes nobody's time. With direct I/O everything goes to the ring. Knows files, nothing of formats.

mod attempt;
mod op;
mod pool;
mod ring;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue;
use tracing::error;

use self::attempt::{Attempt, Attempts};
use self::op::{Next, Op, Work};
use self::pool::Lent;
pub use self::pool::Rings;
use super::calls::Direction;
use super::{Buffer, Completion, Engine, Erase};

/// How long to wait before the kernel is asked again to take operations that it refused.
const RETRY: Duration = Duration::from_millis(1);

/// The files of an image.
#[derive(Debug, Clone)]
pub struct Files {
    /// Through the page cache.
    pub cached: Arc<File>,
    /// Past it, where that was asked for.
    pub direct: Option<Direct>,
}

/// A file that is read and written past the page cache.
#[derive(Debug, Clone)]
pub struct Direct {
    /// Opened with O_DIRECT.
    pub file: Arc<File>,
    /// What offsets and lengths, and addresses in memory, must be multiples of, in bytes; powers of two. What isn't
    /// goes through the page cache, with which the kernel keeps direct I/O coherent.
    pub offset_align: u64,
    /// Likewise for memory.
    pub memory_align: u64,
}

impl Direct {
    fn takes(&self, op: &Op) -> bool {
        op.is_aligned(self.offset_align, self.memory_align)
    }
}

/// One ring, that of one queue.
pub struct UringEngine {
    // Before the operations: what the kernel has been given must not outlive it.
    ring: Lent,
    files: Files,
    ops: Vec<Option<Op>>,
    free: Vec<usize>,
    in_flight: usize,
    done: Vec<Completion>,
    attempts: Attempts,
}

impl UringEngine {
    fn with_ring(ring: Lent, files: Files) -> Self {
        let attempts = Attempts::default();
        Self { ring, files, ops: Vec::new(), free: Vec::new(), in_flight: 0, done: Vec::new(), attempts }
    }

    /// Begins an operation on bytes: on the spot if that is possible.
    fn transfer(&mut self, direction: Direction, offset: u64, buffer: Buffer, token: u64) {
        let mut op = Op::transfer(direction, offset, buffer, token);
        let is_direct = self.files.direct.as_ref().is_some_and(|direct| direct.takes(&op));
        op.use_direct(is_direct);
        if !is_direct {
            match self.attempts.attempt(&self.files.cached, direction, &mut op) {
                Attempt::Done(result) => return self.done.push(op.complete(result)),
                Attempt::Wait => {}
            }
        }
        self.start(op);
    }

    fn start(&mut self, op: Op) {
        // To the ring, an offset of -1 is wherever the file happens to be.
        if i64::try_from(op.offset()).is_err() {
            return self.done.push(op.complete(Err(io::Error::from_raw_os_error(libc::EINVAL))));
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.ops.push(None);
            self.ops.len() - 1
        });
        let entry = op.entry().user_data(index as u64);
        self.ops[index] = Some(op);
        self.in_flight += 1;
        self.push(entry);
    }

    /// Puts an entry into the ring, making room where there is none.
    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: what the entry points to is owned by the operation that its number names, which is kept until its
            // completion was taken.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.submit();
        }
    }

    /// Takes an operation out and makes it a completion.
    fn end(&mut self, index: usize, result: io::Result<()>) {
        if let Some(op) = self.ops.get_mut(index).and_then(Option::take) {
            self.free.push(index);
            self.in_flight -= 1;
            self.done.push(op.complete(result));
        }
    }

    /// Moves what the kernel has finished to `done`, or on to what is left of it. True if there is something to submit.
    fn harvest(&mut self) -> bool {
        let mut again = false;
        loop {
            // Work that the kernel has put off until it is asked, and completions for which the ring had no room: it
            // hands them out when it is asked, too.
            if self.in_flight > 0 && self.must_ask() {
                // SAFETY: asks for completions and passes no memory.
                let _ = unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, GETEVENTS, None) };
            }
            let before = self.in_flight;
            again |= self.take_completed();
            if self.in_flight == before || self.in_flight == 0 || !self.ring.submission().cq_overflow() {
                return again;
            }
        }
    }

    fn must_ask(&mut self) -> bool {
        let submission = self.ring.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Takes the completions that are in the ring. True if there is something to submit.
    fn take_completed(&mut self) -> bool {
        let mut again = false;
        loop {
            let Some(entry) = self.ring.completion().next() else { return again };
            let index = entry.user_data() as usize;
            let Some(op) = self.ops.get_mut(index).and_then(Option::as_mut) else { continue };
            match op.advance(entry.result()) {
                Next::Done(result) => self.end(index, result),
                Next::More => {
                    let entry = op.entry().user_data(index as u64);
                    again = true;
                    self.push(entry);
                }
            }
        }
    }
}

/// IORING_ENTER_GETEVENTS, which the library keeps to itself.
const GETEVENTS: u32 = 1;

impl Engine for UringEngine {
    fn read_vectored(&mut self, offset: u64, buffer: Buffer, token: u64) {
        self.transfer(Direction::Read, offset, buffer, token);
    }

    fn write_vectored(&mut self, offset: u64, buffer: Buffer, token: u64) {
        self.transfer(Direction::Write, offset, buffer, token);
    }

    fn erase(&mut self, kind: Erase, offset: u64, len: u64, token: u64) {
        if len == 0 {
            return self.done.push(Completion { token, result: Ok(()), buffer: None });
        }
        self.start(Op::new(Work::Erase { kind, len }, offset, token));
    }

    fn flush(&mut self, token: u64) {
        self.start(Op::new(Work::Flush, 0, token));
    }

    fn submit(&mut self) {
        for attempt in 0.. {
            if self.ring.submission().is_empty() {
                return;
            }
            let Err(error) = self.ring.submit() else { continue };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // No room for completions: those that are there are taken first.
                Some(libc::EBUSY) => {
                    self.harvest();
                }
                // Most likely short of memory. Entries can't be taken back from a ring: the guest's requests wait, as
                // on a disk that is slow to answer.
                _ => {
                    if attempt == 0 {
                        error!(%error, "io_uring takes no operations; trying again");
                    }
                    std::thread::sleep(RETRY);
                }
            }
        }
    }

    fn completions(&mut self, into: &mut Vec<Completion>) {
        if self.in_flight > 0 && self.harvest() {
            self.submit();
        }
        into.append(&mut self.done);
    }

    fn has_completions(&mut self) -> bool {
        if !self.done.is_empty() {
            return true;
        }
        self.in_flight > 0 && (!self.ring.completion().is_empty() || self.must_ask())
    }

    fn notifier(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring is open as long as `self`.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }
}

impl Drop for UringEngine {
    /// Waits for the kernel: it may still be writing into the buffers.
    fn drop(&mut self) {
        while self.in_flight > 0 {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.raw_os_error() != Some(libc::EINTR) => {
                    // Better lost than written to after it was given back.
                    error!(%error, "cannot wait for operations in flight; their memory is not freed");
                    std::mem::forget(std::mem::take(&mut self.ops));
                    self.ring.spoil();
                    return;
                }
                _ => {
                    self.harvest();
                }
            }
        }
    }
}

// SAFETY: the ring's queues are memory of its own; the operations own what they point to. Used by one thread at a time.
unsafe impl Send for UringEngine {}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::time::Instant;

    use super::ring::{COMPLETIONS, SUBMISSIONS};
    use super::*;
    use crate::engine::tests::uring_on;

    /// One on a file; none where there is no io_uring to be tested.
    fn engine() -> Option<(UringEngine, Arc<File>)> {
        let file = Arc::new(tempfile::tempfile().unwrap());
        uring_on(file.clone()).map(|engine| (engine, file))
    }

    fn all(engine: &mut UringEngine, count: usize) -> Vec<Completion> {
        let mut done = Vec::new();
        engine.submit();
        while done.len() < count {
            engine.completions(&mut done);
        }
        done
    }

    #[test]
    fn more_operations_than_the_ring_has_room_for() {
        let Some((mut engine, file)) = engine() else { return };
        file.set_len(1 << 20).unwrap();
        let count = 4 * SUBMISSIONS as u64 + COMPLETIONS as u64;
        for token in 0..count {
            engine.flush(token);
        }
        engine.submit();
        // Nobody takes any meanwhile: the kernel runs out of room for them.
        let deadline = Instant::now() + Duration::from_secs(120);
        while !engine.ring.submission().cq_overflow()
            && engine.done.len() + engine.ring.completion().len() < count as usize
        {
            assert!(Instant::now() < deadline, "flushes aren't carried out");
            std::thread::sleep(Duration::from_millis(1));
        }
        let done = all(&mut engine, count as usize);
        let mut tokens: Vec<u64> = done.iter().map(|done| done.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..count).collect::<Vec<_>>());
        assert!(done.iter().all(|done| done.result.is_ok()));
    }

    #[test]
    fn everything_through_the_ring() {
        let Some((mut engine, file)) = engine() else { return };
        engine.attempts = Attempts::never();
        engine.write_vectored(1 << 20, Buffer::Owned((0..100_000u32).map(|i| i as u8).collect()), 1);
        assert!(all(&mut engine, 1)[0].result.is_ok());
        let mut bytes = vec![0; 100_000];
        file.read_exact_at(&mut bytes, 1 << 20).unwrap();
        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == i as u8));
        engine.read_vectored((1 << 20) + 90_000, Buffer::Owned(vec![0; 20_000]), 2);
        let done = all(&mut engine, 1).remove(0);
        assert_eq!(done.result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let Some(Buffer::Owned(bytes)) = done.buffer else { panic!("buffer not given back") };
        assert!(bytes[..10_000].iter().enumerate().all(|(i, byte)| *byte == (i + 90_000) as u8));
    }

    #[test]
    fn dropped_with_operations_in_flight() {
        let Some((mut engine, file)) = engine() else { return };
        engine.attempts = Attempts::never();
        for n in 0..64 {
            engine.write_vectored(n * 4096, Buffer::Owned(vec![n as u8 + 1; 4096]), n);
        }
        engine.submit();
        drop(engine);
        let mut byte = [0];
        for n in 0..64 {
            file.read_exact_at(&mut byte, n * 4096).unwrap();
            assert_eq!(byte, [n as u8 + 1]);
        }
    }
}
