//! The list of rules, and their switches, from outside.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use testkit::corpus::{self, Verdict};

fn program(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_btrfs-shadow")).args(args).output().expect("btrfs-shadow runs")
}

fn text(output: &[u8]) -> &str {
    std::str::from_utf8(output).expect("UTF-8")
}

#[test]
fn the_documentation_is_what_the_program_prints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("RULES.md");
    let written = std::fs::read_to_string(path).expect("RULES.md");
    let output = program(&["rules", "--markdown"]);
    assert!(output.status.success());
    assert!(
        written == text(&output.stdout),
        "RULES.md is out of date: cargo run -- rules --markdown > RULES.md"
    );
}

#[test]
fn every_rule_has_one_line() {
    let plain = program(&["rules"]);
    let json = program(&["rules", "--json"]);
    let rules: Vec<Value> =
        text(&json.stdout).lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert!(rules.len() > 40, "{} rules", rules.len());
    assert_eq!(text(&plain.stdout).lines().count(), rules.len());
    for (line, rule) in text(&plain.stdout).lines().zip(&rules) {
        for field in ["code", "severity", "summary"] {
            let value = rule[field].as_str().expect("a text");
            assert!(!value.is_empty() && line.contains(value), "{line} {rule}");
        }
    }
}

/// Rules without a fault that is planted in real commits: why, and the test that covers each.
const NOT_PLANTED: &[(&str, &str, &str, &str)] = &[
    (
        "ref/unknown-root",
        "an assertion of ref-verify's: every action by a root makes the root's entry first",
        "shadow/tests/machine/actions.rs",
        "unknown_root_is_an_assertion",
    ),
    (
        "space/block-group-overlap",
        "an extent over the edge of its block group is space/extent-outside-block-group, a commit before the group goes",
        "shadow/tests/machine/actions.rs",
        "free_range_with_overlaps",
    ),
    (
        "tree/raid-stripe",
        "no kernel makes such a tree without an experimental build, and the file system is not covered",
        "shadow/tests/commits/leaves.rs",
        "single_items",
    ),
];

/// Codes of which faults are planted in recorded commits, and must be found there.
fn planted_codes() -> BTreeSet<&'static str> {
    let kinds = corrupt::all();
    let mut codes: BTreeSet<&str> = kinds.iter().filter_map(|kind| kind.expected.first().copied()).collect();
    codes.extend(corrupt::sets::KINDS.iter().filter_map(|kind| kind.expected.first().copied()));
    codes.extend(replay::writes::KINDS.iter().filter_map(|kind| kind.expected.first().copied()));
    codes.extend(replay::past::KINDS.iter().map(|kind| kind.expected));
    codes
}

/// Every rule has a fault that is planted and found, a fault of writes or data in tests/writes.rs or tests/data.rs, or a
/// reason why not and a
/// test of another kind.
#[test]
fn no_rule_is_without_a_fault() {
    let file = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let planted = planted_codes();
    let of_writes = file("tests/writes.rs") + &file("tests/data.rs");
    let has_fault = |code: &str| planted.contains(code) || of_writes.contains(&format!("\"{code}\""));
    let codes: Vec<&str> = shadow::Code::ALL.iter().map(|code| code.name()).collect();
    for (code, reason, path, test) in NOT_PLANTED {
        assert!(codes.contains(code), "{code} is no rule");
        assert!(!has_fault(code), "{code} has a fault, and is excused from one: {reason}");
        assert!(
            file(path).contains(&format!("fn {test}()")),
            "{path} has no test {test}, which covers {code}"
        );
    }
    let is_excused = |code: &str| NOT_PLANTED.iter().any(|(excused, ..)| *excused == code);
    let without: Vec<_> = codes.iter().filter(|code| !has_fault(code) && !is_excused(code)).collect();
    assert!(without.is_empty(), "rules without a fault: {without:?}");
    // What the kinds expect are rules, or families of rules.
    let stray: Vec<_> = planted
        .iter()
        .filter(|code| {
            !codes.iter().any(|rule| rule == *code || (code.ends_with('/') && rule.starts_with(*code)))
        })
        .collect();
    assert!(stray.is_empty(), "no rules: {stray:?}");
    let warnings = shadow::Code::ALL.iter().filter(|code| code.severity() == shadow::Severity::Warning);
    assert_eq!(warnings.map(|code| code.name()).collect::<Vec<_>>(), replay::trial::WARNINGS);
}

#[test]
fn switches_that_mean_nothing_are_refused() {
    for switch in ["ref/nonsense=off", "nonsense/*=warn", "ref/count=loud", "ref/count"] {
        for command in [&["check", "image"][..], &["serve", "--blk-file", "image", "--socket-path", "socket"]]
        {
            let output = program(&[command, &["--rule", switch]].concat());
            let stderr = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{switch}: {stderr}");
            assert!(
                stderr.contains("--rule") && stderr.contains(switch.split('=').next().unwrap()),
                "{stderr}"
            );
        }
    }
}

struct Checked {
    code: Option<i32>,
    found: Vec<(String, String)>,
}

fn check(image: &str, switches: &[String]) -> Checked {
    let mut args = vec!["check", "--json", image];
    for switch in switches {
        args.extend(["--rule", switch]);
    }
    let output = program(&args);
    let events: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let field = |event: &Value, name: &str| event[name].as_str().expect("a text").to_owned();
    let violations = events.iter().filter(|event| event["event"] == "violation");
    let found = violations.map(|event| (field(event, "code"), field(event, "severity"))).collect();
    Checked { code: output.status.code(), found }
}

/// Damaged images of the corpus: a rule that is off is silent, one that is a warning changes no exit code, and one
/// that is left on still counts.
#[test]
fn a_switched_rule_changes_what_is_said_about_an_image() {
    let (mut damaged, mut of_several) = (0, 0);
    for row in corpus::rows().into_iter().filter(|row| matches!(row.verdict, Verdict::Violation)) {
        let image = row.unpack();
        let image = image.path().to_str().expect("a plain path");
        let plain = check(image, &[]);
        if plain.code != Some(1) {
            continue;
        }
        let errors = plain.found.iter().filter(|(_, severity)| severity == "error");
        let mut codes: Vec<&str> = errors.map(|(code, _)| code.as_str()).collect();
        codes.sort_unstable();
        codes.dedup();
        let switched = |level: &str, codes: &[&str]| {
            check(image, &codes.iter().map(|code| format!("{code}={level}")).collect::<Vec<_>>())
        };
        let off = switched("off", &codes);
        assert!(matches!(off.code, Some(0 | 3)), "{}: exit {:?}", row.file, off.code);
        assert!(
            off.found.iter().all(|(code, _)| !codes.contains(&code.as_str())),
            "{}: {:?}",
            row.file,
            off.found
        );
        let warned = switched("warn", &codes);
        assert_eq!(warned.code, off.code, "{}", row.file);
        assert_eq!(warned.found.len(), plain.found.len(), "{}", row.file);
        assert!(warned.found.iter().all(|(_, severity)| severity == "warning"), "{}", row.file);
        damaged += 1;
        if let [_, rest @ ..] = codes.as_slice()
            && !rest.is_empty()
        {
            assert_eq!(switched("off", rest).code, Some(1), "{}", row.file);
            of_several += 1;
        }
    }
    assert!(damaged >= 5 && of_several >= 1, "{damaged} images, {of_several} with several codes");
}
