//! The free space tree against the gaps between extents.
//!
//! Of a commit, the sectors are taken that became free or used in one of the two trees and not in the other. There
//! are none in a sound commit, whatever was turned from extents to bitmaps or back. Where there are any, both trees
//! are asked about them, and differ or do not: then the commit has mended what was wrong before.

use std::collections::{BTreeMap, BTreeSet};

use parser::free_space::{FreeSpaceInfo, bitmap_bit, bitmap_runs};
use parser::key::item;
use parser::superblock::compat_ro;
use parser::{Key, ids};

use crate::codes::Code;
use crate::forest::{BlockProblem, Forest, Snapshot};
use crate::space::commit::{Commit, Outcome};
use crate::space::extents::extent_range;
use crate::space::group::{Group, chunk_range};
use crate::space::ranges::{Range, Toggles, bytes, clip, union};
use crate::tree::{Change, Cursor, ItemRef, Searcher, diff};
use crate::violation::Violation;

/// Whether the free space tree is there, and says what it should.
#[must_use]
pub fn is_valid(snapshot: &Snapshot) -> bool {
    let valid = compat_ro::FREE_SPACE_TREE | compat_ro::FREE_SPACE_TREE_VALID;
    snapshot.geometry.compat_ro & valid == valid && snapshot.tree(ids::FREE_SPACE_TREE).is_some()
}

/// Hands the runs of free space that an item tells of to `take`.
fn runs(key: &Key, data: &[u8], sectorsize: u64, mut take: impl FnMut(Range)) {
    let start = key.objectid;
    let end = start.saturating_add(key.offset);
    match key.item_type {
        item::FREE_SPACE_EXTENT => take((start, end)),
        item::FREE_SPACE_BITMAP => {
            for (first, bits) in bitmap_runs(data) {
                let at = |bit: u64| start.saturating_add(bit.saturating_mul(sectorsize));
                if let Some(run) = clip((at(first), at(first + bits)), (start, end)) {
                    take(run);
                }
            }
        }
        _ => {}
    }
}

fn sectorsize(forest: &Forest<'_>) -> u64 {
    forest.snapshot.geometry.sectorsize.into()
}

/// How the number of runs of one block group has changed.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// By the info item.
    told: i64,
    /// By the items themselves.
    runs: i64,
    /// The info item came, went or says something else than a number anew.
    info: bool,
    /// What came.
    forms: Forms,
}

/// In which forms the free space of a block group is stored: all of it in one, which the info item names.
#[derive(Debug, Clone, Copy, Default)]
struct Forms {
    extents: bool,
    bitmaps: bool,
}

impl Forms {
    fn add(&mut self, key: &Key) {
        self.extents |= key.item_type == item::FREE_SPACE_EXTENT;
        self.bitmaps |= key.item_type == item::FREE_SPACE_BITMAP;
    }

    /// The form that `info` does not name, where there is such an item.
    fn unlike(self, info: &FreeSpaceInfo) -> Option<&'static str> {
        match info.uses_bitmaps {
            true => self.extents.then_some("extents"),
            false => self.bitmaps.then_some("bitmaps"),
        }
    }
}

/// What changed in the free space tree.
#[derive(Default)]
struct Delta {
    toggles: Toggles,
    counts: BTreeMap<u64, Count>,
    /// Where bitmaps that changed begin and end: a run may go on there.
    borders: BTreeSet<u64>,
    strays: Vec<Violation>,
}

/// Block group of the free space tree's items with this key.
fn chunk_of(forest: &Forest<'_>, bytenr: u64) -> Option<Range> {
    forest.snapshot.chunks.chunk_at(bytenr).map(chunk_range)
}

fn parse_info(found: &ItemRef) -> Option<FreeSpaceInfo> {
    FreeSpaceInfo::parse(found.data()).ok()
}

