//! Faulty commits under the policy that refuses them: what is on the disk stays the last good commit, whatever order the
//! super blocks come in, and the sound commit of the same generation is let through afterwards.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::backend::{Backend, Writes};
use crate::campaign::{Campaign, Work, on_two_threads};
use crate::driver::Driver;
use crate::history::Step;
use crate::rng::Rng;
use crate::trial::Trial;

/// Longer than a verdict takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Faults of writes to places that the last good commit needs: what the guest must not do in the first place.
const OVERWRITES: [&str; 2] = ["write-misdirected", "write-also-elsewhere"];

/// Writes a commit as a kernel does: its blocks, a flush, then all super blocks at once, the copy sometimes first.
/// Whether the primary one, and the copy, were carried out.
///
/// # Panics
/// When there is no answer.
pub fn commit(driver: &mut Driver, writes: &Writes, rng: &mut Rng) -> (bool, Option<bool>) {
    driver.write(&writes.blocks, rng);
    driver.flush();
    let [primary, copies @ ..] = writes.supers.as_slice() else { panic!("no super block") };
    let copy = copies.first();
    let copy_first = rng.below(2) == 0;
    let mut early = None;
    if let Some(copy) = copy.filter(|_| copy_first) {
        driver.begin(1, copy);
        // Long enough to be looked at before the primary one comes.
        early = driver.end(1, Duration::from_millis(5));
    }
    driver.begin(0, primary);
    let primary = driver.end(0, PATIENCE).expect("an answer to the primary super block");
    if let Some(copy) = copy.filter(|_| !copy_first) {
        driver.begin(1, copy);
    }
    let copy = copy.map(|_| early.unwrap_or_else(|| driver.end(1, PATIENCE).expect("an answer to the copy")));
    driver.flush();
    (primary, copy)
}

impl Campaign {
    /// Plants faults, each under the policy reject; returns what is wrong with the outcome, in words, and how many
    /// faults were planted.
    #[must_use]
    pub fn refuse(&self, program: &Path, trials: &[Trial]) -> (Vec<String>, usize) {
        let refused = |trial: &&Trial| {
            let name = trial.planted.kind.as_str();
            trial.is_refusable() && !OVERWRITES.contains(&name)
        };
        let trials: Vec<&Trial> = trials.iter().filter(refused).collect();
        let parts = on_two_threads(self.recorded.len(), |index| {
            let history = &self.recorded[index].0;
            let mut complaints = Vec::new();
            let mut work = Work::new(history);
            for (number, step) in history.steps.iter().enumerate() {
                let own = trials.iter().filter(|trial| trial.history == index && trial.step == number);
                for trial in own {
                    for complaint in refuse_one(program, &work, trial, step) {
                        complaints.push(format!("{}, {}: {complaint}", history.name, trial.planted.kind));
                    }
                }
                work.advance(step);
            }
            complaints
        });
        (parts.into_iter().flatten().collect(), trials.len())
    }
}

fn refuse_one(program: &Path, work: &Work<'_>, trial: &Trial, step: &Step) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut rng = Rng::new(step.to);
    let backend = Backend::start_with(program, work.image.path(), &["--once", "--on-violation", "reject"]);
    let mut driver = backend.connect();
    let sound = Writes::from(step);
    let image = File::open(work.image.path()).expect("the image");
    for attempt in ["first", "second"] {
        let (primary, copy) = commit(&mut driver, &trial.writes, &mut rng);
        if primary || copy == Some(true) {
            complaints.push(format!("{attempt} attempt: super block written {primary}, copy {copy:?}"));
            break;
        }
        for change in &sound.supers {
            let mut now = vec![0; change.bytes.len()];
            image.read_exact_at(&mut now, change.offset).expect("a super block");
            if Some(now.as_slice()) != work.memory.get(change.offset, change.bytes.len()) {
                complaints.push(format!("{attempt} attempt: the super block at {} changed", change.offset));
            }
        }
    }
    let output = Command::new("btrfs").arg("check").arg(work.image.path()).output().expect("btrfs check");
    if !output.status.success() {
        complaints.push(format!("btrfs check: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let (primary, copy) = commit(&mut driver, &sound, &mut rng);
    if !primary || copy == Some(false) {
        complaints.push(format!("the sound commit: super block written {primary}, copy {copy:?}"));
    }
    drop(driver);
    let outcome = backend.wait();
    let verdicts: Vec<(String, String)> = outcome
        .of_kind("commit")
        .map(|event| (event["verdict"].to_string(), event["policy"].to_string()))
        .collect();
    let refused = ("\"violations\"".to_owned(), "\"rejected\"".to_owned());
    let written = ("\"clean\"".to_owned(), "\"written\"".to_owned());
    if verdicts != [refused.clone(), refused, written] {
        complaints.push(format!("verdicts {verdicts:?}, {:?}", outcome.violations(step.to)));
    }
    if outcome.code != Some(1) {
        complaints.push(format!("exit code {:?}", outcome.code));
    }
    work.restore(&[trial.writes.clone(), sound]);
    complaints
}
