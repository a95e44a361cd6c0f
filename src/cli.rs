//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use shadow::RuleSwitch;

use crate::fault::FaultSpec;
use crate::image::EngineKind;
use crate::policy::Policy;
use crate::verifier::AuditMode;

/// Serves a virtual machine's disk and verifies its btrfs at every transaction commit.
#[derive(Debug, Parser)]
#[command(
    name = "btrfs-shadow",
    version,
    about = "Serves a QEMU guest's disk over vhost-user and verifies its btrfs at every transaction commit",
    long_about = "btrfs-shadow is a vhost-user block backend. QEMU attaches it as a guest's disk; the guest runs an \
                  unmodified kernel. At each transaction commit, before the super block write is acknowledged, the \
                  extent tree is compared with the references that the trees really hold, and what disagrees is \
                  reported with the extent, both sides and its history.",
    after_help = EXIT_CODES
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Print what the backend can do, as JSON, and exit (QEMU's vhost-user backend conventions).
    #[arg(long)]
    pub print_capabilities: bool,
}

const EXIT_CODES: &str = "Exit codes:
  0  verified, and clean
  1  violations were found
  2  could not run: wrong usage, I/O error
  3  nothing, or not everything, could be verified or told: no commit was seen, a feature is not covered,
     events could not be written";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a disk image to a virtual machine and verify every commit
    Serve(Box<Serve>),
    /// Check a whole image at once, read-only, by the same rules
    Check(Check),
    /// List all rules: code, severity, what it says
    Rules(Rules),
    /// Ask a running 'serve --control SOCK', or tell it something
    Ctl(Ctl),
}

/// Options of `check`.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes:
  0  everything was verified, and is clean
  1  violations were found
  2  could not run: no file system can be opened, I/O error
  3  not everything could be verified or told")]
pub struct Check {
    /// Images to check, each a file system of its own
    #[arg(value_name = "IMG", required = true)]
    pub images: Vec<PathBuf>,
    /// Verify inodes as well: names, link counts, sizes. Reads every snapshot by itself, which takes longer
    #[arg(long)]
    pub inodes: bool,
    /// Read all file data that has checksums, every copy, and compare
    #[arg(long)]
    pub verify_data: bool,
    /// Print events as JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// Check an image that another process is writing to all the same: what changes meanwhile may look like damage
    #[arg(long, short = 'U')]
    pub force_share: bool,
    /// Which rules count.
    #[command(flatten)]
    pub rules: RuleOptions,
}

/// Which rules count, and how much.
#[derive(Debug, Args)]
pub struct RuleOptions {
    /// Switch a rule, or a family (space/*): CODE=off is not reported, CODE=warn is reported as a warning, which
    /// changes no verdict, policy or exit code, CODE=error is an error. May be given several times, the last one wins;
    /// 'btrfs-shadow rules' lists all rules. A block that can't be read stays unverified, whatever is off
    #[arg(long = "rule", value_name = "CODE=LEVEL")]
    pub switches: Vec<RuleSwitch>,
}

/// Options of `ctl`.
#[derive(Debug, Args)]
pub struct Ctl {
    /// Control socket of the server
    #[arg(value_name = "SOCK")]
    pub socket: PathBuf,
    /// What to ask or tell.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// What `ctl` can ask and tell.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// How things stand: disk, file system, counts, and which commit is paused, why and since when
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write an event with this name
    Mark {
        /// The name
        name: String,
    },
    /// The last violations
    Violations {
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Let the paused commit through
    Resume,
    /// Refuse the paused commit
    Reject,
    /// End the server, as SIGTERM does: a paused commit is refused
    Stop,
}

/// Something that is on unless it is switched off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// Done
    #[default]
    On,
    /// Not done
    Off,
}

/// Options of `rules`.
#[derive(Debug, Args)]
pub struct Rules {
    /// Print one JSON object a line
    #[arg(long, conflicts_with = "markdown")]
    pub json: bool,
    /// Print what RULES.md is
    #[arg(long)]
    pub markdown: bool,
}