impl Delta {
    fn take(&mut self, change: &Change, commit: &Commit<'_, '_>) {
        let key = change.key();
        let end = key.objectid.saturating_add(key.offset);
        // What lies in no block group at all means nothing: old versions of mkfs leave some.
        if let Some(found) = change.after()
            && let Some((start, _)) = chunk_of(&commit.new, key.objectid).filter(|group| end > group.1)
        {
            let (block, slot) = (found.site.block, found.site.slot);
            let message = format!(
                "free space tree: {key} ends past the end of block group {start} (leaf {block} slot {slot})"
            );
            self.strays.push(Violation::new(Code::SpaceFreeSpaceTree, start, key.offset, message));
        }
        if key.item_type == item::FREE_SPACE_BITMAP {
            self.borders.extend([key.objectid, end]);
        }
        let sides = [(change.before(), &commit.old, -1), (change.after(), &commit.new, 1)];
        for (found, forest, sign) in sides {
            let (Some(found), Some((start, _))) = (found, chunk_of(forest, key.objectid)) else { continue };
            let count = self.counts.entry(start).or_default();
            if sign > 0 {
                count.forms.add(&key);
            }
            if key.item_type == item::FREE_SPACE_INFO {
                count.told += sign * parse_info(found).map_or(0, |info| i64::from(info.extent_count));
            }
            runs(&key, found.data(), sectorsize(forest), |run| {
                count.runs += sign;
                self.toggles.add(run);
            });
        }
        if key.item_type == item::FREE_SPACE_INFO
            && let Some((start, _)) = chunk_of(&commit.new, key.objectid)
        {
            let form = |found: Option<&ItemRef>| found.and_then(parse_info).map(|info| info.uses_bitmaps);
            let changed = form(change.before()) != form(change.after());
            self.counts.entry(start).or_default().info |= changed;
        }
    }

    /// Runs that go on from one item to the next were counted twice.
    fn join(&mut self, forest: Forest<'_>, sign: i64) -> Result<(), BlockProblem> {
        let mut items = Searcher::new(forest, forest.snapshot.tree(ids::FREE_SPACE_TREE));
        let sectorsize = sectorsize(&forest);
        for &border in &self.borders {
            let Some((start, _)) = chunk_of(&forest, border).filter(|(start, _)| *start < border) else {
                continue;
            };
            let mut covering = |address: u64| {
                let found = items.at_or_before(&Key::new(address, item::FREE_SPACE_BITMAP, u64::MAX))?;
                Ok(found.filter(|found| is_free(&found.key, found.data(), sectorsize, address)))
            };
            let behind = covering(border)?.is_some_and(|found| found.key.objectid == border);
            if behind && covering(border - 1)?.is_some() {
                self.counts.entry(start).or_default().runs -= sign;
            }
        }
        Ok(())
    }
}

/// Whether an item tells that the sector at `address` is free.
fn is_free(key: &Key, data: &[u8], sectorsize: u64, address: u64) -> bool {
    let Some(within) = address.checked_sub(key.objectid).filter(|within| *within < key.offset) else {
        return false;
    };
    match key.item_type {
        item::FREE_SPACE_EXTENT => true,
        item::FREE_SPACE_BITMAP => bitmap_bit(data, within / sectorsize.max(1)),
        _ => false,
    }
}

/// What changed in the free space tree, against what changed in the extent tree.
pub(crate) fn changed(commit: &mut Commit<'_, '_>) -> Outcome {
    if !is_valid(commit.old.snapshot) || !is_valid(commit.new.snapshot) {
        return Ok(Vec::new());
    }
    let mut delta = Delta::default();
    let side = |forest: Forest<'_>| forest.snapshot.tree(ids::FREE_SPACE_TREE);
    let (old, new) = ((commit.old, side(commit.old)), (commit.new, side(commit.new)));
    let mut problems = diff(old, new, |change| delta.take(&change, commit));
    if let Some(problem) = problems.pop() {
        return Err(problem);
    }
    for change in commit.extents.changes.values() {
        for record in [&change.old, &change.new].into_iter().flatten() {
            delta.toggles.add((record.bytenr, record.bytenr.saturating_add(record.len)));
        }
    }
    let (gone, made) = commit.changed_chunks();
    delta.toggles.extend(gone.iter().chain(&made).map(|chunk| chunk_range(chunk)));
    delta.join(commit.old, -1)?;
    delta.join(commit.new, 1)?;
    let Delta { toggles, counts, strays: mut found, .. } = delta;
    for difference in differences(commit, &toggles.finish())? {
        if !found.iter().any(|known| known.bytenr == difference.bytenr) {
            found.push(difference);
        }
    }
    for (start, count) in counts {
        let known = found.iter().any(|known| known.bytenr == start);
        let chunk = commit.new.snapshot.chunks.chunk_at(start).filter(|chunk| chunk.logical == start);
        let Some(group) = chunk.filter(|_| !known).map(chunk_range) else { continue };
        let is_unlike = |info: FreeSpaceInfo| count.forms.unlike(&info).is_some();
        if count.info || count.told != count.runs || info(commit.new, group)?.is_some_and(is_unlike) {
            found.extend(wrong_count(commit.new, group)?);
        }
    }
    for chunk in made {
        if info(commit.new, chunk_range(chunk))?.is_none() {
            found.extend(wrong_count(commit.new, chunk_range(chunk))?);
        }
    }
    Ok(found)
}

