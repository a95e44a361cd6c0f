//! A faulty commit, and what was reported of it.

use corrupt::Planted;

use crate::backend::{Outcome, Reported, Writes};
use crate::history::{Change, Step};
use crate::plan::Fault;

/// Families of rules that are built. What only others can see is listed, and not counted.
const FAMILIES: [&str; 4] = ["ref/", "tree/", "root/", "space/"];

/// Who can see a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Both the comparison with the commit before and a look at the whole file system.
    Anywhere,
    /// Only the comparison with the commit before.
    Online,
    /// Only `check`: at a commit it may be right.
    Offline,
}

/// A faulty commit.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Which history.
    pub history: usize,
    /// Which of its steps.
    pub step: usize,
    /// What is wrong.
    pub planted: Planted,
    /// What is wrong on the disk before the commit.
    pub past: Vec<Change>,
    /// What is written.
    pub writes: Writes,
    /// Who can see the fault.
    pub seen_by: Seen,
    /// It stands in several blocks: the next commit may put one right and not the other, and what is said then is no
    /// echo.
    pub in_parts: bool,
}

/// Rules that are warnings: they change no verdict, and nothing is refused for them.
pub const WARNINGS: [&str; 3] = ["root/generation-v2", "space/num-devices", "inode/nodatasum"];

impl Trial {
    /// Whether the commit that carries the fault, and nothing before it, is to blame, so that it must be refused where
    /// the policy is to refuse.
    #[must_use]
    pub fn is_refusable(&self) -> bool {
        let expected = &self.planted.expected;
        self.past.is_empty()
            && self.seen_by != Seen::Offline
            && !is_for_later(&self.planted)
            && expected.iter().any(|code| !WARNINGS.contains(code))
    }

    /// From a fault in a tree block.
    #[must_use]
    pub fn new(fault: &Fault, step: &Step, online_only: bool) -> Self {
        let writes = Writes { blocks: fault.blocks(step), supers: step.supers.clone() };
        let planted = fault.planted.clone();
        let seen_by = if online_only { Seen::Online } else { Seen::Anywhere };
        Trial {
            history: fault.history,
            step: fault.step,
            planted,
            past: Vec::new(),
            writes,
            seen_by,
            in_parts: false,
        }
    }
}

/// What was reported of one fault.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What was planted.
    pub planted: Planted,
    /// History and step, for messages.
    pub place: String,
    /// The verdict on the commit that carried it.
    pub verdict: String,
    /// What was reported of that commit.
    pub online: Vec<Reported>,
    /// What was reported of the next commit, in which the guest goes on from its own, right memory.
    pub next: Vec<Reported>,
    /// The verdict on the next commit; "none" where the program had to start anew.
    pub next_verdict: String,
    /// What `check` reports of the image as the commit left it.
    pub offline: Vec<Reported>,
    /// Exit code of that `check`.
    pub offline_code: Option<i32>,
    /// Who can see the fault.
    pub seen_by: Seen,
    /// Whether it stands in several blocks.
    pub in_parts: bool,
}

/// Whether only rules of a later issue can see a fault.
pub(crate) fn is_for_later(planted: &Planted) -> bool {
    let expected = &planted.expected;
    !expected.is_empty()
        && !expected.iter().any(|code| FAMILIES.iter().any(|family| code.starts_with(family)))
}

fn codes(reported: &[Reported]) -> impl Iterator<Item = &str> {
    reported.iter().map(|violation| violation.code.as_str())
}

fn has_error(reported: &[Reported]) -> bool {
    reported.iter().any(|violation| violation.is_error)
}

impl Finding {
    /// Whether the commit that carries the fault was judged as it should be.
    #[must_use]
    pub fn found_online(&self) -> bool {
        if self.seen_by == Seen::Offline {
            return self.verdict == "clean" && self.online.is_empty();
        }
        // Warnings change no verdict.
        let verdict = if has_error(&self.online) { "violations" } else { "clean" };
        self.verdict == verdict && self.planted.is_found_in(codes(&self.online))
    }

    /// Whether only rules of a later issue can see the fault.
    #[must_use]
    pub fn is_for_later(&self) -> bool {
        is_for_later(&self.planted)
    }

    /// Whether `check` judges the image as it should.
    #[must_use]
    pub fn found_offline(&self) -> bool {
        if self.seen_by == Seen::Online {
            return self.offline_code == Some(0) && self.offline.is_empty();
        }
        let wanted = i32::from(has_error(&self.offline));
        // What keeps `check` from opening the image is exit 2.
        self.offline_code == Some(2) && !self.is_harmless()
            || self.offline_code == Some(wanted) && self.planted.is_found_in(codes(&self.offline))
    }

    /// Whether nothing must be reported.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        self.planted.expected.is_empty()
    }
}

/// Puts together what was reported of a fault in `step`, which `next` follows.
pub(crate) fn finding(
    fault: &Trial,
    step: &Step,
    next: Option<&Step>,
    outcome: &Outcome,
    offline: &Outcome,
    history: &str,
) -> Finding {
    let next = next.map_or(u64::MAX, |next| next.to);
    Finding {
        planted: fault.planted.clone(),
        place: format!("{history}, {}, generation {}", step.doing, step.to),
        verdict: outcome.verdict(step.to).to_owned(),
        online: outcome.violations(step.to),
        next: outcome.violations(next),
        next_verdict: outcome.verdict(next).to_owned(),
        offline: offline.all_violations(),
        offline_code: offline.code,
        seen_by: fault.seen_by,
        in_parts: fault.in_parts,
    }
}
