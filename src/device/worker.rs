//! One queue: takes requests off its ring, has them carried out, and answers them.
//!
//! A worker is driven by its thread; the session's main thread takes its place only to wait until nothing is in
//! flight any more. Both do so under the worker's lock, so each step here has the queue to itself.

mod resume;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tracing::{error, warn};
use vhost_user_backend::{VringState, VringT};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddressSpace};

use super::chain::{self, Disk, Parsed, Refusal, Request};
use super::copies::Copies;
use super::held::Answers;
use super::in_flight::{InFlight, Pending, Stage};
use super::inflight::{QueueRecord, Record};
use super::limits::{BATCH, BATCH_BYTES, MAX_COMPLAINTS, MAX_COPY};
use super::poll::Poll;
use super::size::Size;
use super::stop::wait_readable;
use super::throttle::{Alarm, Throttle};
use super::write_cache::WriteCache;
use super::{Memory, MemorySpace, Vring};
use crate::engine::{Buffer, Completion, Engine, SharedSlices};
use crate::tap::{CopyFate, Draining, Erase, Tap, WritePlan};
use resume::LeftOver;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;

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

/// The state of one queue.
pub(super) struct Worker {
    queue: usize,
    shared: Arc<Shared>,
    engine: Box<dyn Engine>,
    answers: Arc<Answers>,
    /// Goes off when the throttle lets the queue go on.
    alarm: Option<Alarm>,
    /// Known once the ring has been used.
    vring: Option<Vring>,
    /// What is in flight, for whoever comes after this session.
    record: QueueRecord,
    /// The ring has been taken up where it was left.
    resumed: bool,
    /// What was in flight then and has yet to be begun again.
    left_over: LeftOver,
    pending: InFlight,
    poll: Poll,
    held_bytes: usize,
    /// Of requests in flight, those held among them.
    copies: Copies,
    /// Requests that may still be taken in this turn.
    turn: usize,
    unsignalled: bool,
    /// What the guest does wrong.
    complaints: Budget,
    /// What goes wrong on our side. Apart, so that a guest can't hide it.
    failures: Budget,
}

impl Worker {
    pub(super) fn new(
        queue: usize,
        shared: Arc<Shared>,
        engine: Box<dyn Engine>,
        record: QueueRecord,
    ) -> io::Result<Self> {
        let poll = shared.poll;
        let copies = Copies::new(shared.copied.clone());
        let alarm = shared.throttle.as_ref().map(|_| Alarm::new()).transpose()?;
        Ok(Self {
            queue,
            shared,
            engine,
            answers: Answers::new()?,
            alarm,
            vring: None,
            record,
            resumed: false,
            left_over: LeftOver::default(),
            pending: InFlight::default(),
            poll: Poll::new(poll),
            held_bytes: 0,
            copies,
            turn: 0,
            unsignalled: false,
            complaints: Budget::default(),
            failures: Budget::default(),
        })
    }

    /// Descriptors that are readable when [`Self::run`] has something to do besides the ring: answers, completions.
    pub(super) fn notifiers(&self) -> (RawFd, Option<RawFd>) {
        (self.answers.notifier(), self.engine.notifier().map(|fd| fd.as_raw_fd()))
    }

    /// Readable when the throttle lets the queue go on.
    pub(super) fn alarm(&self) -> Option<RawFd> {
        self.alarm.as_ref().map(Alarm::notifier)
    }

    /// Does everything there is to do, and what comes while it still looks, but no more than a turn. How many requests were
    /// taken from the ring.
    pub(super) fn run(&mut self, vring: &Vring) -> usize {
        self.turn = self.shared.turn;
        self.vring.get_or_insert_with(|| vring.clone());
        self.poll.awake();
        if let Some(alarm) = &mut self.alarm {
            alarm.reset();
        }
        self.resume(vring);
        self.serve(vring);
        self.signal();
        if self.turn == 0 {
            self.answers.call_back();
        }
        self.poll.asleep();
        self.shared.turn - self.turn
    }

    /// Requests that were taken and aren't answered yet.
    pub(super) fn in_flight(&self) -> usize {
        self.pending.len() + self.left_over.len()
    }

