//! `--verify-data`: file data against its checksums, at rest and at the commit that brings them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use replay::backend::Outcome;
use replay::{Backend, Plan, Writes, record_singly};
use serde_json::Value;
use testkit::{Image, Spec};

const PROGRAM: &str = env!("CARGO_BIN_EXE_btrfs-shadow");

/// What the data of the tests is filled with, so that it is found on the disk.
const PATTERN: &[u8] = b"a pattern that no file system has of itself 0123456789";

/// Commands that write 300 KiB of the pattern to a file.
fn fill(path: &str) -> String {
    let pattern = std::str::from_utf8(PATTERN).unwrap();
    format!("yes '{pattern}' | head -c 300000 > {path}\n")
}

fn check(image: &Path, verify_data: bool) -> (Option<i32>, Vec<Value>) {
    let mut command = Command::new(PROGRAM);
    command.args(["check", "--json"]).args(verify_data.then_some("--verify-data")).arg(image);
    let output = command.output().expect("btrfs-shadow runs");
    let text = String::from_utf8(output.stdout).expect("events are UTF-8");
    let events = text.lines().map(|line| serde_json::from_str(line).expect("an object"));
    (output.status.code(), events.filter(|event: &Value| event["event"] == "violation").collect())
}

/// Where whole sectors of the pattern lie on a disk.
fn places(bytes: &[u8]) -> Vec<usize> {
    let holds = |at: &usize| bytes[*at..*at + 4096].windows(PATTERN.len()).any(|window| window == PATTERN);
    (0..bytes.len() / 4096).map(|sector| sector * 4096).filter(holds).collect()
}

fn flip(image: &Image, offset: u64) {
    let file = File::options().read(true).write(true).open(image.path()).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

/// Sound data of every kind of checksum is passed over; one flipped bit, in either copy, is found, with the file.
#[test]
fn a_flipped_bit_is_found_in_every_copy_of_a_file() {
    let script =
        fill("file") + "chattr +C . 2> /dev/null; " + &fill("nodatacow") + "fallocate -l 1M pre; sync -f .";
    for (name, mkfs) in [
        ("crc32c", "-n 4096 -m dup"),
        ("xxhash", "--csum xxhash"),
        ("sha256, two copies", "--mixed -n 4096 -s 4096 -m dup -d dup --csum sha256"),
        ("blake2", "--csum blake2"),
    ] {
        let image = Spec::new(name, mkfs).build(&script);
        assert_eq!(check(image.path(), true), (Some(0), Vec::new()), "{name}");
        let bytes = std::fs::read(image.path()).unwrap();
        let mut found = 0;
        let places = places(&bytes);
        for &place in places.iter().step_by(places.len() / 12) {
            let copy = image.copy();
            flip(&copy, place as u64 + 1000);
            assert_eq!(check(copy.path(), false).0, Some(0), "{name}: only with --verify-data");
            let (code, violations) = check(copy.path(), true);
            // What has no checksum can't be told.
            if violations.is_empty() {
                assert_eq!(code, Some(0), "{name}");
                continue;
            }
            assert_eq!((code, violations.len()), (Some(1), 1), "{name}: {violations:?}");
            assert_eq!(violations[0]["code"], "space/data-checksum");
            let text = violations[0].to_string();
            assert!(text.contains("/file") && text.contains(&format!("physical {place}")), "{name}: {text}");
            found += 1;
        }
        assert!(found >= 4, "{name}: {found}");
    }
}

/// Data that is damaged on its way is found at the commit that brings it, and by nobody who was not asked to look.
#[test]
fn damaged_data_is_found_at_its_commit() {
    let scripts = vec![
        ("before".to_owned(), "mkdir d; echo x > d/x".to_owned()),
        ("data".to_owned(), fill("d/file")),
        ("after".to_owned(), "touch d/x".to_owned()),
    ];
    let spec = Spec::new("data", "-n 4096 -m dup").mounted("commit=300,nodiscard");
    let plan = Plan { spec, prepare: String::new(), scripts, live: false };
    let history = record_singly(&plan);
    let at = history.steps.iter().position(|step| step.doing == "data").expect("the step");
    let run = |options: &[&str], damaged: bool| -> Outcome {
        let image = history.base.copy();
        let file = File::options().write(true).open(image.path()).unwrap();
        for change in history.steps[..at].iter().flat_map(|step| step.changes()) {
            file.write_all_at(&change.bytes, change.offset).unwrap();
        }
        let mut commits: Vec<Writes> = history.steps[at..=at + 1].iter().map(Writes::from).collect();
        let data = commits[0].blocks.iter_mut().filter(|change| places(&change.bytes).contains(&0));
        let data = data.last().expect("data in the step");
        data.bytes[77] ^= u8::from(damaged);
        Backend::start_with(Path::new(PROGRAM), image.path(), options).replay(&commits, 1)
    };
    let generation = history.steps[at].to;
    assert_eq!(run(&["--once", "--verify-data"], false).code, Some(0));
    assert_eq!(run(&["--once"], true).code, Some(0));
    let outcome = run(&["--once", "--verify-data"], true);
    let found = outcome.violations(generation);
    let codes: Vec<&str> = found.iter().map(|violation| violation.code.as_str()).collect();
    assert_eq!(codes, ["space/data-checksum"]);
    assert!(found[0].message.contains("checksum error at logical"), "{}", found[0].message);
    assert!(outcome.violations(history.steps[at + 1].to).is_empty());
}
