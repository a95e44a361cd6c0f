//! Events for people: a line a commit, and for a violation what ref-verify's `dump_block_entry` would print.

use std::io::{self, Write};

use shadow::violation::Violation;
use shadow::{CommitReport, Verdict};

use crate::events::lines::Format;
use crate::events::{Attach, Commit, CommitKind, Event, Resolution};

/// Lines for people.
pub struct Text;

impl Format for Text {
    fn format(&self, event: &Event<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        match event {
            Event::Attach(event) => attach(out, event),
            Event::Commit(event) => commit(out, event),
            Event::Violation { generation, origin, violation: found, .. } => {
                violation(out, *generation, origin, found)
            }
            Event::Detach { fsid, commits, violations } => {
                writeln!(out, "detach      {fsid}: {commits} commits, {violations} violations")
            }
            Event::Resolution(resolution) => {
                let Resolution { generation, policy, by, paused, .. } = resolution;
                let seconds = paused.as_secs_f64();
                writeln!(out, "resolution  generation {generation} {policy}, by {by}, after {seconds:.1} s")
            }
            Event::Mark { name } => writeln!(out, "mark        {name}"),
            Event::Notice { message } => writeln!(out, "notice      {message}"),
            Event::Lost { count } => {
                writeln!(out, "notice      {count} events are missing here: they could not be written")
            }
        }
    }
}

fn attach(out: &mut Vec<u8>, attach: &Attach) -> io::Result<()> {
    let Attach { fsid, generation, nodesize, csum, .. } = attach;
    let millis = attach.elapsed.as_secs_f64() * 1e3;
    write!(out, "attach      {fsid} generation {generation}, nodesize {nodesize}, {csum}")?;
    if let Some((extents, blocks)) = attach.counts {
        write!(out, ", {extents} extents, {blocks} of them tree blocks")?;
    }
    writeln!(out, " ({}, {millis:.1} ms)", attach.reason)?;
    for gap in &attach.gaps {
        writeln!(out, "  not covered: {gap}")?;
    }
    Ok(())
}

fn commit(out: &mut Vec<u8>, commit: &Commit) -> io::Result<()> {
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
            out,
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
            out,
            "log    {generation:>6}  {verdict:<12} {} blocks written, {blocks_born} new log blocks; {micros} us",
            commit.tree_blocks_written,
        )?,
    }
    if commit.policy != "written" {
        writeln!(out, "  the super block write is {}", commit.policy)?;
    }
    for reason in &report.unverified {
        writeln!(out, "  not verified: {reason}")?;
    }
    if report.suppressed > 0 {
        writeln!(out, "  and {} violations more that are not listed", report.suppressed)?;
    }
    Ok(())
}

fn violation(out: &mut Vec<u8>, generation: u64, origin: &str, violation: &Violation) -> io::Result<()> {
    let Violation { code, severity, message, .. } = violation;
    let when = if origin == "attach" { "found at attach, generation" } else { "generation" };
    writeln!(out, "{} {} ({when} {generation})", severity.name().to_uppercase(), code.name())?;
    writeln!(out, "  {message}")?;
    if let Some(path) = &violation.path {
        writeln!(out, "  {path}")?;
    }
    if let Some(cause) = violation.cause {
        writeln!(out, "  {}", cause.words())?;
    }
    let Some(sides) = &violation.sides else { return Ok(()) };
    for note in &sides.notes {
        writeln!(out, "  {note}")?;
    }
    match &sides.shadow {
        Some(entry) => {
            for line in entry.to_string().lines() {
                writeln!(out, "  held by the trees: {line}")?;
            }
        }
        None => writeln!(out, "  held by the trees: no block entry")?,
    }
    match sides.recorded_refs {
        Some(refs) => writeln!(out, "  recorded by the extent tree: extent item with refs {refs}")?,
        None => writeln!(out, "  recorded by the extent tree: no extent item")?,
    }
    for (key, count) in &sides.recorded {
        writeln!(out, "  recorded by the extent tree:   backref {key}, count {count}")?;
    }
    Ok(())
}
