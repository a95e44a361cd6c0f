//! Takes requests off the ring, as long as there are any and as many as may be in flight. What becomes of them is none of
//! its business.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost_user_backend::VringT as _;
use virtio_queue::{DescriptorChain, QueueOwnedT as _, QueueT as _};
use vm_memory::GuestAddressSpace as _;

use super::{Vring, Worker, on_live_ring};
use crate::device::Memory;
use crate::device::chain;
use crate::device::limits::{BATCH, BATCH_BYTES};
use crate::device::request::Request;
use crate::tap::Erase;

impl Worker {
    /// Takes requests, and sees to what becomes of them, until there is nothing to do or the turn is over.
    pub(super) fn serve(&mut self, vring: &Vring) {
        let mut announced = false;
        loop {
            // Without it there is only a kick too many.
            let _ = on_live_ring(vring, |state| state.disable_notification());
            self.reap();
            self.begin_left_over();
            let taken_any = self.take_all(vring);
            self.signal();
            // A ring that announces requests but yields none is broken; asking again would never end.
            if announced && !taken_any || self.must_wait(vring) {
                return;
            }
            if self.look_out(vring) {
                announced = self.ring_has_requests(vring);
                continue;
            }
            match on_live_ring(vring, |state| state.enable_notification()) {
                Some(Ok(true)) => announced = true,
                Some(Ok(false)) | None => return,
                Some(Err(error)) => return self.complain(format_args!("ring is not accessible: {error}")),
            }
        }
    }

    /// Looks for something to do for a little while: sleeping and being woken costs more. False if nothing came.
    fn look_out(&mut self, vring: &Vring) -> bool {
        let Some(mut look) = self.poll.begin() else { return false };
        while look.goes_on() {
            if self.engine.has_completions() || self.answers.any() || self.ring_has_requests(vring) {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    fn ring_has_requests(&self, vring: &Vring) -> bool {
        let memory = self.shared.memory.memory();
        let waiting = on_live_ring(vring, |state| {
            let queue = state.get_queue();
            queue.avail_idx(&*memory, Ordering::Acquire).is_ok_and(|index| index.0 != queue.next_avail())
        });
        waiting == Some(true)
    }

    /// Takes requests until there are none, or none may be taken; whether there were any.
    fn take_all(&mut self, vring: &Vring) -> bool {
        let mut taken_any = false;
        while !self.must_wait(vring) {
            let (taken, there_is_more) = self.take_batch(vring);
            self.engine.submit();
            self.reap();
            self.signal();
            taken_any |= taken != 0;
            if !there_is_more {
                break;
            }
        }
        taken_any
    }

    /// Whether no request may be taken now.
    fn must_wait(&mut self, vring: &Vring) -> bool {
        self.shared.closing.load(Ordering::Acquire)
            || !self.left_over.is_empty()
            || self.turn == 0
            || self.is_full(vring)
            || self.is_throttled()
    }

    /// Whether the guest has to wait: for its own sake the ring can't have more requests in flight than it has
    /// descriptors, and copies take memory: a guest can make much of little by naming the same memory again and again.
    fn is_full(&self, vring: &Vring) -> bool {
        self.pending.len() >= usize::from(vring.get_ref().get_queue().size()) || self.copies.are_many()
    }

    /// Whether the guest has asked for as much as it may. The queue is woken when it may ask again.
    fn is_throttled(&mut self) -> bool {
        let (Some(throttle), Some(alarm)) = (&self.shared.throttle, &mut self.alarm) else { return false };
        let wait = throttle.wait();
        if wait.is_zero() {
            return false;
        }
        alarm.set(wait);
        true
    }

    /// How many were taken, and whether there may be more.
    fn take_batch(&mut self, vring: &Vring) -> (usize, bool) {
        let mut bytes = 0;
        for taken in 0..BATCH {
            if bytes >= BATCH_BYTES {
                return (taken, true);
            }
            if self.turn == 0 || self.copies.are_many() || self.is_throttled() {
                return (taken, false);
            }
            let memory = self.shared.memory.memory().into_inner();
            let Some(chain) = self.pop(vring, &memory) else { return (taken, false) };
            self.turn -= 1;
            let head = chain.head_index();
            let parsed = chain::parse(chain, &memory, self.shared.disk());
            bytes += parsed.request.as_ref().map_or(0, Request::transferred);
            self.record.taken(head, parsed.fingerprint);
            self.start(head, parsed, memory);
        }
        (BATCH, true)
    }

    fn pop(&mut self, vring: &Vring, memory: &Arc<Memory>) -> Option<DescriptorChain<Arc<Memory>>> {
        let next = on_live_ring(vring, |state| {
            state.get_queue_mut().iter(memory.clone()).map(|mut available| available.next())
        })?;
        next.unwrap_or_else(|error| {
            self.complain(format_args!("broken ring: {error}"));
            None
        })
    }

    /// A request was taken: what it costs. Zeros may have to be written, byte for byte; a range that is only given back
    /// isn't. What is refused is a request all the same.
    pub(super) fn pay(&self, request: Option<&Request>) {
        let Some(throttle) = &self.shared.throttle else { return };
        match request {
            Some(request @ (Request::Read { .. } | Request::Write { .. })) => {
                throttle.put(request.transferred() as u64);
            }
            Some(Request::Erase { kind: Erase::Zeroes { .. }, ranges }) => {
                throttle.put(ranges.iter().map(|(_, len)| len).sum());
            }
            Some(Request::Erase { kind: Erase::Discard, .. }) | None => throttle.put(0),
            Some(Request::Flush | Request::GetId { .. }) => {}
        }
    }
}
