//! The file system on one disk: none, or one that is followed from commit to commit.
//!
//! mkfs in the guest, a new file system over the old one, a guest that unmounts and mounts again or is reset in the
//! middle of a commit are all normal life.

mod guarding;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parser::SuperBlock;
use serde_json::{Value, json};
use shadow::attach::{self, AttachError};
use shadow::classify::ReattachReason;
use shadow::forest::BlockProblem;
use shadow::{BlockSource, CommitReport, Forest, Severity, SuperChange, Verdict, Verifier, classify};

use crate::capture::{CaptureShared, FailedWrites, Message, PRIMARY_SUPER, Regions, Root, SUPER_SIZE};
use crate::check::{self, AuditReport, ImageData, ImageSource, NoProgress, audit};
use crate::events::{Attach, Commit, CommitKind, Event, Fsid, Resolution, Sinks, Untold};
use crate::image::Image;
use crate::policy::Policy;
use crate::verifier::VerifierOptions;
use crate::verifier::audit::{self as background, AuditMode, Audited};
use crate::verifier::fate::{CopyFate, Fate, Judged};
use crate::verifier::filesystem::guarding::{GuestWrites, Proposed};
use crate::verifier::ledger::{Ledger, Summary};

/// Reasons that are given for the fate of a commit.
const WHY_LIMIT: usize = 16;

/// Commits that are verified in vain ahead of their super block before only each of so many is.
const IN_VAIN: u64 = 8;

/// The file system on one disk.
pub struct FileSystem {
    image: Arc<dyn Image>,
    shared: Arc<CaptureShared>,
    sinks: Sinks,
    verifier: Verifier,
    ledger: Ledger,
    /// Name of the image, for people.
    disk: String,
    is_connected: bool,
    /// Commits and violations since attach.
    commits: u64,
    violations: u64,
    fsid: Fsid,
    audit: AuditMode,
    verify_data: bool,
    /// Which attachment this is, to tell a late audit from a current one.
    attachment: u64,
    /// Where an audit in the background sends its result.
    results: Sender<Message>,
    audit_running: bool,
    /// The super block that was refused last, until one is let through.
    refused: Option<Box<[u8]>>,
    /// A copy was not written since the last super block was.
    copy_missing: bool,
    /// What the guard must be told of the commit that was judged last.
    proposed: Option<Proposed>,
    /// The super block whose copies must be there when the next transaction is committed.
    copied: Option<Box<[u8]>>,
    /// What was reported about writes: the rule, and the address.
    harms: HashSet<(shadow::Code, u64)>,
    /// When the commit that is expected next was verified, ahead of its super block.
    foreseen: Option<Instant>,
    /// How often that was in vain since it last was not.
    in_vain: u64,
    /// What is on the disk could not be read, for this reason: tried again before the next super block is judged.
    unread: Option<String>,
}

impl FileSystem {
    /// Nothing is attached yet.
    #[must_use]
    pub fn new(
        image: Arc<dyn Image>,
        shared: Arc<CaptureShared>,
        sinks: Sinks,
        options: VerifierOptions,
        results: Sender<Message>,
    ) -> Self {
        let verifier = Verifier::new(options.shadow_memory).with_rules(options.rules);
        let verifier = verifier.revocable(shared.policy.may_refuse());
        FileSystem {
            image,
            shared,
            sinks,
            verifier,
            ledger: Ledger::default(),
            disk: options.disk,
            is_connected: false,
            commits: 0,
            violations: 0,
            fsid: Fsid::default(),
            audit: options.audit,
            verify_data: options.verify_data,
            attachment: 0,
            results,
            audit_running: false,
            refused: None,
            copy_missing: false,
            proposed: None,
            copied: None,
            harms: HashSet::new(),
            foreseen: None,
            in_vain: 0,
            unread: None,
        }
    }

