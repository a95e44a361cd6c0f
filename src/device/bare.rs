//! One queue without a frontend: for tests and fuzz targets that are the guest themselves.
//!
//! The same worker, ring and limits as in a session. What the library does between them, a caller does here: it places the
//! ring, replaces guest memory, calls [`BareQueue::run`] where an event would, and may have the process end at any time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::inflight::Record;
use super::limits::{BLOCK_SIZES, MAX_QUEUE_SIZE, SERIAL_SIZE};
use super::shared::Shared;
use super::size::Size;
use super::worker::Worker;
use super::write_cache::WriteCache;
use super::{MemorySpace, Vring};
use crate::engine::Engine;
use crate::tap::{Draining, Tap};

/// Where a ring is and how it is used, as the frontend would say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingPlace {
    /// Descriptors. What the library doesn't allow is ignored.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Index in the available ring to begin at.
    pub next: u16,
    /// Whether VIRTIO_RING_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
}

/// What is on the other side of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskPlace {
    /// Size of the disk in bytes, whole sectors.
    pub len: u64,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// The guest has no flush: a write is durable before it is answered.
    pub write_through: bool,
    /// The longest time that the queue looks for something to do.
    pub poll: Duration,
    /// Requests that the queue takes in a turn.
    pub turn: usize,
}

/// A queue whose thread is the caller's.
pub struct BareQueue {
    worker: Worker,
    vring: Vring,
    memory: MemorySpace,
    disk: DiskPlace,
    record: Arc<Record>,
}

impl BareQueue {
    /// A queue without a ring, over `memory`.
    ///
    /// # Errors
    /// When a resource is missing.
    pub fn new(
        engine: Box<dyn Engine>,
        tap: Arc<dyn Tap>,
        disk: DiskPlace,
        memory: GuestMemoryMmap<()>,
    ) -> io::Result<Self> {
        Self::with_record(engine, tap, disk, GuestMemoryAtomic::new(memory), Record::open(None)?)
    }

    fn with_record(
        engine: Box<dyn Engine>,
        tap: Arc<dyn Tap>,
        disk: DiskPlace,
        memory: MemorySpace,
        record: Arc<Record>,
    ) -> io::Result<Self> {
        let write_cache = WriteCache::new(record.write_cache());
        write_cache.negotiated(!disk.write_through, false);
        let shared = Arc::new(Shared {
            tap,
            size: Size::new(disk.len, BLOCK_SIZES[0]),
            block_size: BLOCK_SIZES[0],
            read_only: disk.read_only,
            serial: vec![b's'; SERIAL_SIZE],
            memory: memory.clone(),
            record: record.clone(),
            flush_failed: Arc::default(),
            throttle: None,
            closing: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            write_cache,
            poll: disk.poll,
            turn: disk.turn,
            copied: Arc::default(),
        });
        let vring = Vring::new(memory.clone(), MAX_QUEUE_SIZE as u16).map_err(io::Error::other)?;
        let worker = Worker::new(0, shared, engine, record.queue(0))?;
        Ok(Self { worker, vring, memory, disk, record })
    }

    /// The process is killed, and this is the queue of the next one, over the same memory: what was in flight is on record
    /// and not answered. It has no ring yet.
    ///
    /// # Errors
    /// When a resource is missing.
    pub fn killed(&mut self, engine: Box<dyn Engine>, tap: Arc<dyn Tap>) -> io::Result<()> {
        *self = Self::with_record(engine, tap, self.disk, self.memory.clone(), self.record.clone())?;
        Ok(())
    }

    /// What is on record of this queue, word by word. Whatever is stored here is what others could do to the file.
    #[must_use]
    pub fn record(&self) -> &[AtomicU64] {
        self.record.part(0)
    }

    /// Starts the ring at `place`.
    ///
    /// # Errors
    /// When the library refuses the addresses.
    pub fn start(&self, place: RingPlace) -> io::Result<()> {
        self.vring.set_queue_size(place.size);
        self.vring
            .set_queue_info(place.descriptors, place.available, place.used)
            .map_err(io::Error::other)?;
        // As the library does: the frontend says nothing of it.
        let used = self.vring.queue_used_idx().map_err(io::Error::other)?;
        self.vring.set_queue_next_used(used);
        self.vring.set_queue_next_avail(place.next);
        self.vring.set_queue_event_idx(place.event_idx);
        self.vring.set_queue_ready(true);
        self.vring.set_enabled(true);
        Ok(())
    }

    /// Descriptors of the ring, as it was accepted.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.vring.get_ref().get_queue().size()
    }

    /// Stops the ring and waits until nothing is in flight. Where the ring would go on in the available ring.
    pub fn stop(&mut self) -> u16 {
        self.vring.set_queue_ready(false);
        self.worker.quiesce(Draining::Ring);
        self.vring.queue_next_avail()
    }

    /// Does everything there is to do, as after an event, but no more than a turn. How many requests were taken from the ring.
    pub fn run(&mut self) -> usize {
        self.worker.run(&self.vring)
    }

    /// Whether the queue has something left to do, and has made its thread's event loop call it again.
    #[must_use]
    pub fn is_called_back(&self) -> bool {
        self.worker.is_called_back()
    }

    /// Replaces guest memory, as SET_MEM_TABLE does.
    pub fn set_memory(&self, memory: GuestMemoryMmap<()>) {
        if let Ok(guard) = self.memory.lock() {
            guard.replace(memory);
        }
    }

    /// Requests that were taken and aren't answered yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.worker.in_flight()
    }
}
