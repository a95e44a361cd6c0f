//! What verifying a small commit costs on a small file system and on a large one: it should be the same.
//!
//! Two images that differ in nothing but their number of extents; on each the same small commits by this machine's
//! kernel, replayed through the built program, which says how long it verified.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::ExitCode;

use replay::backend::Outcome;
use replay::{Backend, History, Op, Plan, Step, Writes, record_on};
use testkit::{Image, Session, Spec};

/// Extents of the two file systems, about.
const SIZES: [u64; 2] = [1_000, 1_000_000];

/// Commits on each.
const COMMITS: usize = 25;

/// Replays of each, in turns.
const ROUNDS: usize = 4;

/// The cost on the large one may be this many times that on the small one.
const GOAL: f64 = 1.5;

/// Bytes of an extent, and from one to the next.
const EXTENT: i64 = 4096;
const STRIDE: i64 = 8192;

fn main() -> ExitCode {
    let histories = SIZES.map(|extents| {
        let history = record(extents);
        eprintln!("{extents} extents: {} commits recorded", history.singles());
        history
    });
    println!(
        "{:>9} {:>8} {:>7} {:>10} | {:^27} | {:^27}",
        "extents",
        "flushes",
        "commits",
        "new blocks",
        "verify us: p50   p90   p99",
        "hold us: p50   p90   p99"
    );
    let [flushed, unflushed] = [true, false].map(|flushes| {
        let mut outcomes = [Vec::new(), Vec::new()];
        for (index, history) in (0..ROUNDS).flat_map(|_| histories.iter().enumerate()) {
            outcomes[index].push(replay(history, flushes));
        }
        let costs: Vec<f64> = SIZES.iter().zip(&outcomes).map(|(size, of)| row(*size, flushes, of)).collect();
        costs[1] / costs[0].max(1.0)
    });
    println!("ratio in a guest that never flushes, where nothing can be verified ahead: {unflushed:.2}");
    let met = flushed < GOAL;
    println!("ratio: {flushed:.2} (goal: below {GOAL}, {})", if met { "met" } else { "missed" });
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints what verification took on one file system; the mean of the better nine tenths, for medians of a few whole
/// microseconds are too coarse to be divided.
fn row(extents: u64, flushes: bool, outcomes: &[Outcome]) -> f64 {
    let all = |field: &str| {
        let mut all: Vec<u64> = outcomes.iter().flat_map(|outcome| numbers(outcome, field)).collect();
        all.sort_unstable();
        all
    };
    let (verify, hold) = (all("verify_us"), all("hold_us"));
    let three = |sorted: &[u64]| {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|at| quantile(sorted, at));
        format!("{p50:>15} {p90:>5} {p99:>5}")
    };
    println!(
        "{extents:>9} {:>8} {:>7} {:>10} | {} | {}",
        if flushes { "yes" } else { "no" },
        verify.len(),
        quantile(&all("tree_blocks_new"), 0.5),
        three(&verify),
        three(&hold)
    );
    let better = &verify[..verify.len() * 9 / 10];
    better.iter().sum::<u64>() as f64 / better.len() as f64
}

/// Makes a file system with this many extents and records small commits on it.
fn record(extents: u64) -> History {
    let spec = Spec::new("commit cost", "-n 16384").mounted("commit=300,nodiscard").sized(12 << 10);
    let image = spec.mkfs();
    fill(&image, extents);
    let commit = |n: usize| {
        let script = format!("echo {n} > small{n}; head -c 5000 /dev/urandom >> log");
        (format!("commit {n}"), script)
    };
    let scripts = (0..COMMITS).map(commit).collect();
    record_on(&image, &Plan { spec, prepare: String::new(), scripts, live: false })
}

/// A few thousand small files, and one file of many extents with a hole after each.
fn fill(image: &Image, extents: u64) {
    let mut session = Session::start(image);
    let files = (extents / 300).max(100);
    session.run(&format!("mkdir d; seq {files} | (cd d; split -l 1 -a 4 - f)"), || ());
    allocate(&session.directory().join("extents"), extents).expect("extents");
    session.finish();
}

fn allocate(path: &Path, extents: u64) -> io::Result<()> {
    let file = File::create(path)?;
    for index in 0..extents as i64 {
        // SAFETY: the descriptor is open; fallocate touches no memory of this process.
        let done = unsafe { libc::fallocate(file.as_raw_fd(), 0, index * STRIDE, EXTENT) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Replays all commits in one run of the program, with the flushes of a kernel or without.
fn replay(history: &History, flushes: bool) -> Outcome {
    let image = history.base.copy();
    let first = history.steps.iter().position(|step| step.doing.starts_with("commit")).expect("commits");
    let steps: Vec<&Step> = history.steps[first..].iter().take_while(|step| step.is_single()).collect();
    let file = replay::disk::open(image.path());
    for step in &history.steps[..first] {
        for change in step.changes() {
            std::os::unix::fs::FileExt::write_all_at(&file, &change.bytes, change.offset).expect("the image");
        }
    }
    let commits: Vec<Writes> = steps.into_iter().map(Writes::from).collect();
    let program = Path::new(env!("CARGO_BIN_EXE_btrfs-shadow"));
    let ops = commits.iter().flat_map(Writes::ops).filter(|op| flushes || !matches!(op, Op::Flush));
    let ops: Vec<Op> = ops.collect();
    let outcome = Backend::start(program, image.path()).perform(&ops, 1);
    assert_eq!(outcome.code, Some(0), "exit code; {}", outcome.stderr);
    outcome
}

/// A number that each commit reports.
fn numbers(outcome: &Outcome, field: &str) -> Vec<u64> {
    let commits: Vec<_> = outcome.of_kind("commit").collect();
    assert!(commits.len() >= 20, "only {} commits", commits.len());
    assert!(commits.iter().all(|commit| commit["verdict"] == "clean"), "{commits:#?}");
    commits.into_iter().map(|commit| commit[field].as_u64().expect("a number")).collect()
}

fn quantile(sorted: &[u64], at: f64) -> u64 {
    let index = (sorted.len() as f64 * at) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}
