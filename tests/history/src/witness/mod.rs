//! Stands beside the verifier and compares every verdict with the oracle.
//!
//! It is a tap around the program's own. When the verifier has written a super block and before the guest is told,
//! both the commit and the one before are whole on the disk: then the oracle examines it. What they disagree about
//! stops the run; the image is kept as it was at that moment.

mod ear;
mod picture;
mod totals;

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use btrfs_shadow::capture::{PRIMARY_SUPER, SUPER_SIZE};
use btrfs_shadow::image::Image;
use btrfs_shadow::tap::{CopyFate, Draining, Erase, HoldDone, Tap, WritePlan};
use parser::SuperBlock;

pub use ear::{Ear, Heard};
use picture::{Change, Picture};
pub use totals::Totals;

/// Differences that a failure report quotes.
const QUOTED: usize = 40;

/// The witness of one disk.
pub struct Witness {
    image: Arc<dyn Image>,
    path: PathBuf,
    dir: PathBuf,
    about: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    heard: Vec<Heard>,
    last: Option<Picture>,
    last_super: Vec<u8>,
    /// By file system, in the order of their first commits.
    totals: Vec<(String, Totals)>,
    failure: Option<String>,
    log: String,
}

impl State {
    fn totals_of(&mut self, fsid: &str) -> &mut Totals {
        let known = self.totals.iter().position(|(known, _)| known == fsid);
        let index = known.unwrap_or_else(|| {
            self.totals.push((fsid.to_owned(), Totals::default()));
            self.totals.len() - 1
        });
        &mut self.totals[index].1
    }
}

impl Witness {
    /// A witness of the image at `path`, opened as `image`. What it has to say goes to `dir`; `about` says what run
    /// this is.
    #[must_use]
    pub fn new(image: Arc<dyn Image>, path: &Path, dir: &Path, about: String) -> Arc<Self> {
        let (path, dir) = (path.to_owned(), dir.to_owned());
        Arc::new(Witness { image, path, dir, about, state: Mutex::default() })
    }

    /// What was seen so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals_by_file_system().iter().fold(Totals::default(), Totals::plus)
    }

    /// The same for each file system there was, in the order of their first commits.
    #[must_use]
    pub fn totals_by_file_system(&self) -> Vec<Totals> {
        self.lock().totals.iter().map(|(_, totals)| *totals).collect()
    }

    /// What the run was stopped for.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, heard: Heard) {
        self.lock().heard.push(heard);
    }

    /// Takes what is on the image as the commit before the next one.
    fn look(&self) {
        let mut state = self.lock();
        state.last = Picture::take(self.image.as_ref()).ok();
        state.last_super = self.read_super().unwrap_or_default();
    }

    /// A super block has been written, and nobody has been told yet.
    fn judge(&self) -> Result<(), String> {
        let mut state = self.lock();
        let heard = std::mem::take(&mut state.heard);
        let superblock = self.read_super().unwrap_or_default();
        let before = std::mem::replace(&mut state.last_super, superblock.clone());
        let complaint = match self.compare(&mut state, &heard, &superblock) {
            Ok(()) => return Ok(()),
            Err(complaint) => complaint,
        };
        if state.failure.is_none() {
            state.failure = Some(complaint.clone());
            self.keep(&complaint, &heard, &before);
        }
        Err(complaint)
    }

    /// A super block could not be written: there is nothing to ask the oracle about, but the verdict counts.
    fn not_written(&self, error: io::Error) -> io::Error {
        let mut state = self.lock();
        let heard = std::mem::take(&mut state.heard);
        let is_bad = |one: &Heard| matches!(one, Heard::Commit(commit) if commit.verdict != "clean");
        if state.failure.is_none() && heard.iter().any(is_bad) {
            let complaint = format!("a commit that could not be written ({error}) is not clean");
            state.failure = Some(complaint.clone());
            let before = state.last_super.clone();
            self.keep(&complaint, &heard, &before);
        }
        error
    }

    fn compare(&self, state: &mut State, heard: &[Heard], superblock: &[u8]) -> Result<(), String> {
        let violations: Vec<&str> = heard
            .iter()
            .filter_map(|one| match one {
                Heard::Violation(text) => Some(text.as_str()),
                _ => None,
            })
            .collect();
        let commit = heard.iter().find_map(|one| match one {
            Heard::Commit(commit) => Some(commit),
            _ => None,
        });
        let Some(commit) = commit else {
            // Rewritten, opened anew, or gone: nothing to compare with.
            state.last = Picture::take(self.image.as_ref()).ok();
            return if violations.is_empty() { Ok(()) } else { Err("violations at attach".to_owned()) };
        };
        let totals = state.totals_of(&commit.fsid);
        totals.violations += violations.len() as u64;
        if !violations.is_empty() && commit.verdict == "clean" {
            return Err(format!("generation {}: violations beside the commit", commit.generation));
        }
        totals.unverified += u64::from(commit.verdict == "unverified");
        if commit.is_log {
            totals.log_commits += 1;
            return match commit.verdict {
                "clean" => Ok(()),
                verdict => Err(format!("log commit in generation {}: {verdict}", commit.generation)),
            };
        }
        let generation = SuperBlock::parse(superblock).map_or(0, |view| view.generation());
        if generation != commit.generation {
            return Err(format!("generation {} was reported, {generation} written", commit.generation));
        }
        let started = Instant::now();
        let now = Picture::take(self.image.as_ref())
            .map_err(|error| format!("generation {generation}: the oracle can't open it: {error}"))?;
        let taken = started.elapsed();
        let last = state.last.take().filter(|last| last.report.generation + 1 == generation);
        let result = agree(commit, &now, last.as_ref());
        let totals = state.totals_of(&commit.fsid);
        totals.commits += 1;
        totals.references += commit.references.add + commit.references.drop;
        totals.differences += (now.report.differences.len() + now.report.accounting.len()) as u64;
        totals.half_dropped += u64::from(now.half_dropped > 0);
        totals.relocating += u64::from(now.relocating > 0);
        totals.measured += u64::from(last.is_some());
        let _ = writeln!(
            state.log,
            "{generation}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            commit.verdict,
            commit.references.add,
            commit.references.drop,
            now.report.extents.len(),
            now.report.tree_blocks.len(),
            commit.verify_us,
            taken.as_micros(),
        );
        state.last = Some(now);
        result
    }

    fn read_super(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; SUPER_SIZE as usize];
        self.image.read_at(&mut bytes, PRIMARY_SUPER)?;
        Ok(bytes)
    }

    /// Keeps all that is needed to look into a disagreement. The trees of both commits are in the image: with the
    /// super block of the one before written over the other, the image shows that one.
    fn keep(&self, complaint: &str, heard: &[Heard], before: &[u8]) {
        let mut text = format!("{}\n\n{complaint}\n\nevents:\n", self.about);
        for one in heard {
            let _ = writeln!(text, "{one:?}");
        }
        let failed = self.dir.join("failed.img");
        let copy = std::process::Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .args([&self.path, &failed])
            .status();
        let _ = writeln!(text, "\nimage: {} ({copy:?})", failed.display());
        let kept = std::fs::write(self.dir.join("failed.super-before"), before)
            .and_then(|()| std::fs::write(self.dir.join("failed.txt"), &text));
        eprintln!("{text}");
        if let Err(error) = kept {
            eprintln!("history: {}: {error}", self.dir.display());
        }
    }

    /// Writes one line for each commit: generation, verdict, references added and dropped, extents, tree blocks,
    /// microseconds of verifier and oracle.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_log(&self) -> io::Result<()> {
        std::fs::write(self.dir.join("commits.tsv"), &self.lock().log)
    }
}

