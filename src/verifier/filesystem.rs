//! The file system on one disk: none, or one that is followed from commit to commit.
//!
//! mkfs in the guest, a new file system over the old one, a guest that unmounts and mounts again or is reset in the
//! middle of a commit are all normal life.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parser::SuperBlock;
use shadow::attach::{self, AttachError};
use shadow::classify::ReattachReason;
use shadow::{CommitReport, Severity, SuperChange, Verdict, Verifier, classify};

use crate::capture::{CaptureShared, Message, PRIMARY_SUPER, Regions, SUPER_SIZE};
use crate::check::{AuditReport, ImageSource, NoProgress, audit};
use crate::events::{Attach, Commit, CommitKind, Event, Fsid, Sinks};
use crate::image::Image;
use crate::verifier::VerifierOptions;
use crate::verifier::audit::{self as background, AuditMode, Audited};

/// What has been seen, for the exit code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Commits and log commits whose verdict was clean.
    pub clean: u64,
    /// Those that could not, or not wholly, be verified.
    pub unverified: u64,
    /// Violations; warnings don't count.
    pub violations: u64,
}

impl Summary {
    /// Exit code: 1 for violations; 3 when nothing, or not everything, was verified; else 0.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Summary { violations: 1.., .. } => 1,
            Summary { unverified: 1.., .. } | Summary { clean: 0, .. } => 3,
            _ => 0,
        }
    }
}

