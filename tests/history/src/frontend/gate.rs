//! An image whose power can be cut.
//!
//! Keeps what was overwritten since the last flush, so that a cut can take back any of it, sector by sector: as a
//! disk may lose whatever its cache has not been told to keep.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use btrfs_shadow::engine::Engine;
use btrfs_shadow::image::{Image, RawImage};

use crate::rng::Rng;

/// What a disk writes or loses as a whole.
const SECTOR: u64 = 4096;

/// A raw image behind a gate that can be shut.
pub struct Gate {
    inner: RawImage,
    /// For punching holes, which images can't do.
    file: File,
    /// Held shared by every operation, and alone by what needs the image to stand still.
    still: RwLock<()>,
    dead: AtomicBool,
    journal: Mutex<Journal>,
    /// Milliseconds that a read through the frontend takes longer than it has to.
    pub read_delay: AtomicU64,
    /// How often the disk was flushed, by whoever asks.
    pub flushes: AtomicU64,
}

#[derive(Default)]
struct Journal {
    enabled: bool,
    /// Number of the next write.
    next: u64,
    /// What each write since the last flush has overwritten: number, offset, bytes; oldest first.
    undo: Vec<(u64, u64, Vec<u8>)>,
}

/// What a power cut did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Sectors written since the last flush.
    pub unflushed: usize,
    /// Those of them that were lost.
    pub lost: usize,
}

impl Gate {
    /// Opens the image at `path`; with `journal`, unflushed writes may be lost at a cut.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(path: &Path, journal: bool) -> io::Result<Self> {
        Ok(Gate {
            inner: RawImage::open(path, false)?,
            file: File::options().read(true).write(true).open(path)?,
            still: RwLock::new(()),
            dead: AtomicBool::new(false),
            journal: Mutex::new(Journal { enabled: journal, ..Journal::default() }),
            read_delay: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        })
    }

    /// Gives `len` bytes at `offset` back to the host.
    ///
    /// # Errors
    /// When the power is cut, or the host can't.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let _open = self.enter()?;
        self.remember(offset, len)?;
        let (offset, len) = (offset.cast_signed(), len.cast_signed());
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a system call on a descriptor of our own.
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Cuts the power: from now on every request fails, and of what was written since the last flush a part that
    /// `rng` chooses is lost; all or nothing of it now and then.
    ///
    /// # Errors
    /// When the image can't be written.
    pub fn cut(&self, rng: &mut Rng) -> io::Result<Cut> {
        let _alone = self.still.write().unwrap_or_else(PoisonError::into_inner);
        self.dead.store(true, Ordering::SeqCst);
        let undo = std::mem::take(&mut self.lock_journal().undo);
        let loss = [0, 100, 50, 10, 90][rng.below(5) as usize];
        let (mut kept, mut sectors, mut lost) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (_, offset, before) in undo.into_iter().rev() {
            for (index, bytes) in before.chunks(SECTOR as usize).enumerate() {
                let at = offset + index as u64 * SECTOR;
                sectors.insert(at / SECTOR);
                // A sector that holds a later write can't lose an earlier one.
                if kept.contains(&(at / SECTOR)) {
                    continue;
                }
                if rng.below(100) < loss {
                    self.inner.write_at(bytes, at)?;
                    lost.insert(at / SECTOR);
                } else {
                    kept.insert(at / SECTOR);
                }
            }
        }
        Ok(Cut { unflushed: sectors.len(), lost: lost.len() })
    }

    /// Requests are carried out again.
    pub fn power_on(&self) {
        self.dead.store(false, Ordering::SeqCst);
    }

    /// Whether the power is cut.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    fn enter(&self) -> io::Result<std::sync::RwLockReadGuard<'_, ()>> {
        let guard = self.still.read().unwrap_or_else(PoisonError::into_inner);
        if self.is_dead() { Err(io::Error::other("the power is cut")) } else { Ok(guard) }
    }

    /// Keeps what is about to be overwritten.
    fn remember(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.lock_journal().enabled {
            return Ok(());
        }
        let mut before = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        self.inner.read_at(&mut before, offset)?;
        let mut journal = self.lock_journal();
        let number = journal.next;
        journal.next += 1;
        journal.undo.push((number, offset, before));
        Ok(())
    }

    fn lock_journal(&self) -> std::sync::MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Image for Gate {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // The verifier looks at the image also while the power is cut.
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let _open = self.enter()?;
        self.remember(offset, buf.len() as u64)?;
        self.inner.write_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        let _open = self.enter()?;
        self.flushes.fetch_add(1, Ordering::Relaxed);
        // Only what was complete before the flush is safe after it.
        let covered = self.lock_journal().next;
        self.inner.flush()?;
        self.lock_journal().undo.retain(|(number, ..)| *number >= covered);
        Ok(())
    }

    fn engine(&self) -> io::Result<Box<dyn Engine>> {
        self.inner.engine()
    }
}
