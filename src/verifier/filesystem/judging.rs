//! The verdict on a super block write: what it is, what it commits, what is reported of it, and what the policy makes of
//! that. Carrying it out is the gate's affair.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parser::SuperBlock;
use shadow::classify::ReattachReason;
use shadow::{BlockSource, Code, CommitReport, Forest, Severity, SuperChange, Verdict, Verifier, classify};

use super::FileSystem;
use super::guarding::{GuestWrites, Proposed};
use crate::capture::{FailedWrites, PRIMARY_SUPER, Root, SUPER_SIZE};
use crate::check::{self, ImageData};
use crate::events::{Commit, CommitKind, Event, Resolution};
use crate::image::Image;
use crate::policy::Policy;
use crate::verifier::fate::{Fate, Judged};

/// Reasons that are given for the fate of a commit.
const WHY_LIMIT: usize = 16;

/// Commits that are verified in vain ahead of their super block before only each of so many is.
const IN_VAIN: u64 = 8;

impl FileSystem {
    /// A write that touches the primary super block: verifies what it commits, and says what is to become of it.
    pub fn judge(&mut self, offset: u64, bytes: &[u8], submitted: Instant) -> Judged {
        if self.unread.is_some() {
            self.open("readable again");
        }
        // A part of a super block, where the rest can't be read.
        let Ok(next) = self.overlay(PRIMARY_SUPER, offset, bytes) else {
            return Judged::no_commit(Fate::Write);
        };
        let last = self.verifier.snapshot().map(|snapshot| snapshot.superblock.clone());
        let change = classify(last.as_deref().and_then(|last| SuperBlock::parse(last).ok()).as_ref(), &next);
        match change {
            SuperChange::Commit => self.commit(CommitKind::Transaction, &next, submitted, false),
            SuperChange::LogCommit => self.commit(CommitKind::Log, &next, submitted, false),
            SuperChange::Rewrite => Judged::no_commit(Fate::Write),
            SuperChange::Reattach(ReattachReason::GenerationGap) if self.builds_on_refused(&next) => {
                self.commit(CommitKind::Transaction, &next, submitted, true)
            }
            SuperChange::Reattach(reason) => {
                self.follow(reason, &next, submitted);
                Judged::no_commit(Fate::Write)
            }
            SuperChange::Gone => {
                self.detach();
                Judged::no_commit(Fate::Write)
            }
            SuperChange::Invalid => Judged::no_commit(self.invalid(&next, bytes.len() as u64 >= SUPER_SIZE)),
        }
    }

    /// A super block that nothing can be mounted with, over one that is good.
    fn invalid(&mut self, superblock: &[u8], whole: bool) -> Fate {
        if self.verifier.snapshot().is_some() {
            self.notice("a super block with a wrong checksum or impossible fields was written");
            // A tool that writes a sector at a time may yet come to the rest of it.
            if whole {
                let counts = self.verifier.rules().is_error(Code::TreeSuperBlock);
                let refused = counts && self.shared.policy.may_refuse();
                self.invalid_super(superblock, refused);
                if refused {
                    return Fate::Refuse;
                }
            }
        }
        self.detach();
        Fate::Write
    }

    /// Whether a super block, after commits that were refused, goes on from them as if they had been written.
    fn builds_on_refused(&self, superblock: &[u8]) -> bool {
        let generation = |bytes: &[u8]| SuperBlock::parse(bytes).map_or(0, |view| view.generation());
        let last = self.verifier.snapshot().map_or(0, |snapshot| snapshot.generation);
        self.refused.is_some() && generation(superblock) > last
    }

    /// `over_refusal`: the guest goes on from a commit that was refused, which no stock guest does.
    fn commit(
        &mut self,
        kind: CommitKind,
        superblock: &[u8],
        submitted: Instant,
        over_refusal: bool,
    ) -> Judged {
        self.tell_unguarded();
        let copies = if kind == CommitKind::Transaction { self.super_copies(superblock) } else { Vec::new() };
        // A super block that came while its commit was still being verified has waited for that.
        let waited = self.foreseen.take().is_some_and(|ended| ended > submitted);
        let started = if waited { submitted } else { Instant::now() };
        let source = GuestWrites { shared: &self.shared };
        let mut report = match kind {
            CommitKind::Transaction if self.verify_data => {
                commit_with_data(&mut self.verifier, superblock, &source, &self.image, &self.shared.failed)
            }
            CommitKind::Transaction => self.verifier.commit(superblock, &source),
            CommitKind::Log => self.verifier.log_commit(superblock, &source),
        };
        if kind == CommitKind::Transaction && self.verifier.was_foreseen() {
            self.in_vain = 0;
        }
        copies.into_iter().for_each(|violation| report.push(violation));
        let verify = started.elapsed();
        let fate = self.fate(report.verdict(), over_refusal);
        let why = report.violations.iter().filter(|found| found.severity == Severity::Error);
        let why = why.map(ToString::to_string).chain(report.unverified.iter().cloned());
        let judged = Judged {
            fate,
            commit: Some(kind),
            generation: report.generation,
            why: why.take(WHY_LIMIT).collect(),
        };
        self.proposed = Some(Proposed::new(kind, &mut report));
        self.report(kind, report, verify, submitted, fate);
        if fate == Fate::Write {
            self.accept(kind);
        }
        judged
    }