/// The file system on one disk.
pub struct FileSystem {
    image: Arc<dyn Image>,
    shared: Arc<CaptureShared>,
    sinks: Sinks,
    verifier: Verifier,
    summary: Summary,
    /// Commits and violations since attach.
    commits: u64,
    violations: u64,
    fsid: Fsid,
    audit: AuditMode,
    /// Which attachment this is, to tell a late audit from a current one.
    attachment: u64,
    /// Where an audit in the background sends its result.
    results: Sender<Message>,
    audit_running: bool,
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
        FileSystem {
            image,
            shared,
            sinks,
            verifier: Verifier::new(options.shadow_memory).with_rules(options.rules),
            summary: Summary::default(),
            commits: 0,
            violations: 0,
            fsid: Fsid::default(),
            audit: options.audit,
            attachment: 0,
            results,
            audit_running: false,
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
                SuperChange::Reattach(_) => self.attach(&bytes, reason),
                SuperChange::Invalid => {
                    self.notice("there is a btrfs super block at 64 KiB, but its checksum or fields are wrong: served, not verified");
                }
                _ => self.notice("no btrfs on the disk yet: served, and watched for one"),
            },
            Err(error) => self.notice(&format!("can't read a super block: {error}; served, not verified")),
        }
    }

    /// A frontend has connected. While none was, others may have written to the image.
    pub fn connected(&mut self) {
        let Some(snapshot) = self.verifier.snapshot() else {
            if matches!(self.read_super().map(|bytes| classify(None, &bytes)), Ok(SuperChange::Reattach(_))) {
                self.open("connect");
            }
            return;
        };
        let known = snapshot.superblock.clone();
        self.shared.cache.clear();
        match self.read_super() {
            Ok(bytes) if bytes == known => {}
            Ok(_) | Err(_) => {
                self.notice("the image was changed while no frontend was connected");
                self.detach();
                self.open("changed while disconnected");
            }
        }
    }

    /// A write that touches the primary super block: verifies what it commits, then writes it.
    ///
    /// # Errors
    /// When the image can't be written.
    pub fn super_write(&mut self, offset: u64, bytes: &[u8], submitted: Instant) -> io::Result<()> {
        let next = match self.overlay(offset, bytes) {
            Ok(next) => next,
            // Not a whole super block, on an image that ends inside it.
            Err(_) => return self.image.write_at(bytes, offset),
        };
        let last = self.verifier.snapshot().map(|snapshot| snapshot.superblock.clone());
        let change = classify(last.as_deref().and_then(|last| SuperBlock::parse(last).ok()).as_ref(), &next);
        match change {
            SuperChange::Commit => self.commit(CommitKind::Transaction, &next, submitted),
            SuperChange::LogCommit => self.commit(CommitKind::Log, &next, submitted),
            SuperChange::Rewrite => {}
            SuperChange::Reattach(reason) => self.follow(reason, &next, submitted),
            SuperChange::Gone | SuperChange::Invalid => {
                self.detach();
                if change == SuperChange::Invalid && last.is_some() {
                    self.notice("a super block with a wrong checksum or impossible fields was written");
                }
            }
        }
        let written = self.image.write_at(bytes, offset);
        self.shared.cache.invalidate(offset, bytes.len() as u64);
        if let Err(error) = &written {
            self.notice(&format!("writing the super block failed: {error}"));
            self.detach();
            self.open("super block write failed");
        }
        written
    }

    /// Ends it all: reports the detach, and what was seen.
    pub fn finish(mut self) -> Summary {
        self.detach();
        self.summary
    }

    fn commit(&mut self, kind: CommitKind, superblock: &[u8], submitted: Instant) {
        let started = Instant::now();
        let cache = Arc::clone(&self.shared.cache);
        let report = match kind {
            CommitKind::Transaction => self.verifier.commit(superblock, cache.as_ref()),
            CommitKind::Log => self.verifier.log_commit(superblock, cache.as_ref()),
        };
        let verify = started.elapsed();
        if kind == CommitKind::Transaction {
            self.publish_regions();
        }
        self.report(kind, report, verify, submitted);
        if self.verifier.snapshot().is_none() {
            self.notice(
                "the new trees can't be read: verification goes on with the next super block that can be",
            );
        }
    }

    fn report(&mut self, kind: CommitKind, report: CommitReport, verify: Duration, submitted: Instant) {
        let commit = Commit {
            fsid: self.fsid,
            kind,
            tree_blocks_written: self.shared.counters.take_tree_blocks(),
            report,
            verify,
            hold: submitted.elapsed(),
            policy: "written",
        };
        let found = commit.report.violation_count();
        match commit.verdict() {
            Verdict::Clean => self.summary.clean += 1,
            Verdict::Unverified => self.summary.unverified += 1,
            Verdict::Violations => {}
        }
        self.commits += 1;
        self.violations += found;
        self.summary.violations += found;
        self.sinks.emit(&Event::Commit(&commit));
        let generation = commit.report.generation;
        for violation in &commit.report.violations {
            self.sinks.emit(&Event::Violation { fsid: self.fsid, generation, origin: "commit", violation });
        }
    }

    /// A super block that does not follow from the last one.
    fn follow(&mut self, reason: ReattachReason, superblock: &[u8], submitted: Instant) {
        if reason == ReattachReason::GenerationGap {
            // A commit it is; what it changed can't be told.
            let generation = SuperBlock::parse(superblock).map_or(0, |view| view.generation());
            let report = CommitReport::unverified(generation, "commits before this one were not seen");
            self.report(CommitKind::Transaction, report, Duration::ZERO, submitted);
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
        self.fsid = Fsid(geometry.fsid);
        self.commits = 0;
        self.violations = 0;
        self.attachment += 1;
        self.publish_regions();
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
                self.summary.unverified += 1;
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
                self.summary.unverified += 1;
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
            self.summary.unverified += 1;
            self.notice(&format!("not verified: {reason}"));
        }
        self.verifier.know_damage(residuals);
        let verdict = if found.is_empty() && unknown.is_empty() { "clean" } else { "damage is listed above" };
        self.notice(&format!("audit of {extents} extents: {verdict}"));
    }

    fn old_damage(&mut self, violation: &shadow::Violation) {
        let generation = self.verifier.snapshot().map_or(0, |snapshot| snapshot.generation);
        let counts = u64::from(violation.severity == Severity::Error);
        self.violations += counts;
        self.summary.violations += counts;
        self.sinks.emit(&Event::Violation { fsid: self.fsid, generation, origin: "attach", violation });
    }

    fn not_attached(&mut self, error: &AttachError) {
        self.shared.regions.store(None);
        self.summary.unverified += 1;
        self.notice(&format!("there is a btrfs, but it can't be opened: {error}; served, not verified"));
    }

    fn detach(&mut self) {
        self.shared.regions.store(None);
        if self.verifier.snapshot().is_some() {
            let (commits, violations) = (self.commits, self.violations);
            self.sinks.emit(&Event::Detach { fsid: self.fsid, commits, violations });
        }
        self.verifier.detach();
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
        let mut bytes = vec![0; SUPER_SIZE as usize].into_boxed_slice();
        self.image.read_at(&mut bytes, PRIMARY_SUPER)?;
        Ok(bytes)
    }

    /// What the super block will be once the write is made.
    fn overlay(&self, offset: u64, bytes: &[u8]) -> io::Result<Box<[u8]>> {
        let mut next = self.read_super()?;
        let end = offset.saturating_add(bytes.len() as u64).min(PRIMARY_SUPER + SUPER_SIZE);
        let start = offset.max(PRIMARY_SUPER);
        let (from, to) = ((start - PRIMARY_SUPER) as usize, (end - PRIMARY_SUPER) as usize);
        let source = (start - offset) as usize;
        if let (Some(target), Some(source)) =
            (next.get_mut(from..to), bytes.get(source..source + (to - from)))
        {
            target.copy_from_slice(source);
        }
        Ok(next)
    }

    fn notice(&mut self, message: &str) {
        self.sinks.emit(&Event::Notice { message });
    }
}

fn reason_text(reason: ReattachReason) -> &'static str {
    match reason {
        ReattachReason::First => "new file system",
        ReattachReason::NewFileSystem => "another file system",
        ReattachReason::Rewritten => "rewritten offline",
        ReattachReason::GenerationGap => "generation gap",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_verified_nothing_is_never_0() {
        assert_eq!(Summary::default().exit_code(), 3);
        assert_eq!(Summary { clean: 5, ..Summary::default() }.exit_code(), 0);
        assert_eq!(Summary { clean: 5, unverified: 1, violations: 0 }.exit_code(), 3);
        assert_eq!(Summary { clean: 5, unverified: 1, violations: 1 }.exit_code(), 1);
    }
}
