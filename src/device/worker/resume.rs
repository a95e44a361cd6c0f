//! Where a ring starts: it is gone on with where an earlier session or process has left it.
//!
//! Nobody kicks for what was offered while there was nobody to be kicked, and nobody interrupts for answers whose
//! interrupt was lost: a ring that starts is looked at, which the library sees to, and its guest is interrupted once.
//!
//! What was in flight needs no room in the ring, but it may need memory: more than before, if writes are copied now that
//! were not then. So it is begun again as requests are taken, a part at a time, and before any other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{info, warn};
use vhost_user_backend::VringT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{Vring, Worker, on_live_ring};
use crate::device::Memory;
use crate::device::chain::{self, Parsed};
use crate::device::identity::file_at;
use crate::device::inflight::{Place, Ring, TakenUp};
use crate::tap::Draining;

/// Bytes before the entries of an available ring, and of an entry.
const AVAIL_HEADER: u64 = 4;
const AVAIL_ENTRY: u64 = 2;
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;

impl Worker {
    /// Takes up the ring if it has just started: what the record knows to be in flight is begun again.
    pub(super) fn resume(&mut self, vring: &Vring) {
        if self.resumed || self.shared.closing.load(Ordering::Acquire) {
            return;
        }
        let memory = self.shared.memory.memory().into_inner();
        let Some(ring) = on_live_ring(vring, |state| look_at(state.get_queue(), &memory)) else { return };
        self.resumed = true;
        self.shared.write_cache.ring_starts(&memory);
        match ring {
            Ok(ring) => self.resume_ring(vring, &ring, &memory),
            Err(error) => self.complain(format_args!("ring is not accessible: {error}")),
        }
    }

    fn resume_ring(&mut self, vring: &Vring, ring: &Ring, memory: &Arc<Memory>) {
        let disk = self.shared.disk();
        let parse = |head| -> Parsed { chain::parse(Walk::new(memory, &ring.place, head), memory, disk) };
        let mut heads = Vec::new();
        let is_known = match self.record.take_up(ring, &mut heads, |head| parse(head).fingerprint) {
            TakenUp::Same => true,
            TakenUp::New { forgotten } => {
                if forgotten > 0 {
                    let queue = self.queue;
                    warn!(queue, forgotten, "the requests on record are not of this ring; forgotten");
                }
                false
            }
        };
        // The interrupt for the last answers may have been lost. A guest that has just set up its ring expects none.
        if (is_known || ring.used_index != 0)
            && let Err(error) = vring.signal_used_queue()
        {
            self.complain(format_args!("cannot notify the guest: {error}"));
        }
        if heads.is_empty() {
            return;
        }
        info!(queue = self.queue, requests = heads.len(), "requests that were in flight are begun again");
        let next = ring.used_index.wrapping_add(heads.len() as u16);
        let _ = on_live_ring(vring, |state| state.get_queue_mut().set_next_avail(next));
        self.left_over = LeftOver { place: Some(ring.place), heads: heads.into() };
    }

    /// Begins again what was in flight, as far as copies have room; whether there was any.
    pub(super) fn begin_left_over(&mut self) -> bool {
        let mut begun_any = false;
        while !self.copies.are_many()
            && let Some((place, head)) = self.left_over.next()
        {
            let memory = self.shared.memory.memory().into_inner();
            let parsed = chain::parse(Walk::new(&memory, &place, head), &memory, self.shared.disk());
            self.start(head, parsed, memory);
            begun_any = true;
        }
        if begun_any {
            self.engine.submit();
        }
        begun_any
    }

    /// Nothing is in flight any more.
    pub(super) fn drained(&mut self, why: Draining) {
        // A ring that was never looked at is still as it was left.
        if why == Draining::Ring && std::mem::take(&mut self.resumed) {
            self.record.end();
        }
    }
}

/// Chains that were in flight when the ring started, and are not begun again yet.
#[derive(Default)]
pub(super) struct LeftOver {
    place: Option<Place>,
    heads: VecDeque<u16>,
}

impl LeftOver {
    fn next(&mut self) -> Option<(Place, u16)> {
        Some((self.place?, self.heads.pop_front()?))
    }

    pub(super) fn len(&self) -> usize {
        self.heads.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }
}

/// A ring as it is.
fn look_at(queue: &Queue, memory: &Memory) -> Result<Ring, Error> {
    let (table, size) = (queue.desc_table(), queue.size());
    let place = Place {
        size,
        table,
        avail: queue.avail_ring(),
        used: queue.used_ring(),
        memory: file_at(memory, table),
    };
    let used_index = queue.used_idx(memory, Ordering::Acquire)?.0;
    let waiting = queue.avail_idx(memory, Ordering::Acquire)?.0.wrapping_sub(used_index);
    // More than fit: a broken ring, which nothing on record is of.
    let waiting = if waiting > size { 0 } else { waiting };
    let head = |ahead: u16| {
        let slot = u64::from(used_index.wrapping_add(ahead) % size.max(1));
        let at = place.avail.checked_add(AVAIL_HEADER + slot * AVAIL_ENTRY).ok_or(Error::AddressOverflow)?;
        memory.read_obj::<u16>(GuestAddress(at)).map(u16::from_le).map_err(Error::GuestMemory)
    };
    let offered = (0..waiting).map(head).collect::<Result<_, _>>()?;
    Ok(Ring { place, used_index, next_avail: queue.next_avail(), offered })
}

/// The descriptors of a chain that isn't in the available ring any more, as the library would follow them.
struct Walk<'a> {
    memory: &'a Memory,
    table: u64,
    size: u32,
    next: u32,
    left: u32,
    indirect: bool,
    bytes: u32,
}

impl<'a> Walk<'a> {
    fn new(memory: &'a Memory, place: &Place, head: u16) -> Self {
        let size = place.size.into();
        Self { memory, table: place.table, size, next: head.into(), left: size, indirect: false, bytes: 0 }
    }

    fn read(&self) -> Option<Descriptor> {
        let at = self.table.checked_add(u64::from(self.next) * DESCRIPTOR)?;
        (self.left > 0 && self.next < self.size).then(|| self.memory.read_obj(GuestAddress(at)).ok())?
    }

    /// Goes on in an indirect table, of which there may be one in a chain.
    fn enter(&mut self, table: Descriptor) -> Option<()> {
        let size = table.len() / DESCRIPTOR as u32;
        if self.indirect || !table.len().is_multiple_of(DESCRIPTOR as u32) || size > u16::MAX.into() {
            return None;
        }
        (self.table, self.size, self.next, self.left, self.indirect) = (table.addr().0, size, 0, size, true);
        Some(())
    }
}

impl Iterator for Walk<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.read()?;
        if descriptor.refers_to_indirect_table() {
            self.enter(descriptor)?;
            descriptor = self.read().filter(|descriptor| !descriptor.refers_to_indirect_table())?;
        }
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        self.left = if descriptor.has_next() { self.left - 1 } else { 0 };
        self.next = descriptor.next().into();
        Some(descriptor)
    }
}
