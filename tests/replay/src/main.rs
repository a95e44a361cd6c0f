//! `fault-table`: plants every kind of fault many times, online and offline, and prints the table.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use replay::campaign::Campaign;
use replay::{catalogue, table};

const USAGE: &str =
    "usage: fault-table --program BTRFS-SHADOW [--output FILE] [--each N] [--turn N] [--kind NAME]...";

struct Options {
    program: PathBuf,
    output: Option<PathBuf>,
    each: usize,
    /// Which places are taken.
    turn: u64,
    kinds: Vec<String>,
}

fn options() -> Option<Options> {
    let mut options = Options { program: PathBuf::new(), output: None, each: 4, turn: 0, kinds: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next()?;
        match argument.as_str() {
            "--program" => options.program = value.into(),
            "--output" => options.output = Some(value.into()),
            "--each" => options.each = value.parse().ok()?,
            "--turn" => options.turn = value.parse().ok()?,
            "--kind" => options.kinds.push(value),
            _ => return None,
        }
    }
    options.program.exists().then_some(options)
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let started = Instant::now();
    let mut plans = catalogue::plans();
    plans.push(catalogue::deletion());
    let campaign = Campaign::record(&plans);
    for history in campaign.histories() {
        eprintln!("{}: {} commits, {} of them alone", history.name, history.steps.len(), history.singles());
    }
    let clean = campaign.replay_clean(&options.program);
    let (sound, mut wrong) = (clean.clean, clean.wrong);
    eprintln!("{sound} commits replayed clean, {} not ({:?})", wrong.len(), started.elapsed());
    let trials = campaign.trials_elsewhere(options.each, options.turn, |name| {
        options.kinds.is_empty() || options.kinds.iter().any(|kind| kind == name)
    });
    let findings = campaign.run(&options.program, &trials);
    eprintln!("{} faults planted ({:?})", findings.len(), started.elapsed());
    let complaints = table::complaints(&findings);
    eprintln!("found otherwise than foreseen, of those planted: {:?}", table::odd_kinds(&findings));
    wrong.extend(complaints.misses.into_iter().chain(complaints.oddities));
    let many = findings.iter().filter(|finding| finding.online.len() > table::ONE_REPORT);
    for finding in many {
        let planted = &finding.planted;
        println!("{}, {}: {}: {:#?}", planted.kind, finding.place, planted.change, finding.online);
    }
    let text = format!(
        "# Planted faults\n\nWritten by `vm-scripts/fault-table`. Each fault is planted in a tree block (or a write) of a \
         commit that a real kernel made, the commit is replayed through `btrfs-shadow serve` (online), and the image it \
         leaves is checked with `btrfs-shadow check` (offline). A fault is found if one of the expected codes, or one \
         of an expected family, is reported; what only one of the two can see, the other must pass over in silence. \
         Kinds `past-*` lie on the disk before the commit, which drops what is recorded wrongly. {sound} commits were replayed \
         without a fault, and were clean.\n\n{}\n{}",
        table::summary(&findings),
        table::markdown(&findings)
    );
    match &options.output {
        Some(path) => std::fs::write(path, &text).expect("the output file"),
        None => print!("{text}"),
    }
    wrong.iter().for_each(|complaint| println!("{complaint}"));
    eprint!("{}", table::summary(&findings));
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
