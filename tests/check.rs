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
        // Nor does any rule warn that is about inodes.
        let warnings = codes(&events(&output)).into_iter().filter(|code| code.starts_with("inode/"));
        assert_eq!(warnings.collect::<Vec<_>>(), [""; 0], "{name}");
    };
    for row in corpus::rows().iter().filter(|row| row.verdict == Verdict::Clean) {
        silent(&row.file, row.unpack().path());
    }
    let script = testkit::workload::mixed(12) + &testkit::workload::deep();
    for options in ["-n 4096 -m dup", "-n 16384 -O ^no-holes -R ^free-space-tree"] {
        silent(options, testkit::Spec::new(options, options).build(&script).path());
    }
    // Data with checksums, without, and partly written, moved by a balance.
    for mount in ["compress-force=zlib", "nodatasum", "nodatacow"] {
        silent(mount, testkit::Spec::new(mount, "-n 4096").mounted(mount).build(DATA).path());
    }
}

/// Files of all kinds of data, which a balance moves as they are.
const DATA: &str = r#"
    head -c 300000 /dev/urandom > file; seq 90000 > text; cp --reflink=always text clone
    mkdir nocow; chattr +C nocow; head -c 200000 /dev/urandom > nocow/file
    fallocate -l 2M pre; dd if=/dev/urandom of=pre bs=4k count=9 seek=50 conv=notrunc,fsync status=none
    cp --reflink=always pre reflink; dd if=/dev/urandom of=pre bs=4k count=9 seek=70 conv=notrunc,fsync status=none
    btrfs -q subvolume snapshot . snap; dd if=/dev/urandom of=pre bs=4k count=9 seek=90 conv=notrunc status=none
    fallocate -p -o 8192 -l 65536 file; fallocate -z -o 100000 -l 90000 file; truncate -s 150000 file
    head -c 300 /dev/urandom > inline; truncate -s 3M hole; echo x | dd of=hole bs=1 seek=2000000 conv=notrunc status=none
    ln -s file link; mkfifo pipe; mknod device c 1 3; mkdir d; ln file d/hard
    sync -f .; btrfs -q balance start --full-balance .; sync -f .
"#;

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

/// A checksum item that is lost is one report, however many snapshots share the file, and it says which file.
#[test]
fn lost_checksums_are_one_report_for_all_snapshots() {
    let script = "btrfs -q subvolume create sv; for i in $(seq 20); do head -c 65536 /dev/urandom > sv/f$i; done; \
        sync -f .; for i in $(seq 30); do btrfs -q subvolume snapshot sv s$i; done; sync -f .";
    let image = testkit::Spec::new("shared", "-n 4096").build(script);
    let kind = corrupt::find("csum-item-of-files-halved").expect("a kind");
    let planted = corrupt::corrupt_image(image.path(), &kind, 1).expect("a checksum item");
    let found = events(&check_inodes(image.path()));
    let reports: Vec<&Value> = found.iter().filter(|event| event["event"] == "violation").collect();
    assert_eq!(codes(&found), ["inode/csum-missing"], "{planted:?}: {found:?}");
    let message = reports[0]["message"].as_str().expect("a message");
    assert!(message.contains("more files") && message.contains("some csum missing"), "{message}");
    let path = reports[0]["path"].as_str().expect("a path");
    assert!(path.contains("/f") && path.contains("subvolume"), "{path}");
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

/// What is seen at attach, and by the audit in the background again, is told once.
#[test]
fn an_audit_in_the_background_repeats_nothing() {
    let image = testkit::Spec::new("surveyed", "").build(&testkit::workload::mixed(3));
    let kinds = corrupt::all();
    let kind = kinds.iter().find(|kind| kind.expected == ["ref/count"]).expect("a kind");
    corrupt::corrupt_image(image.path(), kind, 1).expect("a place for the fault");
    let program = Path::new(env!("CARGO_BIN_EXE_btrfs-shadow"));
    let backend = replay::Backend::start_with(program, image.path(), &["--once", "--audit", "background"]);
    let driver = backend.connect();
    backend.wait_for_notice("damage is listed above");
    drop(driver);
    let found: Vec<_> = backend.wait().all_violations().into_iter().map(|found| found.code).collect();
    assert_eq!(found, ["ref/count"]);
}
