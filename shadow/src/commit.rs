//! Verifies a commit: the state it leaves, the report it gives, and what is kept for the next one.

mod counts;
mod damage;
mod extents;
mod foresight;
mod report;

pub use report::{ActionCounts, CommitReport, REPORT_LIMIT, ReferenceCounts, Verdict};

use std::sync::Arc;

use hashbrown::HashSet;
use parser::SuperBlock;

use crate::attach::{self, AttachError, Coverage};
use crate::codes::Code;
use crate::commit::damage::DAMAGE_MEMORY;
use crate::commit::extents::{touched, unlike_before};
use crate::commit::foresight::{Ahead, Foreseen};
use crate::delta::extents::{ExtentDelta, Records, extent_delta};
use crate::delta::references::{Inputs, ReferenceDelta, ReplacedRanges, Residuals, reference_delta};
use crate::fold;
use crate::forest::{Forest, Snapshot};
use crate::ghosts;
use crate::live;
use crate::log_tree::{self, KnownLogs};
use crate::paths;
use crate::reconcile::{self, Finding, Touched};
use crate::refverify::Shadow;
use crate::roots::{self, Links};
use crate::rules::Rules;
use crate::source::BlockSource;
use crate::space::{self, LostChunk};
use crate::violation::Violation;

/// Violations of one commit for which a path is looked up, while the guest waits.
const PATH_LIMIT: usize = 16;

/// Verifies the commits of one file system, one after the other.
#[derive(Debug)]
pub struct Verifier {
    rules: Arc<Rules>,
    snapshot: Option<Snapshot>,
    coverage: Coverage,
    shadow: Shadow,
    known: Known,
    /// What of the running transaction's logs is verified.
    logs: KnownLogs,
    /// Whether the last commit can be taken back.
    revocable: bool,
    /// Extents that the commit at hand touches.
    touched: Vec<u64>,
    undo: Option<Undo>,
    /// The commit that will probably come, verified already.
    foreseen: Option<Foreseen>,
    /// Whether the last commit was verified ahead of its super block.
    was_foreseen: bool,
    /// Set while a commit is verified of which the super block is not there yet.
    ahead: Option<Ahead>,
}

/// What is known beside the trees. Whatever the verification of a commit changes and the next one looks at is in
/// here (or is worked out again, as the shadow and the log blocks are), so that a commit can be taken back.
#[derive(Debug, Clone, Default)]
struct Known {
    residuals: Residuals,
    reported: HashSet<(Code, u64, Option<u64>)>,
    /// Extents about which something was reported: a repair may change them as nothing else may.
    suspects: HashSet<u64>,
    space: space::Memory,
}

/// How to take back the last commit.
#[derive(Debug)]
enum Undo {
    Commit {
        snapshot: Box<Snapshot>,
        coverage: Coverage,
        known: Known,
        /// Extents whose entries the commit has changed.
        touched: Vec<u64>,
        generation: u64,
    },
    Log {
        superblock: Box<[u8]>,
    },
}

impl Verifier {
    /// A verifier whose shadow keeps about `shadow_limit` bytes of entries.
    #[must_use]
    pub fn new(shadow_limit: usize) -> Self {
        Verifier {
            rules: Arc::default(),
            snapshot: None,
            coverage: Coverage::default(),
            shadow: Shadow::new(shadow_limit),
            known: Known::default(),
            logs: KnownLogs::default(),
            revocable: false,
            touched: Vec::new(),
            undo: None,
            foreseen: None,
            was_foreseen: false,
            ahead: None,
        }
    }

    /// The same, with rules that count as `rules` says.
    #[must_use]
    pub fn with_rules(mut self, rules: Arc<Rules>) -> Self {
        self.rules = rules;
        self
    }

    /// The same, able to [take back](Self::revoke) the last commit: for that a copy is made of all damage that is
    /// known, at each commit.
    #[must_use]
    pub fn revocable(mut self, revocable: bool) -> Self {
        self.revocable = revocable;
        self
    }

    /// What each rule counts for.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The last commit; `None` while there is no file system.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// What of the file system is covered.
    #[must_use]
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// The shadow, for looking up entries.
    #[must_use]
    pub fn shadow(&self) -> &Shadow {
        &self.shadow
    }

