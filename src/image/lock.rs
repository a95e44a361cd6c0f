//! The lock on an image: two processes don't write to one, and none reads what another is writing.
//!
//! QEMU's own scheme for raw images, so that both see each other's locks. A process that uses an image in some way
//! holds a byte that says so, and another byte for each way in which it lets nobody else use it. All are shared locks on
//! open file descriptions: whoever wants one asks, after having taken its own, whether there is one that it conflicts
//! with. Knows files, and nothing of what is in them.
//!
//! The lock is one of the description that the data goes through, which an io_uring keeps open as long as it has
//! requests in flight, even if the process is gone: when the lock is free, they are over.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

/// How an image is used, by the numbers of QEMU's permissions.
#[derive(Debug, Clone, Copy)]
enum Use {
    Read = 0,
    Write = 1,
    Resize = 3,
}

/// Byte of the first use, in a description that uses the image so.
const USED: i64 = 100;
/// Byte of the first use, in one that lets nobody else use the image so.
const REFUSED: i64 = 200;

/// What nobody else may do meanwhile, whatever the image is used for here.
const OURS_ALONE: [Use; 2] = [Use::Write, Use::Resize];

/// Between two attempts; what is added keeps two processes that hold each other up from doing so for ever.
const STEP: Duration = Duration::from_millis(40);

/// A wait that is longer than this is talked about.
const QUIET: Duration = Duration::from_secs(1);

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(super) struct ImageLock {
    file: Arc<File>,
}

/// What came of asking for a lock.
#[derive(Debug)]
pub(super) enum Locked {
    Yes(ImageLock),
    /// There are no locks where this file is.
    NotPossible(io::Error),
}

impl ImageLock {
    /// Locks `file`, to write to it as well or only to read it. Waits for up to `patience` for others that have it
    /// locked; fails with an error of kind `ResourceBusy` then.
    pub(super) fn acquire(file: &Arc<File>, writes: bool, patience: Duration) -> io::Result<Locked> {
        let uses: &[Use] = if writes { &[Use::Read, Use::Write] } else { &[Use::Read] };
        wait_while_busy(patience, "the image is locked", || {
            let lock = ImageLock { file: Arc::clone(file) };
            match lock.take(uses).and_then(|()| lock.conflict(uses)) {
                Ok(None) => Ok(Locked::Yes(lock)),
                Ok(Some(why)) => Err(io::Error::new(io::ErrorKind::ResourceBusy, why)),
                Err(error) if is_unsupported(&error) => Ok(Locked::NotPossible(error)),
                Err(error) => Err(error),
            }
        })
    }

    fn take(&self, uses: &[Use]) -> io::Result<()> {
        let ours = bytes(USED, uses).chain(bytes(REFUSED, &OURS_ALONE));
        ours.into_iter().try_for_each(|byte| set(&self.file, libc::F_RDLCK, byte))
    }

    /// What keeps the image from being used so. Asked when our own locks are there for others to see.
    fn conflict(&self, uses: &[Use]) -> io::Result<Option<&'static str>> {
        for unwanted in OURS_ALONE {
            if is_locked(&self.file, byte(USED, unwanted))? {
                return Ok(Some("another process is writing to it"));
            }
        }
        for wanted in uses {
            if is_locked(&self.file, byte(REFUSED, *wanted))? {
                return Ok(Some("another process is using it, and lets nobody write to it"));
            }
        }
        Ok(None)
    }
}

impl Drop for ImageLock {
    /// Said aloud, because the kernel may keep the description open for a while after an io_uring is gone.
    fn drop(&mut self) {
        for byte in bytes(USED, &[Use::Read, Use::Write]).chain(bytes(REFUSED, &OURS_ALONE)) {
            // Where there are no locks, there is none to give back.
            let _ = set(&self.file, libc::F_UNLCK, byte);
        }
    }
}

/// Does `attempt` again until it fails with another error than `ResourceBusy`, or for too long.
pub(super) fn wait_while_busy<T>(
    patience: Duration,
    what: &str,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let begun = Instant::now();
    let mut said = false;
    let step = STEP + Duration::from_millis(u64::from(std::process::id() % 20));
    loop {
        let waited = begun.elapsed();
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && waited < patience => {
                if waited > QUIET && !said {
                    said = true;
                    warn!("{what}: {error}; waiting up to {} s for the end of that", patience.as_secs());
                }
                std::thread::sleep(step);
            }
            outcome => return outcome,
        }
    }
}

fn byte(base: i64, kind: Use) -> i64 {
    base + kind as i64
}

fn bytes(base: i64, uses: &[Use]) -> impl Iterator<Item = i64> {
    uses.iter().map(move |kind| byte(base, *kind))
}

/// No locks on this file system, or none of this sort in this kernel.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOTTY)
    )
}

fn range(kind: libc::c_int, byte: i64) -> libc::flock {
    // SAFETY: all zeros is a valid flock.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_start = byte;
    range.l_len = 1;
    range
}

fn set(file: &File, kind: libc::c_int, byte: i64) -> io::Result<()> {
    let range = range(kind, byte);
    // SAFETY: the descriptor is open, and `range` is read only.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // Somebody has it locked exclusively, which is not how this is done.
            error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process has it locked"))
            }
            error => Err(error),
        },
    }
}

/// Whether another description has a lock on this byte.
fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    let mut range = range(libc::F_WRLCK, byte);
    // SAFETY: the descriptor is open; `range` is a live flock that the kernel fills in.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) } {
        0 => Ok(i32::from(range.l_type) != libc::F_UNLCK),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(path: &std::path::Path, writes: bool) -> io::Result<ImageLock> {
        let file = Arc::new(File::open(path).unwrap());
        match ImageLock::acquire(&file, writes, Duration::ZERO)? {
            Locked::Yes(lock) => Ok(lock),
            Locked::NotPossible(error) => panic!("no locks: {error}"),
        }
    }

    #[test]
    fn one_writer_or_many_readers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = locked(file.path(), true).unwrap();
        for writes in [true, false] {
            let error = locked(file.path(), writes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
            assert!(error.to_string().contains("writing"), "{error}");
        }
        drop(writer);
        let readers = [locked(file.path(), false).unwrap(), locked(file.path(), false).unwrap()];
        assert!(locked(file.path(), true).unwrap_err().to_string().contains("lets nobody write"));
        drop(readers);
        locked(file.path(), true).unwrap();
    }

    #[test]
    fn what_was_refused_leaves_nothing_behind() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = locked(file.path(), false).unwrap();
        locked(file.path(), true).unwrap_err();
        locked(file.path(), false).unwrap();
        drop(reader);
        locked(file.path(), true).unwrap();
    }

    /// As after a kill: the lock goes with the last reference to the description, which is not the process's own.
    #[test]
    fn a_lock_that_is_given_back_in_time_is_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = locked(file.path(), true).unwrap();
        let again = Arc::new(File::open(file.path()).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                drop(writer);
            });
            let lock = ImageLock::acquire(&again, true, Duration::from_secs(120)).unwrap();
            assert!(matches!(lock, Locked::Yes(_)));
        });
    }
}