/// Options of `serve`.
#[derive(Debug, Args)]
#[command(after_help = concat!("Example:
  btrfs-shadow serve --blk-file disk.img --socket-path /run/disk.sock --events events.ndjson

  qemu-system-x86_64 ... -m 1G \\
    -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \\
    -chardev socket,id=disk,path=/run/disk.sock -device vhost-user-blk-pci,chardev=disk

Exit codes:
  0  every commit was verified, and clean
  1  violations were found
  2  could not run: wrong usage, I/O error
  3  nothing, or not everything, could be verified or told"))]
pub struct Serve {
    /// Disk image to serve: a raw file or a block device
    #[arg(long, value_name = "IMG", required_unless_present = "print_capabilities")]
    pub blk_file: Option<PathBuf>,
    /// Socket to listen on for QEMU
    #[arg(long, value_name = "SOCK", conflicts_with = "fd")]
    pub socket_path: Option<PathBuf>,
    /// Take over this file descriptor as the socket, listening or connected
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<i32>,
    /// Give up, once everything is open, what serving doesn't need (Landlock and seccomp)
    #[arg(long, value_name = "WHETHER", value_enum, default_value_t = Switch::On)]
    pub sandbox: Switch,
    /// Record of the requests in flight, from which the next process goes on if this one is killed; on this machine, best
    /// in memory. Without it SOCK.inflight, or none with --fd
    #[arg(long, value_name = "FILE")]
    pub inflight: Option<PathBuf>,
    /// Refuse all writes
    #[arg(long)]
    pub read_only: bool,
    /// Lock the image, as QEMU does, so that nobody writes to it at the same time
    #[arg(long, value_name = "WHETHER", value_enum, default_value_t = Switch::On)]
    pub locking: Switch,
    /// What to do with a commit that violates a rule. Warnings, and what can't be verified, are always written
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = Policy::Report)]
    pub on_violation: Policy,
    /// Which rules count.
    #[command(flatten)]
    pub rules: RuleOptions,
    /// Compare all references with all backrefs when a file system is attached, so that damage that is there already
    /// is told apart from new damage
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = AuditMode::Off)]
    pub audit: AuditMode,
    /// Read back the file data that a commit has given checksums to, before the commit is acknowledged, and compare
    #[arg(long)]
    pub verify_data: bool,
    /// Write events to this file, one JSON object a line. The file is written anew at each start; - is standard output,
    /// and '--events - >>FILE' goes on with what is there
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Listen on this socket for 'ctl'; only this user can connect
    #[arg(long, value_name = "SOCK")]
    pub control: Option<PathBuf>,
    /// QEMU's monitor (QMP): told to stop the virtual machine while a commit is paused. It answers to nobody else
    /// meanwhile, and resumes with the commit
    #[arg(long, value_name = "SOCK")]
    pub qmp: Option<PathBuf>,
    /// Exit when the guest disconnects, with the verdict as exit code
    #[arg(long)]
    pub once: bool,
    /// Queues offered to the guest
    #[arg(long, value_name = "N", default_value_t = crate::device::DeviceOptions::default().num_queues,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=64))]
    pub num_queues: usize,
    /// Read and write past the page cache (O_DIRECT), which takes io_uring; what the guest doesn't align goes through it
    /// still
    #[arg(long)]
    pub direct_io: bool,
    /// What moves the bytes
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t = EngineKind::Auto)]
    pub io_engine: EngineKind,
    /// How long a queue's thread looks for requests, at most, before it sleeps, in microseconds; how long it really is
    /// depends on whether it is worth it. 0 is not at all
    #[arg(long, value_name = "N", default_value_t = crate::device::limits::DEFAULT_POLL.as_micros() as u64,
          value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub poll_us: u64,
    /// Let the guest make so many requests a second, on all queues together; flushes don't count
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub iops: Option<u64>,
    /// Let the guest read and write so many bytes a second, on all queues together; zeros count as written, discards don't
    /// count
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    pub bps: Option<usize>,
    /// Bytes of a logical block, 512 or 4096: what the guest reads and writes is whole blocks
    #[arg(long, value_name = "BYTES", default_value_t = 512, value_parser = parse_block_size)]
    pub block_size: u32,
    /// Serial number that the guest sees
    #[arg(long, value_name = "TEXT", default_value = "btrfs-shadow")]
    pub serial: String,
    /// Memory for captured tree blocks; past it they are read back from the image
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = parse_size)]
    pub capture_memory: usize,
    /// Memory for the shadow's entries and their histories; past it the oldest are forgotten
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = parse_size)]
    pub shadow_memory: usize,
    /// Don't print a line for each commit
    #[arg(long, short)]
    pub quiet: bool,
    /// Print what the backend can do, as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,
    /// Break something on purpose, to see it caught: KIND[@GENERATION]
    #[arg(long, value_name = "SPEC", hide = true)]
    pub plant_fault: Option<FaultSpec>,
}

