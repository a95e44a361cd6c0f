//! `btrfs-shadow check` from outside, on images made by others and on what is no btrfs.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use testkit::corpus::{self, Verdict};

fn check(image: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_btrfs-shadow"));
    command.arg("check").arg("--json").arg(image).output().expect("btrfs-shadow runs")
}

fn events(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).expect("events are UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect()
}

fn codes(events: &[Value]) -> Vec<String> {
    let violations = events.iter().filter(|event| event["event"] == "violation");
    violations.map(|event| event["code"].as_str().expect("a code").to_owned()).collect()
}

/// The families of rules that exist so far. Rows of the corpus whose damage only another family can see are checked
/// for a clean end.
const FAMILIES: [&str; 4] = ["ref", "tree", "root", "space"];

/// Every row of `shared/corpus/MANIFEST.tsv`: silent on the clean, exit 2 on the unreadable, and on the damaged a
/// code of the right family.
#[test]
fn the_corpus_is_judged_as_its_manifest_says() {
    let mut judged = 0;
    for row in corpus::rows() {
        let image = row.unpack();
        let output = check(image.path());
        let context = format!("{}: {}", row.file, String::from_utf8_lossy(&output.stderr));
        let code = output.status.code().unwrap_or_else(|| panic!("killed: {context}"));
        let found = if code == 2 { Vec::new() } else { codes(&events(&output)) };
        match row.verdict {
            Verdict::Clean => assert!(code == 0 && found.is_empty(), "{context} {code} {found:?}"),
            Verdict::Unreadable => assert!(code == 2 && !output.stderr.is_empty(), "{context} {code}"),
            Verdict::Either => assert!(code < 4, "{context} {code}"),
            Verdict::Violation => {
                let families: Vec<&str> = row.families.iter().map(String::as_str).collect();
                if !families.is_empty() && !families.iter().any(|family| FAMILIES.contains(family)) {
                    assert!(code < 4, "{context} {code}");
                    continue;
                }
                let right = |code: &String| {
                    families.is_empty()
                        || families.iter().any(|family| code.starts_with(&format!("{family}/")))
                };
                assert!(code == 1 && found.iter().any(right), "{context} {code} {found:?}");
            }
        }
        judged += 1;
    }
    assert!(judged >= 26, "only {judged} rows were judged");
}

fn check_inodes(image: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_btrfs-shadow"));
    command.args(["check", "--json", "--inodes"]).arg(image).output().expect("btrfs-shadow runs")
}

/// Inodes of file systems that others, and kernels with and without hole extents, made.
#[test]
fn sound_inodes_are_passed_over_in_silence() {
    let silent = |name: &str, image: &Path| {
        let output = check_inodes(image);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    };
    for row in corpus::rows().iter().filter(|row| row.verdict == Verdict::Clean) {
        silent(&row.file, row.unpack().path());
    }
    let script = testkit::workload::mixed(12) + &testkit::workload::deep();
    for options in ["-n 4096 -m dup", "-n 16384 -O ^no-holes -R ^free-space-tree"] {
        silent(options, testkit::Spec::new(options, options).build(&script).path());
    }
}

/// Inodes that `btrfs check` finds fault with, planted: each is found, and by no one who has not asked.
#[test]
fn damaged_inodes_are_found_where_they_are_asked_for() {
    let script = testkit::workload::mixed(3);
    let image = testkit::Spec::new("inodes", "-n 4096 -O ^no-holes").build(&script);
    let kinds: Vec<_> = corrupt::all().into_iter().filter(|kind| kind.is_for_inodes()).collect();
    assert!(kinds.len() >= 6, "{} kinds", kinds.len());
    for kind in kinds {
        let copy = image.copy();
        let planted = corrupt::corrupt_image(copy.path(), &kind, 1).expect("a place for the fault");
        // Items that have lost their inode item follow those of another inode, too.
        let plain = i32::from(kind.expected.contains(&"inode/no-item"));
        assert_eq!(check(copy.path()).status.code(), Some(plain), "{}: {}", kind.name, planted.change);
        let found = codes(&events(&check_inodes(copy.path())));
        assert!(
            planted.is_found_in(found.iter().map(String::as_str)),
            "{}: {}: {found:?}",
            kind.name,
            planted.change
        );
    }
}

/// What is no btrfs: a clear message and exit 2, never a panic.
#[test]
fn what_is_no_btrfs_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    let mut noise = vec![0u8; 1 << 20];
    let mut state = 0x9e37_79b9_u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("empty", Vec::new(), "too few"),
        ("short", vec![0; 65536 + 100], "too few"),
        ("zeros", vec![0; 1 << 20], "no btrfs"),
        ("noise", noise, "no btrfs"),
    ];
    for (name, bytes, reason) in cases {
        File::create(&path).and_then(|mut file| file.write_all(&bytes)).expect("an image");
        let output = check(&path);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {stderr}");
        assert!(stderr.contains(reason), "{name}: {stderr}");
    }
    let output = check(&dir.path().join("nothing"));
    assert_eq!(output.status.code(), Some(2));
}

/// However many blocks lie past the end of a device that is too short, they are one report.
#[test]
fn what_a_truncated_image_has_lost_is_one_report() {
    let script = testkit::workload::mixed(12) + &testkit::workload::deep();
    let image = testkit::Spec::new("cut off", "-n 4096 -m single").build(&script);
    let mut folded = 0;
    for len in (16..28).map(|half| half << 19) {
        let copy = image.copy();
        File::options().write(true).open(copy.path()).and_then(|file| file.set_len(len)).expect("truncation");
        let events = events(&check(copy.path()));
        let is_unreadable = |event: &&Value| event["code"] == "tree/unreadable";
        let unreadable: Vec<&Value> = events.iter().filter(is_unreadable).collect();
        assert!(unreadable.len() <= 1, "{len}: {unreadable:#?}");
        let message = unreadable.first().map_or("", |event| event["message"].as_str().expect("a message"));
        folded += usize::from(message.contains("devid 1 ends too early: nor can"));
    }
    assert!(folded > 0, "no length cuts off several blocks, and not the trees that others are found by");
}

/// A truncated image: its super block is there, most of its trees are not.
#[test]
fn a_truncated_image_is_damage_not_a_panic() {
    let image = testkit::Spec::new("truncated", "").mkfs();
    for len in [(64 << 10) + 4096, 1 << 20, 30 << 20, 40 << 20] {
        let copy = image.copy();
        File::options().write(true).open(copy.path()).and_then(|file| file.set_len(len)).expect("truncation");
        let output = check(copy.path());
        let code = output.status.code().expect("an exit code");
        assert!(code == 1 || code == 2, "{len}: exit {code}, {}", String::from_utf8_lossy(&output.stderr));
        assert!(code == 1 || !output.stderr.is_empty(), "{len}: no message");
    }
}
