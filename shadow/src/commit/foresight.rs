//! A commit verified before its super block is there.
//!
//! When the guest flushes, all blocks of the transaction are written, and the new root of the root tree among them: what
//! the super block will say can be told but for `bytes_used`. The commit is verified against that, while the guest waits
//! for its flush. When the super block comes and is as foretold, and nothing was written since, what was found then is
//! what would be found now; what is left are those questions that could not be answered: `bytes_used`, and whether every
//! block was written and flushed.
//!
//! Only a commit about which there is nothing at all to say is taken up so. In every other case what was found is
//! forgotten, and the commit is verified as any other: no report can depend on whether it was foreseen.

use parser::SuperBlock;

use crate::commit::{CommitReport, Known, Undo, Verifier};
use crate::forest::{Expect, Forest, Snapshot, Unsafe};
use crate::source::BlockSource;
use crate::violation::Violation;

/// What can't be asked before the super block is there.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Blocks of the transaction, which must have been written and flushed.
    pub(super) fresh: Vec<Expect>,
    /// By how much `bytes_used` must have changed.
    pub(super) bytes_used: Option<i128>,
}

/// A commit that was verified before its super block was there, and about which there was nothing to say.
#[derive(Debug)]
pub(super) struct Foreseen {
    /// Its state, with the super block that was foretold.
    snapshot: Snapshot,
    report: CommitReport,
    /// What is known after it.
    known: Known,
    /// Extents whose entries it has changed.
    touched: Vec<u64>,
    ahead: Ahead,
    /// How many writes there had been.
    epoch: u64,
}

impl Verifier {
    /// Verifies the commit that will come if the block at `root` (address and level) is the new root of the root tree
    /// and nothing else of what the super block says changes. Whether that was of any use is seen when the
    /// [commit](Verifier::commit) comes; until then nothing is different.
    ///
    /// Returns whether there was nothing to say about it.
    pub fn foresee(&mut self, root: (u64, u8), source: &dyn BlockSource) -> bool {
        self.forget_foreseen();
        // What may still be taken back is not built upon.
        let Some(epoch) = source.epoch().filter(|_| self.coverage.is_whole() && self.undo.is_none()) else {
            return false;
        };
        let Some(old) = self.snapshot.take() else { return false };
        let foretold = foretell(&old, root);
        let (known, coverage) = (self.known.clone(), self.coverage.clone());
        self.touched.clear();
        self.ahead = Some(Ahead::default());
        let mut report = CommitReport::new(&self.rules);
        report.generation = old.generation.saturating_add(1);
        if let Some(foretold) = foretold {
            self.take_over(&mut report, &old, &foretold, source);
        }
        let snapshot = self.snapshot.replace(old);
        let known = std::mem::replace(&mut self.known, known);
        self.coverage = coverage;
        let (touched, ahead) = (std::mem::take(&mut self.touched), self.ahead.take().unwrap_or_default());
        match snapshot {
            Some(snapshot) if is_spotless(&report) => {
                self.foreseen = Some(Foreseen { snapshot, report, known, touched, ahead, epoch });
                true
            }
            _ => {
                self.retract(touched, report.generation);
                false
            }
        }
    }

    /// Whether the last commit was one that had been [foreseen](Verifier::foresee): what it took is what was left of it.
    #[must_use]
    pub fn was_foreseen(&self) -> bool {
        self.was_foreseen
    }

    /// Takes up the commit that was foreseen, if it is the one that `superblock` makes.
    pub(super) fn adopt(&mut self, superblock: &[u8], source: &dyn BlockSource) -> Option<CommitReport> {
        let foreseen = self.foreseen.take()?;
        let Some(not_flushed) = self.holds(&foreseen, superblock, source) else {
            self.retract(foreseen.touched, foreseen.report.generation);
            return None;
        };
        let Foreseen { mut snapshot, mut report, known, touched, .. } = foreseen;
        report.not_flushed = not_flushed;
        snapshot.superblock = superblock.into();
        self.logs.clear();
        let old = self.snapshot.replace(snapshot);
        let known = std::mem::replace(&mut self.known, known);
        self.undo = old.filter(|_| self.revocable).map(|old| Undo::Commit {
            snapshot: Box::new(old),
            coverage: self.coverage.clone(),
            known,
            touched,
            generation: report.generation,
        });
        Some(report)
    }

    /// Whether what was foreseen is what `superblock` commits, and nothing is wrong with what could not be asked then.
    /// If so, also the block that was not flushed, where there is one.
    fn holds(
        &self,
        foreseen: &Foreseen,
        superblock: &[u8],
        source: &dyn BlockSource,
    ) -> Option<Option<Violation>> {
        let (before, foretold) = (self.snapshot.as_ref()?.super_view()?, foreseen.snapshot.super_view()?);
        let now = SuperBlock::parse(superblock).ok().filter(|now| now.verify_csum())?;
        let more = i128::from(now.bytes_used()) - i128::from(before.bytes_used());
        let is_it = now.is_as_foretold(&foretold)
            && foreseen.ahead.bytes_used == Some(more)
            && source.epoch() == Some(foreseen.epoch);
        if !is_it {
            return None;
        }
        let (missing, not_flushed) = origins(&Forest::new(&foreseen.snapshot, source), &foreseen.ahead.fresh);
        missing.is_empty().then_some(not_flushed)
    }

    /// What was foreseen will not come.
    pub(super) fn forget_foreseen(&mut self) {
        if let Some(foreseen) = self.foreseen.take() {
            self.retract(foreseen.touched, foreseen.report.generation);
        }
    }

    fn retract(&mut self, touched: Vec<u64>, generation: u64) {
        touched.into_iter().for_each(|bytenr| self.shadow.retract(bytenr, generation));
    }
}

/// The super block that the next transaction will have.
fn foretell(old: &Snapshot, root: (u64, u8)) -> Option<Vec<u8>> {
    let view = old.super_view()?;
    let mut foretold = view.foretold(root);
    view.csum().ok()?.seal(&mut foretold);
    Some(foretold)
}

fn is_spotless(report: &CommitReport) -> bool {
    let CommitReport { violations, suppressed, unverified, live, .. } = report;
    violations.is_empty() && *suppressed == 0 && unverified.is_empty() && live.is_some()
}

/// Blocks of a transaction that were not written before the super block came, and one that was not flushed.
pub(super) fn origins(new: &Forest<'_>, fresh: &[Expect]) -> (Vec<Violation>, Option<Violation>) {
    let mut missing = Vec::new();
    let mut not_flushed = None;
    for expect in fresh {
        match new.unsafe_copy(expect) {
            Some(Unsafe::Missing(violation)) => missing.push(violation),
            Some(Unsafe::NotFlushed(violation)) => {
                not_flushed.get_or_insert(violation);
            }
            None => {}
        }
    }
    (missing, not_flushed)
}
