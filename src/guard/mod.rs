//! Watches every write, not only commits: what the last commit needs must stay as it is, and what the next one reaches
//! must have been written, completed and flushed before.
//!
//! [`Live`] knows which sectors of the disk the last commit needs, [`Writes`] what was written since and whether it is
//! durable, [`Barriers`] whether this guest flushes at all. What a sector is needed for is said by the trees, through
//! `shadow::live`; this module has no idea of its own of what a write is.

mod barriers;
mod judge;
mod live;
mod writes;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use parser::SuperBlock;
use parser::superblock::{OFFSETS, super_flags};
use shadow::live::LiveDelta;
use shadow::{BlockSource, Snapshot, Violation};

use crate::image::Image;
use crate::tap::Erase;

pub use barriers::Barriers;
pub use judge::Incident;
pub use live::{Hit, Live};
pub use writes::Writes;

/// Bytes of a sector: the smallest there is, and the unit of everything that is kept here.
pub const SECTOR: u64 = 4096;

/// The guard of one disk.
pub struct Guard {
    image: Arc<dyn Image>,
    live: ArcSwapOption<Live>,
    writes: Writes,
    barriers: Mutex<Barriers>,
    /// The guest has been reset, or may have been, since the last commit.
    interrupted: AtomicBool,
}

impl Guard {
    /// Guards nothing yet.
    #[must_use]
    pub fn new(image: Arc<dyn Image>) -> Self {
        Guard {
            image,
            live: ArcSwapOption::empty(),
            writes: Writes::default(),
            barriers: Mutex::default(),
            interrupted: AtomicBool::new(true),
        }
    }

    /// What was written, and whether it is durable.
    #[must_use]
    pub fn writes(&self) -> &Writes {
        &self.writes
    }

    /// Whether the guest is known to flush around its super blocks.
    #[must_use]
    pub fn barriers_trusted(&self) -> bool {
        self.barriers().trusted()
    }

    /// A frontend has connected.
    pub fn connected(&self) {
        self.writes.reset();
        self.interrupt();
    }

    /// The guest may have been reset in the middle of anything. The blocks of the last log commit are to be told
    /// again.
    pub fn interrupt(&self) {
        self.miss();
        *self.barriers() = Barriers::default();
        if let Some(live) = self.live.load().as_ref() {
            live.interrupted();
        }
    }

    /// A write failed: it may have been to a copy of the super block.
    pub fn miss(&self) {
        self.interrupted.store(true, Ordering::Release);
    }

    /// Whether that was so since this was last asked.
    pub fn take_interruption(&self) -> bool {
        self.interrupted.swap(false, Ordering::AcqRel)
    }

    /// Guards what this commit needs from now on.
    pub fn begin(&self, committed: &Snapshot) {
        let flags = committed.super_view().map_or(0, |view| view.flags());
        let guards = flags & super_flags::REWRITING == 0 && !self.image.read_only();
        let live = guards.then(|| Arc::new(Live::new(Arc::new(committed.clone()), self.image.len())));
        self.live.store(live);
    }

    /// The disk may have another size than before; `committed` is still what is on it. Whether it is guarded anew, for
    /// which the blocks of the last log commit are to be told again.
    pub fn resize(&self, committed: &Snapshot) -> bool {
        let is_other = self.live.load().as_ref().is_some_and(|live| !live.is_for(self.image.len()));
        if is_other {
            self.begin(committed);
        }
        is_other
    }

    /// There is no file system any more.
    pub fn end(&self) {
        self.live.store(None);
    }

    /// A transaction was verified and is about to be committed. Without `delta` it isn't known what it changed.
    pub fn commit(&self, committed: &Snapshot, delta: Option<&LiveDelta>) {
        self.writes.commit();
        match (self.live.load().as_ref(), delta) {
            (Some(live), Some(delta)) => live.commit(Arc::new(committed.clone()), delta),
            _ => self.begin(committed),
        }
    }

    /// A log commit that reaches these blocks was verified.
    pub fn log_commit(&self, blocks: &[u64]) {
        if let Some(live) = self.live.load().as_ref() {
            live.log_commit(blocks);
        }
    }

    /// Why a part of the disk could not be guarded since this was last asked.
    pub fn take_unread(&self) -> Option<String> {
        self.live.load().as_ref().and_then(|live| live.take_unread())
    }

    /// The super block has been written, and the guest is about to be told. `missing` is the block that was not flushed
    /// before.
    pub fn superblock_written(&self, missing: Option<Violation>) {
        let mut barriers = self.barriers();
        // A guest that hasn't flushed before the super block may have turned its barriers off.
        let was_flushed = missing.is_none();
        barriers.superblock(missing);
        let flush = (was_flushed && barriers.trusted()).then(|| self.writes.next_flush());
        if let Some(live) = self.live.load().as_ref() {
            live.committed_by(flush);
        }
    }

    /// Whether a write must be looked at: it touches something that is needed.
    pub fn is_hit(&self, offset: u64, len: u64, source: &dyn BlockSource) -> bool {
        self.live.load().as_ref().is_some_and(|live| live.is_hit(offset, len, source))
    }

    /// What is wrong with writing `bytes` at `offset`.
    pub fn judge_write(&self, offset: u64, bytes: &[u8], source: &dyn BlockSource) -> Option<Incident> {
        let live = self.live.load_full()?;
        let hits = live.hits(offset, bytes.len() as u64, source);
        let committed = (!hits.is_empty()).then(|| live.committed())?;
        judge::judge_write(self.image.as_ref(), source, &committed, (offset, bytes), &hits)
    }

    /// What is wrong with erasing a range.
    pub fn judge_erase(
        &self,
        kind: Erase,
        offset: u64,
        len: u64,
        source: &dyn BlockSource,
    ) -> Option<Incident> {
        let live = self.live.load_full()?;
        let hits = live.hits(offset, len, source);
        let committed = (!hits.is_empty()).then(|| live.committed())?;
        judge::judge_erase(self.image.as_ref(), source, &committed, kind, &hits)
    }

    /// A write to where tree blocks may lie was submitted.
    pub fn write_begins(&self, offset: u64, len: u64) {
        self.writes.begins(offset, len);
        // A copy of the super block belongs to the commit whose flush is waited for.
        if !OFFSETS.contains(&offset) {
            self.barriers().write();
        }
    }

    /// A flush is about to be carried out: its number, and what it proves.
    pub fn flush_begins(&self) -> (u64, Option<Violation>) {
        (self.writes.flush_begins(), self.barriers().flush())
    }

    /// The flush with this number is complete.
    pub fn flushed(&self, number: u64) {
        self.writes.flushed(number);
        if let Some(live) = self.live.load().as_ref() {
            live.flushed(number);
        }
    }

    /// A flush failed, and the guest is about to be told. One with more disks than this may go on without: what it
    /// flushes here says nothing until it has done so again for some time.
    pub fn flush_failed(&self) {
        *self.barriers() = Barriers::default();
    }

    fn barriers(&self) -> MutexGuard<'_, Barriers> {
        self.barriers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether these bytes, at the place of the primary super block, end the file system that was there: a guest that does
/// that may overwrite all the rest.
#[must_use]
pub fn ends_file_system(superblock: &[u8]) -> bool {
    SuperBlock::parse(superblock).is_err()
}