    /// Opens the file system that `superblock` describes, forgetting the one before. Its state is taken as it is.
    ///
    /// # Errors
    /// [`AttachError`] where it can't be opened; there is no file system then.
    pub fn attach(&mut self, superblock: &[u8], source: &dyn BlockSource) -> Result<&Snapshot, AttachError> {
        self.detach();
        let snapshot = attach::load(superblock, source)?;
        self.coverage = Coverage::new(&snapshot.geometry);
        Ok(self.snapshot.insert(snapshot))
    }

    /// Reads the whole extent tree, where it is small enough for that to go unnoticed: see [`attach::survey`].
    #[must_use]
    pub fn survey(&self, source: &dyn BlockSource) -> Option<attach::Survey> {
        let snapshot = self.snapshot.as_ref().filter(|_| self.coverage.is_whole())?;
        attach::survey(&Forest::new(snapshot, source))
    }

    /// Forgets the file system.
    pub fn detach(&mut self) {
        self.foreseen = None;
        self.snapshot = None;
        self.coverage = Coverage::default();
        self.shadow.clear();
        self.logs.clear();
        self.known = Known::default();
        self.undo = None;
    }

    /// Takes up damage that was there at attach, so that only what is added to it is reported. What commits have
    /// added, or taken away, since is summed with it.
    pub fn know_damage(&mut self, residuals: Residuals) {
        self.forget_foreseen();
        for (bytenr, keys) in residuals {
            let known = self.known.residuals.entry(bytenr).or_default();
            for (key, more) in keys {
                match known.iter_mut().find(|(existing, _)| *existing == key) {
                    Some((_, sum)) => *sum = sum.saturating_add(more),
                    None => known.push((key, more)),
                }
            }
            known.retain(|(_, sum)| *sum != 0);
            if known.is_empty() {
                self.known.residuals.remove(&bytenr);
            }
        }
    }

    /// Whether it is known that something is wrong with the extent at `bytenr`.
    #[must_use]
    pub fn knows_damage(&self, bytenr: u64) -> bool {
        self.known.residuals.contains_key(&bytenr)
    }

    /// The last commit won't be taken back any more.
    pub fn settle(&mut self) {
        self.undo = None;
    }

    /// Takes back the last commit or log commit, so that the one before it is the last again. Of the histories only
    /// the steps of the refused commit are forgotten; entries are read anew from the extent tree.
    pub fn revoke(&mut self) {
        self.forget_foreseen();
        self.logs.clear();
        match self.undo.take() {
            Some(Undo::Commit { snapshot, coverage, known, touched, generation }) => {
                self.snapshot = Some(*snapshot);
                self.coverage = coverage;
                self.known = known;
                touched.into_iter().for_each(|bytenr| self.shadow.retract(bytenr, generation));
            }
            Some(Undo::Log { superblock }) => {
                if let Some(snapshot) = &mut self.snapshot {
                    snapshot.superblock = superblock;
                }
            }
            None => {}
        }
    }

    /// Verifies the commit that `superblock` makes, and takes over its state. All blocks it reaches must have been
    /// written; those of the last commit must not have been overwritten yet.
    pub fn commit(&mut self, superblock: &[u8], source: &dyn BlockSource) -> CommitReport {
        let adopted = self.adopt(superblock, source);
        self.was_foreseen = adopted.is_some();
        if let Some(report) = adopted {
            return report;
        }
        let mut report = CommitReport::new(&self.rules);
        self.logs.clear();
        self.undo = None;
        let Some(old) = self.snapshot.take() else {
            report.unverified.push("no commit before this one is known".to_owned());
            return report;
        };
        let generation = SuperBlock::parse(superblock).map(|view| view.generation()).ok();
        report.generation = generation.unwrap_or_else(|| old.generation.saturating_add(1));
        let before = self.revocable.then(|| (self.coverage.clone(), self.known.clone()));
        self.touched.clear();
        self.take_over(&mut report, &old, superblock, source);
        self.undo = before.map(|(coverage, known)| Undo::Commit {
            snapshot: Box::new(old),
            coverage,
            known,
            touched: std::mem::take(&mut self.touched),
            generation: report.generation,
        });
        report
    }

