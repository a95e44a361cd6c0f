//! The plain engine: every operation is carried out with a system call as it is submitted.
//!
//! Knows files and system calls, nothing of formats.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::{Buffer, Completion, Engine, Erase};

/// What one preadv or pwritev takes (IOV_MAX on Linux).
const MAX_SLICES_PER_CALL: usize = 1024;

/// Carries out operations on a file with preadv, pwritev and fdatasync.
pub struct SyncEngine {
    file: Arc<File>,
    done: Vec<Completion>,
}

impl SyncEngine {
    /// An engine on `file`.
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

    fn notifier(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Erases a range. Where a discard isn't possible it is left undone, as a guest must expect; zeros are written then.
fn erase(file: &File, kind: Erase, offset: u64, len: u64) -> io::Result<()> {
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    let unmaps = matches!(kind, Erase::Discard | Erase::Zeroes { unmap: true });
    match allocate(file, if unmaps { punch } else { zero }, offset, len) {
        Err(error) if is_unsupported(&error) => match kind {
            Erase::Discard => Ok(()),
            Erase::Zeroes { .. } => write_zeros(file, offset, len),
        },
        result => result,
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

fn allocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let (offset, len) = (offset.try_into().map_err(invalid)?, len.try_into().map_err(invalid)?);
    loop {
        // SAFETY: the descriptor is open; no memory of this process is touched.
        if unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn write_zeros(file: &File, mut offset: u64, mut len: u64) -> io::Result<()> {
    let zeros = vec![0; len.min(1 << 20) as usize];
    while len > 0 {
        let step = len.min(zeros.len() as u64);
        file.write_all_at(&zeros[..step as usize], offset)?;
        offset += step;
        len -= step;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

/// Moves all bytes of `iovecs`, whatever the kernel makes of a single call. The caller vouches for the memory.
fn transfer(
    file: &File,
    direction: Direction,
    mut offset: u64,
    mut iovecs: &mut [libc::iovec],
) -> io::Result<()> {
    loop {
        let filled = iovecs.iter().take_while(|iovec| iovec.iov_len == 0).count();
        iovecs = &mut iovecs[filled..];
        if iovecs.is_empty() {
            return Ok(());
        }
        match call(file, direction, offset, iovecs) {
            Ok(0) => {
                return Err(match direction {
                    Direction::Read => io::ErrorKind::UnexpectedEof.into(),
                    Direction::Write => io::ErrorKind::WriteZero.into(),
                });
            }
            Ok(moved) => {
                offset += moved as u64;
                advance(iovecs, moved);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn call(file: &File, direction: Direction, offset: u64, iovecs: &[libc::iovec]) -> io::Result<usize> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let count = iovecs.len().min(MAX_SLICES_PER_CALL) as libc::c_int;
    // SAFETY: the slices point to memory that the operation's buffer keeps mapped; `count` is within the array.
    let moved = unsafe {
        match direction {
            Direction::Read => libc::preadv64(file.as_raw_fd(), iovecs.as_ptr(), count, offset),
            Direction::Write => libc::pwritev64(file.as_raw_fd(), iovecs.as_ptr(), count, offset),
        }
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Takes `moved` bytes off the front.
fn advance(iovecs: &mut [libc::iovec], mut moved: usize) {
    for iovec in iovecs {
        let step = moved.min(iovec.iov_len);
        // SAFETY: stays within the slice, or one past its end.
        iovec.iov_base = unsafe { iovec.iov_base.cast::<u8>().add(step) }.cast();
        iovec.iov_len -= step;
        moved -= step;
        if moved == 0 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn engine_on(contents: &[u8]) -> (SyncEngine, Arc<File>) {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.write_all_at(contents, 0).unwrap();
        (SyncEngine::new(file.clone()), file)
    }

    fn only(engine: &mut SyncEngine) -> Completion {
        let mut done = Vec::new();
        engine.submit();
        engine.completions(&mut done);
        assert_eq!(done.len(), 1);
        done.remove(0)
    }

    #[test]
    fn writes_then_reads_the_same() {
        let (mut engine, _) = engine_on(&[0; 4096]);
        engine.write_vectored(1024, Buffer::Owned(vec![7; 512]), 1);
        assert!(only(&mut engine).result.is_ok());
        engine.flush(2);
        assert_eq!(only(&mut engine).token, 2);
        engine.read_vectored(1023, Buffer::Owned(vec![9; 514]), 3);
        let done = only(&mut engine);
        assert!(done.result.is_ok());
        let Some(Buffer::Owned(bytes)) = done.buffer else { panic!("buffer not given back") };
        assert_eq!((bytes[0], bytes[1], bytes[512], bytes[513]), (0, 7, 7, 0));
    }

    #[test]
    fn more_slices_than_one_call_takes() {
        let contents: Vec<u8> = (0..3000u32 * 3).map(|i| i as u8).collect();
        let (_, file) = engine_on(&contents);
        let mut bytes = vec![0u8; contents.len()];
        let mut iovecs: Vec<_> = bytes
            .chunks_mut(3)
            .flat_map(|chunk| {
                let full = libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() };
                [full, libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }]
            })
            .collect();
        transfer(&file, Direction::Read, 0, &mut iovecs).unwrap();
        assert_eq!(bytes, contents);
    }

    #[test]
    fn reading_past_the_end_is_an_error() {
        let (mut engine, _) = engine_on(&[1; 100]);
        engine.read_vectored(50, Buffer::Owned(vec![0; 51]), 1);
        assert_eq!(only(&mut engine).result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        engine.read_vectored(u64::MAX, Buffer::Owned(vec![0; 1]), 1);
        assert!(only(&mut engine).result.is_err());
    }

    #[test]
    fn what_is_erased_reads_as_zeros_and_nothing_else_does() {
        for kind in [Erase::Discard, Erase::Zeroes { unmap: false }, Erase::Zeroes { unmap: true }] {
            let (mut engine, file) = engine_on(&[5; 32768]);
            engine.erase(kind, 8192, 16384, 1);
            assert!(only(&mut engine).result.is_ok());
            let mut bytes = vec![9; 32768];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes[8192..24576].iter().all(|byte| *byte == 0), "{kind:?}");
            assert!(bytes[..8192].iter().chain(&bytes[24576..]).all(|byte| *byte == 5), "{kind:?}");
            assert_eq!(file.metadata().unwrap().len(), 32768);
        }
    }

    #[test]
    fn zeros_are_written_where_nothing_else_is_possible() {
        let (_, file) = engine_on(&[5; 5 << 20]);
        write_zeros(&file, 4096, (4 << 20) + 512).unwrap();
        let mut bytes = vec![9; 5 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let end = 4096 + (4 << 20) + 512;
        assert!(bytes[4096..end].iter().all(|byte| *byte == 0));
        assert!(bytes[..4096].iter().chain(&bytes[end..]).all(|byte| *byte == 5));
    }

    #[test]
    fn nothing_to_move_is_done_at_once() {
        let (mut engine, _) = engine_on(&[]);
        engine.read_vectored(0, Buffer::Owned(Vec::new()), 1);
        assert!(only(&mut engine).result.is_ok());
    }
}