    /// The guest flushes, and may be about to commit this root: while it waits for the flush, the commit is verified.
    pub fn foresee(&mut self, root: Root) {
        self.in_vain += 1;
        // Where there is something to say about every commit, each would be verified twice.
        if self.in_vain > IN_VAIN && !self.in_vain.is_multiple_of(IN_VAIN) {
            return;
        }
        let source = GuestWrites { shared: &self.shared };
        self.verifier.foresee(root, &source);
        self.foreseen = Some(Instant::now());
    }

    /// The commit that was judged last is going to be written.
    pub fn accept(&mut self, kind: CommitKind) {
        self.verifier.settle();
        self.guard_commit();
        if kind == CommitKind::Transaction {
            self.refused = None;
            self.publish_regions();
        }
        if self.verifier.snapshot().is_none() {
            self.notice(
                "the new trees can't be read: verification goes on with the next super block that can be",
            );
        }
    }

    /// What the policy makes of a verdict.
    fn fate(&self, verdict: Verdict, over_refusal: bool) -> Fate {
        let refuse = match verdict {
            Verdict::Clean => false,
            Verdict::Violations => true,
            // What can't be verified is let through, or a file system of which not all is covered could never commit.
            Verdict::Unverified => over_refusal,
        };
        match self.shared.policy {
            Policy::Reject | Policy::Stop if refuse => Fate::Refuse,
            Policy::Pause if refuse => Fate::Pause,
            _ => Fate::Write,
        }
    }

    pub(super) fn report(
        &mut self,
        kind: CommitKind,
        report: CommitReport,
        verify: Duration,
        submitted: Instant,
        fate: Fate,
    ) {
        let commit = Commit {
            fsid: self.fsid,
            kind,
            tree_blocks_written: self.shared.counters.take_tree_blocks(),
            report,
            verify,
            hold: submitted.elapsed(),
            policy: fate.name(),
        };
        self.ledger.commit(kind, &commit.report);
        self.commits += 1;
        self.violations += commit.report.suppressed;
        self.sinks.emit(&Event::Commit(&commit));
        for violation in &commit.report.violations {
            self.violation(commit.report.generation, "commit", violation);
        }
    }

    pub(super) fn violation(&mut self, generation: u64, origin: &'static str, violation: &shadow::Violation) {
        let event = Event::Violation { fsid: self.fsid, generation, origin, violation };
        self.violations += u64::from(violation.severity == Severity::Error);
        self.ledger.violation(violation, &event);
        self.sinks.emit(&event);
    }

    /// A paused commit was decided on.
    pub fn resolved(&mut self, judged: &Judged, written: bool, by: &'static str, paused: Duration) {
        let Some(kind) = judged.commit else { return };
        let policy = if written { Fate::Write } else { Fate::Refuse }.name();
        let (fsid, generation) = (self.fsid, judged.generation);
        self.sinks.emit(&Event::Resolution(&Resolution { fsid, generation, kind, policy, by, paused }));
        if written {
            self.accept(kind);
        }
    }
}

/// Verifies a commit and the file data that has checksums since.
fn commit_with_data(
    verifier: &mut Verifier,
    superblock: &[u8],
    source: &dyn BlockSource,
    image: &Arc<dyn Image>,
    failed: &FailedWrites,
) -> CommitReport {
    let old = verifier.snapshot().cloned();
    let mut report = verifier.commit(superblock, source);
    if let (Some(old), Some(new)) = (&old, verifier.snapshot())
        && verifier.coverage().is_whole()
    {
        let (old, new) = (Forest::new(old, source), Forest::new(new, source));
        let data = ImageData::new(image.as_ref(), &new.snapshot.geometry).without(failed);
        let found = check::verify_fresh(old, new, &data);
        found.violations.into_iter().for_each(|violation| report.push(violation));
        report.unverified.extend(found.unknown);
    }
    report
}