    fn take_over(
        &mut self,
        report: &mut CommitReport,
        old: &Snapshot,
        superblock: &[u8],
        source: &dyn BlockSource,
    ) {
        if !self.coverage.is_whole() {
            report.unverified.clone_from(&self.coverage.gaps);
        }
        let mut links = Links::default();
        let mut new = match attach::advance(old, superblock, source, &mut links) {
            Ok(new) => new,
            Err(error) => return self.note_attach_error(report, error),
        };
        if self.coverage.is_whole() {
            let (old, new) = (Forest::new(old, source), Forest::new(&new, source));
            self.verify(report, old, new);
            let (violations, problems) = roots::verify(&old, &new, &links);
            violations.into_iter().for_each(|violation| report.push(violation));
            self.note_problems(report, problems);
        }
        if self.known.suspects.len() >= DAMAGE_MEMORY {
            self.known.suspects.clear();
        }
        self.known.suspects.extend(report.violations.iter().map(|found| found.bytenr));
        self.coverage = Coverage::new(&new.geometry);
        new.verified.1 = new.generation;
        self.snapshot = Some(new);
    }

    /// Addresses of the log's blocks that the last super block reaches, as far as they can be read.
    #[must_use]
    pub fn log_blocks(&self, source: &dyn BlockSource) -> Vec<u64> {
        let Some(snapshot) = self.snapshot.as_ref().filter(|_| self.coverage.is_whole()) else {
            return Vec::new();
        };
        let Some(view) = snapshot.super_view() else { return Vec::new() };
        log_tree::verify(&Forest::new(snapshot, source), &view, &mut KnownLogs::default()).blocks
    }

    /// Verifies a log commit: `superblock` differs from the last one in nothing but its log root.
    pub fn log_commit(&mut self, superblock: &[u8], source: &dyn BlockSource) -> CommitReport {
        self.forget_foreseen();
        let mut report = CommitReport::new(&self.rules);
        self.undo = None;
        let Some(snapshot) = &self.snapshot else {
            report.unverified.push("no commit before this one is known".to_owned());
            return report;
        };
        report.generation = snapshot.generation;
        if !self.coverage.is_whole() {
            report.unverified.clone_from(&self.coverage.gaps);
        } else if let Ok(view) = SuperBlock::parse(superblock) {
            let log = log_tree::verify(&Forest::new(snapshot, source), &view, &mut self.logs);
            report.blocks_born = log.blocks.len() as u64;
            report.log_blocks = log.blocks;
            report.not_flushed = log.not_flushed;
            self.note_log(&mut report, log.violations, log.unread);
            log.faults.into_iter().for_each(|violation| report.push(violation));
        }
        let before = self
            .snapshot
            .as_mut()
            .map(|snapshot| std::mem::replace(&mut snapshot.superblock, superblock.into()));
        self.undo = before.filter(|_| self.revocable).map(|superblock| Undo::Log { superblock });
        report
    }

    fn note_attach_error(&mut self, report: &mut CommitReport, error: AttachError) {
        match error {
            AttachError::Tree { problems, .. } => self.note_problems(report, problems),
            error => report.push_unusable(Violation::new(Code::TreeSuperBlock, 0, 4096, error.to_string())),
        }
    }

