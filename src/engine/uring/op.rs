//! One operation of a ring: what it has to do, what it owns, how far it has got.

use std::io;

use io_uring::{opcode, squeue, types};

use super::super::calls::{Direction, Erased, MAX_SLICES_PER_CALL, advance, erase_mode, erased};
use super::super::{Buffer, Completion, Erase};

/// Places of the files in the ring's table.
const CACHED: types::Fixed = types::Fixed(0);
const DIRECT: types::Fixed = types::Fixed(1);

/// What one operation on bytes moves at most (MAX_RW_COUNT of Linux, rounded down).
const MAX_BYTES: usize = 1 << 30;

/// Zeros to be written where a file system can't make them.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// An operation in flight, and the memory it needs until its end.
pub(super) struct Op {
    token: u64,
    offset: u64,
    work: Work,
    buffer: Option<Buffer>,
    /// What is left of the buffer, where a part of it has been moved.
    rest: Option<Vec<libc::iovec>>,
    file: types::Fixed,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    Transfer(Direction),
    Flush,
    Erase {
        kind: Erase,
        len: u64,
    },
    /// Zeros have to be written.
    Zeros {
        left: u64,
    },
}

/// What comes after a completion.
pub(super) enum Next {
    Done(io::Result<()>),
    /// The operation is to be submitted again, for what is left.
    More,
}

impl Op {
    pub(super) fn new(work: Work, offset: u64, token: u64) -> Self {
        Op { token, offset, work, buffer: None, rest: None, file: CACHED }
    }

    pub(super) fn transfer(direction: Direction, offset: u64, buffer: Buffer, token: u64) -> Self {
        Op { buffer: Some(buffer), ..Self::new(Work::Transfer(direction), offset, token) }
    }

    pub(super) fn use_direct(&mut self, direct: bool) {
        self.file = if direct { DIRECT } else { CACHED };
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Does `step` with the memory that is left to be moved.
    pub(super) fn with_memory<R>(&self, step: impl FnOnce(&[libc::iovec]) -> R) -> R {
        match (&self.rest, &self.buffer) {
            (Some(rest), _) => step(rest),
            (None, Some(Buffer::Shared(slices))) => step(slices.iovecs()),
            (None, Some(Buffer::Owned(bytes))) => {
                step(&[libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }])
            }
            (None, None) => step(&[]),
        }
    }

    /// Whether offset and lengths, and addresses in memory, are multiples of these.
    pub(super) fn is_aligned(&self, offset_align: u64, memory_align: u64) -> bool {
        self.offset.is_multiple_of(offset_align)
            && self.with_memory(|slices| {
                slices.iter().all(|slice| {
                    (slice.iov_len as u64).is_multiple_of(offset_align)
                        && (slice.iov_base as u64).is_multiple_of(memory_align)
                })
            })
    }

    /// What the kernel is told. Valid as long as `self`, wherever that is moved to: what it points to is on the heap.
    pub(super) fn entry(&self) -> squeue::Entry {
        match self.work {
            Work::Transfer(direction) => self.transfer_entry(direction),
            Work::Flush => opcode::Fsync::new(self.file).flags(types::FsyncFlags::DATASYNC).build(),
            Work::Erase { kind, len } => {
                opcode::Fallocate::new(self.file, len).offset(self.offset).mode(erase_mode(kind)).build()
            }
            Work::Zeros { left } => {
                let len = left.min(ZEROS.len() as u64) as u32;
                opcode::Write::new(self.file, ZEROS.as_ptr(), len).offset(self.offset).build()
            }
        }
    }

    fn transfer_entry(&self, direction: Direction) -> squeue::Entry {
        if let (None, Some(Buffer::Owned(bytes))) = (&self.rest, &self.buffer) {
            // One slice needs no array, and the array would have to live somewhere.
            let len = bytes.len().min(MAX_BYTES) as u32;
            return match direction {
                Direction::Read => {
                    opcode::Read::new(self.file, bytes.as_ptr().cast_mut(), len).offset(self.offset).build()
                }
                Direction::Write => {
                    opcode::Write::new(self.file, bytes.as_ptr(), len).offset(self.offset).build()
                }
            };
        }
        self.with_memory(|slices| {
            let count = slices.len().min(MAX_SLICES_PER_CALL) as u32;
            match direction {
                Direction::Read => {
                    opcode::Readv::new(self.file, slices.as_ptr(), count).offset(self.offset).build()
                }
                Direction::Write => {
                    opcode::Writev::new(self.file, slices.as_ptr(), count).offset(self.offset).build()
                }
            }
        })
    }

    /// Takes note of what the kernel says.
    pub(super) fn advance(&mut self, result: i32) -> Next {
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            return self.failed(error);
        }
        match self.work {
            Work::Transfer(direction) => self.moved(direction, result as usize),
            Work::Flush | Work::Erase { .. } => Next::Done(Ok(())),
            Work::Zeros { .. } if result == 0 => Next::Done(Err(Direction::Write.nothing_moved())),
            Work::Zeros { left } => {
                let left = left.saturating_sub(result as u64);
                self.offset += result as u64;
                self.work = Work::Zeros { left };
                if left == 0 { Next::Done(Ok(())) } else { Next::More }
            }
        }
    }

    fn failed(&mut self, error: io::Error) -> Next {
        match (self.work, error.raw_os_error()) {
            // The kernel cancels what a thread had it do when the thread ends; whoever waits for it goes on with it.
            (_, Some(libc::EINTR | libc::EAGAIN | libc::ECANCELED)) => Next::More,
            // O_DIRECT refuses what the file system wants aligned more strictly than it said.
            (Work::Transfer(_), Some(libc::EINVAL)) if self.file.0 == DIRECT.0 => {
                self.use_direct(false);
                Next::More
            }
            (Work::Erase { kind, len }, _) => match erased(kind, Err(error)) {
                Ok(Erased::Done) => Next::Done(Ok(())),
                Ok(Erased::NeedsZeros) => {
                    self.work = Work::Zeros { left: len };
                    Next::More
                }
                Err(error) => Next::Done(Err(error)),
            },
            _ => Next::Done(Err(error)),
        }
    }

    /// `moved` more bytes have been moved.
    pub(super) fn moved(&mut self, direction: Direction, moved: usize) -> Next {
        // Slices of no length at the front would look like the end of the file.
        let left = self.with_memory(|slices| slices.iter().map(|slice| slice.iov_len).sum::<usize>());
        if moved >= left {
            return Next::Done(Ok(()));
        }
        if moved == 0 {
            return Next::Done(Err(direction.nothing_moved()));
        }
        let mut rest = self.with_memory(<[libc::iovec]>::to_vec);
        advance(&mut rest, moved);
        rest.retain(|slice| slice.iov_len != 0);
        self.offset += moved as u64;
        self.rest = Some(rest);
        // What is left may not be aligned any more.
        self.use_direct(false);
        Next::More
    }

    /// The end: gives the buffer back.
    pub(super) fn complete(self, result: io::Result<()>) -> Completion {
        Completion { token: self.token, result, buffer: self.buffer }
    }
}
