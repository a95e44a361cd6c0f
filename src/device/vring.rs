//! The library's ring, but for one thing: a kick that isn't there any more is no error.
//!
//! Between the event loop's being woken by a kick and its reading it, the frontend may have read it itself, as QEMU does with
//! kicks that are left over, or have put another descriptor in its place. The library would end the queue's thread over
//! it, or let it wait for ever with the ring locked.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

use tracing::debug;
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;

use super::MemorySpace;

/// A ring and its event descriptors.
#[derive(Clone)]
pub(super) struct Vring(VringMutex<MemorySpace>);

/// Reads an event, if there is one, whether the descriptor would wait or not.
fn consume(event: RawFd) -> io::Result<()> {
    let mut flags = libc::RWF_NOWAIT;
    loop {
        let mut count = 0u64;
        let into = libc::iovec { iov_base: (&raw mut count).cast(), iov_len: size_of::<u64>() };
        // SAFETY: the descriptor is open, as its ring is locked, and `into` has room for what an event is.
        let read = unsafe { libc::preadv2(event, &raw const into, 1, -1, flags) };
        if read >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => return Ok(()),
            // Kernels before 5.8 can't tell of events; then it is read as it is.
            Some(libc::EOPNOTSUPP) if flags != 0 => flags = 0,
            _ => return Err(error),
        }
    }
}

impl<'a> VringStateGuard<'a, MemorySpace> for Vring {
    type G = <VringMutex<MemorySpace> as VringStateGuard<'a, MemorySpace>>::G;
}

impl<'a> VringStateMutGuard<'a, MemorySpace> for Vring {
    type G = <VringMutex<MemorySpace> as VringStateMutGuard<'a, MemorySpace>>::G;
}

impl VringT<MemorySpace> for Vring {
    fn new(memory: MemorySpace, max_queue_size: u16) -> Result<Self, Error> {
        VringMutex::new(memory, max_queue_size).map(Self)
    }

    /// An error is the end of the queue's thread: there is none.
    fn read_kick(&self) -> io::Result<bool> {
        let state = self.0.get_ref();
        if let Some(kick) = state.get_kick()
            && let Err(error) = consume(kick.as_raw_fd())
        {
            // Not an event descriptor, then. What can be read of it tells nothing, and it may wake the queue for ever.
            debug!(%error, "cannot read a kick");
        }
        Ok(state.is_enabled())
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, MemorySpace>>::G {
        self.0.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, MemorySpace>>::G {
        self.0.get_mut()
    }

    fn add_used(&self, head: u16, len: u32) -> Result<(), Error> {
        self.0.add_used(head, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.0.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.0.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.0.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }

    fn set_queue_info(&self, table: u64, available: u64, used: u64) -> Result<(), Error> {
        self.0.set_queue_info(table, available, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.0.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.0.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.0.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.0.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.0.set_kick(file);
    }

    fn set_call(&self, file: Option<File>) {
        self.0.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.0.set_err(file);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd as _;

    use vm_memory::GuestMemoryAtomic;

    use super::*;
    use crate::device::Memory;

    fn event(count: u32, flags: libc::c_int) -> File {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::eventfd(count, flags) };
        assert!(fd >= 0);
        // SAFETY: just made, and nobody else's.
        unsafe { File::from_raw_fd(fd) }
    }

    #[test]
    fn a_kick_that_is_gone_is_no_error_and_nobody_waits_for_it() {
        let vring = Vring::new(GuestMemoryAtomic::new(Memory::new()), 16).unwrap();
        vring.set_enabled(true);
        assert!(vring.read_kick().unwrap(), "no descriptor");
        for flags in [0, libc::EFD_NONBLOCK] {
            let kick = event(3, flags);
            vring.set_kick(Some(kick.try_clone().unwrap()));
            assert!(vring.read_kick().unwrap());
            let mut poll = libc::pollfd { fd: kick.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: no memory but that of `poll` is passed.
            let readable = unsafe { libc::poll(&raw mut poll, 1, 0) };
            assert_eq!(readable, 0, "it was not read");
            assert!(vring.read_kick().unwrap());
        }
        vring.set_kick(Some(tempfile::tempfile().unwrap()));
        vring.set_enabled(false);
        assert!(!vring.read_kick().unwrap());
    }
}
