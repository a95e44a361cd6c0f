//! What has been seen: for the exit code, and for whoever asks.

use std::collections::VecDeque;

use serde_json::{Value, json};
use shadow::{CommitReport, Severity, Verdict, Violation};

use crate::events::{CommitKind, Event, to_json};

/// Violations that are remembered for `ctl violations`; the oldest are forgotten first.
const RECENT_LIMIT: usize = 256;

/// What has been seen, for the exit code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Commits and log commits whose verdict was clean.
    pub clean: u64,
    /// Those that could not, or not wholly, be verified.
    pub unverified: u64,
    /// Violations; warnings don't count.
    pub violations: u64,
    /// Super block writes that were refused.
    pub refused: u64,
    /// Events that could not be written.
    pub lost_events: u64,
}

impl Summary {
    /// Exit code: 1 for violations and refusals; 3 when nothing, or not everything, was verified or could be told; else
    /// 0.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Summary { violations: 1.., .. } | Summary { refused: 1.., .. } => 1,
            Summary { unverified: 1.., .. } | Summary { clean: 0, .. } | Summary { lost_events: 1.., .. } => {
                3
            }
            _ => 0,
        }
    }
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Ledger {
    /// For the exit code.
    pub summary: Summary,
    commits: u64,
    log_commits: u64,
    warnings: u64,
    recent: VecDeque<Value>,
}

impl Ledger {
    /// A commit was judged.
    pub fn commit(&mut self, kind: CommitKind, report: &CommitReport) {
        self.commits += 1;
        self.log_commits += u64::from(kind == CommitKind::Log);
        match report.verdict() {
            Verdict::Clean => self.summary.clean += 1,
            Verdict::Unverified => self.summary.unverified += 1,
            Verdict::Violations => {}
        }
        // Those that are reported one by one are counted by their events.
        self.summary.violations += report.suppressed;
    }

    /// A violation was reported.
    pub fn violation(&mut self, violation: &Violation, event: &Event<'_>) {
        match violation.severity {
            Severity::Error => self.summary.violations += 1,
            Severity::Warning => self.warnings += 1,
        }
        if self.recent.len() >= RECENT_LIMIT {
            self.recent.pop_front();
        }
        self.recent.push_back(to_json(event));
    }

    /// The last violations, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Value> {
        self.recent.iter().cloned().collect()
    }

    /// The counts as an object.
    #[must_use]
    pub fn counters(&self) -> Value {
        let Summary { clean, unverified, violations, refused, .. } = self.summary;
        json!({
            "commits": self.commits,
            "log_commits": self.log_commits,
            "clean": clean,
            "unverified": unverified,
            "violations": violations,
            "warnings": self.warnings,
            "refused": refused,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_verified_nothing_is_never_0() {
        assert_eq!(Summary::default().exit_code(), 3);
        assert_eq!(Summary { clean: 5, ..Summary::default() }.exit_code(), 0);
        assert_eq!(Summary { clean: 5, unverified: 1, ..Summary::default() }.exit_code(), 3);
        assert_eq!(Summary { clean: 5, lost_events: 1, ..Summary::default() }.exit_code(), 3);
        let violated = Summary { clean: 5, unverified: 1, violations: 1, refused: 0, lost_events: 1 };
        assert_eq!(violated.exit_code(), 1);
        assert_eq!(Summary { clean: 5, refused: 1, ..Summary::default() }.exit_code(), 1);
    }
}
