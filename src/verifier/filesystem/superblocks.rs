//! Super blocks on the image: read, overlaid with a write, written or not. What they are worth is decided elsewhere.

use std::io;

use parser::SuperBlock;

use super::FileSystem;
use super::guarding::without_place;
use crate::capture::{PRIMARY_SUPER, SUPER_SIZE};
use crate::verifier::fate::CopyFate;

impl FileSystem {
    /// Carries out a write of the primary super block that was let through.
    ///
    /// # Errors
    /// When the image can't be written.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let written = self.write_image(offset, bytes);
        match &written {
            Ok(()) => {
                self.guard_written();
                if std::mem::take(&mut self.copy_missing) {
                    self.shared.guard.miss();
                }
            }
            Err(error) => {
                self.notice(&format!("writing the super block failed: {error}"));
                self.detach();
                self.open("super block write failed");
            }
        }
        written
    }

    /// A write of the primary super block is refused: the commit before it stays the last one.
    pub fn refuse(&mut self, offset: u64, bytes: &[u8]) {
        self.verifier.revoke();
        self.proposed = None;
        self.refused = self.overlay(PRIMARY_SUPER, offset, bytes).ok();
        self.ledger.summary.refused += 1;
    }

    /// What is to become of a write that touches the super block's copy at `place`.
    ///
    /// It may come before the primary super block, whose verdict it shares. What is no newer super block of this file
    /// system is written at once: mkfs, a rewrite, a repair.
    pub fn judge_copy(&self, place: u64, offset: u64, bytes: &[u8]) -> CopyFate {
        let last = self.verifier.snapshot().and_then(|snapshot| snapshot.super_view());
        let (Some(last), Ok(copy)) = (last, self.overlay(place, offset, bytes)) else {
            return CopyFate::Write;
        };
        let Ok(next) = SuperBlock::parse(&copy) else { return CopyFate::Write };
        let same_device =
            next.metadata_uuid() == last.metadata_uuid() && next.dev_item().uuid == last.dev_item().uuid;
        if !next.verify_csum() || !same_device || next.generation() <= last.generation() {
            return CopyFate::Write;
        }
        // The next attempt at that generation is another commit, whose copy may come before its primary super block too.
        if self.refused.as_deref().is_some_and(|refused| without_place(refused) == without_place(&copy)) {
            CopyFate::OfRefused
        } else {
            CopyFate::Hold
        }
    }

    /// Carries out a write that touches a copy.
    ///
    /// # Errors
    /// When the image can't be written.
    pub fn write_copy(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let written = self.write_image(offset, bytes);
        if written.is_err() {
            self.copy_missed();
        }
        written
    }

    fn write_image(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let written = self.image.write_at(bytes, offset);
        match written {
            Ok(()) => self.shared.wrote(offset, bytes.len() as u64),
            Err(_) => self.shared.could_not_write(offset, bytes.len() as u64),
        }
        written
    }

    /// A copy was not written, which the guest has been told and lives with: it is no fault of its next commit.
    pub fn copy_missed(&mut self) {
        self.shared.guard.miss();
        // It may belong to a commit that is yet to come.
        self.copy_missing = true;
    }

    pub(super) fn read_super(&self) -> io::Result<Box<[u8]>> {
        self.read_super_at(PRIMARY_SUPER)
    }

    fn read_super_at(&self, place: u64) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; SUPER_SIZE as usize].into_boxed_slice();
        self.image.read_at(&mut bytes, place)?;
        Ok(bytes)
    }

    /// What the super block at `place` will be once the write is made.
    pub(super) fn overlay(&self, place: u64, offset: u64, bytes: &[u8]) -> io::Result<Box<[u8]>> {
        let whole =
            place.checked_sub(offset).and_then(|from| bytes.get(from as usize..)?.get(..SUPER_SIZE as usize));
        if let Some(whole) = whole {
            // What it replaces need not be readable.
            return Ok(whole.into());
        }
        let mut next = self.read_super_at(place)?;
        let end = offset.saturating_add(bytes.len() as u64).min(place + SUPER_SIZE);
        let start = offset.max(place);
        let (from, to) = ((start - place) as usize, (end - place) as usize);
        let source = (start - offset) as usize;
        if let (Some(target), Some(source)) =
            (next.get_mut(from..to), bytes.get(source..source + (to - from)))
        {
            target.copy_from_slice(source);
        }
        Ok(next)
    }
}
