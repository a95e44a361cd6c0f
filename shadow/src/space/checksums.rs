//! Checksum items against data extents.
//!
//! Not every extent has checksums (NODATASUM, preallocation), so none is asked for. But what has one is file data that
//! is allocated; no sector has two; and while an extent stays, its checksums do: it is never written again.

use parser::key::item;
use parser::{ChunkMap, Key, ids};

use crate::codes::Code;
use crate::forest::{BlockProblem, Forest, Geometry};
use crate::record::ExtentRecord;
use crate::space::commit::{Commit, Outcome};
use crate::space::extents::extent_range;
use crate::space::group::chunk_range;
use crate::space::ranges::{Range, bytes, subtract, union};
use crate::tree::{ItemRef, Searcher, diff};
use crate::violation::Violation;

/// A checksum item: the addresses it covers, and one checksum for each sector.
#[derive(Debug, Clone)]
pub struct Sums {
    /// What it covers.
    pub range: Range,
    item: ItemRef,
}

impl Sums {
    /// From an item; `None` where it is no checksum item.
    #[must_use]
    pub fn parse(found: &ItemRef, geometry: &Geometry) -> Option<Self> {
        let range = covered(&found.key, found.data().len(), geometry)?;
        Some(Sums { range, item: found.clone() })
    }

    /// The checksums of `range`, which it covers.
    pub(super) fn of(&self, (start, end): Range, geometry: &Geometry) -> Option<&[u8]> {
        let at = |address: u64| {
            let sector = address.checked_sub(self.range.0)? / u64::from(geometry.sectorsize.max(1));
            usize::try_from(sector).ok()?.checked_mul(geometry.csum.size())
        };
        self.item.data().get(at(start)?..at(end)?)
    }
}

/// The addresses that a checksum item of `len` bytes covers; `None` for another item.
#[must_use]
pub fn covered(key: &Key, len: usize, geometry: &Geometry) -> Option<Range> {
    if key.item_type != item::EXTENT_CSUM || key.objectid != ids::EXTENT_CSUM {
        return None;
    }
    let sectors = (len / geometry.csum.size()) as u64;
    Some((key.offset, key.offset.saturating_add(sectors.saturating_mul(geometry.sectorsize.into()))))
}

/// A checksum item that covers what the one before it covers.
#[must_use]
pub fn overlap(first: Range, second: Range) -> Option<Violation> {
    (first.1 > second.0).then(|| {
        let message =
            format!("csum item for {}-{} overlaps the one for {}-{}", second.0, second.1, first.0, first.1);
        let len = first.1.min(second.1).saturating_sub(second.0);
        Violation::new(Code::SpaceCsumOverlap, second.0, len, message).with_worth(first.1, second.0)
    })
}

/// Checksums for addresses where no data extent lies.
#[must_use]
pub fn without_extent((start, end): Range) -> Violation {
    let message = format!("csum exists for {start}-{end} but there is no extent record");
    Violation::new(Code::SpaceCsumWithoutExtent, start, end.saturating_sub(start), message)
}

/// Checksum items that differ between two commits.
#[derive(Debug, Default)]
pub struct Delta {
    /// As they were.
    pub old: Vec<Sums>,
    /// As they are.
    pub new: Vec<Sums>,
}

impl Delta {
    /// Compares the checksum trees of two commits.
    ///
    /// # Errors
    /// [`BlockProblem`] when they can't be read.
    pub fn new(old: Forest<'_>, new: Forest<'_>) -> Result<Self, BlockProblem> {
        let side = |forest: Forest<'_>| forest.snapshot.tree(ids::CSUM_TREE);
        let mut delta = Delta::default();
        let mut problems = diff((old, side(old)), (new, side(new)), |change| {
            let parse = |found| Sums::parse(found, &new.snapshot.geometry);
            delta.old.extend(change.before().and_then(parse));
            delta.new.extend(change.after().and_then(parse));
        });
        problems.pop().map_or(Ok(delta), Err)
    }

    /// What has checksums now and had none, or other ones, before.
    #[must_use]
    pub fn fresh(&self, geometry: &Geometry) -> Vec<Range> {
        let [old, new] = self.ranges();
        let mut fresh = subtract(&new, &old);
        fresh.extend(self.different(geometry));
        union(fresh)
    }

    fn ranges(&self) -> [Vec<Range>; 2] {
        [&self.old, &self.new].map(|side| union(side.iter().map(|sums| sums.range).collect()))
    }

