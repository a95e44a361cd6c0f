//! What is found about a commit, and the verdict on it.
//!
//! Knows what each rule counts for, and nothing of how anything is found.

use std::sync::Arc;

use crate::codes::Severity;
use crate::live::LiveDelta;
use crate::rules::Rules;
use crate::violation::Violation;

/// Violations of one commit that are reported one by one, and warnings; those beyond are counted.
pub const REPORT_LIMIT: usize = 256;

/// What a commit turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was verified, and nothing is wrong.
    Clean,
    /// Something is wrong; warnings alone are not it.
    Violations,
    /// Nothing wrong was found, but not everything could be looked at.
    Unverified,
}

impl Verdict {
    /// As events spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Clean => "clean",
            Verdict::Violations => "violations",
            Verdict::Unverified => "unverified",
        }
    }
}

/// What the extent tree says has happened, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ActionCounts {
    /// Extents allocated; each has its first reference with it.
    pub alloc: u64,
    /// References added beyond those.
    pub add: u64,
    /// References dropped.
    pub drop: u64,
    /// Extents freed.
    pub free: u64,
}

/// What the referencing trees say has happened, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReferenceCounts {
    /// References added.
    pub add: u64,
    /// References dropped.
    pub drop: u64,
}

/// What was found about one commit.
#[derive(Debug, Default)]
pub struct CommitReport {
    /// Transaction; for a log commit, the one it extends.
    pub generation: u64,
    /// What is wrong, warnings included, at most [`REPORT_LIMIT`] of each.
    pub violations: Vec<Violation>,
    /// How many more there are that are no warnings.
    pub suppressed: u64,
    /// Why not everything could be verified.
    pub unverified: Vec<String>,
    /// The extent tree's side.
    pub actions: ActionCounts,
    /// The other trees' side.
    pub references: ReferenceCounts,
    /// Tree blocks that became reachable: read and checked.
    pub blocks_born: u64,
    /// Addresses of the log's blocks among them.
    pub log_blocks: Vec<u64>,
    /// A block that was not flushed before the super block: wrong only in a guest that flushes.
    pub not_flushed: Option<Violation>,
    /// What the commit needs that the last one didn't, and the other way round; `None` where that is not known.
    pub live: Option<LiveDelta>,
    /// What each rule counts for.
    rules: Arc<Rules>,
}

impl CommitReport {
    /// A commit about which nothing can be said.
    #[must_use]
    pub fn unverified(generation: u64, reason: &str) -> Self {
        CommitReport { generation, unverified: vec![reason.to_owned()], ..CommitReport::default() }
    }

    pub(super) fn new(rules: &Arc<Rules>) -> Self {
        CommitReport { rules: Arc::clone(rules), ..CommitReport::default() }
    }

    /// The verdict.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.violation_count() > 0 {
            Verdict::Violations
        } else if !self.unverified.is_empty() {
            Verdict::Unverified
        } else {
            Verdict::Clean
        }
    }

    /// All violations, those that are not reported one by one included; warnings don't count.
    #[must_use]
    pub fn violation_count(&self) -> u64 {
        self.listed(Severity::Error) + self.suppressed
    }

    /// Warnings that are reported.
    #[must_use]
    pub fn warning_count(&self) -> u64 {
        self.listed(Severity::Warning)
    }

    fn listed(&self, severity: Severity) -> u64 {
        self.violations.iter().filter(|found| found.severity == severity).count() as u64
    }

    /// Takes up a violation, as far as its rule counts.
    pub fn push(&mut self, violation: Violation) {
        let Some(violation) = self.rules.judge(violation) else { return };
        if self.listed(violation.severity) < REPORT_LIMIT as u64 {
            self.violations.push(violation);
        } else if violation.severity == Severity::Error {
            self.suppressed += 1;
        }
    }

    /// Takes up a violation because of which a block could not be used. Where it is no error by itself, what hangs
    /// on the block is unverified still.
    pub(super) fn push_unusable(&mut self, violation: Violation) {
        if !self.rules.is_error(violation.code) {
            self.unverified.push(format!("a block breaks {}, which is no error here", violation.code.name()));
        }
        self.push(violation);
    }
}