    /// Opens whatever is on the image.
    pub fn open(&mut self, reason: &'static str) {
        if self.image.len() < PRIMARY_SUPER + SUPER_SIZE {
            let len = self.image.len();
            return self.notice(&format!("{len} bytes are too few for a btrfs: served, not verified"));
        }
        match self.read_super() {
            Ok(bytes) => match classify(None, &bytes) {
                SuperChange::Reattach(_) => return self.attach(&bytes, reason),
                SuperChange::Invalid => {
                    self.notice("there is a btrfs super block at 64 KiB, but its checksum or fields are wrong: served, not verified");
                }
                _ => self.notice("no btrfs on the disk yet: served, and watched for one"),
            },
            Err(error) => return self.could_not_read(format!("can't read a super block: {error}")),
        }
        self.unread = None;
    }

    /// The disk fails: nothing is known of what is on it. Said once for each reason.
    fn could_not_read(&mut self, reason: String) {
        if self.unread.as_ref() != Some(&reason) {
            self.ledger.summary.unverified += 1;
            self.notice(&format!("{reason}; served, not verified until it can be read"));
        }
        self.unread = Some(reason);
    }

    /// A frontend has connected. While none was, others may have written to the image.
    pub fn connected(&mut self) {
        self.is_connected = true;
        let Some(snapshot) = self.verifier.snapshot() else {
            match self.read_super().map(|bytes| classify(None, &bytes)) {
                Ok(SuperChange::Reattach(_)) | Err(_) if self.image.len() >= PRIMARY_SUPER + SUPER_SIZE => {
                    self.open("connect");
                }
                _ => {}
            }
            return;
        };
        let known = snapshot.superblock.clone();
        self.shared.cache.clear();
        match self.read_super() {
            Ok(bytes) if bytes == known => {
                self.verifier.snapshot().into_iter().for_each(|snapshot| self.shared.guard.resize(snapshot));
                self.guard_log();
            }
            Ok(_) => {
                self.notice("the image was changed while no frontend was connected");
                self.detach();
                self.open("changed while disconnected");
            }
            // It may have been changed or not: what is known of it can't be relied on.
            Err(error) => {
                self.detach();
                self.could_not_read(format!("can't read a super block: {error}"));
            }
        }
    }

    /// The frontend is gone.
    pub fn disconnected(&mut self) {
        self.is_connected = false;
    }

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
                self.invalid_super(superblock);
                if self.shared.policy.may_refuse() {
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

    /// Carries out a write of the primary super block that was let through.
    ///
    /// # Errors
    /// When the image can't be written.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let written = self.write_image(offset, bytes);
        match &written {
            Ok(()) => {
                self.guard_written();
                if std::mem::take(&mut self.copy_missing) {
                    self.shared.guard.miss();
                }
            }
            Err(error) => {
                self.notice(&format!("writing the super block failed: {error}"));
                self.detach();
                self.open("super block write failed");
            }
        }
        written
    }

    /// A write of the primary super block is refused: the commit before it stays the last one.
    pub fn refuse(&mut self, offset: u64, bytes: &[u8]) {
        self.verifier.revoke();
        self.proposed = None;
        self.refused = self.overlay(PRIMARY_SUPER, offset, bytes).ok();
        self.ledger.summary.refused += 1;
    }

    /// What is to become of a write that touches the super block's copy at `place`.
    ///
    /// It may come before the primary super block, whose verdict it shares. What is no newer super block of this file
    /// system is written at once: mkfs, a rewrite, a repair.
    pub fn judge_copy(&self, place: u64, offset: u64, bytes: &[u8]) -> CopyFate {
        let last = self.verifier.snapshot().and_then(|snapshot| snapshot.super_view());
        let (Some(last), Ok(next)) = (last, self.overlay(place, offset, bytes)) else {
            return CopyFate::Write;
        };
        let Ok(next) = SuperBlock::parse(&next) else { return CopyFate::Write };
        let same_device =
            next.metadata_uuid() == last.metadata_uuid() && next.dev_item().uuid == last.dev_item().uuid;
        if !next.verify_csum() || !same_device || next.generation() <= last.generation() {
            return CopyFate::Write;
        }
        let refused = self.refused.as_deref().and_then(|refused| SuperBlock::parse(refused).ok());
        if refused.is_some_and(|refused| refused.generation() == next.generation()) {
            CopyFate::OfRefused
        } else {
            CopyFate::Hold
        }
    }

