//! Events as NDJSON: one object a line, with the field names of DESIGN.md section 8. Fields may be added; none is
//! renamed.

use std::io;

use serde_json::{Value, json};
use shadow::refverify::Step;
use shadow::violation::Violation;
use shadow::{Cause, Worth};

use crate::events::lines::Format;
use crate::events::{Attach, Commit, Event, Fsid};

/// One JSON object a line.
pub struct Json;

impl Format for Json {
    fn format(&self, event: &Event<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        serde_json::to_writer(&mut *out, &value(event))?;
        out.push(b'\n');
        Ok(())
    }
}

/// The object an event is written as.
#[must_use]
pub fn value(event: &Event<'_>) -> Value {
    match event {
        Event::Attach(attach) => attach_value(attach),
        Event::Commit(commit) => commit_value(commit),
        Event::Violation { fsid, generation, origin, violation } => {
            violation_value(*fsid, *generation, origin, violation)
        }
        Event::Detach { fsid, commits, violations } => json!({
            "event": "detach", "fs": fsid.to_string(), "commits": commits, "violations": violations,
        }),
        Event::Resolution(resolution) => json!({
            "event": "resolution",
            "fs": resolution.fsid.to_string(),
            "generation": resolution.generation,
            "kind": resolution.kind.name(),
            "policy": resolution.policy,
            "by": resolution.by,
            "paused_ms": millis(resolution.paused),
        }),
        Event::Mark { name } => json!({ "event": "mark", "name": name }),
        Event::Notice { message } => json!({ "event": "notice", "message": message }),
        Event::Lost { count } => json!({
            "event": "notice",
            "message": format!("{count} events are missing here: they could not be written"),
            "lost": count,
        }),
    }
}

fn attach_value(attach: &Attach) -> Value {
    json!({
        "event": "attach",
        "fs": attach.fsid.to_string(),
        "generation": attach.generation,
        "nodesize": attach.nodesize,
        "csum": attach.csum,
        "coverage": { "references": attach.gaps.is_empty(), "gaps": attach.gaps },
        "extents": attach.counts.map(|(extents, _)| extents),
        "tree_blocks": attach.counts.map(|(_, tree_blocks)| tree_blocks),
        "elapsed_ms": millis(attach.elapsed),
        "reason": attach.reason,
    })
}

fn commit_value(commit: &Commit) -> Value {
    let report = &commit.report;
    json!({
        "event": "commit",
        "fs": commit.fsid.to_string(),
        "generation": report.generation,
        "kind": commit.kind.name(),
        "verdict": report.verdict().name(),
        "tree_blocks_written": commit.tree_blocks_written,
        "tree_blocks_new": report.blocks_born,
        "actions": {
            "alloc": report.actions.alloc,
            "add": report.actions.add,
            "drop": report.actions.drop,
            "free": report.actions.free,
        },
        "references": { "add": report.references.add, "drop": report.references.drop },
        "violations": report.violation_count(),
        "warnings": report.warning_count(),
        "unverified": report.unverified,
        "verify_us": micros(commit.verify),
        "hold_us": micros(commit.hold),
        "policy": commit.policy,
    })
}

fn violation_value(fsid: Fsid, generation: u64, origin: &str, violation: &Violation) -> Value {
    let key = violation.key;
    let notes = violation.sides.as_ref().map(|sides| sides.notes.as_slice()).unwrap_or_default();
    json!({
        "event": "violation",
        "fs": fsid.to_string(),
        "generation": generation,
        "origin": origin,
        "code": violation.code.name(),
        "severity": violation.severity.name(),
        "bytenr": violation.bytenr,
        "len": violation.len,
        "root": key.map(|key| key.root),
        "parent": key.map(|key| key.parent),
        "owner": key.map(|key| key.owner),
        "offset": key.map(|key| key.offset),
        "expected": worth_value(&violation.expected),
        "found": worth_value(&violation.found),
        "message": violation.message,
        "path": violation.path,
        "cause": violation.cause.map(Cause::name),
        "notes": notes,
        "history": violation.history.iter().map(step_value).collect::<Vec<_>>(),
    })
}

fn step_value(step: &Step) -> Value {
    json!({
        "generation": step.generation,
        "action": step.kind.name(),
        "root": step.key.root,
        "parent": step.key.parent,
        "owner": step.key.owner,
        "offset": step.key.offset,
        "count": step.count,
        "leaf": step.site.block,
        "slot": step.site.slot,
    })
}

fn worth_value(worth: &Worth) -> Value {
    match worth {
        Worth::None => Value::Null,
        Worth::Number(number) => json!(number),
        Worth::Text(text) => json!(text),
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
