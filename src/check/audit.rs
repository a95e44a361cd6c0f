//! Runs `shadow::audit` on all cores.

use std::sync::{Mutex, PoisonError};

use rayon::Scope;
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use shadow::audit::{Collected, Explained, OfRecords, Scan, Table, Visitor, Walk, explain, partitions, scan};
use shadow::delta::references::Residuals;
use shadow::forest::{BlockProblem, Expect};
use shadow::log_tree::{self, KnownLogs};
use shadow::unreadable::{self, Obstacle};
use shadow::violation::Violation;
use shadow::{BlockSource, Code, Forest, Rules, Snapshot, inodes, roots, space};

use crate::check::Progress;
use crate::check::data::DataReport;

/// What a whole file system turned out to be.
#[derive(Debug, Default)]
pub struct AuditReport {
    /// Extents in the extent tree.
    pub extents: u64,
    /// Tree blocks among them.
    pub tree_blocks: u64,
    /// What is wrong.
    pub violations: Vec<Violation>,
    /// What could not be looked at.
    pub unknown: Vec<String>,
    /// Rules that blocks break so that they can't be used.
    unusable: Vec<Code>,
    /// By how much references and backrefs differ, by extent.
    pub residuals: Residuals,
}

/// Compares all references of `snapshot` with all backrefs.
#[must_use]
pub fn audit(snapshot: &Snapshot, source: &dyn BlockSource, progress: &dyn Progress) -> AuditReport {
    let forest = Forest::new(snapshot, source);
    let ranges = match partitions(&forest) {
        Ok(ranges) => ranges,
        Err(problem) => {
            let mut report = AuditReport::default();
            report.note(vec![problem]);
            return report;
        }
    };
    progress.begin("extent tree", ranges.len() as u64);
    let mut scans: Vec<Scan> = ranges
        .into_par_iter()
        .map(|(first, last)| {
            let scan = scan(&forest, first, last);
            progress.advance(1);
            scan
        })
        .collect();
    let mut of_records = OfRecords::default();
    let mut problems = Vec::new();
    let mut groups = Vec::new();
    for scan in &mut scans {
        of_records.violations.append(&mut scan.violations);
        of_records.ghosts.append(&mut scan.ghosts);
        groups.append(&mut scan.groups);
        problems.append(&mut scan.problems);
    }
    let scan_whole = problems.is_empty();
    of_records.is_whole = scan_whole;
    let table = Table::new(scans);
    let mut report = AuditReport {
        extents: table.len() as u64,
        tree_blocks: table.tree_blocks(),
        ..AuditReport::default()
    };

    progress.begin("references", report.tree_blocks);
    let walk = Walk::new(forest, &table, Visitor::Sum(&table));
    run(&walk, progress);
    let mut findings = walk.finish();
    problems.append(&mut findings.problems.clone());

    let collected = Mutex::new(Collected::new(table.mismatches()));
    let none_differ = collected.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
    if !none_differ {
        progress.begin("differences", report.tree_blocks);
        let again = Walk::new(forest, &table, Visitor::Collect(&collected));
        run(&again, progress);
        drop(again);
    }
    progress.end();
    let checksums = std::mem::take(&mut findings.checksums);
    let collected = collected.into_inner().unwrap_or_else(PoisonError::into_inner);
    let Explained { violations, residuals, problems: more } =
        explain(&forest, of_records, findings, collected);
    problems.extend(more);
    report.violations = unreadable::fold(violations);
    report.violations.extend(roots::verify_all(&forest));
    if scan_whole {
        // Every extent that was not read would seem to be free.
        let mut space = space::audit::audit(forest, &table, groups, &report.violations);
        space.violations.extend(checksums.finish(&report.violations, &forest));
        report.violations.append(&mut space.violations);
        problems.append(&mut space.problems);
    }
    report.residuals = residuals;
    report.note(problems);
    report
}

