//! What the file system on the disk and the guard of its writes tell each other.

use std::sync::Arc;

use parser::map::Physical;
use parser::superblock::OFFSETS;
use parser::{SuperBlock, layout};
use shadow::live::LiveDelta;
use shadow::{BlockSource, Code, CommitReport, Origin, ReadError, TreeBlock, Violation};

use super::FileSystem;
use crate::capture::{CaptureShared, PRIMARY_SUPER, SUPER_SIZE};
use crate::events::CommitKind;
use crate::guard::Incident;

/// Violations of one kind at one place that are remembered, so that each is reported once.
const REPORTED: usize = 4096;

/// The blocks on the disk, and how they came there.
pub(super) struct GuestWrites<'a> {
    pub(super) shared: &'a CaptureShared,
}

impl GuestWrites<'_> {
    /// Whether it is a place on the device that is served.
    fn is_here(&self, place: Physical) -> bool {
        self.shared.regions.load().as_ref().is_some_and(|regions| regions.geometry.devid == place.devid)
    }
}

impl BlockSource for GuestWrites<'_> {
    fn read(&self, place: Physical) -> Result<Arc<TreeBlock>, ReadError> {
        self.shared.cache.read(place)
    }

    fn origin(&self, place: Physical, len: u64) -> Origin {
        if !self.is_here(place) {
            return Origin::Unknown;
        }
        self.shared.guard.writes().origin(place.offset, len)
    }

    fn epoch(&self) -> Option<u64> {
        self.shared.cache.epoch()
    }

    fn write_failed(&self, place: Physical, len: u64) -> bool {
        self.is_here(place) && self.shared.cache.write_failed(place, len)
    }
}

/// What the guard must be told of a commit, if it is written.
#[derive(Debug)]
pub(super) struct Proposed {
    kind: CommitKind,
    live: Option<LiveDelta>,
    log_blocks: Vec<u64>,
    /// A block that was not flushed before.
    not_flushed: Option<Violation>,
}

impl Proposed {
    /// Taken out of its report.
    pub(super) fn new(kind: CommitKind, report: &mut CommitReport) -> Self {
        Proposed {
            kind,
            live: report.live.take(),
            log_blocks: std::mem::take(&mut report.log_blocks),
            not_flushed: report.not_flushed.take(),
        }
    }
}

impl FileSystem {
    /// Guards what is committed now, before its super block is written.
    pub(super) fn guard_commit(&self) {
        let guard = &self.shared.guard;
        let Some(proposed) = &self.proposed else { return };
        match (proposed.kind, self.verifier.snapshot()) {
            (CommitKind::Log, _) => guard.log_commit(&proposed.log_blocks),
            (CommitKind::Transaction, Some(snapshot)) if self.verifier.coverage().is_whole() => {
                guard.commit(snapshot, proposed.live.as_ref());
            }
            (CommitKind::Transaction, _) => guard.end(),
        }
    }

    /// Guards the blocks of the log that the last super block reaches.
    pub fn guard_log(&self) {
        let source = GuestWrites { shared: &self.shared };
        self.shared.guard.log_commit(&self.verifier.log_blocks(&source));
    }

    /// Says what was not guarded since the last commit.
    pub(super) fn tell_unguarded(&mut self) {
        if let Some(reason) = self.shared.guard.take_unread() {
            self.notice(&format!(
                "a part of the disk was not guarded since the last commit: what is in use there can't be read: {reason}"
            ));
        }
    }

    /// The primary super block has been written; it need not have been a commit.
    pub(super) fn guard_written(&mut self) {
        let Some(proposed) = self.proposed.take() else { return };
        self.shared.guard.superblock_written(proposed.not_flushed);
        if proposed.kind == CommitKind::Transaction {
            let snapshot = self.verifier.snapshot();
            self.copied = snapshot.map(|snapshot| snapshot.superblock.clone());
        }
    }

