//! Held super block writes: each is judged, and then written, refused, or left unanswered until somebody decides.
//!
//! Everything else that arrives at the verifier's thread passes through here too, so that it waits its turn while a
//! commit is undecided. Knows nothing of what makes a commit good or bad.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use parser::superblock::OFFSETS;

use crate::capture::{HeldWrite, Message, PRIMARY_SUPER};
use crate::control::{Request, Response};
use crate::device::StopHandle;
use crate::monitor::{Monitor, MonitorNews};
use crate::policy::Policy;
use crate::tap::Draining;
use crate::verifier::fate::{CopyFate, Fate, Judged};
use crate::verifier::filesystem::FileSystem;
use crate::verifier::status::{self, PausedStatus};

/// How long a write of a super block's copy waits for that of the primary one. The guest submits them together; a
/// copy whose primary does not come is refused, which costs the guest a line in its log.
pub const COPY_PATIENCE: Duration = Duration::from_secs(10);

/// Decides on held writes.
pub struct Gate {
    filesystem: FileSystem,
    policy: Policy,
    stop: Option<StopHandle>,
    monitor: Option<Monitor>,
    copies: Vec<(HeldWrite, u64)>,
    /// Where a copy of the commit that was refused last has yet to come: one each, for the next attempt has the same
    /// generation.
    due: Vec<u64>,
    paused: Option<Paused>,
    /// What came while a commit was paused and has to wait for it.
    waiting: VecDeque<Message>,
    /// Nothing is written any more: the policy is to stop, and there was a reason to.
    stopped: bool,
}

/// A commit that is not decided.
struct Paused {
    write: HeldWrite,
    judged: Judged,
    since: Instant,
    since_clock: SystemTime,
    /// The device waits for it; the virtual machine was stopped because of it.
    awaited: bool,
}

impl Gate {
    /// A gate before `filesystem`. `stop` is given when the policy says so, or `ctl stop`.
    #[must_use]
    pub fn new(
        filesystem: FileSystem,
        policy: Policy,
        stop: Option<StopHandle>,
        monitor: Option<Monitor>,
    ) -> Self {
        Gate {
            filesystem,
            policy,
            stop,
            monitor,
            copies: Vec::new(),
            due: Vec::new(),
            paused: None,
            waiting: VecDeque::new(),
            stopped: false,
        }
    }

