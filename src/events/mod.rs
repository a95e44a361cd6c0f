//! What the program tells its users, and the sinks it goes to.
//!
//! An event is made once and handed to every sink. A sink that fails never stops the verification: what it can't write
//! waits, or is counted ([`Lines`]).

mod json;
mod lines;
mod outlet;
mod text;

use std::fmt;
use std::time::Instant;

use parser::uuid::Hyphenated;
use shadow::violation::Violation;
use shadow::{CommitReport, Verdict};

pub use json::{Json, value as to_json};
pub use lines::{Format, Lines};
pub use outlet::{BACKLOG_LIMIT, Outlet, Patience};
pub use text::Text;

/// A file system's UUID in its usual form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fsid(pub parser::Uuid);

impl fmt::Display for Fsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hyphenated(self.0).fmt(f)
    }
}

/// A file system was opened.
#[derive(Debug)]
pub struct Attach {
    /// Which.
    pub fsid: Fsid,
    /// Its last commit.
    pub generation: u64,
    /// Bytes of a tree block.
    pub nodesize: u32,
    /// Checksum algorithm.
    pub csum: &'static str,
    /// Why references are not verified; empty where they are.
    pub gaps: Vec<String>,
    /// Extents and tree blocks in the extent tree, where they were counted.
    pub counts: Option<(u64, u64)>,
    /// How long it took.
    pub elapsed: std::time::Duration,
    /// Why it was opened now.
    pub reason: &'static str,
}

/// What a commit was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitKind {
    /// A transaction commit.
    Transaction,
    /// A log commit (fsync).
    Log,
}

impl CommitKind {
    /// As events spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            CommitKind::Transaction => "transaction",
            CommitKind::Log => "log",
        }
    }
}

/// A super block write and its verdict.
#[derive(Debug)]
pub struct Commit {
    /// Of which file system.
    pub fsid: Fsid,
    /// Transaction or log.
    pub kind: CommitKind,
    /// Tree blocks captured since the last commit; every copy counts.
    pub tree_blocks_written: u64,
    /// What was found.
    pub report: CommitReport,
    /// How long verification took.
    pub verify: std::time::Duration,
    /// How long the guest waited for the super block write, its writing not included.
    pub hold: std::time::Duration,
    /// What became of the super block write.
    pub policy: &'static str,
}

impl Commit {
    /// The verdict.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.report.verdict()
    }
}

/// What became of a commit that was paused.
#[derive(Debug)]
pub struct Resolution {
    /// Of which file system.
    pub fsid: Fsid,
    /// The commit.
    pub generation: u64,
    /// Transaction or log.
    pub kind: CommitKind,
    /// What became of the super block write: written or rejected.
    pub policy: &'static str,
    /// Who, or what, decided.
    pub by: &'static str,
    /// How long it was paused.
    pub paused: std::time::Duration,
}

/// Everything there is to tell.
#[derive(Debug)]
pub enum Event<'a> {
    /// A file system was opened.
    Attach(&'a Attach),
    /// A commit and its verdict; its violations come after it.
    Commit(&'a Commit),
    /// Something is wrong with the file system.
    Violation {
        /// Of which file system.
        fsid: Fsid,
        /// The commit that carries it.
        generation: u64,
        /// Whether it was there when the file system was opened, or came with a commit.
        origin: &'static str,
        /// What it is.
        violation: &'a Violation,
    },
    /// A paused commit was decided on.
    Resolution(&'a Resolution),
    /// A mark that somebody set.
    Mark {
        /// Its name.
        name: &'a str,
    },
    /// A file system is no longer there, or no longer served.
    Detach {
        /// Which.
        fsid: Fsid,
        /// Commits seen since it was opened.
        commits: u64,
        /// Violations found in them.
        violations: u64,
    },
    /// Something that is no violation but worth knowing.
    Notice {
        /// What.
        message: &'a str,
    },
    /// Events are missing here, because a sink could not write them. Made by the sink itself.
    Lost {
        /// How many.
        count: u64,
    },
}

/// Events that a sink was given and has not written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Untold {
    /// Those that wait for room.
    pub waiting: u64,
    /// Those that will never be written.
    pub lost: u64,
}

/// Takes events. Nothing here waits for anybody but at the end.
pub trait Sink: Send {
    /// Takes one event.
    ///
    /// # Errors
    /// When the sink is of no more use: it is left out from then on.
    fn event(&mut self, event: &Event<'_>) -> std::io::Result<()>;

    /// Name for messages.
    fn name(&self) -> &str;

    /// What it has not written.
    fn untold(&self) -> Untold {
        Untold::default()
    }

    /// When to try again to write what waits, if anything does.
    fn retry_at(&self) -> Option<Instant> {
        None
    }

    /// Tries again.
    fn retry(&mut self) {}

    /// Writes what waits, and says what is lost: no more events come.
    fn finish(&mut self) {}
}

/// All sinks.
#[derive(Default)]
pub struct Sinks(Vec<Place>);

struct Place {
    sink: Box<dyn Sink>,
    works: bool,
    /// Whether what is lost here is lost.
    counts: bool,
}

impl Sinks {
    /// Adds a sink.
    pub fn push(&mut self, sink: Box<dyn Sink>) {
        self.0.push(Place { sink, works: true, counts: true });
    }

    /// Adds a sink beside one that matters: what it can't write is only said in the log.
    pub fn push_beside(&mut self, sink: Box<dyn Sink>) {
        self.0.push(Place { sink, works: true, counts: false });
    }

    /// Hands an event to every sink that still works.
    pub fn emit(&mut self, event: &Event<'_>) {
        for Place { sink, works, .. } in self.0.iter_mut().filter(|place| place.works) {
            if let Err(error) = sink.event(event) {
                tracing::error!("{} is of no more use, going on without it: {error}", sink.name());
                *works = false;
            }
        }
    }

    /// What was not written by the sinks that matter.
    #[must_use]
    pub fn untold(&self) -> Untold {
        let those = self.0.iter().filter(|place| place.counts).map(|place| place.sink.untold());
        those.fold(Untold::default(), |all, one| Untold {
            waiting: all.waiting + one.waiting,
            lost: all.lost + one.lost,
        })
    }

    /// When to call [`Self::retry`], if there is anything to write.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.0.iter().filter_map(|place| place.sink.retry_at()).min()
    }

    /// Tries again where it is due.
    pub fn retry(&mut self, now: Instant) {
        for Place { sink, .. } in &mut self.0 {
            if sink.retry_at().is_some_and(|due| due <= now) {
                sink.retry();
            }
        }
    }

    /// Writes what waits; how many events are lost, of those that matter.
    pub fn finish(&mut self) -> u64 {
        self.0.iter_mut().for_each(|place| place.sink.finish());
        self.untold().lost
    }
}
