//! Runs one history on the host's kernel.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use btrfs_shadow::capture::{Capture, CaptureShared, Message};
use btrfs_shadow::check::{ImageSource, NoProgress, audit, verify_inodes};
use btrfs_shadow::events::{Json, Lines, Outlet, Patience, Sinks};
use btrfs_shadow::fault::{FaultPlan, FaultSpec};
use btrfs_shadow::image::{Image, RawImage};
use btrfs_shadow::policy::Policy;
use btrfs_shadow::tap::Tap;
use btrfs_shadow::verifier::{self, AuditMode, Summary, VerifierOptions};

use crossbeam_channel::Sender;
use shadow::{Geometry, attach};

use crate::frontend::{Frontend, Gate};
use crate::ground::Host;
use crate::kinds::Kind;
use crate::rng::Rng;
use crate::stop;
use crate::tool;
use crate::witness::{Ear, Totals, Watched, Witness};
use crate::world::World;

/// Memory of capture and shadow: small enough for both limits to be reached.
const CAPTURE_MEMORY: usize = 32 << 20;
const SHADOW_MEMORY: usize = 8 << 20;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Seed of all choices.
    pub seed: u64,
    /// Transaction commits to run for.
    pub commits: u64,
    /// Time after which it ends, whatever was reached.
    pub most: Duration,
    /// Where image, events and logs go.
    pub dir: PathBuf,
    /// Size of the image in bytes.
    pub size: u64,
    /// Arguments of mkfs.btrfs in place of chosen ones.
    pub mkfs: Option<String>,
    /// Mount options in place of chosen ones.
    pub mount: Option<String>,
    /// A fault to plant, to see it found.
    pub fault: Option<FaultSpec>,
}

/// What came of a history.
#[derive(Debug)]
pub struct Outcome {
    /// What was seen.
    pub totals: Totals,
    /// Why it was stopped, if it was.
    pub failure: Option<String>,
    /// Arguments of mkfs.btrfs and mount options.
    pub about: String,
    /// How long it took.
    pub elapsed: Duration,
}

/// The program's own parts, put together as `serve` does it, and the witness.
pub struct Stack {
    /// The tap that the frontend tells about requests.
    pub tap: Arc<dyn Tap>,
    /// Stands beside the verifier.
    pub witness: Arc<Witness>,
    verifier: JoinHandle<Summary>,
    messages: Sender<Message>,
}

impl Stack {
    /// Starts the verifier of the image at `path`, opened as `image`; events go to `dir`. A `fault` is planted in
    /// what the kernel writes.
    ///
    /// # Errors
    /// When a file or a thread can't be made.
    pub fn start(
        image: &Arc<dyn Image>,
        path: &Path,
        dir: &Path,
        about: String,
        fault: Option<FaultSpec>,
    ) -> Result<Self> {
        let witness = Witness::new(Arc::clone(image), path, dir, about);
        let events = dir.join("events.ndjson");
        let file = File::create(&events).with_context(|| format!("can't make {}", events.display()))?;
        let mut sinks = Sinks::default();
        sinks.push(Box::new(Lines::new(Json, Outlet::new(file, Patience::None), "events")));
        sinks.push(Box::new(Ear(Arc::clone(&witness))));
        // The policy with the most to go wrong, but where a fault is to be seen on the disk.
        let policy = if fault.is_some() { Policy::Report } else { Policy::Reject };
        let shared = CaptureShared::new(Arc::clone(image), CAPTURE_MEMORY).with_policy(policy);
        let shared = Arc::new(shared);
        let (sender, messages) = crossbeam_channel::unbounded();
        let capture = Capture::new(Arc::clone(&shared), sender.clone(), fault.map(FaultPlan::new));
        let tap: Arc<dyn Tap> = Arc::new(Watched::new(Arc::new(capture), Arc::clone(&witness)));
        let options = VerifierOptions {
            shadow_memory: SHADOW_MEMORY,
            audit: AuditMode::Before,
            ..VerifierOptions::default()
        };
        let channel = (sender.clone(), messages);
        let verifier = verifier::spawn(Arc::clone(image), shared, channel, sinks, options)?;
        Ok(Stack { tap, witness, verifier, messages: sender })
    }

    /// Waits for the verifier's end. No frontend may be using the tap any more.
    ///
    /// # Errors
    /// When the verifier panicked.
    pub fn finish(self) -> Result<(Summary, Arc<Witness>)> {
        let _ = self.messages.send(Message::Finish);
        let Ok(summary) = self.verifier.join() else { bail!("the verifier has panicked") };
        self.witness.write_log()?;
        Ok((summary, self.witness))
    }
}

/// Versions of btrfs-progs before 6.7 take an owner ref for damage.
fn knows_simple_quotas() -> bool {
    tool::stdout("btrfs", &["quota", "enable", "--help"]).is_ok_and(|help| help.contains("--simple"))
}

