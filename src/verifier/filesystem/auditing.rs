//! Audits of the file system that was taken up, and what is reported of damage that was there already.

use std::sync::Arc;

use super::FileSystem;
use crate::check::{AuditReport, ImageSource, NoProgress, audit};
use crate::verifier::audit::{self as background, Audited};

impl FileSystem {
    pub(super) fn audit_now(
        &mut self,
        geometry: &shadow::Geometry,
    ) -> (Option<(u64, u64)>, Vec<shadow::Violation>, Option<AuditReport>) {
        let Some(snapshot) = self.verifier.snapshot().filter(|_| self.verifier.coverage().is_whole()) else {
            return (None, Vec::new(), None);
        };
        let report = audit(snapshot, &ImageSource::new(Arc::clone(&self.image), geometry), &NoProgress);
        (Some((report.extents, report.tree_blocks)), Vec::new(), Some(report))
    }

    pub(super) fn audit_in_background(&mut self) {
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
    pub(super) fn take_audit(&mut self, mut report: AuditReport) {
        report.judge(self.verifier.rules());
        let AuditReport { violations, unknown, residuals, extents, .. } = report;
        let is_new = |found: &&shadow::Violation| !self.verifier.knows_damage(found.bytenr);
        let is_surveyed = |found: &shadow::Violation| self.surveyed.contains(&(found.code, found.bytenr));
        let (told, found): (Vec<_>, Vec<_>) =
            violations.iter().filter(is_new).cloned().partition(is_surveyed);
        found.iter().for_each(|violation| self.old_damage(violation));
        for reason in &unknown {
            self.ledger.summary.unverified += 1;
            self.notice(&format!("not verified: {reason}"));
        }
        self.verifier.know_damage(residuals);
        let is_clean = told.is_empty() && found.is_empty() && unknown.is_empty();
        let verdict = if is_clean { "clean" } else { "damage is listed above" };
        self.notice(&format!("audit of {extents} extents: {verdict}"));
    }

    pub(super) fn old_damage(&mut self, violation: &shadow::Violation) {
        let generation = self.verifier.snapshot().map_or(0, |snapshot| snapshot.generation);
        self.violation(generation, "attach", violation);
    }
}