    /// Sectors that have another checksum than before, about.
    fn different(&self, geometry: &Geometry) -> Vec<Range> {
        let sectorsize = u64::from(geometry.sectorsize.max(1));
        let mut different = Vec::new();
        let mut skip = 0;
        for new in &self.new {
            while self.old.get(skip).is_some_and(|old| old.range.1 <= new.range.0) {
                skip += 1;
            }
            for old in self.old.iter().skip(skip).take_while(|old| old.range.0 < new.range.1) {
                let both = (old.range.0.max(new.range.0), old.range.1.min(new.range.1));
                let (Some(was), Some(is)) = (old.of(both, geometry), new.of(both, geometry)) else {
                    continue;
                };
                if was == is {
                    continue;
                }
                let pairs = was.chunks(geometry.csum.size()).zip(is.chunks(geometry.csum.size()));
                for (sector, _) in pairs.enumerate().filter(|(_, (was, is))| was != is) {
                    let start = both.0.saturating_add((sector as u64).saturating_mul(sectorsize));
                    different.push((start, start.saturating_add(sectorsize)));
                }
            }
        }
        union(different)
    }
}

/// Checksums that came or went, and extents that went.
pub(crate) fn changed(commit: &mut Commit<'_, '_>) -> Outcome {
    let delta = Delta::new(commit.old, commit.new)?;
    let [old, new] = delta.ranges();
    let (added, removed) = (subtract(&new, &old), subtract(&old, &new));
    let (freed, made) = data_extents(commit);
    let mut found = overlaps(commit, &delta.new)?;
    found.extend(for_free_space(commit, &subtract(&added, &made))?);
    found.extend(left_behind(commit, &subtract(&subtract(&freed, &made), &removed))?);
    let mut lost = removed;
    lost.extend(delta.different(&commit.new.snapshot.geometry));
    let (gone, _) = commit.changed_chunks();
    let gone = gone.iter().map(|chunk| (chunk.logical, chunk.end()));
    let freed = union(freed.into_iter().chain(gone).collect());
    if !commit.missed {
        let lost = subtract(&union(lost), &freed);
        // An extent whose item was lost in an earlier commit is not among those that were freed.
        let stays = subtract(&lost, &free_parts(commit, &lost)?);
        found.extend(of_what_stays(commit, &stays));
    }
    commit.memory.catch_up();
    if !found.is_empty() {
        // What should not be here may go again.
        commit.memory.remember_checksums(&added);
    }
    Ok(found)
}

/// Data extents that were freed, and that were made.
fn data_extents(commit: &Commit<'_, '_>) -> (Vec<Range>, Vec<Range>) {
    let (mut freed, mut made) = (Vec::new(), Vec::new());
    let range = |record: &ExtentRecord| (record.bytenr, record.bytenr.saturating_add(record.len));
    for change in commit.extents.changes.values() {
        let [old, new] =
            [&change.old, &change.new].map(|record| record.as_deref().filter(|record| !record.metadata()));
        let stays =
            old.zip(new).is_some_and(|(old, new)| old.len == new.len && old.generation == new.generation);
        if !stays {
            freed.extend(old.map(range));
            made.extend(new.map(range));
        }
    }
    (union(freed), union(made))
}

fn csum_tree<'a>(forest: Forest<'a>) -> Searcher<'a> {
    Searcher::new(forest, forest.snapshot.tree(ids::CSUM_TREE))
}

pub(super) fn csum_key(offset: u64) -> Key {
    Key::new(ids::EXTENT_CSUM, item::EXTENT_CSUM, offset)
}

/// New items against their neighbours.
fn overlaps(commit: &Commit<'_, '_>, items: &[Sums]) -> Outcome {
    let geometry = &commit.new.snapshot.geometry;
    let mut tree = csum_tree(commit.new);
    let mut found: Vec<Violation> = Vec::new();
    let range = |item: Option<ItemRef>| item.and_then(|item| covered(&item.key, item.data().len(), geometry));
    for sums in items {
        let before = match sums.range.0.checked_sub(1) {
            Some(before) => range(tree.at_or_before(&csum_key(before))?),
            None => None,
        };
        let behind = range(tree.at_or_after(&csum_key(sums.range.0.saturating_add(1)))?);
        let both = [
            before.and_then(|before| overlap(before, sums.range)),
            behind.and_then(|behind| overlap(sums.range, behind)),
        ];
        for overlap in both.into_iter().flatten() {
            if found.last().is_none_or(|last| last.bytenr != overlap.bytenr) {
                found.push(overlap);
            }
        }
    }
    Ok(found)
}

