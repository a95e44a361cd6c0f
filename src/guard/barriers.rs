//! Whether the guest flushes around its super blocks, as a file system with barriers on a disk with a write cache does.
//!
//! A guest mounted with `nobarrier` never flushes, and that is its right. A flush that is missing is a bug only in a
//! guest that flushes otherwise: before the super block write, and again after it.

use shadow::Violation;

/// Super block writes in a row that must have been flushed before and after until the guest is known to do so.
const CONVINCED: u32 = 2;

/// What the super block writes of one connection have shown.
#[derive(Debug, Default)]
pub struct Barriers {
    in_a_row: u32,
    /// The last super block write: whether what it reaches had been flushed.
    last: Option<bool>,
    /// Whether it was flushed itself.
    flushed_after: bool,
    /// What is to be reported if the guest turns out to flush after the super block.
    missing: Option<Violation>,
}

impl Barriers {
    /// A super block write was acknowledged. `missing` is the block it reaches that was not flushed.
    pub fn superblock(&mut self, missing: Option<Violation>) {
        let kept = self.last == Some(true) && self.flushed_after;
        match self.last {
            Some(_) if kept => self.in_a_row = self.in_a_row.saturating_add(1),
            _ => self.in_a_row = 0,
        }
        self.last = Some(missing.is_none());
        self.flushed_after = false;
        self.missing = missing.filter(|_| self.trusted());
    }

    /// A flush begins. Returns the violation that it proves: the guest has flushed the super block, but not what it
    /// reaches.
    pub fn flush(&mut self) -> Option<Violation> {
        self.flushed_after = true;
        self.missing.take()
    }

    /// Something is written where tree blocks may lie. What is flushed from now on may be that, for the next super
    /// block, by a guest whose barriers have just been turned on.
    pub fn write(&mut self) {
        self.missing = None;
    }

    /// Whether the guest is known to flush.
    #[must_use]
    pub fn trusted(&self) -> bool {
        self.in_a_row >= CONVINCED
    }
}

#[cfg(test)]
mod tests {
    use shadow::Code;

    use super::*;

    fn missing() -> Violation {
        Violation::new(Code::WriteNotFlushed, 4096, 4096, "not flushed")
    }

    fn convinced() -> Barriers {
        let mut barriers = Barriers::default();
        for _ in 0..=CONVINCED {
            barriers.superblock(None);
            assert!(barriers.flush().is_none());
        }
        barriers
    }

    #[test]
    fn a_missing_flush_is_one_between_others() {
        let mut barriers = convinced();
        barriers.superblock(Some(missing()));
        assert!(barriers.flush().is_some());
        assert!(barriers.flush().is_none(), "once");
    }

    #[test]
    fn a_guest_that_stops_flushing_altogether_may() {
        let mut barriers = convinced();
        for _ in 0..5 {
            barriers.superblock(Some(missing()));
        }
        assert!(!barriers.trusted());
        assert!(barriers.flush().is_none());
    }

    #[test]
    fn the_flush_of_the_next_super_block_proves_nothing_about_this_one() {
        let mut barriers = convinced();
        barriers.superblock(Some(missing()));
        barriers.write();
        assert!(barriers.flush().is_none());
    }

    #[test]
    fn nothing_is_said_of_a_guest_that_is_not_known_yet() {
        let mut barriers = Barriers::default();
        barriers.superblock(Some(missing()));
        assert!(barriers.flush().is_none());
        barriers.superblock(None);
        assert!(!barriers.trusted());
    }
}
