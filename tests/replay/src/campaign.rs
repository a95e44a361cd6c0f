//! Replays recorded commits through the program, clean and with faults, and collects what it says.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use corrupt::{Kind, sets};
use testkit::Image;

use crate::backend::{Backend, Outcome, Writes, check};
use crate::disk::{self, Memory};
use crate::history::{History, Step};
use crate::plan::{Target, choose, choose_set, targets};
use crate::recorder::{Plan, record, record_singly};
use crate::trial::{Finding, Trial, finding};
use crate::{past, writes};

/// A working copy of a history's disk, in a file and in memory, that goes forward from step to step.
pub(crate) struct Work<'a> {
    history: &'a History,
    pub(crate) image: Image,
    file: File,
    pub(crate) memory: Memory,
}

impl<'a> Work<'a> {
    pub(crate) fn new(history: &'a History) -> Self {
        let image = history.base.copy();
        let file = disk::open(image.path());
        let memory = Memory::load(image.path());
        Work { history, image, file, memory }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).expect("the working copy");
    }

    /// The next step, for good.
    pub(crate) fn advance(&mut self, step: &Step) {
        step.apply(&mut self.memory);
        step.changes().for_each(|change| self.write(change.offset, &change.bytes));
    }

    /// What a commit writes, without anybody who looks on.
    fn make(&self, writes: &Writes) {
        writes
            .blocks
            .iter()
            .chain(&writes.supers)
            .for_each(|change| self.write(change.offset, &change.bytes));
    }

    /// Puts back what commits have overwritten.
    pub(crate) fn restore(&self, commits: &[Writes]) {
        for change in commits.iter().flat_map(|writes| writes.blocks.iter().chain(&writes.supers)) {
            if let Some(bytes) = self.memory.get(change.offset, change.bytes.len()) {
                self.write(change.offset, bytes);
            }
        }
    }

    /// Replays a step with its fault, and the step after it without.
    fn plant(&self, program: &Path, fault: &Trial, seed: u64) -> Finding {
        let step = &self.history.steps[fault.step];
        let next = self.history.steps.get(fault.step + 1).filter(|next| next.is_single());
        let past = Writes { blocks: fault.past.clone(), supers: Vec::new() };
        let mut commits = vec![fault.writes.clone()];
        commits.extend(next.map(Writes::from));
        self.make(&past);
        let outcome = Backend::start(program, self.image.path()).replay(&commits, seed);
        self.restore(&commits);
        self.make(&past);
        self.make(&commits[0]);
        let offline = check(program, self.image.path());
        self.restore(&[past, commits.swap_remove(0)]);
        finding(fault, step, next, &outcome, &offline, &self.history.name)
    }
}

/// Runs `work` for every index below `count`, on two threads, and returns the results in order.
pub(crate) fn on_two_threads<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new((0..count).map(|_| None).collect::<Vec<Option<T>>>());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let result = work(index);
                    results.lock().expect("results")[index] = Some(result);
                }
            });
        }
    });
    results.into_inner().expect("results").into_iter().flatten().collect()
}

fn run_on(program: &Path, history: &History, trials: &[(usize, &Trial)]) -> Vec<(usize, Finding)> {
    let mut findings = Vec::new();
    if trials.is_empty() {
        return findings;
    }
    let mut work = Work::new(history);
    for (index, step) in history.steps.iter().enumerate() {
        for (number, trial) in trials.iter().filter(|(_, trial)| trial.step == index) {
            findings.push((*number, work.plant(program, trial, *number as u64)));
        }
        work.advance(step);
    }
    findings
}

/// Recorded histories, and what can be broken in them.
pub struct Campaign {
    pub(crate) recorded: Vec<(History, Vec<Target>)>,
}

impl Campaign {
    /// Records histories.
    ///
    /// # Panics
    /// When one cannot be recorded, or is not sound.
    #[must_use]
    pub fn record(plans: &[Plan]) -> Self {
        Self::record_by(plans, record)
    }

    /// The same, each script one commit.
    ///
    /// # Panics
    /// When one cannot be recorded so, or is not sound.
    #[must_use]
    pub fn record_singly(plans: &[Plan]) -> Self {
        Self::record_by(plans, record_singly)
    }

    fn record_by(plans: &[Plan], record: fn(&Plan) -> History) -> Self {
        let recorded = on_two_threads(plans.len(), |index| {
            let history = record(&plans[index]);
            let targets = targets(&history);
            (history, targets)
        });
        Campaign { recorded }
    }

    /// The histories.
    pub fn histories(&self) -> impl Iterator<Item = &History> {
        self.recorded.iter().map(|(history, _)| history)
    }

    /// Up to `each` faults of every kind that is wanted by its name.
    #[must_use]
    pub fn trials(&self, each: usize, wanted: impl Fn(&str) -> bool) -> Vec<Trial> {
        self.trials_elsewhere(each, 0, wanted)
    }

