//! A signal that ends serving, and waiting for it together with a descriptor.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Ends [`Server::serve_one`](super::Server::serve_one), from any thread and for good. Clones are the same signal.
#[derive(Clone)]
pub struct StopHandle {
    event: Arc<EventFd>,
}

impl StopHandle {
    /// A signal that hasn't been given.
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?) })
    }

    /// Gives the signal. Requests in flight are finished first.
    pub fn trigger(&self) {
        // Fails only when the counter is full, and then the signal was given.
        let _ = self.event.write(1);
    }

    /// Whether the signal was given.
    pub fn is_triggered(&self) -> bool {
        readable(self.event.as_raw_fd())
    }

    /// Waits until `fd` is readable (or hung up) or the signal is given; says whether it was `fd` alone.
    pub(super) fn wait_for(&self, fd: RawFd) -> io::Result<bool> {
        wait_readable(&[self.event.as_raw_fd(), fd])?;
        Ok(!self.is_triggered())
    }

    /// The same, but waits no longer than `patience`; `None` if it was for nothing.
    pub(super) fn wait_a_while_for(&self, fd: RawFd, patience: Duration) -> io::Result<Option<bool>> {
        let ready = wait_readable_for(&[self.event.as_raw_fd(), fd], patience)?;
        Ok(ready.map(|_| !self.is_triggered()))
    }
}

fn readable(fd: RawFd) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

/// Waits until one of `fds` is readable, hung up or broken; says which are.
pub(super) fn wait_readable<const N: usize>(fds: &[RawFd; N]) -> io::Result<[bool; N]> {
    loop {
        if let Some(ready) = poll(fds, -1)? {
            return Ok(ready);
        }
    }
}

/// The same, but waits no longer than `patience`, or less if a signal comes.
fn wait_readable_for<const N: usize>(fds: &[RawFd; N], patience: Duration) -> io::Result<Option<[bool; N]>> {
    poll(fds, libc::c_int::try_from(patience.as_millis()).unwrap_or(libc::c_int::MAX))
}

/// Waits up to `timeout` milliseconds, or for as long as it takes if that is negative; `None` if none of `fds` is ready.
fn poll<const N: usize>(fds: &[RawFd; N], timeout: libc::c_int) -> io::Result<Option<[bool; N]>> {
    let mut polls = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: an array of N valid pollfds; negative descriptors are ignored by the kernel.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), N as libc::nfds_t, timeout) };
    if ready >= 0 {
        return Ok((ready > 0).then(|| polls.map(|poll| poll.revents != 0)));
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(None) } else { Err(error) }
}
