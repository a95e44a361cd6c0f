//! One queue: takes requests off its ring, has them carried out, and answers them.
//!
//! A worker is driven by its thread; the session's main thread takes its place only to wait until nothing is in
//! flight any more. Both do so under the worker's lock, so each step here has the queue to itself.
//!
//! Here is what a queue is made of and how it is driven; what it does is in the order of a request's way in `taking`,
//! `beginning`, `ending` and `answering`, and `resume` is for a ring that was left by another session or process.

mod answering;
mod beginning;
mod budget;
mod ending;
mod resume;
mod taking;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::warn;
use vhost_user_backend::{VringState, VringT as _};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use virtio_queue::QueueT;

use super::copies::Copies;
use super::held::Answers;
use super::in_flight::{InFlight, Stage};
use super::inflight::QueueRecord;
use super::poll::Poll;
use super::shared::Shared;
use super::stop::wait_readable;
use super::throttle::Alarm;
use super::{MemorySpace, Vring};
use crate::engine::Engine;
use crate::tap::Draining;
use budget::Budget;
use resume::LeftOver;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;

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

    fn set_stage(&mut self, token: u64, stage: Stage) {
        if let Some(pending) = self.pending.get_mut(token) {
            pending.stage = stage;
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

/// Does `step` if the ring may be used at all. It is looked at under the ring's lock, so that once a ring has been
/// stopped nothing is taken from it and nothing is written to where it was.
fn on_live_ring<R>(vring: &Vring, step: impl FnOnce(&mut VringState<MemorySpace>) -> R) -> Option<R> {
    let mut state = vring.get_mut();
    (state.is_enabled() && state.get_queue().ready()).then(|| step(&mut state))
}
