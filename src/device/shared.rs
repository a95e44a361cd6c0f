//! What all queues of a session have in common, and what is told to all of them at once. Does nothing by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use super::MemorySpace;
use super::inflight::Record;
use super::request::Disk;
use super::size::Size;
use super::throttle::Throttle;
use super::write_cache::WriteCache;
use crate::tap::Tap;

/// What all workers of a session share.
pub(super) struct Shared {
    pub(super) tap: Arc<dyn Tap>,
    /// Bytes that the guest may address.
    pub(super) size: Size,
    /// Bytes of a logical block.
    pub(super) block_size: u32,
    pub(super) read_only: bool,
    pub(super) serial: Vec<u8>,
    pub(super) memory: MemorySpace,
    /// What outlives the session: the part of each queue, and how the guest has set its write cache.
    pub(super) record: Arc<Record>,
    /// No more requests are taken.
    pub(super) closing: AtomicBool,
    /// The frontend is gone: its rings aren't touched any more, because it may already have handed them on.
    pub(super) abandoned: AtomicBool,
    /// Limits of what is taken a second, if there are any.
    pub(super) throttle: Option<Arc<Throttle>>,
    /// A flush has failed since the program was started.
    pub(super) flush_failed: Arc<AtomicBool>,
    /// Whether a write is durable before it is answered.
    pub(super) write_cache: WriteCache,
    /// The longest time that a queue's thread looks for something to do before it sleeps.
    pub(super) poll: Duration,
    /// Requests that are taken in a turn.
    pub(super) turn: usize,
    /// Bytes that were copied for requests in flight.
    pub(super) copied: Arc<AtomicUsize>,
}

impl Shared {
    /// What a request that is taken now is checked against.
    pub(super) fn disk(&self) -> Disk {
        Disk { len: self.size.len(), block_size: self.block_size, read_only: self.read_only }
    }
}