/// Asks both trees about sectors that seem to have changed in one of them only. One violation a block group.
fn differences(commit: &Commit<'_, '_>, suspicious: &[Range]) -> Outcome {
    let mut by_group: BTreeMap<u64, (Range, Vec<Range>)> = BTreeMap::new();
    for &range in suspicious {
        for chunk in commit.new.snapshot.chunks.chunks() {
            let group = chunk_range(chunk);
            if let Some(range) = clip(range, group) {
                by_group.entry(group.0).or_insert((group, Vec::new())).1.push(range);
            }
        }
    }
    let mut found = Vec::new();
    for (group, ranges) in by_group.into_values() {
        let mut wrong = Vec::new();
        for range in ranges {
            let mut toggles = Toggles::default();
            toggles.add(range);
            toggles.extend(free_runs(commit.new, group, range)?);
            toggles.extend(used_runs(commit.new, group, range)?);
            wrong.extend(toggles.finish());
        }
        wrong.retain(|range| !commit.explained.explains_range(group, *range));
        let Some(first) = wrong.first() else { continue };
        let is_free = !free_runs(commit.new, group, *first)?.is_empty();
        found.push(difference(group, &wrong, is_free));
    }
    Ok(found)
}

/// A block group in which free space tree and extent tree disagree about `wrong`; of the first of these ranges the
/// free space tree says that it is free.
fn difference((start, end): Range, wrong: &[Range], is_free: bool) -> Violation {
    let (from, to) = wrong.first().copied().unwrap_or_default();
    let says = if is_free {
        "holds it for free, where an extent lies"
    } else {
        "has no free space entry for it, where no extent lies"
    };
    let more = match wrong.len() {
        0 | 1 => String::new(),
        count => format!(", and about {} more ranges, {} bytes in all", count - 1, bytes(wrong)),
    };
    let message = format!(
        "block group [{start} {}]: free space tree and extent tree disagree about [{from} {}]: the free space tree \
         {says}{more}",
        end - start,
        to - from
    );
    let (expected, found) = if is_free { ("used", "free") } else { ("free", "used") };
    Violation::new(Code::SpaceFreeSpaceTree, start, end - start, message).with_worth(expected, found)
}

/// The free space of a block group within `range`, as the free space tree has it.
fn free_runs(forest: Forest<'_>, group: Range, range: Range) -> Result<Vec<Range>, BlockProblem> {
    let mut items = Searcher::new(forest, forest.snapshot.tree(ids::FREE_SPACE_TREE));
    let mut free = Vec::new();
    let mut take = |item: &ItemRef| {
        runs(&item.key, item.data(), sectorsize(&forest), |run| free.extend(clip(run, range)));
    };
    let Some(last) = range.1.checked_sub(1) else { return Ok(Vec::new()) };
    // One that begins before the range may reach into it.
    let before = items.at_or_before(&Key::new(range.0, 0, 0))?;
    before.iter().filter(|item| item.key.objectid >= group.0).for_each(&mut take);
    items.range(Key::new(range.0, 0, 0), Key::new(last, u8::MAX, u64::MAX), |item| take(&item))?;
    Ok(union(free))
}

/// What extents take of `range`, which lies in a block group, as the extent tree has it.
fn used_runs(forest: Forest<'_>, group: Range, range: Range) -> Result<Vec<Range>, BlockProblem> {
    let mut items = Searcher::new(forest, forest.snapshot.tree(ids::EXTENT_TREE));
    let mut used = Vec::new();
    let mut take = |item: &ItemRef| {
        if let Some((start, len)) = extent_range(&item.key, forest.nodesize()) {
            used.extend(clip((start, start.saturating_add(len)), range));
        }
    };
    let Some(last) = range.1.checked_sub(1) else { return Ok(Vec::new()) };
    let before = items.at_or_before(&Key::new(range.0, 0, 0))?;
    let from = before.map_or(range.0, |item| item.key.objectid.max(group.0));
    items.range(Key::new(from, 0, 0), Key::new(last, u8::MAX, u64::MAX), |item| take(&item))?;
    Ok(union(used))
}

