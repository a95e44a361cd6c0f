//! Where extents lie: inside one block group of their type, not over another extent, not over a super block.

use parser::key::item;
use parser::{BlockFlags, Chunk, ChunkMap, Key, ids, superblock};

use crate::codes::Code;
use crate::forest::{BlockProblem, Forest};
use crate::record::{ExtentRecord, is_record_item};
use crate::space::commit::{Commit, Outcome};
use crate::space::group::chunk_range;
use crate::space::ranges::Range;
use crate::tree::{ItemRef, Searcher};
use crate::violation::Violation;

/// What the kernel keeps free around each super block (`BTRFS_STRIPE_LEN`).
const SUPER_STRIPE: u64 = 64 << 10;

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// File data.
    Data,
    /// A block of the chunk tree.
    ChunkTree,
    /// A block of another tree.
    OtherTree,
    /// A tree block whose tree can't be told from its backrefs.
    SomeTree,
}

impl Holds {
    /// As the backrefs of a record say.
    #[must_use]
    pub fn of(record: &ExtentRecord) -> Self {
        if !record.metadata() {
            return Holds::Data;
        }
        match record.backrefs.iter().find(|backref| backref.key.root != 0) {
            Some(backref) if backref.key.root == ids::CHUNK_TREE => Holds::ChunkTree,
            Some(_) => Holds::OtherTree,
            None => Holds::SomeTree,
        }
    }

    /// The types of which the block group must be one.
    fn group_types(self) -> u64 {
        match self {
            Holds::Data => BlockFlags::DATA,
            Holds::ChunkTree => BlockFlags::SYSTEM,
            Holds::OtherTree => BlockFlags::METADATA,
            Holds::SomeTree => BlockFlags::METADATA | BlockFlags::SYSTEM,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Holds::Data => "data",
            Holds::ChunkTree => "a block of the chunk tree",
            Holds::OtherTree | Holds::SomeTree => "a tree block",
        }
    }
}

/// An extent, for the rules about its place.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// First logical address.
    pub bytenr: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it holds.
    pub holds: Holds,
}

impl Place {
    pub(super) fn end(&self) -> u64 {
        self.bytenr.saturating_add(self.len)
    }

    /// What is wrong with the place of an extent that begins in `group`: the range and type of a block group. `None`
    /// for a group: it lies in none.
    #[must_use]
    pub fn outside(&self, group: Option<(Range, BlockFlags)>) -> Option<Violation> {
        let Place { bytenr, len, holds } = *self;
        let Some(((start, end), flags)) = group else {
            let message = format!("extent [{bytenr} {len}] lies in no block group");
            return Some(Violation::new(Code::SpaceExtentOutsideBlockGroup, bytenr, len, message));
        };
        if self.end() > end {
            let message = format!(
                "block entry overlaps a block group: extent [{bytenr} {len}] ends past the end of block group \
                 [{start} {}]",
                end - start
            );
            let violation = Violation::new(Code::SpaceExtentOutsideBlockGroup, bytenr, len, message);
            return Some(violation.with_worth(end, self.end()));
        }
        if flags.0 & holds.group_types() == 0 {
            let message = format!(
                "bad extent [{bytenr}, {}), type mismatch with chunk: it holds {}, block group {start} has type {:#x}",
                self.end(),
                holds.name(),
                flags.0
            );
            let violation = Violation::new(Code::SpaceExtentType, bytenr, len, message);
            return Some(violation.with_worth(holds.group_types(), flags.0 & BlockFlags::TYPE_MASK));
        }
        None
    }

    /// Whether the extent lies over a copy of the super block, on any device of its chunk.
    #[must_use]
    pub fn on_super_block(&self, chunk: &Chunk) -> Option<Violation> {
        chunk.stripe_size()?;
        let within = self.bytenr.saturating_sub(chunk.logical);
        for stripe in &chunk.stripes {
            let start = stripe.offset.saturating_add(within);
            let end = start.saturating_add(self.len);
            let hit = superblock::OFFSETS.iter().find(|&&copy| start < copy + SUPER_STRIPE && copy < end);
            if let Some(copy) = hit {
                let Place { bytenr, len, .. } = self;
                let message = format!(
                    "extent [{bytenr} {len}] lies over the super block at {copy} of devid {} (physical {start})",
                    stripe.devid
                );
                return Some(Violation::new(Code::SpaceExtentOnSuperBlock, *bytenr, *len, message));
            }
        }
        None
    }
}

/// Addresses between two chunks that belong to none. Each chunk gets the addresses right behind the last there is, so that
/// between two of them there has been another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    /// Where the chunk before it ends.
    pub(crate) start: u64,
    /// Where the one behind it begins; the end of all addresses where there is none.
    pub(super) end: u64,
}

impl Gap {
    /// The gap in which an address lies. There is none before the first chunk: nothing says what was there.
    pub(crate) fn at(chunks: &ChunkMap, bytenr: u64) -> Option<Self> {
        let chunks = chunks.chunks();
        let behind = chunks.partition_point(|chunk| chunk.logical <= bytenr);
        let start = chunks.get(behind.checked_sub(1)?)?.end();
        let end = chunks.get(behind).map_or(u64::MAX, |chunk| chunk.logical);
        (start <= bytenr).then_some(Gap { start, end })
    }

