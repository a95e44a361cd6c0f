//! What the vhost-user library calls: features, configuration, ring events, the end of a ring.
//!
//! One backend serves one connection. The library's own locks are never held while a worker waits for the disk or the
//! tap, except by GET_VRING_BASE and RESET_DEVICE, which are there to wait.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{debug, error};
use vhost::vhost_user::Backend as FrontendProxy;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use vm_memory::GuestAddressSpace as _;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::channel::Channel;
use super::limits::MAX_QUEUE_SIZE;
use super::shared::Shared;
use super::worker::Worker;
use super::{MemorySpace, Vring, config};
use crate::image::Image;
use crate::tap::Draining;

/// The device side of one connection.
pub(super) struct Backend {
    shared: Arc<Shared>,
    workers: Vec<Mutex<Worker>>,
    image: Arc<dyn Image>,
    config: Vec<u8>,
    /// Where the frontend can be told that the configuration space has changed, if it has said so.
    channel: Mutex<Option<Channel>>,
    /// For each thread of the library: what ends it. Made in advance, because without one the thread never ends.
    exits: Mutex<Vec<Option<(EventConsumer, EventNotifier)>>>,
    /// Those given to the library, which never closes them.
    exit_fds: Mutex<Vec<RawFd>>,
}

impl Backend {
    pub(super) fn new(shared: Arc<Shared>, image: Arc<dyn Image>, num_queues: usize) -> io::Result<Self> {
        let worker = |queue| Worker::new(queue, shared.clone(), image.engine()?, shared.record.queue(queue));
        let workers =
            (0..num_queues).map(|queue| worker(queue).map(Mutex::new)).collect::<io::Result<_>>()?;
        // The number of queues was checked against a limit below 2^16.
        let config = config::config_space(config::Layout {
            len: shared.size.len(),
            block_size: shared.block_size,
            io_size: image.io_size(),
            num_queues: num_queues as u16,
        });
        let exits = (0..num_queues)
            .map(|_| new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).map(Some))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            shared,
            workers,
            image,
            config,
            channel: Mutex::default(),
            exits: Mutex::new(exits),
            exit_fds: Mutex::default(),
        })
    }

    /// Descriptors that worker `queue` wants events for, and the event ids, which the library wants above the number
    /// of queues.
    pub(super) fn listeners(&self, queue: usize) -> Vec<(RawFd, u64)> {
        let worker = lock(&self.workers[queue]);
        let (answers, engine) = worker.notifiers();
        let first = self.workers.len() as u64 + 1;
        std::iter::once(answers).chain(engine).chain(worker.alarm()).zip(first..).collect()
    }

    /// Looks whether the image has another size by now, and tells the frontend until it has read it: one whose guest is
    /// just starting takes no notice.
    pub(super) fn follow_size(&self) {
        let Shared { size, tap, .. } = self.shared.as_ref();
        if let Some((before, now)) = size.follow(self.image.as_ref()) {
            tap.resized(before, now);
        }
        let mut channel = lock(&self.channel);
        if !size.is_told() && channel.as_ref().is_some_and(|channel| !channel.config_changed()) {
            *channel = None;
        }
    }

    /// From now on no request is taken.
    pub(super) fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
    }

    /// The frontend is gone: from now on no request is taken, and no ring is touched.
    pub(super) fn abandon(&self) {
        self.shared.abandoned.store(true, Ordering::Release);
        self.close();
    }

    /// Waits until no request is in flight on any queue.
    pub(super) fn quiesce(&self, why: Draining) {
        for worker in &self.workers {
            lock(worker).quiesce(why);
        }
    }

    /// Closes what the library has left open.
    ///
    /// # Safety
    ///
    /// The library must have ended the threads that waited for them.
    pub(super) unsafe fn close_exit_fds(&self) {
        for fd in lock(&self.exit_fds).drain(..) {
            // SAFETY: the library has given up ownership without closing it, and its epoll is gone.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

/// A lock that a panic can't spoil: workers contain their panics and stay usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.workers.len()
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        config::features(self.shared.read_only)
    }

    fn acked_features(&self, features: u64) {
        let has_switch = config::has_cache_switch(features);
        self.shared.write_cache.negotiated(config::has_flush(features), has_switch);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        config::protocol_features()
    }

    fn reset_device(&self) {
        // What the guest has set stays as it is: see the write cache.
        self.quiesce(Draining::Ring);
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The library has told the rings.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut space = self.config.clone();
        let disk = &self.shared.size;
        let len = if config::tells_capacity(offset, size) { disk.tell() } else { disk.len() };
        config::set_capacity(&mut space, len);
        if config::tells_write_cache(offset, size) {
            let Shared { write_cache, memory, .. } = self.shared.as_ref();
            config::set_write_cache(&mut space, write_cache.tell(&memory.memory()));
        }
        config::read_config(&space, offset, size)
    }

    fn set_config(&self, offset: u32, buf: &[u8]) -> io::Result<()> {
        match config::write_cache_setting(offset, buf) {
            Some(on) => self.shared.write_cache.turn(on, &self.shared.memory.memory()),
            // An error would end the connection.
            None => debug!(offset, len = buf.len(), "ignored a write to the configuration space"),
        }
        Ok(())
    }

    fn set_backend_req_fd(&self, channel: FrontendProxy) {
        let mut ours = lock(&self.channel);
        // The last one is closed before the new one is looked for.
        *ours = None;
        *ours = Channel::take(channel);
    }

    fn update_memory(&self, memory: MemorySpace) -> io::Result<()> {
        // The workers look at the table anew for each request.
        self.shared.write_cache.memory_is(&memory.memory());
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.workers.len()).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let exit = lock(&self.exits).get_mut(thread)?.take()?;
        lock(&self.exit_fds).push(exit.0.as_raw_fd());
        Some(exit)
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        if let Some(worker) = self.workers.get(queue as usize) {
            lock(worker).quiesce(Draining::Ring);
        }
        self.shared.tap.interrupted();
        Ok(())
    }

    /// Never fails: an error would end the queue's thread for good.
    fn handle_event(&self, _event: u16, _set: EventSet, vrings: &[Vring], thread: usize) -> io::Result<()> {
        let (Some(worker), Some(vring)) = (self.workers.get(thread), vrings.first()) else {
            error!(thread, "event for a queue that doesn't exist");
            return Ok(());
        };
        // Whatever the event was, all there is to do is done; events that are left over find nothing.
        if catch_unwind(AssertUnwindSafe(|| lock(worker).run(vring))).is_err() {
            error!(queue = thread, "the queue's worker panicked");
        }
        Ok(())
    }
}
