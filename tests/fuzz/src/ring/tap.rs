//! A tap that plans as the input says, and keeps what it holds until the input says what becomes of it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use btrfs_shadow::image::Image;
use btrfs_shadow::tap::{CopyFate, Draining, Erase, HoldDone, Tap, WritePlan};

/// What becomes of a held write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Write,
    Refuse,
    Forget,
}

/// See above.
pub struct ScriptedTap {
    image: Arc<dyn Image>,
    /// What the plan is made of.
    plan: u8,
    held: Mutex<Vec<(u64, Vec<u8>, HoldDone)>>,
}

impl ScriptedTap {
    /// Plans by `plan`.
    pub fn new(image: Arc<dyn Image>, plan: u8) -> Self {
        Self { image, plan, held: Mutex::default() }
    }

    /// Nobody will ask for the answers any more.
    pub fn forget(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Answers the oldest held write.
    pub fn answer(&self, fate: Fate) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_empty() {
            return;
        }
        let (offset, bytes, done) = held.remove(0);
        drop(held);
        match fate {
            Fate::Write => done(self.image.write_at(&bytes, offset)),
            Fate::Refuse => done(Err(io::Error::other("refused"))),
            Fate::Forget => drop(done),
        }
    }
}

impl Tap for ScriptedTap {
    fn plan(&self, offset: u64, _len: u64) -> WritePlan {
        match (offset / 512 + u64::from(self.plan)) % 4 {
            0 => WritePlan::Direct,
            1 | 2 => WritePlan::Copy,
            _ => WritePlan::Hold,
        }
    }

    fn copied(&self, offset: u64, bytes: &mut Vec<u8>) -> CopyFate {
        match (offset / 512).wrapping_mul(u64::from(self.plan)) % 16 {
            13 => CopyFate::Lose,
            14 => CopyFate::Refuse,
            15 => {
                bytes.fill(0x77);
                CopyFate::Write
            }
            _ => CopyFate::Write,
        }
    }

    fn written(&self, offset: u64, bytes: Vec<u8>) {
        assert!(offset + bytes.len() as u64 <= self.image.len());
    }

    fn write_failed(&self, offset: u64, len: u64) {
        assert!(offset + len <= self.image.len());
    }

    fn flush_begins(&self) -> u64 {
        7
    }

    fn flushed(&self, begun: u64) {
        assert_eq!(begun, 7);
    }

    fn erases(&self, _kind: Erase, offset: u64, len: u64) -> bool {
        assert!(offset + len <= self.image.len());
        !(offset / 512).is_multiple_of(13)
    }

    fn erased(&self, offset: u64, len: u64) {
        assert!(offset + len <= self.image.len());
    }

    fn hold(&self, offset: u64, bytes: Vec<u8>, done: HoldDone) {
        let at_once = (offset / 512).is_multiple_of(3);
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push((offset, bytes, done));
        if at_once {
            self.answer(Fate::Write);
        }
    }

    /// From now on nothing may wait.
    fn draining(&self, _why: Draining) {
        while !self.held.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            self.answer(Fate::Write);
        }
    }

    fn connected(&self) {}
    fn interrupted(&self) {}
    fn disconnected(&self) {}
}