    /// What is wrong with an extent that begins in a block group and ends in the gap, or the other way round.
    pub(super) fn crossed_by(self, extent: &Place) -> Option<Violation> {
        let Gap { start, end } = self;
        let edge = if extent.bytenr < start && start < extent.end() && extent.end() <= end {
            start
        } else if (start..end).contains(&extent.bytenr) && end < extent.end() {
            end
        } else {
            return None;
        };
        let Place { bytenr, len, .. } = *extent;
        let message = format!(
            "block entry [{bytenr} {len}] overlaps a block group that is gone: it crosses the edge at {edge}, and no block \
             group lies in [{start} {}]",
            end.saturating_sub(start)
        );
        let violation = Violation::new(Code::SpaceBlockGroupOverlap, bytenr, len, message);
        Some(violation.with_worth(edge, extent.end()))
    }
}

/// Two extents of which the second begins before the first ends.
#[must_use]
pub fn overlap((bytenr, len): (u64, u64), next: u64) -> Violation {
    let message = format!("extent [{bytenr} {len}] overlaps the one at {next}");
    Violation::new(Code::SpaceExtentOverlap, bytenr, len, message)
        .with_worth(next, bytenr.saturating_add(len))
}

/// Extents that are new, or have another length or type than before.
pub(crate) fn changed(commit: &mut Commit<'_, '_>) -> Outcome {
    let chunks = &commit.new.snapshot.chunks;
    let mut neighbours = Neighbours::new(commit.new);
    let mut found: Vec<Violation> = Vec::new();
    for record in commit.extents.changes.values().filter_map(|change| {
        let new = change.new.as_deref()?;
        let old = change.old.as_deref();
        let same = |old: &ExtentRecord| old.len == new.len && old.metadata() == new.metadata();
        (!old.is_some_and(same)).then_some(new)
    }) {
        let place = Place { bytenr: record.bytenr, len: record.len, holds: Holds::of(record) };
        let chunk = chunks.chunk_at(place.bytenr);
        let is_unlike = chunk.is_some_and(|chunk| commit.unlike.contains(&chunk.logical));
        if !is_unlike && !commit.crossing.contains(&place.bytenr) {
            let outside = place.outside(chunk.map(|chunk| (chunk_range(chunk), chunk.flags)));
            found.extend(outside.map(|outside| over_an_old_edge(&place, chunks).unwrap_or(outside)));
        }
        found.extend(chunk.and_then(|chunk| place.on_super_block(chunk)));
        for overlap in neighbours.overlaps(&place)? {
            if !found.iter().any(|known| known.code == overlap.code && known.bytenr == overlap.bytenr) {
                found.push(overlap);
            }
        }
    }
    Ok(found)
}

/// Whether an extent crosses the edge of a block group that an earlier commit has removed.
pub(crate) fn over_an_old_edge(place: &Place, chunks: &ChunkMap) -> Option<Violation> {
    let edge = match chunks.chunk_at(place.bytenr) {
        Some(chunk) if place.end() <= chunk.end() => return None,
        Some(chunk) => chunk.end(),
        None => place.bytenr,
    };
    Gap::at(chunks, edge).filter(|gap| gap.end != u64::MAX)?.crossed_by(place)
}

/// Looks at the extents before and behind one.
pub(crate) struct Neighbours<'a> {
    items: Searcher<'a>,
    nodesize: u64,
}

impl<'a> Neighbours<'a> {
    /// Those of the extents of `forest`.
    pub(crate) fn new(forest: Forest<'a>) -> Self {
        let root = forest.snapshot.tree(ids::EXTENT_TREE);
        Neighbours { items: Searcher::new(forest, root), nodesize: forest.nodesize() }
    }

    /// The last extent that begins before an address.
    pub(crate) fn before(&mut self, bytenr: u64) -> Result<Option<(u64, u64)>, BlockProblem> {
        let Some(before) = bytenr.checked_sub(1) else { return Ok(None) };
        match self.items.at_or_before(&Key::new(before, u8::MAX, u64::MAX))? {
            Some(item) => self.extent_of(&item),
            None => Ok(None),
        }
    }

    fn overlaps(&mut self, place: &Place) -> Result<Vec<Violation>, BlockProblem> {
        let mut found = Vec::new();
        let before = self.before(place.bytenr)?;
        found.extend(
            before
                .filter(|(start, len)| start.saturating_add(*len) > place.bytenr)
                .map(|before| overlap(before, place.bytenr)),
        );
        if let Some(after) = place.bytenr.checked_add(1)
            && let Some(item) = self.items.at_or_after(&Key::new(after, 0, 0))?
            && is_record_item(item.key.item_type)
            && item.key.objectid < place.end()
        {
            found.push(overlap((place.bytenr, place.len), item.key.objectid));
        }
        Ok(found)
    }

    /// The extent to which an item belongs: its backrefs and a block group item may stand behind its own.
    fn extent_of(&mut self, found: &ItemRef) -> Result<Option<(u64, u64)>, BlockProblem> {
        let bytenr = found.key.objectid;
        let mut extent = extent_range(&found.key, self.nodesize);
        if extent.is_none() {
            let (from, to) =
                (Key::new(bytenr, item::EXTENT_ITEM, 0), Key::new(bytenr, item::METADATA_ITEM, u64::MAX));
            self.items.range(from, to, |item| extent = extent.or(extent_range(&item.key, self.nodesize)))?;
        }
        Ok(extent)
    }
}

/// Address and length of the extent with an extent item's key.
#[must_use]
pub fn extent_range(key: &Key, nodesize: u64) -> Option<(u64, u64)> {
    match key.item_type {
        item::EXTENT_ITEM => Some((key.objectid, key.offset)),
        item::METADATA_ITEM => Some((key.objectid, nodesize)),
        _ => None,
    }
}