    /// Carries out a write that touches a copy.
    ///
    /// # Errors
    /// When the image can't be written.
    pub fn write_copy(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let written = self.write_image(offset, bytes);
        if written.is_err() {
            self.copy_missed();
        }
        written
    }

    fn write_image(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let written = self.image.write_at(bytes, offset);
        match written {
            Ok(()) => self.shared.wrote(offset, bytes.len() as u64),
            Err(_) => self.shared.could_not_write(offset, bytes.len() as u64),
        }
        written
    }

    /// A copy was not written, which the guest has been told and lives with: it is no fault of its next commit.
    pub fn copy_missed(&mut self) {
        self.shared.guard.miss();
        // It may belong to a commit that is yet to come.
        self.copy_missing = true;
    }

    /// Ends it all: reports the detach, and what was seen.
    pub fn finish(mut self) -> Summary {
        self.detach();
        self.ledger.summary.lost_events = self.sinks.finish();
        self.ledger.summary
    }

    /// When events that could not be written are to be tried again.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.sinks.retry_at()
    }

    /// Tries again to write events, where it is time.
    pub fn retry_events(&mut self, now: Instant) {
        self.sinks.retry(now);
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

    fn report(
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

    fn violation(&mut self, generation: u64, origin: &'static str, violation: &shadow::Violation) {
        let event = Event::Violation { fsid: self.fsid, generation, origin, violation };
        self.violations += u64::from(violation.severity == Severity::Error);
        self.ledger.violation(violation, &event);
        self.sinks.emit(&event);
    }

    /// A super block that does not follow from the last one.
    fn follow(&mut self, reason: ReattachReason, superblock: &[u8], submitted: Instant) {
        if reason == ReattachReason::GenerationGap {
            // A commit it is; what it changed can't be told.
            let generation = SuperBlock::parse(superblock).map_or(0, |view| view.generation());
            let report = CommitReport::unverified(generation, "commits before this one were not seen");
            self.report(CommitKind::Transaction, report, Duration::ZERO, submitted, Fate::Write);
        }
        self.detach();
        self.attach(superblock, reason_text(reason));
    }

    fn attach(&mut self, superblock: &[u8], reason: &'static str) {
        let started = Instant::now();
        let Ok(view) = SuperBlock::parse(superblock) else { return };
        let Ok(geometry) = shadow::Geometry::new(&view) else { return };
        self.shared.cache.clear();
        self.shared.cache.set_geometry(&geometry);
        let cache = Arc::clone(&self.shared.cache);
        let attached = self.verifier.attach(superblock, cache.as_ref()).map(|_| ());
        match attached {
            Ok(()) => self.attached(&geometry, view.generation(), reason, started),
            Err(error) => self.not_attached(&error),
        }
    }

    fn attached(
        &mut self,
        geometry: &shadow::Geometry,
        generation: u64,
        reason: &'static str,
        started: Instant,
    ) {
        self.unread = None;
        self.fsid = Fsid(geometry.fsid);
        self.commits = 0;
        self.violations = 0;
        self.attachment += 1;
        self.publish_regions();
        if let Some(snapshot) = self.verifier.snapshot().filter(|_| self.verifier.coverage().is_whole()) {
            self.shared.guard.begin(snapshot);
            self.guard_log();
        }
        let (counts, violations, report) = match self.audit {
            AuditMode::Before => self.audit_now(geometry),
            AuditMode::Off | AuditMode::Background => {
                let cache = Arc::clone(&self.shared.cache);
                let survey = self.verifier.survey(cache.as_ref());
                let counts = survey.as_ref().map(|survey| (survey.extents, survey.tree_blocks));
                (counts, survey.map_or_else(Vec::new, |survey| survey.violations), None)
            }
        };
        let attach = Attach {
            fsid: self.fsid,
            generation,
            nodesize: geometry.nodesize,
            csum: geometry.csum.name(),
            gaps: self.verifier.coverage().gaps.clone(),
            counts,
            elapsed: started.elapsed(),
            reason,
        };
        self.sinks.emit(&Event::Attach(&attach));
        let snapshot = self.verifier.snapshot();
        let cut_off = snapshot.and_then(|snapshot| attach::device_too_small(snapshot, self.image.len()));
        let old = cut_off.into_iter().chain(violations);
        let old: Vec<_> = old.filter_map(|violation| self.verifier.rules().judge(violation)).collect();
        old.iter().for_each(|violation| self.old_damage(violation));
        if let Some(report) = report {
            self.take_audit(report);
        }
        if self.audit == AuditMode::Background {
            self.audit_in_background();
        }
    }

    fn audit_now(
        &mut self,
        geometry: &shadow::Geometry,
    ) -> (Option<(u64, u64)>, Vec<shadow::Violation>, Option<AuditReport>) {
        let Some(snapshot) = self.verifier.snapshot().filter(|_| self.verifier.coverage().is_whole()) else {
            return (None, Vec::new(), None);
        };
        let report = audit(snapshot, &ImageSource::new(Arc::clone(&self.image), geometry), &NoProgress);
        (Some((report.extents, report.tree_blocks)), Vec::new(), Some(report))
    }

    fn audit_in_background(&mut self) {
        let Some(snapshot) = self.verifier.snapshot().filter(|_| self.verifier.coverage().is_whole()) else {
            return;
        };
        let results = self.results.clone();
        if self.audit_running {
            return self.notice("no audit: that of the file system before is still running");
        }
        match background::spawn(&self.shared, snapshot.clone(), self.attachment, results) {
            Ok(()) => self.audit_running = true,
            Err(error) => {
                self.ledger.summary.unverified += 1;
                self.notice(&format!("no audit: {error}"));
            }
        }
    }

    /// Whether an audit in the background is not done yet.
    #[must_use]
    pub fn audit_pending(&self) -> bool {
        self.audit_running
    }

    /// An audit in the background is done.
    pub fn audited(&mut self, audited: Audited) {
        self.audit_running = false;
        if audited.attachment != self.attachment || self.verifier.snapshot().is_none() {
            return;
        }
        match audited.report {
            Some(report) => self.take_audit(report),
            None => {
                self.ledger.summary.unverified += 1;
                self.notice("the audit was given up: the guest overwrote more than can be kept meanwhile");
            }
        }
    }

    /// Damage that was there before: reported once, and told apart from new damage from now on.
    fn take_audit(&mut self, mut report: AuditReport) {
        report.judge(self.verifier.rules());
        let AuditReport { violations, unknown, residuals, extents, .. } = report;
        let found = violations.iter().filter(|violation| !self.verifier.knows_damage(violation.bytenr));
        let found: Vec<_> = found.cloned().collect();
        found.iter().for_each(|violation| self.old_damage(violation));
        for reason in &unknown {
            self.ledger.summary.unverified += 1;
            self.notice(&format!("not verified: {reason}"));
        }
        self.verifier.know_damage(residuals);
        let verdict = if found.is_empty() && unknown.is_empty() { "clean" } else { "damage is listed above" };
        self.notice(&format!("audit of {extents} extents: {verdict}"));
    }

    fn old_damage(&mut self, violation: &shadow::Violation) {
        let generation = self.verifier.snapshot().map_or(0, |snapshot| snapshot.generation);
        self.violation(generation, "attach", violation);
    }

    fn not_attached(&mut self, error: &AttachError) {
        self.shared.regions.store(None);
        let what = format!("there is a btrfs, but it can't be opened: {error}");
        if let AttachError::Tree { problems, .. } = error
            && problems.iter().any(|problem| matches!(problem, BlockProblem::Unknown(_)))
        {
            return self.could_not_read(what);
        }
        self.unread = None;
        self.ledger.summary.unverified += 1;
        self.notice(&format!("{what}; served, not verified"));
    }

    fn detach(&mut self) {
        self.shared.regions.store(None);
        self.shared.guard.end();
        self.proposed = None;
        self.copied = None;
        self.harms.clear();
        if self.verifier.snapshot().is_some() {
            let (commits, violations) = (self.commits, self.violations);
            self.sinks.emit(&Event::Detach { fsid: self.fsid, commits, violations });
        }
        self.verifier.detach();
        self.refused = None;
    }

    /// Tells capture where tree blocks may lie from now on.
    fn publish_regions(&self) {
        let regions = self.verifier.snapshot().map(|snapshot| Arc::new(Regions::new(snapshot)));
        let before = self.shared.regions.load();
        if let (Some(before), Some(now)) = (before.as_ref(), regions.as_ref())
            && !before.same_ranges(now)
        {
            // Writes to what was or becomes file data are not seen: nothing that is kept may outlive the change.
            self.shared.cache.clear();
        }
        self.shared.regions.store(regions);
    }

    fn read_super(&self) -> io::Result<Box<[u8]>> {
        self.read_super_at(PRIMARY_SUPER)
    }

    fn read_super_at(&self, place: u64) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; SUPER_SIZE as usize].into_boxed_slice();
        self.image.read_at(&mut bytes, place)?;
        Ok(bytes)
    }

    /// What the super block at `place` will be once the write is made.
    fn overlay(&self, place: u64, offset: u64, bytes: &[u8]) -> io::Result<Box<[u8]>> {
        let whole =
            place.checked_sub(offset).and_then(|from| bytes.get(from as usize..)?.get(..SUPER_SIZE as usize));
        if let Some(whole) = whole {
            // What it replaces need not be readable.
            return Ok(whole.into());
        }
        let mut next = self.read_super_at(place)?;
        let end = offset.saturating_add(bytes.len() as u64).min(place + SUPER_SIZE);
        let start = offset.max(place);
        let (from, to) = ((start - place) as usize, (end - place) as usize);
        let source = (start - offset) as usize;
        if let (Some(target), Some(source)) =
            (next.get_mut(from..to), bytes.get(source..source + (to - from)))
        {
            target.copy_from_slice(source);
        }
        Ok(next)
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

    /// Somebody set a mark.
    pub fn mark(&mut self, name: &str) {
        self.sinks.emit(&Event::Mark { name });
    }

    /// The last violations, as events.
    #[must_use]
    pub fn recent_violations(&self) -> Vec<Value> {
        self.ledger.recent()
    }

    /// How things stand, as an object.
    #[must_use]
    pub fn status(&self) -> Value {
        let file_system = self.verifier.snapshot().map(|snapshot| {
            json!({
                "fs": self.fsid.to_string(),
                "generation": snapshot.generation,
                "nodesize": snapshot.geometry.nodesize,
                "csum": snapshot.geometry.csum.name(),
                "commits": self.commits,
                "violations": self.violations,
                "gaps": self.verifier.coverage().gaps,
            })
        });
        let Untold { waiting, lost } = self.sinks.untold();
        json!({
            "events": { "waiting": waiting, "lost": lost },
            "disk": self.disk,
            "size": self.image.len(),
            "read_only": self.image.read_only(),
            "connected": self.is_connected,
            "file_system": file_system,
            "counters": self.ledger.counters(),
        })
    }

    /// Says something that is no violation but worth knowing.
    pub fn notice(&mut self, message: &str) {
        self.sinks.emit(&Event::Notice { message });
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

fn reason_text(reason: ReattachReason) -> &'static str {
    match reason {
        ReattachReason::First => "new file system",
        ReattachReason::NewFileSystem => "another file system",
        ReattachReason::Rewritten => "rewritten offline",
        ReattachReason::GenerationGap => "generation gap",
    }
}
