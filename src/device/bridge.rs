//! Brings a socket that is already connected to a library that only accepts connections.
//!
//! Forwards control messages, and the descriptors that come with them, between the given socket and a private
//! one. Only the control channel passes through here; requests of the guest don't. Of a message it knows how long it is.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::debug;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::stop::wait_readable;

/// Bytes that are forwarded at once: more than nearly every message has.
const BUFFER_SIZE: usize = 8192;
/// Before each message: what it is, flags, and the bytes that follow.
const HEADER_SIZE: usize = 12;
/// As many descriptors as the kernel lets one message carry.
const MAX_FDS: usize = 253;

/// How long a frontend may take to read what was still said to it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A thread that forwards until either side hangs up.
pub(super) struct Bridge {
    thread: Option<JoinHandle<()>>,
    inner: UnixStream,
    outer: UnixStream,
}

/// A bridge that nothing passes over yet.
pub(super) struct Abutments {
    outer: UnixStream,
    inner: UnixStream,
    listener: UnixListener,
}

impl Abutments {
    /// Between `outer` and a private socket. Makes a directory for a moment.
    pub(super) fn new(outer: UnixStream) -> io::Result<Self> {
        let (listener, inner) = private_connection()?;
        Ok(Self { outer, inner, listener })
    }
}

impl Bridge {
    /// Forwards between the two ends; the inner one waits at the returned listener.
    pub(super) fn open(ends: Abutments) -> io::Result<(Self, UnixListener)> {
        let Abutments { outer, inner, listener } = ends;
        let ends = (inner.try_clone()?, outer.try_clone()?);
        let thread = thread::Builder::new().name("vhost-bridge".to_owned()).spawn(move || {
            if let Err(error) = forward_all(&outer, &inner) {
                debug!(%error, "control connection ended");
            }
            let _ = outer.shutdown(Shutdown::Both);
            let _ = inner.shutdown(Shutdown::Both);
        })?;
        Ok((Self { thread: Some(thread), inner: ends.0, outer: ends.1 }, listener))
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.inner.shutdown(Shutdown::Both);
        let Some(thread) = self.thread.take() else { return };
        // What is on its way arrives, unless the frontend doesn't read it: then the thread would never end.
        let deadline = Instant::now() + PATIENCE;
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let _ = self.outer.shutdown(Shutdown::Both);
        let _ = thread.join();
    }
}

/// A listener with our own connection waiting, and nobody else able to connect: its directory is only ours, and gone
/// before this returns.
fn private_connection() -> io::Result<(UnixListener, UnixStream)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("btrfs-shadow-{}-{count}", std::process::id()));
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    let path = dir.join("socket");
    let connected = UnixListener::bind(&path)
        .and_then(|listener| UnixStream::connect(&path).map(|stream| (listener, stream)));
    let _ = fs::remove_file(&path);
    fs::remove_dir(&dir)?;
    connected
}

fn forward_all(outer: &UnixStream, inner: &UnixStream) -> io::Result<()> {
    let (mut inwards, mut outwards) = (Flow::default(), Flow::default());
    loop {
        let [from_outer, from_inner] = wait_readable(&[outer.as_raw_fd(), inner.as_raw_fd()])?;
        if from_outer && !inwards.forward(outer, inner)? || from_inner && !outwards.forward(inner, outer)? {
            return Ok(());
        }
    }
}

/// One direction: where in a message it is.
///
/// Descriptors belong to the message that begins where they come. The kernel joins what was sent before them to it, if it is
/// asked for as much; so no more is asked for than is left of a message.
#[derive(Default)]
struct Flow {
    header: [u8; HEADER_SIZE],
    /// Bytes of the header that have passed; all of them while a payload does.
    passed: usize,
    /// Bytes of the payload that haven't passed.
    payload: usize,
}

impl Flow {
    /// Bytes that are left of the header, or of what follows it; at least one.
    fn left(&self) -> usize {
        if self.passed < HEADER_SIZE { HEADER_SIZE - self.passed } else { self.payload }
    }

    /// These have passed, no more than were left.
    fn pass(&mut self, bytes: &[u8]) {
        if self.passed < HEADER_SIZE {
            self.header[self.passed..self.passed + bytes.len()].copy_from_slice(bytes);
            self.passed += bytes.len();
            let [.., a, b, c, d] = self.header;
            self.payload = u32::from_ne_bytes([a, b, c, d]) as usize;
        } else {
            self.payload -= bytes.len();
        }
        if self.passed == HEADER_SIZE && self.payload == 0 {
            self.passed = 0;
        }
    }