    /// Whether an answer waits, or the worker itself wants to be woken.
    pub(super) fn is_called_back(&self) -> bool {
        self.answers.any()
    }

    fn serve(&mut self, vring: &Vring) {
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

    /// Waits until nothing is in flight. The ring must have been stopped, or the session closed.
    pub(super) fn quiesce(&mut self, why: Draining) {
        if self.held_bytes > 0 {
            self.shared.tap.draining(why);
        }
        loop {
            self.reap();
            // Nobody would get the answers of an abandoned session; the next one begins them.
            if !self.shared.abandoned.load(Ordering::Acquire) && self.begin_left_over() {
                if self.held_bytes > 0 {
                    self.shared.tap.draining(why);
                }
                continue;
            }
            self.signal();
            if self.pending.is_empty() {
                return self.drained(why);
            }
            let (answers, engine) = self.notifiers();
            if let Err(error) = wait_readable(&[answers, engine.unwrap_or(-1)]) {
                // Can't happen with valid descriptors; going round again is all that can be done.
                warn!(queue = self.queue, %error, "cannot wait for requests in flight");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
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

    /// A request was taken: what it costs. Zeros may have to be written, byte for byte; a range that is only given back
    /// isn't. What is refused is a request all the same.
    fn pay(&self, request: Option<&Request>) {
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

    /// Whether the guest has to wait: for its own sake the ring can't have more requests in flight than it has
    /// descriptors, and copies take memory: a guest can make much of little by naming the same memory again and again.
    fn is_full(&self, vring: &Vring) -> bool {
        self.pending.len() >= usize::from(vring.get_ref().get_queue().size()) || self.copies.are_many()
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

    fn start(&mut self, head: u16, parsed: Parsed, memory: Arc<Memory>) {
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
        let tap = self.shared.tap.clone();
        let len = data.len();
        let stage = Stage::Write { offset, len: len as u64 };
        let plan = tap.plan(offset, len as u64);
        if plan == WritePlan::Direct {
            self.set_stage(token, stage);
            return self.engine.write_vectored(offset, Buffer::Shared(data), token);
        }
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
                self.set_stage(token, stage);
                self.engine.write_vectored(offset, Buffer::Owned(bytes), token);
            }
        }
    }

    fn flush(&mut self, token: u64) {
        if self.shared.flush_failed.load(Ordering::Acquire) {
            return self.flush_failed(token);
        }
        let begun = self.shared.tap.flush_begins();
        self.set_stage(token, Stage::Flush { begun });
        self.engine.flush(token);
    }

    /// After a flush that failed the kernel may take for written what is not, and the next one would succeed: so none
    /// does any more. The guest must not be told that something is durable that can be lost.
    fn flush_failed(&mut self, token: u64) {
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

    /// One range of a request is done; the last one ends it.
    fn erased(&mut self, token: u64, left: usize, failed: bool) {
        self.set_stage(token, Stage::Erase { left, failed });
        if left > 0 {
            return;
        }
        let ranges = self.pending.get_mut(token).map(|pending| std::mem::take(&mut pending.erasing));
        for (offset, len) in ranges.unwrap_or_default() {
            self.shared.tap.erased(offset, len);
        }
        if failed { self.finish(token, IOERR, 0) } else { self.written(token) }
    }

    /// Handles completions and answers until there are none.
    fn reap(&mut self) {
        let (mut completions, mut answers) = (Vec::new(), Vec::new());
        loop {
            self.engine.completions(&mut completions);
            self.answers.take(&mut answers);
            if completions.is_empty() && answers.is_empty() {
                return;
            }
            for completion in completions.drain(..) {
                let token = completion.token;
                if self.guarded(|worker| worker.completed(completion)).is_none() {
                    self.finish(token, IOERR, 0);
                }
            }
            for (token, result) in answers.drain(..) {
                self.answered(token, result);
            }
            // What was completed may have been followed up by a flush.
            self.engine.submit();
        }
    }

    fn completed(&mut self, completion: Completion) {
        let Completion { token, result, buffer } = completion;
        let Some(stage) = self.pending.get(token).map(|pending| pending.stage) else { return };
        if let Err(error) = &result {
            self.report_failure(format_args!("I/O error ({stage:?}): {error}"));
        }
        let tap = self.shared.tap.clone();
        match (stage, result, buffer) {
            (Stage::Read { len }, Ok(()), _) => self.finish(token, OK, len),
            (Stage::Write { offset, .. }, Ok(()), buffer) => {
                if let Some(Buffer::Owned(bytes)) = buffer {
                    tap.written(offset, bytes);
                }
                self.written(token);
            }
            (Stage::Write { offset, len }, Err(_), _) => {
                tap.write_failed(offset, len);
                self.finish(token, IOERR, 0);
            }
            (Stage::Flush { begun }, Ok(()), _) => {
                tap.flushed(begun);
                self.finish(token, OK, 0);
            }
            (Stage::Flush { .. }, Err(_), _) => self.flush_failed(token),
            (Stage::Erase { left, failed }, result, _) => {
                self.erased(token, left.saturating_sub(1), failed || result.is_err());
            }
            _ => self.finish(token, IOERR, 0),
        }
    }

    /// The tap has answered a held write.
    fn answered(&mut self, token: u64, result: io::Result<()>) {
        let Some(Stage::Held { len }) = self.pending.get(token).map(|pending| pending.stage) else { return };
        self.held_bytes -= len;
        self.set_stage(token, Stage::New);
        match result {
            Ok(()) => self.written(token),
            Err(error) => {
                self.report_failure(format_args!("a held write was not carried out: {error}"));
                self.finish(token, IOERR, 0);
            }
        }
    }

    fn written(&mut self, token: u64) {
        if self.shared.write_cache.is_write_through() {
            self.flush(token);
        } else {
            self.finish(token, OK, 0);
        }
    }

    fn set_stage(&mut self, token: u64, stage: Stage) {
        if let Some(pending) = self.pending.get_mut(token) {
            pending.stage = stage;
        }
    }

    /// Answers a request in flight; `len` bytes of data were written into guest memory.
    fn finish(&mut self, token: u64, status: u8, len: u32) {
        // A request that was answered after a panic may still get a completion.
        if let Some(pending) = self.pending.remove(token) {
            if let Stage::Held { len } = pending.stage {
                self.held_bytes -= len;
            }
            self.copies.give_back(pending.copied);
            self.answer(pending, status, len);
        }
    }

    fn answer(&mut self, pending: Pending, status: u8, len: u32) {
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
    fn signal(&mut self) {
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

    /// Runs what calls into the tap; a panic there costs one request, not the queue.
    fn guarded<R>(&mut self, step: impl FnOnce(&mut Self) -> R) -> Option<R> {
        let outcome = catch_unwind(AssertUnwindSafe(|| step(self))).ok();
        if outcome.is_none() {
            self.report_failure(format_args!("a request failed with a panic"));
        }
        outcome
    }

    fn complain(&mut self, what: fmt::Arguments<'_>) {
        self.complaints.warn(self.queue, what);
    }

    fn report_failure(&mut self, what: fmt::Arguments<'_>) {
        self.failures.warn(self.queue, what);
    }
}

/// Log lines that may still be written.
struct Budget(u32);

impl Default for Budget {
    fn default() -> Self {
        Self(MAX_COMPLAINTS)
    }
}

impl Budget {
    fn warn(&mut self, queue: usize, what: fmt::Arguments<'_>) {
        if self.0 > 0 {
            self.0 -= 1;
            let last = if self.0 == 0 { " (no more of these will be logged)" } else { "" };
            warn!(queue, "{what}{last}");
        }
    }
}

/// Does `step` if the ring may be used at all. It is looked at under the ring's lock, so that once a ring has been
/// stopped nothing is taken from it and nothing is written to where it was.
fn on_live_ring<R>(vring: &Vring, step: impl FnOnce(&mut VringState<MemorySpace>) -> R) -> Option<R> {
    let mut state = vring.get_mut();
    (state.is_enabled() && state.get_queue().ready()).then(|| step(&mut state))
}
