//! What the program tells its users, and the sinks it goes to.
//!
//! An event is made once and handed to every sink. A sink that fails says so once in the log and is left out from
//! then on; it never stops the verification.

mod json;
mod text;

use std::fmt;

use shadow::violation::Violation;
use shadow::{CommitReport, Verdict};

pub use json::{JsonSink, value as to_json};
pub use text::TextSink;

/// A file system's UUID in its usual form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fsid(pub parser::Uuid);

impl fmt::Display for Fsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
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
}

/// Takes events.
pub trait Sink: Send {
    /// Takes one event.
    ///
    /// # Errors
    /// When it can't be written.
    fn event(&mut self, event: &Event<'_>) -> std::io::Result<()>;

    /// Name for messages.
    fn name(&self) -> &str;
}

/// All sinks.
#[derive(Default)]
pub struct Sinks(Vec<(Box<dyn Sink>, bool)>);

impl Sinks {
    /// Adds a sink.
    pub fn push(&mut self, sink: Box<dyn Sink>) {
        self.0.push((sink, true));
    }

    /// Hands an event to every sink that still works.
    pub fn emit(&mut self, event: &Event<'_>) {
        for (sink, works) in self.0.iter_mut().filter(|(_, works)| *works) {
            if let Err(error) = sink.event(event) {
                tracing::error!("{} can't be written any more, going on without it: {error}", sink.name());
                *works = false;
            }
        }
    }
}