/// Verifies the inodes of all subvolumes, each by itself.
pub fn verify_inodes(
    snapshot: &Snapshot,
    source: &dyn BlockSource,
    progress: &dyn Progress,
) -> Vec<Violation> {
    let forest = Forest::new(snapshot, source);
    let subvolumes = inodes::subvolumes(&forest);
    let checksums = inodes::Checksums::read(&forest);
    progress.begin("inodes", subvolumes.len() as u64);
    let found = subvolumes.into_par_iter().filter_map(|(id, root)| {
        let found = inodes::verify(&forest, id, &root, checksums.as_ref());
        progress.advance(1);
        found
    });
    let found = inodes::unite(&forest, found.collect());
    progress.end();
    found
}

impl AuditReport {
    /// Takes up what was found in file data.
    pub(super) fn take_data(&mut self, found: DataReport) {
        self.violations.extend(found.violations);
        self.unknown.extend(found.unknown);
    }

    /// Takes up what is wrong with the log trees, which the next mount replays.
    pub(super) fn take_log(&mut self, snapshot: &Snapshot, source: &dyn BlockSource) {
        let Some(view) = snapshot.super_view() else { return };
        let log = log_tree::verify(&Forest::new(snapshot, source), &view, &mut KnownLogs::default());
        self.violations.extend(log.faults);
        let violations = log.violations.into_iter().map(|found| BlockProblem::Violation(Box::new(found)));
        self.note(violations.chain(log.unread.into_iter().map(BlockProblem::Unknown)).collect());
    }

    /// Leaves what the rules leave, and says what is unverified because of them.
    pub fn judge(&mut self, rules: &Rules) {
        let found = std::mem::take(&mut self.violations);
        self.violations = found.into_iter().filter_map(|violation| rules.judge(violation)).collect();
        let excused = std::mem::take(&mut self.unusable).into_iter().filter(|code| !rules.is_error(*code));
        for code in excused {
            self.unknown.push(format!("a block breaks {}, which is no error here", code.name()));
        }
    }

    /// Blocks that could not be read: several ways may lead to one.
    pub(super) fn note(&mut self, problems: Vec<BlockProblem>) {
        let (mut violations, mut unread) = (Vec::new(), Vec::new());
        for problem in problems {
            match problem {
                BlockProblem::Unknown(reason) => unread.push(reason),
                BlockProblem::Violation(violation) => violations.push(*violation),
            }
        }
        for reason in unreadable::reasons(unread) {
            if !self.unknown.contains(&reason) {
                self.unknown.push(reason);
            }
        }
        for violation in unreadable::fold(violations) {
            if !self.unusable.contains(&violation.code) {
                self.unusable.push(violation.code);
            }
            if !self.violations.iter().any(|known| is_same(known, &violation)) {
                self.violations.push(violation);
            }
        }
    }
}

/// Whether one report says what another does: of the same block, or of others that the same keeps from being read.
fn is_same(known: &Violation, other: &Violation) -> bool {
    let is_one_obstacle =
        known.obstacle.is_some_and(Obstacle::is_lasting) && known.obstacle == other.obstacle;
    known.code == other.code && (known.bytenr == other.bytenr || is_one_obstacle)
}

fn run(walk: &Walk<'_>, progress: &dyn Progress) {
    let roots = walk.roots();
    rayon::scope(|scope| {
        for root in roots {
            scope.spawn(move |scope| descend(walk, root, progress, scope));
        }
    });
}

/// Visits a block and everything that is reached first through it. Subtrees are tasks of their own, leaves are not.
fn descend<'s>(walk: &'s Walk<'_>, expect: Expect, progress: &'s dyn Progress, scope: &Scope<'s>) {
    let mut next = Vec::new();
    walk.visit(&expect, &mut next);
    progress.advance(1);
    for expect in next {
        if expect.level > 0 {
            scope.spawn(move |scope| descend(walk, expect, progress, scope));
        } else {
            let mut none = Vec::new();
            walk.visit(&expect, &mut none);
            progress.advance(1);
        }
    }
}
