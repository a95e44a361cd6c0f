//! `btrfs-shadow check`: a whole image at once, read-only, on all cores; and the same for `serve --audit`.

mod audit;
mod data;
mod progress;
mod source;

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use parser::SuperBlock;
use parser::superblock::{MagicKind, magic_kind};
use shadow::attach;
use shadow::{Coverage, Forest, Geometry, Rules, Severity};

pub use audit::{AuditReport, audit, verify_inodes};
pub use data::{ImageData, verify_fresh};
pub use progress::{NoProgress, Progress, TerminalProgress};
pub use source::ImageSource;

use crate::capture::{PRIMARY_SUPER, SUPER_SIZE};
use crate::cli::Check;
use crate::events::{Attach, Event, Fsid, Sinks};
use crate::image::{Image, LOCK_PATIENCE, RawImage, RawOptions};
use crate::serve;

/// Exit code of a verdict that nobody was told.
const UNTOLD: u8 = 3;

/// Checks every image; returns the exit code: the gravest of all, 1 before 2 before 3.
///
/// # Errors
/// When standard output can't be used.
pub fn run(options: &Check) -> Result<u8> {
    let mut sinks = serve::output_sinks(options.json).context("standard output")?;
    let rules = Rules::new(&options.rules.switches);
    // The gravest last.
    let rank = |code: u8| [0, 3, 2, 1].iter().position(|&known| known == code);
    let mut worst = 0;
    for path in &options.images {
        let code = match check_image(path, options, &rules, &mut sinks) {
            Ok(code) => code,
            Err(error) => {
                let _ = writeln!(io::stderr(), "btrfs-shadow: {}: {error:#}", path.display());
                2
            }
        };
        if rank(code) > rank(worst) {
            worst = code;
        }
    }
    let untold = if sinks.finish() > 0 { UNTOLD } else { 0 };
    Ok(if rank(untold) > rank(worst) { untold } else { worst })
}

fn check_image(path: &Path, options: &Check, rules: &Rules, sinks: &mut Sinks) -> Result<u8> {
    let started = Instant::now();
    let image = open(path, options)?;
    let superblock = read_super(image.as_ref())?;
    let view = SuperBlock::parse(&superblock).context("super block")?;
    let geometry = Geometry::new(&view)?;
    let source = ImageSource::new(Arc::clone(&image), &geometry);
    let opened = attach::open(&superblock, &source)?;
    let coverage = Coverage::new(&geometry);
    let progress: Box<dyn Progress> =
        if options.json { Box::new(NoProgress) } else { Box::new(TerminalProgress::new()) };
    let mut report = if coverage.is_whole() {
        audit(&opened.snapshot, &source, progress.as_ref())
    } else {
        AuditReport::default()
    };
    if coverage.is_whole() {
        report.take_log(&opened.snapshot, &source);
    }
    if options.inodes && coverage.is_whole() {
        report.violations.extend(verify_inodes(&opened.snapshot, &source, progress.as_ref()));
    }
    if options.verify_data && coverage.is_whole() {
        let data = ImageData::new(image.as_ref(), &geometry);
        report.take_data(data::verify_all(Forest::new(&opened.snapshot, &source), &data, progress.as_ref()));
    }
    let fsid = Fsid(geometry.fsid);
    let generation = opened.snapshot.generation;
    sinks.emit(&Event::Attach(&Attach {
        fsid,
        generation,
        nodesize: geometry.nodesize,
        csum: geometry.csum.name(),
        gaps: coverage.gaps.clone(),
        counts: coverage.is_whole().then_some((report.extents, report.tree_blocks)),
        elapsed: started.elapsed(),
        reason: "check",
    }));
    report.note(opened.problems);
    report.unknown.extend(attach::rewriting(&superblock).map(str::to_owned));
    report.violations.extend(attach::device_too_small(&opened.snapshot, image.len()));
    report.judge(rules);
    let AuditReport { violations, unknown, .. } = report;
    for violation in &violations {
        sinks.emit(&Event::Violation { fsid, generation, origin: "check", violation });
    }
    for reason in &unknown {
        sinks.emit(&Event::Notice { message: &format!("not verified: {reason}") });
    }
    let errors = violations.iter().filter(|violation| violation.severity == Severity::Error).count();
    sinks.emit(&Event::Detach { fsid, commits: 0, violations: errors as u64 });
    let (code, verdict) = match (errors == 0, coverage.is_whole() && unknown.is_empty()) {
        (false, _) => (1, "violations were found"),
        (true, false) => (3, "nothing wrong was found, but not everything could be verified"),
        (true, true) => (0, "clean: every reference is recorded, and every backref is referenced"),
    };
    let told = options.json || writeln!(io::stdout(), "{}: {verdict}", path.display()).is_ok();
    Ok(if code == 0 && !told { UNTOLD } else { code })
}

fn open(path: &Path, options: &Check) -> Result<Arc<dyn Image>> {
    let lock = (!options.force_share).then_some(LOCK_PATIENCE);
    match RawImage::open_with(path, RawOptions { read_only: true, lock, ..RawOptions::default() }) {
        Ok(image) => Ok(Arc::new(image)),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            bail!("{error}. --force-share checks it regardless; what changes meanwhile may look like damage")
        }
        Err(error) => Err(error.into()),
    }
}

fn read_super(image: &dyn Image) -> Result<Box<[u8]>> {
    let mut bytes = vec![0; SUPER_SIZE as usize].into_boxed_slice();
    if image.len() < PRIMARY_SUPER + SUPER_SIZE {
        bail!("{} bytes are too few for a btrfs: its super block is at 64 KiB", image.len());
    }
    image.read_at(&mut bytes, PRIMARY_SUPER).context("can't read the super block at 64 KiB")?;
    match magic_kind(&bytes) {
        MagicKind::Btrfs => Ok(bytes),
        MagicKind::InProgress => bail!("mkfs did not finish: the super block at 64 KiB is a temporary one"),
        MagicKind::Other => bail!("no btrfs: there is no super block at 64 KiB"),
    }
}
