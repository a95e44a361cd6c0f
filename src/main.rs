//! The `btrfs-shadow` program: reads the command line and turns what comes out into an exit code.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use btrfs_shadow::cli::{Cli, Command};
use btrfs_shadow::{check, control, output, rules, serve};
use clap::{CommandFactory as _, Parser as _};
use tracing_subscriber::EnvFilter;

/// Glibc gives memory back to the kernel at every other commit, and faults it in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Could not run: usage, I/O.
const COULD_NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("BTRFS_SHADOW_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let ansi = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr);
    // What can't be logged must not end what is going on.
    log.log_internal_errors(false).without_time().init();
    let cli = Cli::parse();
    let wants_capabilities = cli.print_capabilities
        || matches!(&cli.command, Some(Command::Serve(serve)) if serve.print_capabilities);
    if wants_capabilities {
        return exit_code(output::print(&format!("{}\n", serve::CAPABILITIES)).map(|()| 0));
    }
    exit_code(match &cli.command {
        Some(Command::Serve(options)) => serve::run(options).map(|summary| summary.exit_code()),
        Some(Command::Check(options)) => check::run(options),
        Some(Command::Ctl(options)) => control::run(options).map(|()| 0),
        Some(Command::Rules(options)) => rules::run(options).map(|()| 0),
        None => {
            let _ = Cli::command().print_help();
            return ExitCode::from(COULD_NOT_RUN);
        }
    })
}

fn exit_code(result: anyhow::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "btrfs-shadow: {error:#}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}
