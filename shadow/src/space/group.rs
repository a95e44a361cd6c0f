//! Block groups as their items tell them, and where these stand.

use parser::dev::BlockGroupItem;
use parser::key::item;
use parser::superblock::compat_ro;
use parser::{BlockFlags, Chunk, ChunkMap, Key, ids};

use crate::forest::{BlockProblem, Forest, Geometry, Snapshot};
use crate::space::ranges::Range;
use crate::tree::{Change, Cursor, ItemRef, Searcher, diff};

/// A block group item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// First logical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What the item says is taken by extents.
    pub used: u64,
    /// Type and profile.
    pub flags: BlockFlags,
}

impl Group {
    /// From an item; `None` where it is none, or has no form.
    #[must_use]
    pub fn parse(key: &Key, data: &[u8]) -> Option<Self> {
        if key.item_type != item::BLOCK_GROUP_ITEM {
            return None;
        }
        let BlockGroupItem { used, flags, .. } = BlockGroupItem::parse(data).ok()?;
        Some(Group { start: key.objectid, len: key.offset, used, flags })
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> Range {
        (self.start, self.start.saturating_add(self.len))
    }
}

/// The addresses of a chunk.
#[must_use]
pub fn chunk_range(chunk: &Chunk) -> Range {
    (chunk.logical, chunk.end())
}

/// Whether block group items stand in a tree of their own.
#[must_use]
pub fn has_own_tree(geometry: &Geometry) -> bool {
    geometry.compat_ro & compat_ro::BLOCK_GROUP_TREE != 0
}

fn tree_of(snapshot: &Snapshot) -> u64 {
    if has_own_tree(&snapshot.geometry) { ids::BLOCK_GROUP_TREE } else { ids::EXTENT_TREE }
}

/// Looks block groups up in one commit.
pub struct Groups<'a> {
    searcher: Searcher<'a>,
}

impl<'a> Groups<'a> {
    /// The block groups of `forest`.
    #[must_use]
    pub fn new(forest: Forest<'a>) -> Self {
        let root = forest.snapshot.tree(tree_of(forest.snapshot));
        Groups { searcher: Searcher::new(forest, root) }
    }

    /// The block group that begins at `start`.
    ///
    /// # Errors
    /// [`BlockProblem`] when the tree can't be read there.
    pub fn at(&mut self, start: u64) -> Result<Option<Group>, BlockProblem> {
        let (from, to) =
            (Key::new(start, item::BLOCK_GROUP_ITEM, 0), Key::new(start, item::BLOCK_GROUP_ITEM, u64::MAX));
        let mut group = None;
        self.searcher.range(from, to, |found| group = group.or(parse(&found)))?;
        Ok(group)
    }
}

fn parse(found: &ItemRef) -> Option<Group> {
    Group::parse(&found.key, found.data())
}

/// A block group item that differs between two commits.
#[derive(Debug, Clone, Copy)]
pub struct GroupChange {
    /// As it was.
    pub old: Option<Group>,
    /// As it is.
    pub new: Option<Group>,
}

impl GroupChange {
    /// From an item that differs; `None` where it is no block group item.
    #[must_use]
    pub fn new(change: &Change) -> Option<Self> {
        let is_group = change.key().item_type == item::BLOCK_GROUP_ITEM;
        is_group.then(|| GroupChange {
            old: change.before().and_then(parse),
            new: change.after().and_then(parse),
        })
    }
}

/// The block groups that changed, where they have a tree of their own.
///
/// # Errors
/// What could not be read.
pub fn changes_in_own_tree(old: Forest<'_>, new: Forest<'_>) -> Result<Vec<GroupChange>, BlockProblem> {
    let side = |forest: Forest<'_>| forest.snapshot.tree(ids::BLOCK_GROUP_TREE);
    let mut changes = Vec::new();
    let mut problems =
        diff((old, side(old)), (new, side(new)), |change| changes.extend(GroupChange::new(&change)));
    problems.pop().map_or(Ok(changes), Err)
}

/// All block groups of the tree of their own, in order.
///
/// # Errors
/// What could not be read.
pub fn all_in_own_tree(forest: Forest<'_>) -> Result<Vec<Group>, Vec<BlockProblem>> {
    let mut cursor = Cursor::new(forest, forest.snapshot.tree(ids::BLOCK_GROUP_TREE));
    let mut groups = Vec::new();
    while let Some(found) = cursor.next_item() {
        groups.extend(parse(&found));
    }
    let problems = cursor.into_problems();
    if problems.is_empty() { Ok(groups) } else { Err(problems) }
}

/// The ranges that are in a chunk of one map and in none of the other's that is the same.
#[must_use]
pub fn changed_chunks<'m>(old: &'m ChunkMap, new: &'m ChunkMap) -> (Vec<&'m Chunk>, Vec<&'m Chunk>) {
    let without = |these: &'m ChunkMap, those: &ChunkMap| {
        let same = |chunk: &&Chunk| those.chunk_at(chunk.logical) == Some(*chunk);
        these.chunks().iter().filter(|chunk| !same(chunk)).collect::<Vec<_>>()
    };
    if std::ptr::eq(old, new) { (Vec::new(), Vec::new()) } else { (without(old, new), without(new, old)) }
}