    fn verify(&mut self, report: &mut CommitReport, old: Forest<'_>, new: Forest<'_>) {
        let mut old_records = Records::new(old);
        let mut new_records = Records::new(new);
        // Where that can't be told, neither can the extents be compared: the block that can't be read is found below.
        let lost = space::lost_chunks(&old, &new).unwrap_or_default();
        let replaced = ReplacedRanges::new(&old, &new, &lost);
        let mut extents = extent_delta(&mut old_records, &mut new_records);
        report.actions = counts::actions(&extents);
        let references = reference_delta(Inputs {
            old,
            new,
            old_records: &mut old_records,
            new_records: &mut new_records,
            extents: &extents,
            replaced: &replaced,
            residuals: &self.known.residuals,
        });
        report.references = counts::references(&references);
        report.blocks_born = references.born;
        let ReferenceDelta { changes, mut violations, disowned, mut problems, fresh, .. } = references;
        match &mut self.ahead {
            // They are being flushed just now.
            Some(ahead) => ahead.fresh = fresh,
            None => {
                let (missing, not_flushed) = foresight::origins(&new, &fresh);
                violations.extend(missing);
                report.not_flushed = not_flushed;
            }
        }
        if extents.problems.is_empty() {
            // What can't be read of the other trees has been come upon above.
            report.live = live::delta(&old, &new, &extents, &replaced).ok();
        }
        let mut record_violations = std::mem::take(&mut extents.violations);
        let is_reported = |bytenr: u64| {
            self.known.suspects.contains(&bytenr) || violations.iter().any(|found| found.bytenr == bytenr)
        };
        let unlike = unlike_before(&extents, &replaced, old.snapshot.generation);
        record_violations.extend(unlike.filter(|found| !is_reported(found.bytenr)));
        self.note_copies(report, violations);
        let can_compare = extents.problems.is_empty();
        problems.append(&mut extents.problems);
        let (mut findings, mut ghosts) = (Vec::new(), Vec::new());
        if can_compare {
            let work =
                touched(&extents, changes, &replaced, &mut old_records, &mut new_records, &mut problems);
            ghosts = ghosts::of_commit(&work, old, new);
            findings = self.reconcile_all(report, work, &replaced, new.snapshot.generation);
        }
        if problems.is_empty() {
            let folded = fold::fold(findings, record_violations, ghosts, disowned, &new);
            let space = self.verify_space(report, (old, new), (&extents, &lost), &folded);
            for mut violation in folded.into_iter().chain(space) {
                self.add_history(&mut violation);
                if report.violations.len() < PATH_LIMIT {
                    violation.path = paths::describe(&new, &violation);
                }
                report.push(violation);
            }
        } else {
            // Where a block is missing, what it held is unknown, and every comparison would blame the wrong
            // extent: the block is the finding. What seems to differ is remembered, though: it will seem to
            // change back when the block is mended.
            self.known.space.miss();
            record_violations.into_iter().chain(disowned).for_each(|violation| report.push(violation));
        }
        self.note_problems(report, problems);
    }

    /// The rules about space. What keeps them from looking has been reported where it is news: here it is only why
    /// they were silent.
    fn verify_space(
        &mut self,
        report: &mut CommitReport,
        (old, new): (Forest<'_>, Forest<'_>),
        (extents, lost): (&ExtentDelta, &[LostChunk]),
        folded: &[Violation],
    ) -> Vec<Violation> {
        let reported = report.violations.iter().chain(folded).collect();
        let bytes_used = self.ahead.as_mut().map(|ahead| &mut ahead.bytes_used);
        let inputs = space::Inputs { old, new, extents, lost, reported };
        let space = space::verify(&inputs, &mut self.known.space, bytes_used);
        report.unverified.extend(space.unverified);
        space.violations
    }

    /// What is remembered of an extent whose record is wrong by itself.
    fn add_history(&self, violation: &mut Violation) {
        if let (None, Some(entry)) = (&violation.sides, self.shadow.entry(violation.bytenr)) {
            violation.history = entry.history().copied().collect();
        }
    }

    /// First what lay in chunks that are gone, then the chunks themselves, then all the rest.
    fn reconcile_all(
        &mut self,
        report: &mut CommitReport,
        work: Vec<Touched>,
        replaced: &ReplacedRanges,
        generation: u64,
    ) -> Vec<Finding> {
        self.touched.extend(work.iter().map(|touched| touched.id.bytenr));
        let (gone, rest): (Vec<_>, Vec<_>) =
            work.into_iter().partition(|touched| !touched.id.reborn && replaced.contains(touched.id.bytenr));
        let mut findings = Vec::new();
        for touched in gone {
            findings.extend(reconcile::reconcile(
                &mut self.shadow,
                &mut self.known.residuals,
                touched,
                generation,
            ));
        }
        for &(start, end) in replaced.ranges() {
            for violation in self.shadow.free_range(start, end - start) {
                report.push(violation);
            }
        }
        for touched in rest {
            findings.extend(reconcile::reconcile(
                &mut self.shadow,
                &mut self.known.residuals,
                touched,
                generation,
            ));
        }
        findings
    }
}
