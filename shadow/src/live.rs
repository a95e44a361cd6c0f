//! Which addresses a commit needs: its tree blocks, and the file data that its checksums cover.
//!
//! Says it for a range, from the trees of one commit, and as a difference between two. Data without a checksum
//! (NODATASUM, preallocated) may be rewritten in place and is not among it. Knows nothing of devices, nor of who writes
//! where: that is for whoever keeps the answer.

use parser::key::item;
use parser::{Key, ids};

use crate::delta::extents::ExtentDelta;
use crate::delta::references::ReplacedRanges;
use crate::forest::{BlockProblem, Forest};
use crate::record::ExtentRecord;
use crate::space::ranges::{subtract, union};
use crate::tree::{Searcher, diff};

/// Largest tree block there is, in bytes.
const MAX_NODESIZE: u64 = 65536;

/// What a range is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Use {
    /// A tree block.
    Metadata,
    /// File data with checksums.
    Data,
}

/// A range of logical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// First address.
    pub bytenr: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is needed for.
    pub used: Use,
}

/// What became needed, and what no longer is. A range may be in both: then it is needed, at another place.
#[derive(Debug, Default, Clone)]
pub struct LiveDelta {
    /// Needed by the old commit only; addresses mean what they mean there.
    pub dead: Vec<Span>,
    /// Needed by the new commit only.
    pub live: Vec<Span>,
}

/// Hands every range within `[start, end)` that the commit needs to `visit`, cut off at both ends.
///
/// # Errors
/// [`BlockProblem`] where a tree can't be read: then nothing is known.
pub fn in_range(
    forest: &Forest<'_>,
    start: u64,
    end: u64,
    mut visit: impl FnMut(Span),
) -> Result<(), BlockProblem> {
    let mut cut = |bytenr: u64, len: u64, used: Use| {
        let (from, to) = (bytenr.max(start), bytenr.saturating_add(len).min(end));
        if from < to {
            visit(Span { bytenr: from, len: to - from, used });
        }
    };
    let Some(last) = end.checked_sub(1) else { return Ok(()) };
    let nodesize = forest.nodesize();
    let mut extents = Searcher::new(*forest, forest.snapshot.tree(ids::EXTENT_TREE));
    let from = Key::new(start.saturating_sub(MAX_NODESIZE), 0, 0);
    extents.range(from, Key::new(last, u8::MAX, u64::MAX), |found| {
        let is_tree_block = match found.key.item_type {
            item::METADATA_ITEM => true,
            item::EXTENT_ITEM => parser::ExtentItem::parse(item::EXTENT_ITEM, found.data())
                .is_ok_and(|extent| extent.flags() & parser::extent::FLAG_TREE_BLOCK != 0),
            _ => false,
        };
        if is_tree_block {
            cut(found.key.objectid, nodesize, Use::Metadata);
        }
    })?;
    let mut sums = Searcher::new(*forest, forest.snapshot.tree(ids::CSUM_TREE));
    let key = |bytenr| Key::new(ids::EXTENT_CSUM, item::EXTENT_CSUM, bytenr);
    let longest = sums_len(forest, forest.snapshot.geometry.nodesize as usize);
    sums.range(key(start.saturating_sub(longest)), key(last), |found| {
        cut(found.key.offset, sums_len(forest, found.data().len()), Use::Data);
    })
}

/// Bytes of data that a checksum item of `size` bytes covers.
fn sums_len(forest: &Forest<'_>, size: usize) -> u64 {
    let geometry = &forest.snapshot.geometry;
    (size / geometry.csum.size()) as u64 * u64::from(geometry.sectorsize)
}

/// What changed from the commit of `old` to that of `new`.
///
/// # Errors
/// What could not be read: then nothing is known.
pub fn delta(
    old: &Forest<'_>,
    new: &Forest<'_>,
    extents: &ExtentDelta,
    replaced: &ReplacedRanges,
) -> Result<LiveDelta, Vec<BlockProblem>> {
    let mut delta = LiveDelta::default();
    let span = |record: &ExtentRecord| Span { bytenr: record.bytenr, len: record.len, used: Use::Metadata };
    for change in extents.changes.values() {
        let before = change.old.as_deref().filter(|record| record.metadata());
        let now = change.new.as_deref().filter(|record| record.metadata());
        if before.is_some() != now.is_some() {
            delta.dead.extend(before.map(span));
            delta.live.extend(now.map(span));
        }
    }
    checksums(old, new, &mut delta)?;
    // The same address at another place: nothing of the trees need have changed.
    for &(start, end) in replaced.ranges() {
        in_range(old, start, end, |span| delta.dead.push(span)).map_err(|problem| vec![problem])?;
        in_range(new, start, end, |span| delta.live.push(span)).map_err(|problem| vec![problem])?;
    }
    Ok(delta)
}

/// Checksum items are split and merged as they come and go: what matters is what they cover together.
fn checksums(old: &Forest<'_>, new: &Forest<'_>, delta: &mut LiveDelta) -> Result<(), Vec<BlockProblem>> {
    let (mut before, mut now) = (Vec::new(), Vec::new());
    let root = |forest: &Forest<'_>| forest.snapshot.tree(ids::CSUM_TREE);
    let problems = diff((*old, root(old)), (*new, root(new)), |change| {
        if change.key().item_type != item::EXTENT_CSUM {
            return;
        }
        let range = |forest: &Forest<'_>, size: usize| {
            (change.key().offset, change.key().offset.saturating_add(sums_len(forest, size)))
        };
        before.extend(change.before().map(|item| range(old, item.data().len())));
        now.extend(change.after().map(|item| range(new, item.data().len())));
    });
    if !problems.is_empty() {
        return Err(problems);
    }
    let span = |(start, end): (u64, u64)| Span { bytenr: start, len: end - start, used: Use::Data };
    let (before, now) = (union(before), union(now));
    delta.dead.extend(subtract(&before, &now).into_iter().map(span));
    delta.live.extend(subtract(&now, &before).into_iter().map(span));
    Ok(())
}
