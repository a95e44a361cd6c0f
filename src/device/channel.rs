//! The backend's channel: the socket on which a frontend is told, without having asked, that the configuration space has
//! changed.
//!
//! The library hands it over inside of an object that can send every message but this one, and keeps the descriptor to
//! itself. It is found by what becomes of it: the object is dropped, and the descriptor is the one that is closed then,
//! of which there is a copy by that time.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use tracing::{debug, warn};

use super::limits::{CHANNEL_CANDIDATES, CHANNEL_FDS};
use super::socket::socket_option;

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG: number, flags (version 1, no answer wanted), and no payload.
const CONFIG_CHANGE: [u32; 3] = [2, 1, 0];

/// A channel to the frontend. Nothing is ever read from it: nothing is asked.
pub(super) struct Channel {
    socket: UnixStream,
}

impl Channel {
    /// Takes the channel out of the library's object; `None` if it can't be told which it is. `object` must be the only
    /// one that has it.
    pub(super) fn take<T>(object: T) -> Option<Self> {
        // Two at the same time would see each other's being closed.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let candidates = candidates();
        drop(object);
        // None is given up before all were looked at: a number may have become that of one of the copies.
        let (closed, _open): (Vec<_>, Vec<_>) = candidates.into_iter().partition(Candidate::is_closed);
        let mut closed = closed.into_iter();
        let found = closed.next();
        // The same more than once: what brings the messages here may be about to close its own.
        let is_one = found.as_ref().is_some_and(|found| closed.all(|other| other.id == found.id));
        if !is_one {
            let several = found.is_some();
            warn!(
                several,
                "the frontend's channel can't be told from others: a running guest won't hear of another size"
            );
        }
        found.filter(|_| is_one).map(|found| Self { socket: found.copy })
    }

    /// Says that the configuration space has changed. Never waits: a frontend that doesn't read its channel isn't told.
    /// False if there is nobody any more.
    pub(super) fn config_changed(&self) -> bool {
        let bytes: Vec<u8> = CONFIG_CHANGE.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the bytes are readable for as long as they are.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        if usize::try_from(sent).is_ok_and(|sent| sent == bytes.len()) {
            return true;
        }
        let error = io::Error::last_os_error();
        debug!(%error, sent, "cannot tell the frontend that the size has changed");
        // A message that was cut short can't be followed by another.
        sent < 0 && matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
    }
}

/// A descriptor that may be the channel.
struct Candidate {
    number: RawFd,
    copy: UnixStream,
    id: (u64, u64),
}

impl Candidate {
    /// The descriptor `number`, if it is a connected Unix stream socket without a name on either side. Those of this
    /// process have one: they were accepted where it listens, or connected to a path.
    fn at(number: RawFd) -> Option<Self> {
        // SAFETY: passes no memory.
        let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
        // SAFETY: just made, and ours, if it was.
        let copy = UnixStream::from((copy >= 0).then(|| unsafe { OwnedFd::from_raw_fd(copy) })?);
        // By the copy: what has the number may be something else by now.
        let is_stream = socket_option(copy.as_raw_fd(), libc::SO_TYPE).ok()? == libc::SOCK_STREAM;
        let is_unnamed = copy.local_addr().ok()?.is_unnamed() && copy.peer_addr().ok()?.is_unnamed();
        let id = identity(copy.as_raw_fd())?;
        (is_stream && is_unnamed).then_some(Self { number, copy, id })
    }

    fn is_closed(&self) -> bool {
        identity(self.number) != Some(self.id)
    }
}

/// Few: there is the channel, and what a frontend has sent in the place of other descriptors.
fn candidates() -> Vec<Candidate> {
    // Looked at before any is copied, so that no copy is found.
    let is_unix =
        |number: &RawFd| socket_option(*number, libc::SO_DOMAIN).is_ok_and(|domain| domain == libc::AF_UNIX);
    let numbers: Vec<RawFd> = (0..CHANNEL_FDS).filter(is_unix).take(CHANNEL_CANDIDATES).collect();
    numbers.into_iter().filter_map(Candidate::at).collect()
}

/// Device and inode number of what is open at `number`.
fn identity(number: RawFd) -> Option<(u64, u64)> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: there is room for what the kernel writes; the descriptor need not be open.
    if unsafe { libc::fstat(number, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the kernel has filled it in.
    let stat = unsafe { stat.assume_init() };
    Some((stat.st_dev, stat.st_ino))
}
