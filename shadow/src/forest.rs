//! The trees of one commit: where its blocks lie, what holds for all of them, and reading one with every check that
//! the pointer to it allows.

use std::collections::BTreeMap;
use std::sync::Arc;

use parser::block::Header;
use parser::map::Physical;
use parser::{ChecksumType, ChunkMap, Key, Node, RootItem, SuperBlock, Uuid, ids};

use crate::cause;
use crate::codes::Code;
use crate::source::{BlockSource, Origin, StructureFault, TreeBlock};
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

    /// Reads a block like [`Forest::read`], and returns what is wrong with those of its copies that were looked at.
    ///
    /// # Errors
    /// As [`Forest::read`].
    pub fn read_copies(
        &self,
        expect: &Expect,
        which: Copies,
    ) -> Result<(Arc<TreeBlock>, Vec<Violation>), BlockProblem> {
        let Snapshot { geometry, seed_uuids, chunks, .. } = self.snapshot;
        let nodesize = self.nodesize();
        let copies =
            || chunks.copies(expect.bytenr, nodesize).map_err(|error| self.snapshot.unmapped(error, expect));
        let has_failed = |place| self.source.write_failed(place, nodesize);
        // Those that could not be written come last: the older block that lies there may look right.
        let sound = copies()?.enumerate().filter(|(_, place)| !has_failed(*place)).map(|copy| (copy, false));
        let failed = copies()?.enumerate().filter(|(_, place)| has_failed(*place)).map(|copy| (copy, true));
        let mut good: Option<Arc<TreeBlock>> = None;
        let mut bad = Vec::new();
        let mut never_written = None;
        let mut unlike = None;
        let mut unknown = None;
        for ((index, place), failed) in sound.chain(failed) {
            match self.source.read(place) {
                // The same bytes, which have been looked at.
                Ok(block) if good.as_ref().is_some_and(|good| Arc::ptr_eq(good, &block)) => {}
                Ok(block) => match verify(geometry, seed_uuids, &block, expect) {
                    None if which == Copies::UntilGood => return Ok((block, bad)),
                    None => match &good {
                        Some(first) if !failed && first.bytes() != block.bytes() => {
                            unlike = unlike.or(Some(place));
                        }
                        Some(_) => {}
                        None => good = Some(block),
                    },
                    Some(mut violation) => {
                        let (attached, verified) = self.snapshot.verified;
                        let was_verified = expect.generation > attached && expect.generation <= verified;
                        let origin = self.source.origin(place, nodesize);
                        violation.cause =
                            cause::of_block(violation.code, geometry.csum, &block, origin, was_verified);
                        let Physical { devid, offset } = place;
                        let copy = index + 1;
                        violation.message += &format!(" (copy {copy}, devid {devid} physical {offset})");
                        if failed {
                            never_written.get_or_insert(violation);
                        } else {
                            bad.push(violation);
                        }
                    }
                },
                Err(error) => match self.snapshot.unreadable(&error, expect, place) {
                    BlockProblem::Violation(violation) => bad.push(*violation),
                    problem => unknown = unknown.or(Some(problem)),
                },
            }
        }
        if let Some(block) = good {
            bad.extend(unlike.map(|place| copies_differ(expect, nodesize, place)));
            return Ok((block, bad));
        }
        // A copy on a device that is not served says nothing; one that was read says something.
        Err(match (bad.into_iter().next(), unknown, never_written) {
            (Some(violation), ..) | (None, None, Some(violation)) => {
                BlockProblem::Violation(Box::new(violation))
            }
            (None, Some(unknown), _) => unknown,
            (None, None, None) => {
                BlockProblem::Unknown(Unread { block: None, reason: "chunk without stripes".to_owned() })
            }
        })
    }
}

/// Why a block was not safely on the disk when the super block that reaches it came.
#[derive(Debug)]
pub enum Unsafe {
    /// It was not written, or its write was not complete.
    Missing(Violation),
    /// It was not flushed, which a guest without barriers, or without a write cache, need not do.
    NotFlushed(Violation),
}

impl Forest<'_> {
    /// Whether all copies of a new block were written, completed and flushed; `None` if so, or where nothing is known.
    /// A guest that has more than one may go on without those of which it was told that they could not be written.
    #[must_use]
    pub fn unsafe_copy(&self, expect: &Expect) -> Option<Unsafe> {
        let nodesize = self.nodesize();
        let places = self.snapshot.chunks.copies(expect.bytenr, nodesize).ok()?;
        let (mut found, mut failed, mut sound) = (None, None, 0);
        for (index, place) in places.enumerate() {
            if self.source.write_failed(place, nodesize) {
                failed = failed.or(Some((index, place)));
                continue;
            }
            sound += 1;
            let origin = self.source.origin(place, nodesize);
            let (code, what) = match origin {
                Origin::Unknown | Origin::Durable => continue,
                Origin::InFlight => (Code::WriteNotCompleted, "while its write is not complete"),
                Origin::NotWritten => (Code::WriteNotWritten, "which was not written since the last commits"),
                Origin::NotFlushed => (Code::WriteNotFlushed, "which was not flushed"),
            };
            let violation = self.reached(code, expect, what, index, place);
            if origin != Origin::NotFlushed {
                return Some(Unsafe::Missing(violation));
            }
            found = found.or(Some(Unsafe::NotFlushed(violation)));
        }
        match failed {
            Some((index, place)) if sound == 0 => {
                let what = "of which no copy could be written, as the guest was told";
                Some(Unsafe::Missing(self.reached(Code::WriteNotWritten, expect, what, index, place)))
            }
            _ => found,
        }
    }

    fn reached(
        &self,
        code: Code,
        expect: &Expect,
        what: &str,
        index: usize,
        Physical { devid, offset }: Physical,
    ) -> Violation {
        let message = format!(
            "the super block reaches block {} of generation {}, pointed to by {}, {what} (copy {}, devid {devid} \
             physical {offset})",
            expect.bytenr,
            expect.generation,
            expect.pointed_by(),
            index + 1
        );
        Violation::new(code, expect.bytenr, self.nodesize(), message)
    }
}

