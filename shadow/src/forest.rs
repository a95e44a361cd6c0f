//! The trees of one commit: where its blocks lie, what holds for all of them, and reading one with every check that
//! the pointer to it allows.
//!
//! Knows nothing of what the trees hold: how a block is found from what leads to it, and whether it can be used, is all.

mod checks;
mod copies;
mod written;

pub use copies::Copies;
pub use written::Unsafe;

use std::collections::BTreeMap;
use std::sync::Arc;

use parser::{ChecksumType, ChunkMap, Key, Node, RootItem, SuperBlock, Uuid, ids};

use crate::source::{BlockSource, TreeBlock};
use crate::unreadable::Unread;
use crate::violation::Violation;

/// What does not change from commit to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a tree block.
    pub nodesize: u32,
    /// Bytes of a sector.
    pub sectorsize: u32,
    /// Checksum algorithm.
    pub csum: ChecksumType,
    /// The UUID the user sees.
    pub fsid: Uuid,
    /// The UUID in tree blocks.
    pub metadata_uuid: Uuid,
    /// `incompat_flags` of the super block.
    pub incompat: u64,
    /// `compat_ro_flags` of the super block.
    pub compat_ro: u64,
    /// The device the super block was read from.
    pub devid: u64,
}

impl Geometry {
    /// From a super block.
    ///
    /// # Errors
    /// [`parser::ParseError`] for an unknown checksum type.
    pub fn new(superblock: &SuperBlock<'_>) -> Result<Self, parser::ParseError> {
        Ok(Geometry {
            nodesize: superblock.nodesize(),
            sectorsize: superblock.sectorsize(),
            csum: superblock.csum()?,
            fsid: *superblock.fsid(),
            metadata_uuid: *superblock.metadata_uuid(),
            incompat: superblock.incompat_flags(),
            compat_ro: superblock.compat_ro_flags(),
            devid: superblock.dev_item().devid,
        })
    }

    /// Whether all of `features` (incompat bits) are on.
    #[must_use]
    pub fn has_incompat(&self, features: u64) -> bool {
        self.incompat & features == features
    }
}

/// Which root item: its key without the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootId {
    /// Tree id.
    pub tree: u64,
    /// 0, the transaction that made a snapshot, or the subvolume a relocation tree belongs to.
    pub offset: u64,
}

/// The state that one super block commits.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Blocks of generations after the first of these, and up to the second, were verified when they were born: from
    /// the commit that was there when the file system was opened to the last one that was verified.
    pub verified: (u64, u64),
    /// The super block, all 4096 bytes.
    pub superblock: Box<[u8]>,
    /// What holds for all its blocks.
    pub geometry: Geometry,
    /// Transaction it commits.
    pub generation: u64,
    /// Where its blocks lie.
    pub chunks: Arc<ChunkMap>,
    /// Other UUIDs that tree blocks may carry: those of seed devices.
    pub seed_uuids: Vec<Uuid>,
    /// All root items of its root tree.
    pub roots: Arc<BTreeMap<RootId, RootItem>>,
}

impl Snapshot {
    /// The super block as a view. It was read as one before the snapshot was made.
    #[must_use]
    pub fn super_view(&self) -> Option<SuperBlock<'_>> {
        SuperBlock::parse(&self.superblock).ok()
    }

    /// How to reach the root block of the tree with this root item.
    #[must_use]
    pub fn tree(&self, tree: u64) -> Option<Expect> {
        let (id, item) = self.roots.range(RootId { tree, offset: 0 }..).next()?;
        (id.tree == tree).then(|| Expect::root(*id, item))
    }
}

/// Who may own the blocks of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerRule {
    /// This tree and no other.
    Exactly(u64),
    /// Any tree that holds files: blocks are shared between snapshots, and outlive the tree that made them.
    AnyFsTree,
    /// A relocation tree: its blocks keep the owner of the tree they were copied from.
    Reloc,
    /// Not known from here: the block was checked when it was reached first.
    Any,
}

impl OwnerRule {
    /// The rule for blocks reached from the root of `tree`.
    #[must_use]
    pub fn of_tree(tree: u64) -> Self {
        match tree {
            ids::TREE_RELOC => OwnerRule::Reloc,
            tree if ids::is_fs_tree(tree) => OwnerRule::AnyFsTree,
            tree => OwnerRule::Exactly(tree),
        }
    }