    /// Forwards what one receive yields. False at the end.
    fn forward(&mut self, from: &UnixStream, to: &UnixStream) -> io::Result<bool> {
        let mut bytes = [0u8; BUFFER_SIZE];
        let mut raw_fds: [RawFd; MAX_FDS] = [-1; MAX_FDS];
        let wanted = self.left().min(BUFFER_SIZE);
        let mut iovecs = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: wanted }];
        // SAFETY: the iovec covers a part of `bytes`, where any data is fine.
        let (len, fd_count) =
            unsafe { from.recv_with_fds(&mut iovecs, &mut raw_fds) }.map_err(io::Error::from)?;
        // SAFETY: the kernel has just made these descriptors for us.
        let fds: Vec<OwnedFd> =
            raw_fds[..fd_count].iter().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
        if len == 0 {
            return Ok(false);
        }
        self.pass(&bytes[..len]);
        let raw_fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut sent = to.send_with_fds(&[&bytes[..len]], &raw_fds).map_err(io::Error::from)?;
        while sent < len {
            sent += to.send_with_fds(&[&bytes[sent..len]], &[]).map_err(io::Error::from)?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn message(payload: &[u8]) -> Vec<u8> {
        let header = [9, 1, payload.len() as u32].map(u32::to_ne_bytes).concat();
        [header, payload.to_vec()].concat()
    }

    #[test]
    fn forwards_bytes_and_descriptors_both_ways_until_the_end() {
        let (frontend, outer) = UnixStream::pair().unwrap();
        let (bridge, listener) = Bridge::open(Abutments::new(outer).unwrap()).unwrap();
        let (mut backend, _) = listener.accept().unwrap();

        let (mut pipe_in, pipe_out) = UnixStream::pair().unwrap();
        // One without descriptors right before it, which stays without.
        frontend.send_with_fds(&[&message(b"first")[..]], &[]).unwrap();
        frontend.send_with_fds(&[&message(b"hello")[..]], &[pipe_out.as_raw_fd()]).unwrap();
        frontend.send_with_fds(&[&message(b"")[..], &message(b"third")[..3]], &[]).unwrap();
        let mut bytes = [0; 17];
        let (len, file) = backend.recv_with_fd(&mut bytes).unwrap();
        assert!(len > 0 && file.is_none());
        backend.read_exact(&mut bytes[len..]).unwrap();
        assert_eq!(bytes[..], message(b"first"));
        let (len, file) = backend.recv_with_fd(&mut bytes).unwrap();
        backend.read_exact(&mut bytes[len..]).unwrap();
        assert_eq!(bytes[..], message(b"hello"));
        file.unwrap().write_all(b"through").unwrap();
        let mut through = [0; 7];
        pipe_in.read_exact(&mut through).unwrap();
        assert_eq!(&through, b"through");

        // A message that isn't whole keeps none up that goes the other way.
        backend.read_exact(&mut bytes[..15]).unwrap();
        assert_eq!(bytes[..15], [&message(b"")[..], &message(b"third")[..3]].concat());
        backend.write_all(&message(b"reply")).unwrap();
        (&frontend).read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[..], message(b"reply"));

        drop(frontend);
        assert_eq!(backend.read(&mut bytes).unwrap(), 0);
        drop(bridge);
    }

    #[test]
    fn what_was_said_last_arrives_if_it_is_read_and_holds_up_nobody_if_not() {
        for reads in [true, false] {
            let (mut frontend, outer) = UnixStream::pair().unwrap();
            let (bridge, listener) = Bridge::open(Abutments::new(outer).unwrap()).unwrap();
            let (mut backend, _) = listener.accept().unwrap();
            // As much as there is room for: the bridge stands still in the middle of it.
            backend.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            let mut said = 0;
            while let Ok(len) = backend.write(&[7; 4096]) {
                said += len;
            }
            let reader = reads.then(|| {
                let frontend = frontend.try_clone().unwrap();
                thread::spawn(move || io::copy(&mut &frontend, &mut io::sink()).unwrap())
            });
            let (done, ended) = std::sync::mpsc::channel();
            thread::spawn(move || {
                drop(bridge);
                done.send(())
            });
            ended.recv_timeout(Duration::from_secs(120)).expect("the bridge's end");
            if let Some(reader) = reader {
                assert_eq!(reader.join().unwrap(), said as u64);
            }
            // It is over for the frontend as well.
            io::copy(&mut frontend, &mut io::sink()).unwrap();
        }
    }
}
