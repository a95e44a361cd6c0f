//! Taking up a file system, and giving it up: at the start, when there is a new one, when commits were missed, when the image
//! has another size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parser::SuperBlock;
use shadow::CommitReport;
use shadow::attach::{self, AttachError};
use shadow::classify::ReattachReason;
use shadow::forest::BlockProblem;

use super::FileSystem;
use crate::capture::Regions;
use crate::events::{Attach, CommitKind, Event, Fsid};
use crate::verifier::audit::AuditMode;
use crate::verifier::fate::Fate;

impl FileSystem {
    /// The image has another size than before, while a guest goes on.
    pub fn resized(&mut self, before: u64, now: u64) {
        self.notice(&format!("the image has {now} bytes now, and had {before}"));
        let Some(snapshot) = self.verifier.snapshot() else { return };
        let cut_off = attach::device_too_small(snapshot, now);
        let was_whole = attach::device_too_small(snapshot, before).is_none();
        if self.shared.guard.resize(snapshot) {
            self.guard_log();
        }
        let cut_off = cut_off.filter(|_| was_whole);
        let cut_off = cut_off.and_then(|violation| self.verifier.rules().judge(violation));
        cut_off.iter().for_each(|violation| self.old_damage(violation));
    }

    /// A super block that does not follow from the last one.
    pub(super) fn follow(&mut self, reason: ReattachReason, superblock: &[u8], submitted: Instant) {
        if reason == ReattachReason::GenerationGap {
            // A commit it is; what it changed can't be told.
            let generation = SuperBlock::parse(superblock).map_or(0, |view| view.generation());
            let report = CommitReport::unverified(generation, "commits before this one were not seen");
            self.report(CommitKind::Transaction, report, Duration::ZERO, submitted, Fate::Write);
        }
        self.detach();
        self.attach(superblock, reason_text(reason));
    }

    pub(super) fn attach(&mut self, superblock: &[u8], reason: &'static str) {
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
        self.surveyed = old.iter().map(|found| (found.code, found.bytenr)).collect();
        if let Some(report) = report {
            self.take_audit(report);
        }
        if self.audit == AuditMode::Background {
            self.audit_in_background();
        }
    }

    fn not_attached(&mut self, error: &AttachError) {
        self.shared.regions.store(None);
        let what = format!("there is a btrfs, but it can't be opened: {error}");
        if error.problems().iter().any(|problem| matches!(problem, BlockProblem::Unknown(_))) {
            return self.could_not_read(what);
        }
        self.unread = None;
        self.ledger.summary.unverified += 1;
        self.notice(&format!("{what}; served, not verified"));
    }

    pub(super) fn detach(&mut self) {
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
    pub(super) fn publish_regions(&self) {
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
}

fn reason_text(reason: ReattachReason) -> &'static str {
    match reason {
        ReattachReason::First => "new file system",
        ReattachReason::NewFileSystem => "another file system",
        ReattachReason::Rewritten => "rewritten offline",
        ReattachReason::GenerationGap => "generation gap",
    }
}
