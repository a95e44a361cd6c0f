//! The list of rules, and their switches, from outside.

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

/// As with `| head -1`, but sure to be gone before anything is written.
#[test]
fn a_reader_that_has_read_enough_is_no_error() {
    let lists = [&["rules"][..], &["rules", "--json"], &["rules", "--markdown"]];
    for args in lists.into_iter().chain([&["--print-capabilities"][..]]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_btrfs-shadow"));
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command.args(args).stdout(writer).output().expect("btrfs-shadow runs");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{args:?}");

        let full = std::fs::File::options().write(true).open("/dev/full").expect("a full device");
        let output = command.stdout(full).output().expect("btrfs-shadow runs");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("can't write to standard output"), "{args:?}");
    }
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