fn parse_block_size(text: &str) -> Result<u32, String> {
    let sizes = crate::device::limits::BLOCK_SIZES;
    let size = text.parse().ok().filter(|size| sizes.contains(size));
    size.ok_or_else(|| format!("a block has {} or {} bytes", sizes[0], sizes[1]))
}

fn parse_rate(text: &str) -> Result<usize, String> {
    match parse_size(text)? {
        0 => Err("nothing could ever be read or written".to_owned()),
        rate => Ok(rate),
    }
}

/// Reads a size in bytes, with an optional K, M or G (powers of 1024).
fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: usize =
        digits.parse().map_err(|_| format!("'{text}' is no size: a number, with K, M or G"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is too large"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// Each command, with its help as `--help` prints it.
    fn commands() -> Vec<(clap::Command, String)> {
        let mut cli = Cli::command();
        cli.build();
        let mut commands = vec![cli.clone()];
        while let Some(at) = commands.iter().position(|command| command.has_subcommands()) {
            let command = commands.remove(at);
            commands.extend(command.get_subcommands().cloned());
        }
        let help = |mut command: clap::Command| {
            let help = command.render_long_help().to_string();
            (command, help)
        };
        commands.into_iter().map(help).collect()
    }

    /// The options that README.md names: two dashes and a word, where no program of others is spoken of.
    fn options_in_readme() -> BTreeSet<String> {
        let readme = include_str!("../README.md");
        let words = readme.split(|c: char| !c.is_ascii_lowercase() && c != '-' && !c.is_ascii_digit());
        let options = words.filter_map(|word| word.strip_prefix("--"));
        options.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase())).map(str::to_owned).collect()
    }

    #[test]
    fn every_option_in_the_readme_is_there() {
        let all: BTreeSet<String> = commands()
            .iter()
            .flat_map(|(command, _)| command.get_arguments().filter_map(|option| option.get_long()))
            .map(str::to_owned)
            .collect();
        let named = options_in_readme();
        assert!(named.len() > 20 && named.contains("events"), "{named:?}");
        let missing: Vec<_> = named.difference(&all).collect();
        assert!(missing.is_empty(), "README.md names options that no command has: {missing:?}");
    }

    #[test]
    fn help_says_what_becomes_of_the_files() {
        let commands = commands();
        let help = |name: &str| {
            let (_, help) =
                commands.iter().find(|(command, _)| command.get_name() == name).expect("a command");
            help.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        for words in ["written anew at each start", "'--events - >>FILE' goes on", "SOCK.inflight"] {
            assert!(help("serve").contains(words), "{words}: {}", help("serve"));
        }
        for command in ["serve", "check"] {
            assert!(help(command).contains("3 n") && help(command).contains("could be verified or told"));
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert!(parse_size("M").is_err());
        assert!(parse_size("99999999999999G").is_err());
        assert!(parse_size("é").is_err());
    }
}
