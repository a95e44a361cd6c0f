//! Answers requests: in guest memory, in the ring and on record, in the order that lets a process end in between. Doesn't
//! know what was asked for.

use std::sync::atomic::Ordering;

use vhost_user_backend::VringT as _;
use vm_memory::Bytes as _;

use super::Worker;
use crate::device::in_flight::{Pending, Stage};

impl Worker {
    /// Answers a request in flight; `len` bytes of data were written into guest memory.
    pub(super) fn finish(&mut self, token: u64, status: u8, len: u32) {
        // A request that was answered after a panic may still get a completion.
        if let Some(pending) = self.pending.remove(token) {
            if let Stage::Held { len } = pending.stage {
                self.held_bytes -= len;
            }
            self.copies.give_back(pending.copied);
            self.answer(pending, status, len);
        }
    }

    pub(super) fn answer(&mut self, pending: Pending, status: u8, len: u32) {
        if self.shared.abandoned.load(Ordering::Acquire) {
            return;
        }
        let Some(vring) = &self.vring else { return };
        let told = pending.status.is_some_and(|addr| pending.memory.write_obj(status, addr).is_ok());
        let used = if told { len.saturating_add(1) } else { 0 };
        self.record.answering(pending.head);
        match vring.add_used(pending.head, used) {
            Ok(()) => {
                self.record.answered(pending.head);
                self.unsignalled = true;
            }
            Err(error) => self.complain(format_args!("cannot answer a request: {error}")),
        }
    }

    /// Tells the guest about answers, unless it doesn't want to know.
    pub(super) fn signal(&mut self) {
        if !std::mem::take(&mut self.unsignalled) || self.shared.abandoned.load(Ordering::Acquire) {
            return;
        }
        let Some(vring) = &self.vring else { return };
        if vring.needs_notification().unwrap_or(true)
            && let Err(error) = vring.signal_used_queue()
        {
            self.complain(format_args!("cannot notify the guest: {error}"));
        }
    }
}
