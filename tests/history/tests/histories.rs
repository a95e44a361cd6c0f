//! A short selection of histories on the host's kernel: every kind, a few commits each. `vm-scripts/soak` goes on for
//! longer, and with other kernels.

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Transaction commits of each kind.
const COMMITS: &str = "14";

/// Long enough for these, on a busy machine too.
const SECONDS: &str = "300";

fn history(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_history"));
    command.arg("run").args(arguments).arg("--dir").arg(dir);
    command.output().expect("the program")
}

/// Columns of the rows that were printed, by number.
fn rows(output: &Output) -> Vec<Vec<String>> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn sum(rows: &[Vec<String>], column: usize) -> u64 {
    rows.iter().map(|row| row[column].parse::<u64>().unwrap()).sum()
}

#[test]
fn every_kind_is_clean_and_the_oracle_agrees() {
    let dir = TempDir::with_prefix("hist-short-").unwrap();
    let output =
        history(dir.path(), &["--kind", "all", "--commits", COMMITS, "--seconds", SECONDS, "--seed", "3"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        // The images are evidence.
        panic!("{errors}\nkept: {}", dir.keep().display());
    }
    let rows = rows(&output);
    assert_eq!(rows.len(), history::kinds::ALL.len(), "{errors}");
    let (commits, measured, log_commits) = (sum(&rows, 2), sum(&rows, 7), sum(&rows, 3));
    assert!(commits >= 200, "{commits} commits");
    assert!(
        measured * 10 >= commits * 9,
        "the size of change was compared at {measured} of {commits} commits"
    );
    assert!(log_commits >= 100, "{log_commits} log commits");
    assert!(sum(&rows, 9) > 20, "commits with relocation trees");
    assert_eq!((sum(&rows, 4), sum(&rows, 5), sum(&rows, 6)), (0, 0, 0));
}

/// A witness that never objects would prove nothing.
#[test]
fn a_planted_fault_stops_the_run() {
    for fault in ["extent-refs@12", "backref-root@12"] {
        let dir = TempDir::with_prefix("hist-fault-").unwrap();
        let arguments =
            ["--kind", "reflink", "--commits", "40", "--mkfs", "-n 16384 -m dup", "--plant-fault", fault];
        let output = history(dir.path(), &arguments);
        assert_eq!(output.status.code(), Some(1), "{fault}: {}", String::from_utf8_lossy(&output.stderr));
        let kept = dir.path().join("reflink-1");
        let report = std::fs::read_to_string(kept.join("failed.txt")).unwrap();
        for expected in ["generation 12: verdict violations", "oracle: extent", "Violation", "seed 1"] {
            assert!(report.contains(expected), "{fault}: no '{expected}' in {report}");
        }
        // The image as it was at that moment, and with the other super block the commit before.
        let oracle = oracle::examine_file(&kept.join("failed.img")).unwrap();
        assert_eq!(oracle.generation, 12);
        assert!(!oracle.differences.is_empty());
        restore_commit_before(&kept);
        let oracle = oracle::examine_file(&kept.join("failed.img")).unwrap();
        assert_eq!((oracle.generation, oracle.differences), (11, Vec::<String>::new()));
    }
}

fn restore_commit_before(kept: &Path) {
    use std::os::unix::fs::FileExt as _;
    let superblock = std::fs::read(kept.join("failed.super-before")).unwrap();
    let image = std::fs::File::options().write(true).open(kept.join("failed.img")).unwrap();
    image.write_all_at(&superblock, 65536).unwrap();
}
