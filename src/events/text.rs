//! Events for people: a line a commit, and for a violation what ref-verify's `dump_block_entry` would print.

use std::io::{self, Write};

use shadow::violation::Violation;
use shadow::{CommitReport, Verdict};

use crate::events::{Attach, Commit, CommitKind, Event, Resolution, Sink};

/// Writes events as text.
pub struct TextSink {
    out: Box<dyn Write + Send>,
}

impl TextSink {
    /// Writes to `out`.
    #[must_use]
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        TextSink { out }
    }
}

impl Sink for TextSink {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Attach(attach) => self.attach(attach)?,
            Event::Commit(commit) => self.commit(commit)?,
            Event::Violation { generation, origin, violation, .. } => {
                self.violation(*generation, origin, violation)?;
            }
            Event::Detach { fsid, commits, violations } => {
                writeln!(self.out, "detach      {fsid}: {commits} commits, {violations} violations")?;
            }
            Event::Resolution(resolution) => {
                let Resolution { generation, policy, by, paused, .. } = resolution;
                let seconds = paused.as_secs_f64();
                writeln!(
                    self.out,
                    "resolution  generation {generation} {policy}, by {by}, after {seconds:.1} s"
                )?;
            }
            Event::Mark { name } => writeln!(self.out, "mark        {name}")?,
            Event::Notice { message } => writeln!(self.out, "notice      {message}")?,
        }
        self.out.flush()
    }

    fn name(&self) -> &'static str {
        "standard output"
    }
}

impl TextSink {
    fn attach(&mut self, attach: &Attach) -> io::Result<()> {
        let Attach { fsid, generation, nodesize, csum, .. } = attach;
        let millis = attach.elapsed.as_secs_f64() * 1e3;
        write!(self.out, "attach      {fsid} generation {generation}, nodesize {nodesize}, {csum}")?;
        if let Some((extents, blocks)) = attach.counts {
            write!(self.out, ", {extents} extents, {blocks} of them tree blocks")?;
        }
        writeln!(self.out, " ({}, {millis:.1} ms)", attach.reason)?;
        for gap in &attach.gaps {
            writeln!(self.out, "  not covered: {gap}")?;
        }
        Ok(())
    }

    fn commit(&mut self, commit: &Commit) -> io::Result<()> {
        let report = &commit.report;
        let verdict = match report.verdict() {
            Verdict::Clean if report.warning_count() > 0 => format!("{} warnings", report.warning_count()),
            Verdict::Clean => "clean".to_owned(),
            Verdict::Violations => format!("{} VIOLATIONS", report.violation_count()),
            Verdict::Unverified => "UNVERIFIED".to_owned(),
        };
        let micros = commit.verify.as_micros();
        let CommitReport { generation, blocks_born, actions, references, .. } = report;
        match commit.kind {
            CommitKind::Transaction => writeln!(
                self.out,
                "commit {generation:>6}  {verdict:<12} {} blocks written, {blocks_born} new; extent tree: {} alloc \
                 {} add {} drop {} free; references: {} add {} drop; {micros} us",
                commit.tree_blocks_written,
                actions.alloc,
                actions.add,
                actions.drop,
                actions.free,
                references.add,
                references.drop,
            )?,
            CommitKind::Log => writeln!(
                self.out,
                "log    {generation:>6}  {verdict:<12} {} blocks written, {blocks_born} new log blocks; {micros} us",
                commit.tree_blocks_written,
            )?,
        }
        if commit.policy != "written" {
            writeln!(self.out, "  the super block write is {}", commit.policy)?;
        }
        for reason in &report.unverified {
            writeln!(self.out, "  not verified: {reason}")?;
        }
        if report.suppressed > 0 {
            writeln!(self.out, "  and {} violations more that are not listed", report.suppressed)?;
        }
        Ok(())
    }

    fn violation(&mut self, generation: u64, origin: &str, violation: &Violation) -> io::Result<()> {
        let Violation { code, severity, message, .. } = violation;
        let when = if origin == "attach" { "found at attach, generation" } else { "generation" };
        writeln!(self.out, "{} {} ({when} {generation})", severity.name().to_uppercase(), code.name())?;
        writeln!(self.out, "  {message}")?;
        if let Some(path) = &violation.path {
            writeln!(self.out, "  {path}")?;
        }
        if let Some(cause) = violation.cause {
            writeln!(self.out, "  {}", cause.words())?;
        }
        let Some(sides) = &violation.sides else { return Ok(()) };
        for note in &sides.notes {
            writeln!(self.out, "  {note}")?;
        }
        match &sides.shadow {
            Some(entry) => {
                for line in entry.to_string().lines() {
                    writeln!(self.out, "  held by the trees: {line}")?;
                }
            }
            None => writeln!(self.out, "  held by the trees: no block entry")?,
        }
        match sides.recorded_refs {
            Some(refs) => writeln!(self.out, "  recorded by the extent tree: extent item with refs {refs}")?,
            None => writeln!(self.out, "  recorded by the extent tree: no extent item")?,
        }
        for (key, count) in &sides.recorded {
            writeln!(self.out, "  recorded by the extent tree:   backref {key}, count {count}")?;
        }
        Ok(())
    }
}