    /// The same at other places: `turn` says which.
    #[must_use]
    pub fn trials_elsewhere(&self, each: usize, turn: u64, wanted: impl Fn(&str) -> bool) -> Vec<Trial> {
        let seed = |index: usize| index as u64 + (turn << 32);
        let is_wanted = |kind: &Kind| !kind.is_for_inodes() && !kind.is_for_logs() && wanted(&kind.name);
        let kinds: Vec<Kind> = corrupt::all().into_iter().filter(is_wanted).collect();
        let chosen =
            on_two_threads(kinds.len(), |index| choose(&kinds[index], &self.recorded, each, seed(index)));
        let mut trials = Vec::new();
        for (kind, faults) in kinds.iter().zip(&chosen) {
            for fault in faults {
                let step = &self.recorded[fault.history].0.steps[fault.step];
                trials.push(Trial::new(fault, step, kind.needs_past));
            }
        }
        for (index, kind) in sets::KINDS.iter().filter(|kind| wanted(kind.name)).enumerate() {
            for fault in choose_set(kind, &self.recorded, each, seed(index)) {
                let step = &self.recorded[fault.history].0.steps[fault.step];
                trials.push(Trial { in_parts: true, ..Trial::new(&fault, step, false) });
            }
        }
        for (index, kind) in writes::KINDS.iter().filter(|kind| wanted(kind.name)).enumerate() {
            trials.extend(writes::choose(kind, &self.recorded, each, seed(index)));
        }
        let kinds: Vec<_> = past::KINDS.iter().filter(|kind| wanted(kind.name)).collect();
        trials.extend(past::trials(&kinds, &self.recorded, each, seed(0)));
        trials
    }

    /// Plants faults, each in a run of the program of its own.
    #[must_use]
    pub fn run(&self, program: &Path, trials: &[Trial]) -> Vec<Finding> {
        // The trials of a history are shared out, so that both threads have work to the end.
        let halves: Vec<(usize, usize)> =
            (0..self.recorded.len()).flat_map(|history| [(history, 0), (history, 1)]).collect();
        let parts = on_two_threads(halves.len(), |index| {
            let (history, half) = halves[index];
            let own = trials.iter().enumerate().filter(|(_, trial)| trial.history == history);
            let own: Vec<_> = own.skip(half).step_by(2).collect();
            run_on(program, &self.recorded[history].0, &own)
        });
        let mut findings: Vec<_> = parts.into_iter().flatten().collect();
        findings.sort_by_key(|(index, _)| *index);
        findings.into_iter().map(|(_, finding)| finding).collect()
    }

    /// Replays all commits as they are.
    #[must_use]
    pub fn replay_clean(&self, program: &Path) -> Clean {
        let parts =
            on_two_threads(self.recorded.len(), |index| replay_clean(program, &self.recorded[index].0));
        parts.into_iter().fold(Clean::default(), |mut sum, part| {
            sum.clean += part.clean;
            sum.wrong.extend(part.wrong);
            sum
        })
    }
}

/// What came of a clean replay.
#[derive(Debug, Default)]
pub struct Clean {
    /// Commits whose verdict was clean.
    pub clean: usize,
    /// Commits whose verdict was not, and violations, in words.
    pub wrong: Vec<String>,
}

/// Replays all commits of a history as they are, each unbroken run of them in one run of the program, and compares
/// the image at the end with what the kernel left.
#[must_use]
pub fn replay_clean(program: &Path, history: &History) -> Clean {
    let mut work = Work::new(history);
    let mut result = Clean::default();
    let mut at = 0;
    while at < history.steps.len() {
        let count = history.steps[at..].iter().take_while(|step| step.is_single()).count();
        if count == 0 {
            work.advance(&history.steps[at]);
            at += 1;
            continue;
        }
        let steps = &history.steps[at..at + count];
        let commits: Vec<Writes> = steps.iter().map(Writes::from).collect();
        let outcome = Backend::start(program, work.image.path()).replay(&commits, at as u64);
        steps.iter().for_each(|step| step.apply(&mut work.memory));
        judge_clean(history, steps, &outcome, &mut result);
        at += count;
    }
    if Memory::load(work.image.path()).bytes() != work.memory.bytes() {
        result.wrong.push(format!("{}: the image is not what was written", history.name));
    }
    result
}

fn judge_clean(history: &History, steps: &[Step], outcome: &Outcome, result: &mut Clean) {
    for step in steps {
        let violations = outcome.violations(step.to);
        if outcome.verdict(step.to) == "clean" && violations.is_empty() {
            result.clean += 1;
        } else {
            let commit = outcome.commit(step.to);
            result.wrong.push(format!("{}, {}: {commit:?} {violations:#?}", history.name, step.doing));
        }
    }
    if outcome.code != Some(0) || !outcome.all_violations().is_empty() {
        let violations = outcome.all_violations();
        result
            .wrong
            .push(format!("{}: exit {:?}: {violations:#?} {}", history.name, outcome.code, outcome.stderr));
    }
}
