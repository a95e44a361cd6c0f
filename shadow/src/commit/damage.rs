//! Blocks that can't be used: each is reported once, however many commits come upon it, and what has one cause is one
//! report.

use hashbrown::HashSet;

use super::{CommitReport, Verifier};
use crate::codes::Code;
use crate::forest::BlockProblem;
use crate::unreadable::{self, Obstacle, Unread};
use crate::violation::{Violation, Worth};

/// Damaged blocks that are remembered so that each is reported once.
pub(super) const DAMAGE_MEMORY: usize = 4096;

impl Verifier {
    /// Takes up what keeps blocks from being used.
    pub(super) fn note_problems(&mut self, report: &mut CommitReport, problems: Vec<BlockProblem>) {
        let (mut violations, mut unread) = (Vec::new(), Vec::new());
        for problem in problems {
            match problem {
                BlockProblem::Violation(violation) => violations.push(*violation),
                BlockProblem::Unknown(reason) => unread.push(reason),
            }
        }
        for reason in unreadable::reasons(unread) {
            note_once(report, reason);
        }
        let news = self.news(report, violations);
        unreadable::fold(news).into_iter().for_each(|violation| report.push_unusable(violation));
    }

    /// Takes up what keeps blocks of a log from being used.
    pub(super) fn note_log(
        &mut self,
        report: &mut CommitReport,
        violations: Vec<Violation>,
        unread: Vec<Unread>,
    ) {
        report.unverified.extend(unreadable::reasons(unread));
        let (barred, own): (Vec<_>, Vec<_>) =
            violations.into_iter().partition(|violation| violation.obstacle.is_some());
        own.into_iter().for_each(|violation| report.push_unusable(violation));
        let news = self.news(report, barred);
        unreadable::fold(news).into_iter().for_each(|violation| report.push_unusable(violation));
    }

    /// Takes up what is wrong with blocks that can be used: of some, another copy can't be read.
    pub(super) fn note_copies(&mut self, report: &mut CommitReport, violations: Vec<Violation>) {
        let (barred, own): (Vec<_>, Vec<_>) =
            violations.into_iter().partition(|violation| violation.obstacle.is_some());
        own.into_iter().for_each(|violation| report.push(violation));
        let news = self.news(report, barred);
        unreadable::fold(news).into_iter().for_each(|violation| report.push(violation));
    }

    /// Those that no earlier commit has told of.
    fn news(&mut self, report: &mut CommitReport, mut violations: Vec<Violation>) -> Vec<Violation> {
        let mut met: HashSet<Obstacle> = HashSet::new();
        violations.retain(|violation| {
            let is_news = match violation.obstacle.filter(|obstacle| obstacle.is_lasting()) {
                Some(obstacle) => {
                    let (number, which) = obstacle.number();
                    // Nothing else is expected of such a block.
                    let is_news =
                        met.contains(&obstacle) || self.remember((violation.code, number, Some(which)));
                    if is_news {
                        met.insert(obstacle);
                    } else {
                        note_once(report, format!("known damage: {obstacle}"));
                    }
                    return is_news;
                }
                None => self.is_unheard_of(violation),
            };
            if !is_news {
                report.unverified.push(format!("known damage: {}", violation.message));
            }
            is_news
        });
        violations
    }

    fn is_unheard_of(&mut self, violation: &Violation) -> bool {
        let found = match violation.expected {
            Worth::Number(number) => Some(number),
            _ => None,
        };
        // The tree that was damaged in the last commit is the old one in this.
        let is_echo = violation.code == Code::TreeDoublyLinked
            && self.known.reported.iter().any(|(_, bytenr, _)| *bytenr == violation.bytenr);
        self.remember((violation.code, violation.bytenr, found)) && !is_echo
    }

    /// Whether it was not known.
    fn remember(&mut self, key: (Code, u64, Option<u64>)) -> bool {
        if self.known.reported.len() >= DAMAGE_MEMORY {
            self.known.reported.clear();
        }
        self.known.reported.insert(key)
    }
}

fn note_once(report: &mut CommitReport, reason: String) {
    if !report.unverified.contains(&reason) {
        report.unverified.push(reason);
    }
}
