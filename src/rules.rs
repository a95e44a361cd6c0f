//! `btrfs-shadow rules`: every rule there is, from the one table of `shadow::codes`.

use std::collections::HashSet;
use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;
use shadow::Code;

use crate::cli::Rules;
use crate::output;

/// Prints the list.
///
/// # Errors
/// When standard output can't be written.
pub fn run(options: &Rules) -> Result<()> {
    let text = match options {
        Rules { json: true, .. } => lines(|code| {
            let (severity, summary) = (code.severity().name(), code.summary());
            json!({ "code": code.name(), "severity": severity, "summary": summary }).to_string()
        }),
        Rules { markdown: true, .. } => markdown(),
        _ => lines(|code| format!("{:32} {:8} {}", code.name(), code.severity().name(), code.summary())),
    };
    output::print(&text)
}

fn lines(line: impl Fn(Code) -> String) -> String {
    Code::ALL.iter().map(|code| line(*code) + "\n").collect()
}

const INTRODUCTION: &str = "# Rules

Made by `btrfs-shadow rules --markdown` from the table in `shadow/src/codes.rs`. A code never changes its meaning.

An error makes a commit's verdict `violations`. A warning is reported and changes no verdict, no policy and no exit code.
`--rule CODE=off|warn|error` of `serve` and `check` switches one rule, or a family (`space/*`).
";

/// The contents of RULES.md.
#[must_use]
pub fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    let mut families: Vec<&str> = Code::ALL.iter().map(|code| code.family()).collect();
    let mut seen = HashSet::new();
    families.retain(|family| seen.insert(*family));
    for family in families {
        let _ = write!(text, "\n## {family}/\n\n| code | severity | what it says |\n|---|---|---|\n");
        for code in Code::ALL.iter().filter(|code| code.family() == family) {
            let _ = writeln!(text, "| `{}` | {} | {} |", code.name(), code.severity().name(), code.summary());
        }
    }
    text
}