fn copies_differ(expect: &Expect, nodesize: u64, place: Physical) -> Violation {
    let Physical { devid, offset } = place;
    let message = format!(
        "copies of block {}, pointed to by {}, differ: the one on devid {devid} physical {offset} is not like the first",
        expect.bytenr,
        expect.pointed_by()
    );
    Violation::new(Code::WriteCopiesDiffer, expect.bytenr, nodesize, message)
}

/// Which copies of a block are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// All up to the first good one.
    UntilGood,
    /// All of them.
    All,
}

/// The checks of a block against the pointer to it, from the most telling to the least. The words are the
/// kernel's, where it has some.
fn verify(geometry: &Geometry, seed_uuids: &[Uuid], block: &TreeBlock, expect: &Expect) -> Option<Violation> {
    let bytenr = expect.bytenr;
    // Blocks without a fault are many: nothing is put into words for them.
    let from = || expect.pointed_by();
    let violation = |code, message: String| Violation::new(code, bytenr, geometry.nodesize.into(), message);
    if !block.csum_ok() {
        return Some(violation(
            Code::TreeChecksum,
            format!("checksum verify failed on {bytenr}, which {} points to", from()),
        ));
    }
    let header = match Header::parse(block.bytes()) {
        Ok(header) => header,
        Err(error) => return Some(violation(Code::TreeHeader, format!("block {bytenr}: {error}"))),
    };
    let differs = |code, what: &str, wanted: u64, found: u64| {
        let message = format!("{what} on {bytenr} wanted {wanted} found {found}, pointed to by {}", from());
        Some(violation(code, message).with_worth(wanted, found))
    };
    if header.bytenr() != bytenr {
        return differs(Code::TreeBytenr, "bad tree block start,", bytenr, header.bytenr());
    }
    if *header.fsid() != geometry.metadata_uuid && !seed_uuids.contains(header.fsid()) {
        return Some(violation(
            Code::TreeFsid,
            format!("bad fsid on block {bytenr}, pointed to by {}", from()),
        ));
    }
    if header.generation() != expect.generation {
        return differs(
            Code::TreeGeneration,
            "parent transid verify failed",
            expect.generation,
            header.generation(),
        );
    }
    if header.level() != expect.level {
        return differs(Code::TreeLevel, "level verify failed", expect.level.into(), header.level().into());
    }
    if !expect.owner.allows(header.owner()) {
        let message =
            format!("block {bytenr} is owned by tree {}, pointed to by {}", header.owner() as i64, from());
        return Some(
            violation(Code::TreeOwner, message).with_worth(format!("{:?}", expect.owner), header.owner()),
        );
    }
    if let Some(fault) = block.fault() {
        return Some(structure_violation(&fault, bytenr, &header, geometry));
    }
    let view = block.view()?;
    match (expect.first_key, view.first_key()) {
        (Some(wanted), found) if found != Some(wanted) => {
            let found = found.map_or_else(|| "none".to_owned(), |key| key.to_string());
            let message =
                format!("tree first key mismatch on {bytenr} wanted {wanted} found {found}, {}", from());
            return Some(violation(Code::TreeFirstKey, message).with_worth(wanted.to_string(), found));
        }
        _ => {}
    }
    match (expect.limit, view.last_key()) {
        (Some(limit), Some(last)) if last >= limit => {
            let message = format!(
                "bad key order on {bytenr}: last key {last}, the next block begins with {limit}, {}",
                from()
            );
            Some(violation(Code::TreeKeyOrder, message).with_worth(limit.to_string(), last.to_string()))
        }
        _ => None,
    }
}

fn structure_violation(
    fault: &StructureFault,
    bytenr: u64,
    header: &Header<'_>,
    geometry: &Geometry,
) -> Violation {
    use parser::check::BlockFault;
    let code = match fault {
        StructureFault::Parse(_) => Code::TreeHeader,
        StructureFault::Check(BlockFault::KeyOrder { .. }) => Code::TreeKeyOrder,
        StructureFault::Check(BlockFault::ItemBounds { .. }) => Code::TreeItemBounds,
        StructureFault::Check(BlockFault::EmptyNode | BlockFault::BlockPointer { .. }) => {
            Code::TreeBlockPointer
        }
    };
    let detail = match fault {
        StructureFault::Parse(error) => error.to_string(),
        StructureFault::Check(fault) => fault.to_string(),
    };
    let kind = if header.level() == 0 { "leaf" } else { "node" };
    let message = format!("corrupt {kind}: root={} block={bytenr} {detail}", header.owner());
    Violation::new(code, bytenr, geometry.nodesize.into(), message)
}
