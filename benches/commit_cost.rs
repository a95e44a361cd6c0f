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
use replay::{Backend, History, Plan, Step, Writes, record_on};
use testkit::{Image, Session, Spec};

/// Extents of the two file systems, about.
const SIZES: [u64; 2] = [1_000, 1_000_000];

/// Commits on each.
const COMMITS: usize = 25;

/// Replays of each, in turns.
const ROUNDS: usize = 3;

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
    let mut times = [Vec::new(), Vec::new()];
    let mut blocks = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (index, history) in histories.iter().enumerate() {
            let outcome = replay(history);
            times[index].extend(numbers(&outcome, "verify_us"));
            blocks[index].extend(numbers(&outcome, "tree_blocks_new"));
        }
    }
    println!("{:>12} {:>9} {:>12} {:>9} {:>12}", "extents", "commits", "median us", "p90 us", "new blocks");
    for (index, times) in times.iter_mut().enumerate() {
        times.sort_unstable();
        blocks[index].sort_unstable();
        let (count, median, p90) = (times.len(), quantile(times, 0.5), quantile(times, 0.9));
        println!(
            "{:>12} {count:>9} {median:>12} {p90:>9} {:>12}",
            SIZES[index],
            quantile(&blocks[index], 0.5)
        );
    }
    let ratio = quantile(&times[1], 0.5) as f64 / quantile(&times[0], 0.5).max(1) as f64;
    let met = ratio < GOAL;
    println!("ratio of the medians: {ratio:.2} (goal: below {GOAL}, {})", if met { "met" } else { "missed" });
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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

/// Replays all commits in one run of the program.
fn replay(history: &History) -> Outcome {
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
    let outcome = Backend::start(program, image.path()).replay(&commits, 1);
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