    fn allows(self, owner: u64) -> bool {
        match self {
            OwnerRule::Exactly(tree) => owner == tree,
            OwnerRule::AnyFsTree => ids::is_fs_tree(owner),
            OwnerRule::Any => true,
            OwnerRule::Reloc => {
                ids::is_fs_tree(owner) || owner == ids::DATA_RELOC_TREE || owner == ids::TREE_RELOC
            }
        }
    }
}

/// What the pointer to a block says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expect {
    /// Logical address.
    pub bytenr: u64,
    /// Generation.
    pub generation: u64,
    /// Level.
    pub level: u8,
    /// First key; root blocks are reached without one.
    pub first_key: Option<Key>,
    /// Key that all its keys must be less than: that of the next pointer in its parent, or the parent's own.
    pub limit: Option<Key>,
    /// Who may own it.
    pub owner: OwnerRule,
    /// Who points: address of the block (0 for the super block) and slot.
    pub from: (u64, usize),
}

impl Expect {
    /// The root block that a root item names.
    #[must_use]
    pub fn root(id: RootId, item: &RootItem) -> Self {
        Expect {
            bytenr: item.bytenr,
            generation: item.generation,
            level: item.level,
            first_key: None,
            limit: None,
            owner: OwnerRule::of_tree(id.tree),
            from: (0, 0),
        }
    }

    /// The root of the root tree, as the super block names it.
    #[must_use]
    pub fn root_tree(superblock: &SuperBlock<'_>) -> Self {
        let (bytenr, level) = superblock.root();
        let generation = superblock.generation();
        let owner = OwnerRule::Exactly(ids::ROOT_TREE);
        Expect { bytenr, generation, level, first_key: None, limit: None, owner, from: (0, 0) }
    }

    /// The root of the chunk tree, as the super block names it.
    #[must_use]
    pub fn chunk_tree(superblock: &SuperBlock<'_>) -> Self {
        let (bytenr, level) = superblock.chunk_root();
        let generation = superblock.chunk_root_generation();
        let owner = OwnerRule::Exactly(ids::CHUNK_TREE);
        Expect { bytenr, generation, level, first_key: None, limit: None, owner, from: (0, 0) }
    }

    /// The child that `ptr`, in `slot` of `node`, points to.
    #[must_use]
    pub fn child(&self, node: &Node<'_>, slot: usize, ptr: &parser::NodePtr) -> Self {
        let header = node.header();
        Expect {
            bytenr: ptr.bytenr,
            generation: ptr.generation,
            level: header.level().saturating_sub(1),
            first_key: Some(ptr.key),
            limit: node.key(slot.saturating_add(1)).or(self.limit),
            owner: self.owner,
            from: (header.bytenr(), slot),
        }
    }

    pub(crate) fn pointed_by(&self) -> String {
        match self.from {
            (0, _) if self.first_key.is_none() => "its root".to_owned(),
            (parent, slot) => format!("block {parent} slot {slot}"),
        }
    }
}

/// Why a block that a pointer leads to cannot be used.
#[derive(Debug, Clone)]
pub enum BlockProblem {
    /// The file system is damaged.
    Violation(Box<Violation>),
    /// Nothing is known: the disk failed, or the block lies on a device that is not served here.
    Unknown(Unread),
}

/// A snapshot and the place to read its blocks from.
#[derive(Clone, Copy)]
pub struct Forest<'a> {
    /// The commit.
    pub snapshot: &'a Snapshot,
    /// Where its blocks are read from.
    pub source: &'a dyn BlockSource,
}

impl<'a> Forest<'a> {
    /// A forest.
    #[must_use]
    pub fn new(snapshot: &'a Snapshot, source: &'a dyn BlockSource) -> Self {
        Forest { snapshot, source }
    }

    /// Bytes of a tree block.
    #[must_use]
    pub fn nodesize(&self) -> u64 {
        self.snapshot.geometry.nodesize.into()
    }

    /// Reads a block and checks everything its pointer says about it. Any good copy will do.
    ///
    /// # Errors
    /// [`BlockProblem`] when no copy of it can be used; it is about the first copy.
    pub fn read(&self, expect: &Expect) -> Result<Arc<TreeBlock>, BlockProblem> {
        self.read_copies(expect, Copies::UntilGood).map(|(block, _)| block)
    }
}
