//! `history`: runs histories on the host's kernel, or serves a disk to a guest with the oracle at every commit.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use btrfs_shadow::fault::FaultSpec;
use clap::{Args, Parser, Subcommand};
use history::guest;
use history::kinds::{self, Kind};
use history::run::{self, Outcome, Plan};
use history::serve;
use history::stop;
use history::witness::Totals;
use tracing_subscriber::EnvFilter;

/// Histories of real kernels, every commit of them verified and compared with the oracle.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run histories on the host's kernel (as root: FUSE, a loop device, a mount)
    Run(Run),
    /// Serve a disk to a guest, as `btrfs-shadow serve` does
    Serve(Serve),
    /// Run histories in a guest, on a disk that is served by `history serve`
    Guest(Guest),
    /// List the kinds
    Kinds,
}

#[derive(Args)]
struct Run {
    /// Kind of history, or all
    #[arg(long, default_value = "all")]
    kind: String,
    /// Seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Transaction commits of each history
    #[arg(long, default_value_t = 200)]
    commits: u64,
    /// Seconds after which a history ends, whatever it has reached
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Directory for images, events and logs
    #[arg(long)]
    dir: PathBuf,
    /// Size of the image in MiB
    #[arg(long, default_value_t = 2048)]
    size: u64,
    /// Arguments of mkfs.btrfs, in place of chosen ones
    #[arg(long, allow_hyphen_values = true)]
    mkfs: Option<String>,
    /// Mount options, in place of chosen ones
    #[arg(long)]
    mount: Option<String>,
    /// Break something on purpose, as `btrfs-shadow serve --plant-fault` does
    #[arg(long)]
    plant_fault: Option<FaultSpec>,
    /// Keep images and events of histories without a finding, too
    #[arg(long)]
    keep: bool,
}

#[derive(Args)]
struct Guest {
    /// Disk to make file systems on
    #[arg(long)]
    device: PathBuf,
    /// Kinds of histories, between commas
    #[arg(long)]
    kind: String,
    /// Seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Transaction commits of each history
    #[arg(long, default_value_t = 100)]
    commits: u64,
    /// Seconds after which a history ends, whatever it has reached
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

#[derive(Args)]
struct Serve {
    /// Image to serve
    #[arg(long)]
    blk_file: PathBuf,
    /// Socket to listen on
    #[arg(long)]
    socket: PathBuf,
    /// Directory for events and logs
    #[arg(long)]
    dir: PathBuf,
    /// Kernel and, between commas, kinds in the order of their file systems: for the table
    #[arg(long, default_value = "guest/all")]
    label: String,
    /// Go on when the guest disconnects, until a signal comes
    #[arg(long)]
    many: bool,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("BTRFS_SHADOW_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    let result = match Cli::parse().command {
        Command::Run(options) => run_all(&options),
        Command::Serve(options) => serve_one(&options),
        Command::Guest(options) => in_guest(&options).map(|()| true),
        Command::Kinds => {
            kinds::ALL.iter().for_each(|kind| println!("{:12} {}", kind.name, kind.about));
            Ok(true)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("history: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn kinds_named(names: &str) -> Result<Vec<&'static Kind>> {
    if names == "all" {
        return Ok(kinds::ALL.iter().collect());
    }
    let find = |name| kinds::by_name(name).with_context(|| format!("no kind {name}: see history kinds"));
    names.split(',').map(find).collect()
}

fn in_guest(options: &Guest) -> Result<()> {
    for kind in kinds_named(&options.kind)? {
        let most = Duration::from_secs(options.seconds);
        guest::run(kind, &options.device, options.seed, options.commits, most)?;
    }
    Ok(())
}

/// Whether there was nothing to find.
fn run_all(options: &Run) -> Result<bool> {
    stop::on_signal().context("can't handle signals")?;
    let chosen = kinds_named(&options.kind)?;
    let mut is_clean = true;
    for kind in chosen {
        if stop::is_asked_for() {
            break;
        }
        let dir = options.dir.join(format!("{}-{}", kind.name, options.seed));
        let plan = Plan {
            seed: options.seed,
            commits: options.commits,
            most: Duration::from_secs(options.seconds),
            dir: dir.clone(),
            size: options.size << 20,
            mkfs: options.mkfs.clone(),
            mount: options.mount.clone(),
            fault: options.plant_fault,
        };
        let Outcome { totals, failure, about, elapsed } = run::run(kind, &plan)?;
        print_row("host", kind.name, &totals, failure.is_some(), elapsed.as_secs());
        if let Some(failure) = failure {
            is_clean = false;
            eprintln!("FAILED: {about}\n{failure}\nkept: {}", dir.display());
        } else if !options.keep {
            std::fs::remove_dir_all(&dir)?;
        }
    }
    Ok(is_clean)
}

fn serve_one(options: &Serve) -> Result<bool> {
    let started = std::time::Instant::now();
    let (totals, failure) =
        serve::serve(&options.blk_file, options.socket.clone(), &options.dir, !options.many)?;
    let (kernel, kinds) = options.label.split_once('/').unwrap_or(("guest", &options.label));
    let names: Vec<&str> = kinds.split(',').collect();
    let seconds = started.elapsed().as_secs();
    // The first file systems are those of the first kinds; what is more, the last kind has made.
    for (index, name) in names.iter().enumerate() {
        let is_last = index + 1 == names.len();
        let mine = totals.iter().enumerate().filter(|(at, _)| *at == index || (is_last && *at > index));
        let sum = mine.fold(Totals::default(), |sum, (_, one)| sum.plus(one));
        print_row(kernel, name, &sum, is_last && failure.is_some(), if is_last { seconds } else { 0 });
    }
    Ok(failure.is_none())
}

/// One row of the table, its columns between tabs.
fn print_row(kernel: &str, kind: &str, totals: &Totals, has_failed: bool, seconds: u64) {
    let verdict = if has_failed { "FAILED" } else { "ok" };
    let Totals { commits, log_commits, violations, differences, unverified, measured, .. } = totals;
    let Totals { half_dropped, relocating, references, .. } = totals;
    println!(
        "{kernel}\t{kind}\t{commits}\t{log_commits}\t{violations}\t{differences}\t{unverified}\t{measured}\t\
         {half_dropped}\t{relocating}\t{references}\t{seconds}\t{verdict}"
    );
}