/// Runs a history of `kind`. What goes wrong with the file system or the verifier is in the outcome.
///
/// # Errors
/// When it can't be run.
pub fn run(kind: &Kind, plan: &Plan) -> Result<Outcome> {
    let started = Instant::now();
    std::fs::create_dir_all(&plan.dir).with_context(|| format!("can't make {}", plan.dir.display()))?;
    let mut rng = Rng::of(plan.seed, kind.name);
    let mkfs = plan.mkfs.clone().unwrap_or_else(|| (kind.mkfs)(&mut rng));
    let options = plan.mount.clone().unwrap_or_else(|| (kind.mount)(&mut rng));
    let path = plan.dir.join("disk.img");
    make_image(&path, plan.size, &mkfs)?;
    let about = format!("kind {} seed {} mkfs [{mkfs}] mount [{options}]", kind.name, plan.seed);
    let gate = Arc::new(Gate::open(&path, kind.cuts_power)?);
    let image: Arc<dyn Image> = Arc::clone(&gate) as Arc<dyn Image>;
    let stack = Stack::start(&image, &path, &plan.dir, about.clone(), plan.fault)?;
    let (tap, witness) = (Arc::clone(&stack.tap), Arc::clone(&stack.witness));
    tap.connected();
    let frontend = Frontend::new(&plan.dir, gate, Arc::clone(&tap))?;
    let ground = Host { frontend, tap: Arc::clone(&tap), witness };
    let world = World::new(&plan.dir, Box::new(ground), rng, options)?;
    let told = live(world, kind, plan.commits, plan.most);
    tap.disconnected();
    drop(tap);
    let (_, witness) = stack.finish()?;
    let failure = witness.failure().or_else(|| told.err().map(|error| format!("{error:#}")));
    let failure = failure.or_else(|| check(&path, &plan.dir).err().map(|error| format!("{error:#}")));
    let outcome = Outcome { totals: witness.totals(), failure, about, elapsed: started.elapsed() };
    if outcome.failure.is_none() && witness.totals().commits == 0 {
        bail!("no commit was seen");
    }
    Ok(outcome)
}

fn make_image(path: &Path, size: u64, mkfs: &str) -> Result<()> {
    let file = File::create(path).with_context(|| format!("can't make {}", path.display()))?;
    file.set_len(size)?;
    let mut arguments = vec!["-q", "-f"];
    arguments.extend(mkfs.split_whitespace());
    arguments.push(tool::utf8(path)?);
    tool::stdout("mkfs.btrfs", &arguments)?;
    Ok(())
}

/// From the first mount to the last unmount.
pub(crate) fn live(mut world: World, kind: &Kind, commits: u64, most: Duration) -> Result<()> {
    let deadline = Instant::now() + most;
    world.mount()?;
    (kind.setup)(&mut world)?;
    while world.commits() < commits && Instant::now() < deadline && !stop::is_asked_for() {
        world.is_well()?;
        world.steps += 1;
        let outcome = (kind.step)(&mut world);
        world.is_well()?;
        outcome?;
    }
    // Data as well has come and gone through the frontend.
    let scrubbed = world.btrfs("scrub start -B -r @");
    anyhow::ensure!(scrubbed, "scrub finds errors: see operations.log");
    world.unmount()?;
    world.is_well()
}

/// The whole file system, inodes and all, as `btrfs-shadow check --inodes` looks at it.
fn check_whole(image: &Path, superblock: &[u8]) -> Result<()> {
    let geometry = Geometry::new(&parser::SuperBlock::parse(superblock)?)?;
    let source = ImageSource::new(Arc::new(RawImage::open(image, true)?), &geometry);
    let snapshot = attach::load(superblock, &source)?;
    let report = audit(&snapshot, &source, &NoProgress);
    let inodes = verify_inodes(&snapshot, &source, &NoProgress);
    let found: Vec<String> = report.violations.iter().chain(&inodes).map(ToString::to_string).collect();
    anyhow::ensure!(found.is_empty() && report.unknown.is_empty(), "check: {found:#?} {:?}", report.unknown);
    Ok(())
}

/// Asks `check` and, where it knows all features, `btrfs check`.
fn check(image: &Path, dir: &Path) -> Result<()> {
    let mut superblock = vec![0; parser::superblock::SIZE];
    File::open(image)?.read_exact_at(&mut superblock, parser::superblock::OFFSETS[0])?;
    check_whole(image, &superblock)?;
    let flags = parser::SuperBlock::parse(&superblock).map_or(0, |view| view.incompat_flags());
    if flags & parser::superblock::incompat::SIMPLE_QUOTA != 0 && !knows_simple_quotas() {
        return Ok(());
    }
    let output = tool::output("btrfs", &["check", "--force", "--readonly", tool::utf8(image)?])?;
    let mut text = output.stdout;
    text.extend_from_slice(&output.stderr);
    std::fs::write(dir.join("check.txt"), &text)?;
    if output.status.success() || only_quotas_differ(&String::from_utf8_lossy(&text)) {
        return Ok(());
    }
    bail!("btrfs check finds errors: see check.txt")
}

/// Whether all that `btrfs check` complains about is the sums of qgroups. The kernel's own get wrong under balance
/// and snapshots (6.18), and no rule of the verifier is about them.
fn only_quotas_differ(text: &str) -> bool {
    const HARMLESS: &[&str] = &[
        "[",
        "Opening",
        "Checking",
        "UUID",
        "our:",
        "disk:",
        "diff:",
        "found ",
        "total ",
        "btree ",
        "file data",
    ];
    let quotas = |line: &&str| line.starts_with("Counts for qgroup id");
    let harmless = |line: &&str| HARMLESS.iter().any(|start| line.starts_with(start));
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    text.lines().any(|line| quotas(&line))
        && lines.all(|line| quotas(&line) || harmless(&line) || line.starts_with("referenced "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_qgroups_are_told_from_other_errors() {
        let quotas = "[2/7] checking extents\nCounts for qgroup id: 0/256 are different\nour:\t\treferenced 1\n \
                      referenced 17002496\nfound 4096 bytes used, error(s) found\n";
        assert!(only_quotas_differ(quotas));
        assert!(!only_quotas_differ(&format!(
            "{quotas}ref mismatch on [4096 4096] extent item 1, found 2\n"
        )));
        assert!(!only_quotas_differ("[2/7] checking extents\nfound 4096 bytes used, error(s) found\n"));
    }
}