/// The info item of a block group.
fn info(forest: Forest<'_>, (start, end): Range) -> Result<Option<FreeSpaceInfo>, BlockProblem> {
    let mut items = Searcher::new(forest, forest.snapshot.tree(ids::FREE_SPACE_TREE));
    let key = Key::new(start, item::FREE_SPACE_INFO, end - start);
    let found = items.at_or_before(&key)?.filter(|found| found.key == key);
    Ok(found.and_then(|found| FreeSpaceInfo::parse(found.data()).ok()))
}

/// Counts the runs of a block group, and compares their number and their form with its info item.
fn wrong_count(forest: Forest<'_>, group: Range) -> Result<Option<Violation>, BlockProblem> {
    let free = free_runs(forest, group, group)?;
    let mut forms = Forms::default();
    let mut items = Searcher::new(forest, forest.snapshot.tree(ids::FREE_SPACE_TREE));
    let last = group.1.saturating_sub(1);
    items.range(Key::new(group.0, 0, 0), Key::new(last, u8::MAX, u64::MAX), |item| forms.add(&item.key))?;
    Ok(unlike_info(group, info(forest, group)?, free.len(), forms))
}

/// A block group without info item, or one that tells another number than there are `runs`, or another form.
fn unlike_info(
    (start, end): Range,
    info: Option<FreeSpaceInfo>,
    runs: usize,
    forms: Forms,
) -> Option<Violation> {
    let len = end - start;
    let Some(info) = info else {
        let message = format!("missing free space info for block group [{start} {len}]");
        return Some(Violation::new(Code::SpaceFreeSpaceTree, start, len, message));
    };
    if let Some(form) = forms.unlike(&info) {
        let named = if info.uses_bitmaps { "bitmaps" } else { "extents" };
        let message = format!(
            "block group [{start} {len}]: free space info says that free space is stored as {named}, and there are \
             {form}"
        );
        return Some(Violation::new(Code::SpaceFreeSpaceTree, start, len, message).with_worth(named, form));
    }
    let (told, runs) = (u64::from(info.extent_count), runs as u64);
    (told != runs).then(|| {
        let message = format!(
            "block group [{start} {len}]: free space info recorded {told} extents, counted {runs} in the free space tree"
        );
        Violation::new(Code::SpaceFreeSpaceCount, start, len, message).with_worth(runs, told)
    })
}

/// Reads a free space tree from end to end, block group by block group.
pub struct Sweep<'a> {
    cursor: Cursor<'a>,
    pending: Option<ItemRef>,
    sectorsize: u64,
}

impl<'a> Sweep<'a> {
    /// Before the first block group of `forest`.
    #[must_use]
    pub fn new(forest: Forest<'a>) -> Self {
        let mut cursor = Cursor::new(forest, forest.snapshot.tree(ids::FREE_SPACE_TREE));
        let pending = cursor.next_item();
        Sweep { cursor, pending, sectorsize: sectorsize(&forest) }
    }

    /// What is wrong with the next block group, whose extents are `extents`, in order. Entries before it lie in no
    /// block group: old versions of mkfs leave some.
    pub fn group(
        &mut self,
        group: &Group,
        extents: impl Iterator<Item = Range>,
        is_explained: impl Fn(Range) -> bool,
    ) -> Option<Violation> {
        let bounds = group.range();
        let mut free: Vec<Range> = Vec::new();
        let mut forms = Forms::default();
        let mut info = None;
        while let Some(found) = self.pending.take_if(|item| item.key.objectid < bounds.1) {
            self.pending = self.cursor.next_item();
            if found.key.objectid < bounds.0 {
                continue;
            }
            if found.key.item_type == item::FREE_SPACE_INFO && found.key.offset == group.len {
                info = FreeSpaceInfo::parse(found.data()).ok();
            }
            forms.add(&found.key);
            runs(&found.key, found.data(), self.sectorsize, |run| match free.last_mut() {
                Some(last) if last.1 == run.0 => last.1 = run.1,
                _ => free.push(run),
            });
        }
        let count = free.len();
        let mut toggles = Toggles::default();
        toggles.add(bounds);
        toggles.extend(free.iter().copied());
        toggles.extend(extents);
        let mut wrong = toggles.finish();
        wrong.retain(|range| !is_explained(*range));
        let Some(first) = wrong.first() else { return unlike_info(bounds, info, count, forms) };
        let is_free = free.iter().any(|run| clip(*run, *first).is_some());
        Some(difference(bounds, &wrong, is_free))
    }

    /// Whether the tree could be read to the end.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.cursor.into_problems().is_empty()
    }
}