fn is_explained(commit: &Commit<'_, '_>, range: Range) -> bool {
    commit.explained.explains_range(neighbourhood(&commit.new.snapshot.chunks, range), range)
}

/// The chunks in which a range lies. What is reported of an extent says nothing of those elsewhere.
pub(crate) fn neighbourhood(chunks: &ChunkMap, (start, end): Range) -> Range {
    let chunk_at = |address: u64| chunks.chunk_at(address).map(chunk_range);
    let last = chunk_at(end.saturating_sub(1));
    (chunk_at(start).map_or(start, |chunk| chunk.0), last.map_or(end, |chunk| chunk.1))
}

/// Of sectors that have checksums since this commit, those where no data extent lies.
fn for_free_space(commit: &Commit<'_, '_>, ranges: &[Range]) -> Outcome {
    let unexplained = |range: &Range| !is_explained(commit, *range);
    let free = free_parts(commit, ranges)?;
    Ok(free.into_iter().filter(unexplained).map(without_extent).collect())
}

/// The parts of ranges where no data extent lies.
fn free_parts(commit: &Commit<'_, '_>, ranges: &[Range]) -> Result<Vec<Range>, BlockProblem> {
    let mut items = Searcher::new(commit.new, commit.new.snapshot.tree(ids::EXTENT_TREE));
    let mut free: Vec<Range> = Vec::new();
    for &(start, end) in ranges {
        let mut at = start;
        while at < end {
            let extent = data_extent_at(&mut items, at)?;
            let next = extent.map_or_else(
                || at.saturating_add(commit.new.snapshot.geometry.sectorsize.into()),
                |(start, len)| start.saturating_add(len),
            );
            if extent.is_none() {
                free.push((at, next.min(end)));
            }
            if next <= at {
                break;
            }
            at = next;
        }
    }
    Ok(union(free))
}

/// The data extent that holds `address`.
pub(super) fn data_extent_at(
    items: &mut Searcher<'_>,
    address: u64,
) -> Result<Option<(u64, u64)>, BlockProblem> {
    let Some(found) = items.at_or_before(&Key::new(address, u8::MAX, u64::MAX))? else { return Ok(None) };
    let start = found.key.objectid;
    let mut extent = None;
    let (from, to) = (Key::new(start, item::EXTENT_ITEM, 0), Key::new(start, item::EXTENT_ITEM, u64::MAX));
    items.range(from, to, |item| extent = extent.or(extent_range(&item.key, 0)))?;
    Ok(extent.filter(|(start, len)| address < start.saturating_add(*len)))
}

/// Of sectors that were freed by this commit, those that still have checksums.
fn left_behind(commit: &Commit<'_, '_>, freed: &[Range]) -> Outcome {
    let geometry = &commit.new.snapshot.geometry;
    let mut tree = csum_tree(commit.new);
    let mut left = Vec::new();
    for &(start, end) in freed {
        let mut take = |item: &ItemRef| {
            let range = covered(&item.key, item.data().len(), geometry);
            left.extend(range.and_then(|range| super::ranges::clip(range, (start, end))));
        };
        if let Some(before) = tree.at_or_before(&csum_key(start))? {
            take(&before);
        }
        let Some(last) = end.checked_sub(1).filter(|last| *last > start) else { continue };
        tree.range(csum_key(start.saturating_add(1)), csum_key(last), |item| take(&item))?;
    }
    let unexplained = |range: &Range| !is_explained(commit, *range);
    Ok(union(left).into_iter().filter(unexplained).map(without_extent).collect())
}

/// Checksums of extents that stay, which are gone or other ones than before. That they come back is no news.
fn of_what_stays(commit: &mut Commit<'_, '_>, ranges: &[Range]) -> Option<Violation> {
    let news = subtract(ranges, commit.memory.checksums());
    commit.memory.remember_checksums(&news);
    let unexplained = |range: &&Range| !is_explained(commit, **range);
    let news: Vec<Range> = news.iter().filter(unexplained).copied().collect();
    let (start, end) = *news.first()?;
    let more = match news.len() {
        1 => String::new(),
        count => format!(" and {} more ranges, {} bytes in all", count - 1, bytes(&news)),
    };
    let message = format!("checksums for {start}-{end}{more} were removed or replaced, while the data stays");
    Some(Violation::new(Code::SpaceCsumChanged, start, end - start, message))
}
