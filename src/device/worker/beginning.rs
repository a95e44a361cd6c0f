//! Begins what a request asks for: of the engine, of the tap, or on the spot. Nothing here waits, and nothing
//! knows of rings.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::error;

use super::{IOERR, OK, Worker};
use crate::device::Memory;
use crate::device::chain::Parsed;
use crate::device::in_flight::{Pending, Stage};
use crate::device::limits::MAX_COPY;
use crate::device::request::{Refusal, Request};
use crate::engine::{Buffer, SharedSlices};
use crate::tap::{CopyFate, Erase, WritePlan};

impl Worker {
    /// A request is in flight from now on.
    pub(super) fn start(&mut self, head: u16, parsed: Parsed, memory: Arc<Memory>) {
        let pending = Pending {
            head,
            memory,
            status: parsed.status,
            stage: Stage::New,
            copied: 0,
            erasing: Vec::new(),
        };
        self.pay(parsed.request.as_ref().ok());
        match parsed.request {
            Err(refusal) => {
                if let Refusal::Malformed(reason) = refusal {
                    self.complain(format_args!("refused a request: {reason}"));
                }
                self.answer(pending, refusal.status(), 0);
            }
            Ok(request) => {
                let token = self.pending.insert(pending);
                if self.guarded(|worker| worker.carry_out(token, request)).is_none() {
                    self.finish(token, IOERR, 0);
                }
            }
        }
    }

    fn carry_out(&mut self, token: u64, request: Request) {
        match request {
            Request::Read { data, .. } | Request::Write { data, .. } if data.is_empty() => {
                self.finish(token, OK, 0);
            }
            Request::Read { offset, data } => {
                // A chain is shorter than 4 GiB.
                self.set_stage(token, Stage::Read { len: data.len() as u32 });
                self.engine.read_vectored(offset, Buffer::Shared(data), token);
            }
            Request::Write { offset, data } => self.write(token, offset, data),
            Request::Flush => self.flush(token),
            Request::Erase { kind, ranges } => self.erase(token, kind, ranges),
            Request::GetId { mut data } => {
                let filled = data.fill(&self.shared.serial);
                self.finish(token, OK, filled as u32);
            }
        }
    }

    fn write(&mut self, token: u64, offset: u64, data: SharedSlices) {
        let len = data.len() as u64;
        let plan = self.shared.tap.plan(offset, len);
        if plan == WritePlan::Direct {
            self.set_stage(token, Stage::Write { offset, len });
            return self.engine.write_vectored(offset, Buffer::Shared(data), token);
        }
        self.write_copy(token, offset, data, plan);
    }

    /// The tap sees the bytes before anybody else does.
    fn write_copy(&mut self, token: u64, offset: u64, data: SharedSlices, plan: WritePlan) {
        let (tap, len) = (self.shared.tap.clone(), data.len());
        if len > MAX_COPY {
            self.complain(format_args!("refused a write of {len} bytes that has to be copied"));
            return self.finish(token, IOERR, 0);
        }
        if let Some(pending) = self.pending.get_mut(token) {
            pending.copied = len;
            self.copies.add(len);
        }
        let mut bytes = data.to_vec();
        let fate = tap.copied(offset, &mut bytes);
        // The rest of the request was checked against the disk's size for this length.
        bytes.truncate(len);
        match (fate, plan) {
            (CopyFate::Lose, _) => self.finish(token, OK, 0),
            (CopyFate::Refuse, _) => self.finish(token, IOERR, 0),
            (CopyFate::Write, WritePlan::Hold) => {
                self.held_bytes += len;
                self.set_stage(token, Stage::Held { len });
                tap.hold(offset, bytes, self.answers.callback(token));
            }
            (CopyFate::Write, _) => {
                self.set_stage(token, Stage::Write { offset, len: len as u64 });
                self.engine.write_vectored(offset, Buffer::Owned(bytes), token);
            }
        }
    }

    /// Makes durable what was written before; that ends the request.
    pub(super) fn flush(&mut self, token: u64) {
        if self.shared.flush_failed.load(Ordering::Acquire) {
            return self.flush_failed(token);
        }
        let begun = self.shared.tap.flush_begins();
        self.set_stage(token, Stage::Flush { begun });
        self.engine.flush(token);
    }

    /// After a flush that failed the kernel may take for written what is not, and the next one would succeed: so none
    /// does any more. The guest must not be told that something is durable that can be lost.
    pub(super) fn flush_failed(&mut self, token: u64) {
        if !self.shared.flush_failed.swap(true, Ordering::AcqRel) {
            error!(
                "a flush failed: what was written before may be lost; every flush fails until the next start"
            );
        }
        self.shared.tap.flush_failed();
        self.finish(token, IOERR, 0);
    }

    fn erase(&mut self, token: u64, kind: Erase, ranges: Vec<(u64, u64)>) {
        let tap = self.shared.tap.clone();
        // All are asked about: what is said must not depend on which comes first.
        let refused = ranges.iter().filter(|(offset, len)| !tap.erases(kind, *offset, *len)).count();
        if refused != 0 {
            return self.finish(token, IOERR, 0);
        }
        self.set_stage(token, Stage::Erase { left: ranges.len(), failed: false });
        for &(offset, len) in &ranges {
            self.engine.erase(kind, offset, len, token);
        }
        if let Some(pending) = self.pending.get_mut(token) {
            pending.erasing = ranges;
        }
    }
}