/// Whether verifier and oracle say the same about a commit.
fn agree(commit: &ear::Commit, now: &Picture, last: Option<&Picture>) -> Result<(), String> {
    let generation = commit.generation;
    let wrong: Vec<&String> = now.report.differences.iter().chain(&now.report.accounting).collect();
    if commit.verdict != "clean" || !wrong.is_empty() {
        let mut text = format!(
            "generation {generation}: verdict {}; the oracle finds {} differences",
            commit.verdict,
            wrong.len()
        );
        for line in wrong.iter().take(QUOTED) {
            let _ = write!(text, "\n  oracle: {line}");
        }
        return Err(text);
    }
    let Some(last) = last else { return Ok(()) };
    let compare = |what: &str, verifier: Change, oracle: Change| {
        if verifier == oracle {
            return Ok(());
        }
        Err(format!(
            "generation {generation}: {what}: the verifier counts {verifier:?}, the oracle {oracle:?}"
        ))
    };
    compare("references held", commit.references, now.references_since(last))?;
    compare("references recorded", commit.recorded, now.recorded_since(last))?;
    compare("extent items", commit.extents, now.extents_since(last))
}

/// The program's tap with the witness around it.
pub struct Watched {
    inner: Arc<dyn Tap>,
    witness: Arc<Witness>,
}

impl Watched {
    /// Puts `witness` around `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Tap>, witness: Arc<Witness>) -> Self {
        Watched { inner, witness }
    }
}

impl Tap for Watched {
    fn plan(&self, offset: u64, len: u64) -> WritePlan {
        self.inner.plan(offset, len)
    }

    fn copied(&self, offset: u64, bytes: &mut Vec<u8>) -> CopyFate {
        self.inner.copied(offset, bytes)
    }

    fn written(&self, offset: u64, bytes: Vec<u8>) {
        self.inner.written(offset, bytes);
    }

    fn write_failed(&self, offset: u64, len: u64) {
        self.inner.write_failed(offset, len);
    }

    fn flush_begins(&self) -> u64 {
        self.inner.flush_begins()
    }

    fn flushed(&self, begun: u64) {
        self.inner.flushed(begun);
    }

    fn erases(&self, kind: Erase, offset: u64, len: u64) -> bool {
        self.inner.erases(kind, offset, len)
    }

    fn erased(&self, offset: u64, len: u64) {
        self.inner.erased(offset, len);
    }

    fn interrupted(&self) {
        self.inner.interrupted();
    }

    fn hold(&self, offset: u64, bytes: Vec<u8>, done: HoldDone) {
        // A copy says nothing: it is held for the sake of the one that does.
        if offset >= PRIMARY_SUPER + SUPER_SIZE {
            return self.inner.hold(offset, bytes, done);
        }
        let witness = Arc::clone(&self.witness);
        let judge = move |result: io::Result<()>| {
            // The guest is stopped by an error as soon as there is something to look into.
            let judged = match result {
                Ok(()) => witness.judge().map_err(io::Error::other),
                Err(error) => Err(witness.not_written(error)),
            };
            done(judged);
        };
        self.inner.hold(offset, bytes, Box::new(judge));
    }

    fn draining(&self, why: Draining) {
        self.inner.draining(why);
    }

    fn connected(&self) {
        // Nobody writes now.
        self.witness.look();
        self.inner.connected();
    }

    fn disconnected(&self) {
        self.inner.disconnected();
    }
}