    /// Before `next` is committed: the copies of the last super block must be there by now, if not already those of
    /// this one.
    pub(super) fn super_copies(&mut self, next: &[u8]) -> Vec<Violation> {
        let interrupted = self.shared.guard.take_interruption();
        let Some(last) = self.copied.take().filter(|_| !interrupted) else { return Vec::new() };
        let Ok(view) = SuperBlock::parse(&last) else { return Vec::new() };
        let generation = view.generation();
        let device_len = view.dev_item().total_bytes.min(self.image.len());
        let places = OFFSETS.into_iter().skip(1).filter(|at| at.saturating_add(SUPER_SIZE) < device_len);
        places.filter_map(|at| self.super_copy([&last, next], generation, at)).collect()
    }

    fn super_copy(&self, allowed: [&[u8]; 2], generation: u64, at: u64) -> Option<Violation> {
        let mut copy = vec![0; SUPER_SIZE as usize];
        let mut is_good = || {
            self.image.read_at(&mut copy, at).is_err()
                || allowed.iter().any(|superblock| without_place(&copy) == without_place(superblock))
        };
        // The copy may be being written right now. If it was a moment ago, it is there now.
        if is_good()
            || self.shared.failed.touch(at, SUPER_SIZE)
            || self.shared.guard.writes().origin(at, SUPER_SIZE) == Origin::InFlight
            || is_good()
        {
            return None;
        }
        let found = SuperBlock::parse(&copy).map_or(0, |view| view.generation());
        let message = format!(
            "the super block's copy at {at} is not that of the last commit: generation {found}, expected {generation}"
        );
        let violation = Violation::new(Code::WriteSuperCopies, at, SUPER_SIZE, message);
        Some(violation.with_worth(generation, found))
    }

    /// A write did harm, or would have.
    pub fn harm(&mut self, incident: Incident, refused: bool) {
        self.report_write(with_fate(incident.violation, refused));
    }

    /// A flush was left out.
    pub fn not_flushed(&mut self, violation: Violation) {
        self.report_write(violation);
    }

    /// A whole super block was written with which nothing can be mounted, or would have been.
    pub(super) fn invalid_super(&mut self, superblock: &[u8], refused: bool) {
        let why = match SuperBlock::parse(superblock) {
            Ok(view) if view.verify_csum() => {
                format!("bytenr {} is not the place where it stands", view.bytenr())
            }
            Ok(_) => "checksum verify failed".to_owned(),
            Err(error) => error.to_string(),
        };
        let message = format!("the super block is written with wrong content: {why}");
        let violation = Violation::new(Code::TreeSuperBlock, PRIMARY_SUPER, SUPER_SIZE, message);
        self.report_write(with_fate(violation, refused));
    }

    /// What was at the place of the primary super block is gone, or may be.
    pub fn super_erased(&mut self) {
        self.shared.looks_at_erasure();
        self.detach();
        self.open("super block erased");
    }

    /// Reports what was seen at a write, not at a commit.
    fn report_write(&mut self, violation: Violation) {
        let Some(violation) = self.verifier.rules().judge(violation) else { return };
        let Some(snapshot) = self.verifier.snapshot() else { return };
        // It belongs to the transaction that is under way.
        let generation = snapshot.generation.saturating_add(1);
        if self.harms.len() >= REPORTED || !self.harms.insert((violation.code, violation.bytenr)) {
            return;
        }
        self.violation(generation, "write", &violation);
    }
}

/// What a write did wrong, and whether it was carried out all the same.
fn with_fate(mut violation: Violation, refused: bool) -> Violation {
    if refused {
        violation.message.push_str("; the write was refused");
    }
    violation
}

/// A super block without what differs from copy to copy: its checksum, and where it lies.
pub(super) fn without_place(superblock: &[u8]) -> (Option<&[u8]>, Option<&[u8]>) {
    let bytenr = std::mem::offset_of!(layout::SuperBlock, bytenr);
    let csum = std::mem::offset_of!(layout::SuperBlock, fsid);
    (superblock.get(csum..bytenr), superblock.get(bytenr + 8..))
}
