//! The system calls that move bytes, and what is to be made of their answers. Knows nothing of engines or formats.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt as _;

use super::Erase;

/// What one preadv or pwritev takes (IOV_MAX on Linux).
pub(super) const MAX_SLICES_PER_CALL: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

impl Direction {
    /// What it means that a call moved nothing.
    pub(super) fn nothing_moved(self) -> io::Error {
        match self {
            Direction::Read => io::ErrorKind::UnexpectedEof.into(),
            Direction::Write => io::ErrorKind::WriteZero.into(),
        }
    }
}

/// Whether a call may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Allowed,
    /// `WouldBlock` instead; `EOPNOTSUPP` where the file system can't tell.
    Never,
}

/// Moves all bytes of `iovecs`, whatever the kernel makes of a single call. The caller vouches for the memory.
pub(super) fn transfer(
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
        match call(file, direction, offset, iovecs, Wait::Allowed)? {
            0 => return Err(direction.nothing_moved()),
            moved => {
                offset += moved as u64;
                advance(iovecs, moved);
            }
        }
    }
}

/// One call; how many bytes it moved. The caller vouches for the memory.
pub(super) fn call(
    file: &File,
    direction: Direction,
    offset: u64,
    iovecs: &[libc::iovec],
    wait: Wait,
) -> io::Result<usize> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let count = iovecs.len().min(MAX_SLICES_PER_CALL) as libc::c_int;
    let flags = if wait == Wait::Never { libc::RWF_NOWAIT } else { 0 };
    loop {
        // SAFETY: the slices point to memory that the caller keeps mapped; `count` is within the array.
        let moved = unsafe {
            match direction {
                Direction::Read => libc::preadv2(file.as_raw_fd(), iovecs.as_ptr(), count, offset, flags),
                Direction::Write => libc::pwritev2(file.as_raw_fd(), iovecs.as_ptr(), count, offset, flags),
            }
        };
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Takes `moved` bytes off the front.
pub(super) fn advance(iovecs: &mut [libc::iovec], mut moved: usize) {
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

/// The mode of fallocate that erases in this way.
pub(super) fn erase_mode(kind: Erase) -> libc::c_int {
    let how = match kind {
        Erase::Discard | Erase::Zeroes { unmap: true } => libc::FALLOC_FL_PUNCH_HOLE,
        Erase::Zeroes { unmap: false } => libc::FALLOC_FL_ZERO_RANGE,
    };
    how | libc::FALLOC_FL_KEEP_SIZE
}

/// What becomes of an erasure that ended like this: done, or zeros have yet to be written. Where a discard isn't
/// possible it is left undone, as a guest must expect.
pub(super) fn erased(kind: Erase, result: io::Result<()>) -> io::Result<Erased> {
    match result {
        Ok(()) => Ok(Erased::Done),
        Err(error) if is_unsupported(&error) => match kind {
            Erase::Discard => Ok(Erased::Done),
            Erase::Zeroes { .. } => Ok(Erased::NeedsZeros),
        },
        Err(error) => Err(error),
    }
}

pub(super) enum Erased {
    Done,
    NeedsZeros,
}

/// Whether the file system has no such operation.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

/// Erases a range.
pub(super) fn erase(file: &File, kind: Erase, offset: u64, len: u64) -> io::Result<()> {
    match erased(kind, allocate(file, erase_mode(kind), offset, len))? {
        Erased::Done => Ok(()),
        Erased::NeedsZeros => write_zeros(file, offset, len),
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn file_of(contents: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(contents, 0).unwrap();
        file
    }

    #[test]
    fn more_slices_than_one_call_takes() {
        let contents: Vec<u8> = (0..3000u32 * 3).map(|i| i as u8).collect();
        let file = file_of(&contents);
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
    fn zeros_are_written_where_nothing_else_is_possible() {
        let file = file_of(&[5; 5 << 20]);
        write_zeros(&file, 4096, (4 << 20) + 512).unwrap();
        let mut bytes = vec![9; 5 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let end = 4096 + (4 << 20) + 512;
        assert!(bytes[4096..end].iter().all(|byte| *byte == 0));
        assert!(bytes[..4096].iter().chain(&bytes[end..]).all(|byte| *byte == 5));
    }
}
