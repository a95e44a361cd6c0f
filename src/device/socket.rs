//! Where connections come from: a socket of our own, or a descriptor that was handed to us.

use std::fs;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tracing::warn;

/// Where the frontend is met.
#[derive(Debug)]
pub enum Socket {
    /// A Unix socket to be made at this path.
    Path(PathBuf),
    /// A Unix socket that was inherited, either listening or connected.
    Fd(OwnedFd),
}

impl Socket {
    /// The inherited descriptor `fd`.
    ///
    /// # Safety
    ///
    /// Nobody else may use or close `fd`.
    pub unsafe fn from_raw_fd(fd: RawFd) -> io::Result<Self> {
        // SAFETY: looks at the descriptor, whatever it is.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open, and the caller gives it up.
        Ok(Socket::Fd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// A socket that is ready for use.
pub(super) enum Bound {
    Listening(UnixListener, Option<SocketFile>),
    Connected(UnixStream),
}

impl Socket {
    pub(super) fn bind(self) -> io::Result<Bound> {
        match self {
            Socket::Path(path) => {
                let (listener, file) = listen(&path).map_err(|error| {
                    io::Error::new(error.kind(), format!("cannot listen on {}: {error}", path.display()))
                })?;
                Ok(Bound::Listening(listener, Some(file)))
            }
            Socket::Fd(fd) => adopt(fd).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot use the inherited socket: {error}"))
            }),
        }
    }
}

/// Our socket in the file system; removed when dropped, unless somebody has put another in its place.
pub struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|id| id == self.id)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.st_dev(), metadata.st_ino()))
}

/// Listens at `path`, where the socket of a process that is gone may be in the way; never that of a live one.
///
/// # Errors
/// When it can't be listened there.
pub fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    let file = SocketFile { path: path.to_owned(), id: identity(path)? };
    Ok((listener, file))
}

/// Removes a socket that no process has open.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that isn't a socket"));
    }
    if is_alive(path)? {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process is listening there"));
    }
    fs::remove_file(path)
}

/// Whether a process has the socket at `path` open. Asked with a socket of another type, whose connect the kernel
/// refuses after it has found out: a real connection would disturb the process.
fn is_alive(path: &Path) -> io::Result<bool> {
    let name = path.as_os_str().as_bytes();
    // SAFETY: all zeros is a valid address.
    let mut addr: libc::sockaddr_un = unsafe { zeroed() };
    addr.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if name.len() >= addr.sun_path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "path is too long for a socket"));
    }
    for (to, from) in addr.sun_path.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    // SAFETY: no memory is passed.
    let probe = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if probe < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and ours.
    let probe = unsafe { OwnedFd::from_raw_fd(probe) };
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `addr` is a terminated address of `len` bytes.
    let connected = unsafe { libc::connect(probe.as_raw_fd(), (&raw const addr).cast(), len) };
    if connected == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EPROTOTYPE) => Ok(true),
        Some(libc::ECONNREFUSED) => Ok(false),
        _ => Err(error),
    }
}

/// QEMU's convention for `--fd` leaves open whether the socket is listening or connected; both are in use.
fn adopt(fd: OwnedFd) -> io::Result<Bound> {
    if socket_option(fd.as_raw_fd(), libc::SO_DOMAIN)? != libc::AF_UNIX
        || socket_option(fd.as_raw_fd(), libc::SO_TYPE)? != libc::SOCK_STREAM
    {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a Unix stream socket"));
    }
    if socket_option(fd.as_raw_fd(), libc::SO_ACCEPTCONN)? != 0 {
        let listener = UnixListener::from(fd);
        // The vhost library would spin on one that isn't.
        listener.set_nonblocking(false)?;
        return Ok(Bound::Listening(listener, None));
    }
    let stream = UnixStream::from(fd);
    stream.peer_addr()?;
    stream.set_nonblocking(false)?;
    Ok(Bound::Connected(stream))
}

/// An option of the socket `fd`, which need not be one, nor even open.
pub(super) fn socket_option(fd: RawFd, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let at = (&raw mut value).cast();
    // SAFETY: `value` has room for the `len` bytes of the option.
    if unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, at, &mut len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

/// For the vhost library, which wants to own the listener, while the path is ours to remove.
pub(super) fn into_vhost_listener(listener: UnixListener) -> vhost::vhost_user::Listener {
    // SAFETY: the descriptor is a listening Unix socket, and given up.
    unsafe { vhost::vhost_user::Listener::from_raw_fd(listener.into_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_socket_of_a_dead_process_and_removes_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let bound = Socket::Path(path.clone()).bind().unwrap();
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn leaves_the_socket_of_a_live_process_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let alive = UnixListener::bind(&path).unwrap();
        alive.set_nonblocking(true).unwrap();
        let error = Socket::Path(path.clone()).bind().err().unwrap();
        assert!(error.to_string().contains("another process is listening"), "{error}");
        assert!(error.to_string().contains("sock"), "{error}");
        assert!(alive.accept().is_err(), "it was connected to");
        assert!(path.exists());
    }

    #[test]
    fn leaves_other_files_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(Socket::Path(path.clone()).bind().is_err());
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_socket_that_was_replaced_is_not_ours_to_remove() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let ours = Socket::Path(path.clone()).bind().unwrap();
        // Kept beside it, so that the other cannot get its inode number.
        fs::rename(&path, dir.path().join("old")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }

    #[test]
    fn tells_listening_from_connected() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        assert!(matches!(adopt(listener.into()), Ok(Bound::Listening(_, None))));
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(matches!(adopt(ours.into()), Ok(Bound::Connected(_))));
        assert!(adopt(tempfile::tempfile().unwrap().into()).is_err());
    }
}
