//! Who owns the blocks of subvolumes: as long as a block has no FULL_BACKREF, the tree that its header names holds a
//! reference to it. A block that is shared has other holders beside its owner; when the owner lets go of it, the block gets
//! FULL_BACKREF.
//!
//! As a rule a backref in the owner's name says so. Where a balance has moved the block's parent, the parent has
//! FULL_BACKREF and is named instead, and the owner's tree must be asked.

use parser::{Block, Key, ids};

use crate::codes::Code;
use crate::forest::{BlockProblem, Forest};
use crate::record::{ExtentRecord, Recorded, RefKey};
use crate::violation::Violation;

/// What the header of a tree block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Address of the block.
    pub bytenr: u64,
    /// Its owner.
    pub owner: u64,
    /// Its level.
    pub level: u8,
    /// Its first key.
    pub first_key: Key,
}

impl Claim {
    /// That of a block, where there is something to be asked: the blocks of other trees are owned by the tree that they
    /// are reached from.
    #[must_use]
    pub fn of(block: &Block<'_>) -> Option<Self> {
        let header = block.header();
        let (bytenr, owner, level) = (header.bytenr(), header.owner(), header.level());
        let first_key = block.first_key().filter(|_| ids::is_fs_tree(owner))?;
        Some(Claim { bytenr, owner, level, first_key })
    }

    /// What is wrong with it, `record` being what the extent tree says of the block.
    #[must_use]
    pub fn refute(&self, record: &ExtentRecord, forest: &Forest<'_>) -> Option<Violation> {
        let Claim { bytenr, owner, .. } = *self;
        if !record.metadata() || record.full_backref() {
            return None;
        }
        let named = |backref: &Recorded| backref.key.parent == 0 && backref.key.root == owner;
        // Where its tree can't be read, that is the finding.
        if record.backrefs.iter().any(named) || self.is_held(forest).unwrap_or(true) {
            return None;
        }
        let message = format!(
            "owner ref check failed [{bytenr} {}]: its header names root {}, which holds no reference to it, and it has no \
             FULL_BACKREF (recorded in leaf {} slot {})",
            record.len, owner as i64, record.site.block, record.site.slot
        );
        let key = RefKey::tree(owner, self.level);
        Some(Violation::new(Code::TreeOwner, bytenr, record.len, message).with_key(key))
    }

    /// Whether the owner's tree has the block where its first key belongs.
    fn is_held(&self, forest: &Forest<'_>) -> Result<bool, BlockProblem> {
        let Some(mut expect) = forest.snapshot.tree(self.owner) else { return Ok(false) };
        while expect.level > self.level {
            let block = forest.read(&expect)?;
            let Some(Block::Node(node)) = block.view() else { return Ok(false) };
            let slot = node.slot_for(&self.first_key);
            let Some((slot, ptr)) = slot.and_then(|slot| Some((slot, node.ptr(slot)?))) else {
                return Ok(false);
            };
            expect = expect.child(&node, slot, &ptr);
        }
        Ok(expect.bytenr == self.bytenr)
    }
}
