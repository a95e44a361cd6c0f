//! What a kernel did to a disk, commit by commit.

use parser::SuperBlock;

use crate::disk::Memory;
use testkit::Image;

/// Byte offset of the primary super block, and of its copies on a disk of the tests' size.
pub const SUPERS: [u64; 2] = [64 << 10, 64 << 20];

/// Bytes of a super block.
pub const SUPER_SIZE: usize = parser::superblock::SIZE;

/// A range of the disk that a commit has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Byte offset.
    pub offset: u64,
    /// What is there afterwards.
    pub bytes: Vec<u8>,
}

/// One commit: everything on the disk that differs between two consecutive states.
#[derive(Debug, Clone)]
pub struct Step {
    /// Generation before.
    pub from: u64,
    /// Generation after. Anything but `from + 1` means that commits in between were not seen.
    pub to: u64,
    /// Tree blocks and data, each tree block as one range; without super blocks.
    pub blocks: Vec<Change>,
    /// The super block and its copies, the primary first.
    pub supers: Vec<Change>,
    /// What was done, for messages.
    pub doing: String,
}

impl Step {
    /// Whether it is one commit, and can be replayed.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.to == self.from + 1
    }

    /// Everything in the order in which it may be written.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.blocks.iter().chain(&self.supers)
    }

    /// Makes the step on a disk in memory.
    pub fn apply(&self, memory: &mut Memory) {
        self.changes().for_each(|change| memory.set(change.offset, &change.bytes));
    }
}

/// A disk and the commits that were made on it.
pub struct History {
    /// Name for messages and the table.
    pub name: String,
    /// The disk before the first step.
    pub base: Image,
    /// The commits.
    pub steps: Vec<Step>,
}

impl History {
    /// Steps that are one commit each.
    #[must_use]
    pub fn singles(&self) -> usize {
        self.steps.iter().filter(|step| step.is_single()).count()
    }
}

/// Generation of the super block that a disk has.
#[must_use]
pub fn generation(superblock: &[u8]) -> u64 {
    SuperBlock::parse(superblock).map_or(0, |view| view.generation())
}
