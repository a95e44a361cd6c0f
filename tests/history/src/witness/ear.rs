//! Listens to the verifier's events.

use std::io;
use std::sync::Arc;

use btrfs_shadow::events::{CommitKind, Event, Sink};

use crate::witness::Witness;
use crate::witness::picture::Change;

/// What of an event matters.
#[derive(Debug)]
pub enum Heard {
    /// A file system was opened.
    Attach {
        /// Its generation.
        generation: u64,
        /// Why.
        reason: &'static str,
        /// What is not covered.
        gaps: Vec<String>,
    },
    /// A commit.
    Commit(Commit),
    /// A violation, as JSON.
    Violation(String),
    /// A notice.
    Notice(String),
    /// The file system is gone.
    Detach,
}

/// A commit as the verifier reports it.
#[derive(Debug)]
pub struct Commit {
    /// Which file system.
    pub fsid: String,
    /// Transaction.
    pub generation: u64,
    /// Whether it is a log commit.
    pub is_log: bool,
    /// clean, violations or unverified.
    pub verdict: &'static str,
    /// Why it is unverified.
    pub unverified: Vec<String>,
    /// The referencing trees' side.
    pub references: Change,
    /// The extent tree's side.
    pub recorded: Change,
    /// Extents allocated and freed.
    pub extents: Change,
    /// Time it took.
    pub verify_us: u128,
}

/// The sink that tells a witness.
pub struct Ear(pub Arc<Witness>);

impl Sink for Ear {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        let heard = match event {
            Event::Attach(attach) => Heard::Attach {
                generation: attach.generation,
                reason: attach.reason,
                gaps: attach.gaps.clone(),
            },
            Event::Commit(commit) => {
                let report = &commit.report;
                let (actions, references) = (report.actions, report.references);
                Heard::Commit(Commit {
                    fsid: commit.fsid.to_string(),
                    generation: report.generation,
                    is_log: commit.kind == CommitKind::Log,
                    verdict: commit.verdict().name(),
                    unverified: report.unverified.clone(),
                    references: Change { add: references.add, drop: references.drop },
                    recorded: Change { add: actions.alloc + actions.add, drop: actions.drop },
                    extents: Change { add: actions.alloc, drop: actions.free },
                    verify_us: commit.verify.as_micros(),
                })
            }
            Event::Violation { .. } => Heard::Violation(line(event)),
            Event::Notice { message } => Heard::Notice((*message).to_owned()),
            Event::Detach { .. } => Heard::Detach,
            // Nobody pauses or marks a history; what is lost is lost by other sinks.
            Event::Resolution(_) | Event::Mark { .. } | Event::Lost { .. } => return Ok(()),
        };
        self.0.hear(heard);
        Ok(())
    }

    fn name(&self) -> &str {
        "the witness"
    }
}

/// The line that the events file has for it.
fn line(event: &Event<'_>) -> String {
    let Event::Violation { generation, origin, violation, .. } = event else { return String::new() };
    format!(
        "{origin} {generation} {} bytenr {} key {:?} expected {:?} found {:?}: {}",
        violation.code.name(),
        violation.bytenr,
        violation.key,
        violation.expected,
        violation.found,
        violation.message
    )
}
