//! Every rule has a fault that shows it: the lists of faults, and the table of what was found of them, against the rules.
//!
//! Only compares lists. That the faults are found is tested where they are planted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Where faults are not planted in recorded commits but played one by one: each names the code that it must find.
const PLAYED: [&str; 2] = ["tests/writes.rs", "tests/data.rs"];

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn codes() -> Vec<&'static str> {
    shadow::Code::ALL.iter().map(|code| code.name()).collect()
}

/// Kinds of faults that are planted in recorded commits, and what each expects.
fn kinds() -> BTreeMap<String, Vec<&'static str>> {
    let in_commits = |kind: &corrupt::Kind| !kind.is_for_inodes() && !kind.is_for_logs();
    let kinds = corrupt::all().into_iter().filter(in_commits).map(|kind| (kind.name, kind.expected));
    let named = |name: &str, expected: &[&'static str]| (name.to_owned(), expected.to_vec());
    kinds
        .chain(corrupt::sets::KINDS.iter().map(|kind| named(kind.name, kind.expected)))
        .chain(replay::writes::KINDS.iter().map(|kind| named(kind.name, kind.expected)))
        .chain(replay::past::KINDS.iter().map(|kind| named(kind.name, &[kind.expected])))
        .collect()
}

/// A row of `tests/corrupt/FAULTS.md`.
struct Row {
    kind: String,
    expected: String,
    /// Planted, found online, found by `check`.
    counts: [String; 3],
    codes: Vec<String>,
}

fn table() -> Vec<Row> {
    let text = file("tests/corrupt/FAULTS.md");
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let rows = text.lines().filter(|line| line.starts_with("| ")).skip(1).map(cells);
    rows.map(|cells| {
        let [_, kind, expected, planted, online, offline, _, codes @ ..] = cells.as_slice() else {
            panic!("{cells:?}")
        };
        Row {
            kind: kind.clone(),
            expected: expected.clone(),
            counts: [planted.clone(), online.clone(), offline.clone()],
            codes: codes.iter().flat_map(|codes| codes.split_whitespace().map(str::to_owned)).collect(),
        }
    })
    .collect()
}

/// The table is that of the kinds there are, and nothing in it was missed.
#[test]
fn the_table_of_faults_is_up_to_date() {
    let kinds = kinds();
    let rows = table();
    let written: BTreeSet<&str> = rows.iter().map(|row| row.kind.as_str()).collect();
    let lacking: Vec<_> = kinds.keys().filter(|kind| !written.contains(kind.as_str())).collect();
    assert!(lacking.is_empty(), "kinds that are not in FAULTS.md (vm-scripts/fault-table): {lacking:?}");
    for Row { kind, expected, counts, .. } in &rows {
        let known = kinds.get(kind).unwrap_or_else(|| panic!("FAULTS.md has {kind}, which is no kind"));
        let known = if known.is_empty() { "nothing".to_owned() } else { known.join(" ") };
        assert_eq!(*expected, known, "{kind}");
        let [planted, online, offline] = counts;
        assert!(planted != "0" && online == planted && offline == planted, "{kind}: {counts:?}");
    }
}

/// Codes that were found, each where it was expected: in the table, in what tests play, in inodes and logs.
fn found_codes() -> BTreeSet<String> {
    let kinds = kinds();
    let expects = |kind: &str, code: &str| {
        let expected = kinds.get(kind).map(Vec::as_slice).unwrap_or_default();
        expected.iter().any(|one| *one == code || one.ends_with('/') && code.starts_with(one))
    };
    let mut found = BTreeSet::new();
    for Row { kind, codes, .. } in table() {
        found.extend(codes.into_iter().filter(|code| expects(&kind, code)));
    }
    let apart = |kind: &corrupt::Kind| kind.is_for_inodes() || kind.is_for_logs();
    for kind in corrupt::all().into_iter().filter(apart) {
        // Where one of several is enough, none is sure.
        if let [code] = kind.expected[..] {
            found.insert(code.to_owned());
        }
    }
    let played: String = PLAYED.iter().map(|path| file(path)).collect();
    found.extend(
        codes().into_iter().filter(|code| played.contains(&format!("\"{code}\""))).map(str::to_owned),
    );
    found
}

#[test]
fn no_rule_is_without_a_fault() {
    let found = found_codes();
    let without: Vec<_> = codes().into_iter().filter(|code| !found.contains(*code)).collect();
    assert!(without.is_empty(), "rules of which no fault was found: {without:?}");
}

#[test]
fn what_faults_expect_are_rules() {
    let codes = codes();
    for (kind, expected) in kinds() {
        for code in expected {
            let is_rule = codes.contains(&code);
            let is_family = code.ends_with('/') && codes.iter().any(|rule| rule.starts_with(code));
            assert!(is_rule || is_family, "{kind} expects {code}");
        }
    }
    let warnings = shadow::Code::ALL.iter().filter(|code| code.severity() == shadow::Severity::Warning);
    assert_eq!(warnings.map(|code| code.name()).collect::<Vec<_>>(), replay::trial::WARNINGS);
}