    /// When [`Self::expire`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let waits = self.paused.is_none();
        let oldest = self.copies.iter().map(|(write, _)| write.submitted).min().filter(|_| waits);
        let late = oldest.map(|oldest| oldest + COPY_PATIENCE);
        late.into_iter().chain(self.filesystem.retry_at()).min()
    }

    /// Takes a message.
    pub fn take(&mut self, message: Message) {
        match message {
            Message::SuperWrite(write) => self.held(write),
            Message::Foresee(root) if self.paused.is_none() => self.filesystem.foresee(root),
            Message::Foresee(_) => {}
            Message::Draining(why) => self.draining(why),
            Message::Control(request, reply) => {
                // Whoever asked may have lost patience.
                let _ = reply.send(self.control(request));
            }
            Message::Monitor(news) => self.monitor_news(news),
            Message::Harm(incident, refused) => self.filesystem.harm(*incident, refused),
            Message::NotFlushed(violation) => self.filesystem.not_flushed(*violation),
            Message::SuperErased if self.paused.is_some() => self.waiting.push_back(message),
            Message::SuperErased => self.filesystem.super_erased(),
            Message::Audited(_) if self.paused.is_some() => self.waiting.push_back(message),
            Message::Audited(audited) => self.filesystem.audited(audited),
            // What is guarded is made from the last commit, which must be one.
            Message::Resized(..) if self.paused.is_some() => self.waiting.push_back(message),
            Message::Resized(before, now) => self.filesystem.resized(before, now),
            Message::Interrupted => self.filesystem.guard_log(),
            Message::Connected => {
                self.due.clear();
                self.filesystem.connected();
            }
            Message::Disconnected => self.filesystem.disconnected(),
            Message::Finish => {}
        }
    }

    /// Whether an audit in the background is not done yet.
    #[must_use]
    pub fn audit_pending(&self) -> bool {
        self.filesystem.audit_pending()
    }

    /// Ends it all.
    pub fn finish(mut self) -> super::Summary {
        self.settle_all("the end of the program");
        self.filesystem.finish()
    }

    /// Refuses the copies whose primary super block did not come, and tries again to write events.
    pub fn expire(&mut self, now: Instant) {
        self.filesystem.retry_events(now);
        if self.paused.is_some() {
            return;
        }
        let late = |write: &HeldWrite| now.saturating_duration_since(write.submitted) >= COPY_PATIENCE;
        let held = std::mem::take(&mut self.copies);
        let (late, rest): (Vec<_>, Vec<_>) = held.into_iter().partition(|(write, _)| late(write));
        self.copies = rest;
        for (write, place) in late {
            self.filesystem.notice(&format!(
                "a copy of a super block at {place} was refused: the primary one did not come"
            ));
            self.filesystem.copy_missed();
            refuse(write);
        }
    }

    fn held(&mut self, write: HeldWrite) {
        let copy = OFFSETS[1..].iter().copied().find(|place| write.touches(*place));
        match copy {
            Some(place) if !write.touches(PRIMARY_SUPER) => {
                self.copies.push((write, place));
                self.review_copies();
            }
            _ if self.paused.is_some() => self.waiting.push_back(Message::SuperWrite(write)),
            _ => self.primary(write),
        }
    }

    fn primary(&mut self, write: HeldWrite) {
        if self.stopped {
            return refuse(write);
        }
        let judged = self.filesystem.judge(write.offset, &write.bytes, write.submitted);
        match judged.fate {
            Fate::Write => self.carry_out(write),
            Fate::Refuse => {
                self.turn_down(write);
                if self.policy == Policy::Stop {
                    self.stopped = true;
                    self.filesystem.notice("a commit was refused: serving ends, as the policy says");
                    self.end_serving();
                }
            }
            Fate::Pause => self.pause(write, judged),
        }
        self.review_copies();
    }

    fn carry_out(&mut self, write: HeldWrite) {
        let written = self.filesystem.write(write.offset, &write.bytes);
        (write.done)(written);
    }

    fn turn_down(&mut self, write: HeldWrite) {
        self.filesystem.refuse(write.offset, &write.bytes);
        self.due = OFFSETS[1..].to_vec();
        refuse(write);
    }

    fn pause(&mut self, write: HeldWrite, judged: Judged) {
        if let Some(monitor) = &self.monitor {
            monitor.stop();
        }
        let (since, since_clock) = (Instant::now(), SystemTime::now());
        self.paused = Some(Paused { write, judged, since, since_clock, awaited: false });
    }

    /// Decides on the paused commit, and goes on with what had to wait for it.
    fn resolve(&mut self, accept: bool, by: &'static str) {
        let Some(Paused { write, judged, since, .. }) = self.paused.take() else { return };
        self.filesystem.resolved(&judged, accept, by, since.elapsed());
        if accept {
            self.carry_out(write);
        } else {
            self.turn_down(write);
        }
        if let Some(monitor) = &self.monitor {
            monitor.go_on();
        }
        self.review_copies();
        while self.paused.is_none()
            && let Some(message) = self.waiting.pop_front()
        {
            self.take(message);
        }
    }

    /// Writes, refuses or keeps each copy, as things stand.
    fn review_copies(&mut self) {
        if self.paused.is_some() {
            return;
        }
        for (write, place) in std::mem::take(&mut self.copies) {
            let is_due = self.due.iter().position(|due| *due == place);
            match (self.filesystem.judge_copy(place, write.offset, &write.bytes), is_due) {
                _ if self.stopped => refuse(write),
                (CopyFate::Write, _) => {
                    let written = self.filesystem.write_copy(write.offset, &write.bytes);
                    (write.done)(written);
                }
                (CopyFate::OfRefused, Some(index)) => {
                    self.due.swap_remove(index);
                    refuse(write);
                }
                (CopyFate::OfRefused | CopyFate::Hold, _) => self.copies.push((write, place)),
            }
        }
    }

    /// The device waits for what is held. Where the virtual machine was stopped because of a paused commit, its rings
    /// are stopped for that very reason, and the commit stays paused.
    fn draining(&mut self, why: Draining) {
        let stopped_by_us = self.monitor.as_ref().is_some_and(Monitor::has_stopped);
        match (why, &mut self.paused) {
            (Draining::Ring, Some(paused)) if stopped_by_us => paused.awaited = true,
            (Draining::Ring, _) => self.settle_all("the end of a ring"),
            (Draining::Session, _) => self.settle_all("the end of the session"),
        }
    }

    /// Refuses all that is held.
    fn settle_all(&mut self, by: &'static str) {
        while self.paused.is_some() {
            self.resolve(false, by);
        }
        for (write, _) in std::mem::take(&mut self.copies) {
            self.filesystem.copy_missed();
            refuse(write);
        }
    }

    fn monitor_news(&mut self, news: MonitorNews) {
        match news {
            MonitorNews::Said(message) => self.filesystem.notice(&message),
            MonitorNews::Gone => {
                // With nobody to stop the rings for, the device would wait for ever.
                if self.paused.as_ref().is_some_and(|paused| paused.awaited) {
                    self.settle_all("the end of the virtual machine");
                }
            }
        }
    }

    fn end_serving(&self) {
        if let Some(stop) = &self.stop {
            stop.trigger();
        }
    }

    fn control(&mut self, request: Request) -> Response {
        match request {
            Request::Status => Response::status(status::status(
                &self.filesystem,
                self.policy,
                self.paused.as_ref().map(Paused::status),
                self.copies.len(),
            )),
            Request::Violations => Response::violations(self.filesystem.recent_violations()),
            Request::Mark { name } => {
                self.filesystem.mark(&name);
                Response::ok()
            }
            Request::Resume | Request::Reject if self.paused.is_none() => {
                Response::error("no commit is paused")
            }
            Request::Resume => {
                self.resolve(true, "ctl");
                Response::ok()
            }
            Request::Reject => {
                self.resolve(false, "ctl");
                Response::ok()
            }
            Request::Stop => {
                self.end_serving();
                Response::ok()
            }
        }
    }
}

impl Paused {
    fn status(&self) -> PausedStatus<'_> {
        PausedStatus { judged: &self.judged, paused: self.since.elapsed(), since: self.since_clock }
    }
}

fn refuse(write: HeldWrite) {
    (write.done)(Err(io::Error::other("refused: the commit violates a rule, or its fate is not known")));
}
