//! What the extent tree records, in a table.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parser::{Block, Key, ids};

use crate::forest::{BlockProblem, Expect, Forest};
use crate::ghosts::{self, Ghost, Trees};
use crate::record::{ExtentRecord, RecordBuilder, RefKey, is_record_item};
use crate::space::extents::{Holds, Place};
use crate::space::group::Group;
use crate::space::ranges::Range;
use crate::tree::Searcher;
use crate::violation::Violation;

/// A number for a reference such that sums of them tell sets of references apart. Each word is mixed in with the
/// finaliser of splitmix64.
#[must_use]
pub fn fingerprint(key: &RefKey) -> u64 {
    let mix = |state: u64, word: u64| {
        let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let kind = u64::from(key.metadata);
    [key.root, key.parent, key.owner, key.offset].into_iter().fold(kind, mix)
}

/// One extent in a table under construction.
#[derive(Debug, Clone, Copy)]
struct Row {
    bytenr: u64,
    recorded: u64,
    facts: Facts,
    len: u64,
}

/// Generation, level and flags of an extent in eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts(u64);

impl Facts {
    const METADATA: u64 = 1 << 63;
    const FULL: u64 = 1 << 62;
    const CHUNK_TREE: u64 = 1 << 61;
    const SHARED: u64 = 1 << 60;
    const LEVEL_SHIFT: u32 = 56;
    const LEVEL_MASK: u64 = 0xf;
    const GENERATION_MASK: u64 = (1 << Self::LEVEL_SHIFT) - 1;

    fn new(record: &ExtentRecord) -> Self {
        let level = u64::from(record.level.unwrap_or(0)) & Self::LEVEL_MASK;
        let mut facts = (record.generation & Self::GENERATION_MASK) | level << Self::LEVEL_SHIFT;
        if record.metadata() {
            facts |= Self::METADATA;
        }
        if record.full_backref() {
            facts |= Self::FULL;
        }
        facts |= match Holds::of(record) {
            Holds::ChunkTree => Self::CHUNK_TREE,
            Holds::SomeTree => Self::SHARED,
            Holds::Data | Holds::OtherTree => 0,
        };
        Facts(facts)
    }

    /// What the extent holds.
    #[must_use]
    pub fn holds(self) -> Holds {
        match (self.metadata(), self.0 & Self::CHUNK_TREE != 0, self.0 & Self::SHARED != 0) {
            (false, ..) => Holds::Data,
            (_, true, _) => Holds::ChunkTree,
            (_, _, true) => Holds::SomeTree,
            _ => Holds::OtherTree,
        }
    }

    /// Whether the extent is a tree block.
    #[must_use]
    pub fn metadata(self) -> bool {
        self.0 & Self::METADATA != 0
    }

    /// Whether it has FULL_BACKREF.
    #[must_use]
    pub fn full_backref(self) -> bool {
        self.0 & Self::FULL != 0
    }

    /// Low 56 bits of the generation.
    #[must_use]
    pub fn generation(self) -> u64 {
        self.0 & Self::GENERATION_MASK
    }
}

/// What one part of the extent tree holds.
#[derive(Debug, Default)]
pub struct Scan {
    rows: Vec<Row>,
    /// Block group items, which stand among the extents.
    pub groups: Vec<Group>,
    /// What is wrong with records by themselves.
    pub violations: Vec<Violation>,
    /// Backrefs in the name of trees that don't exist.
    pub ghosts: Vec<Ghost>,
    /// What could not be read.
    pub problems: Vec<BlockProblem>,
}

/// Cuts the extent tree into ranges of bytenrs, first and last of each, that can be scanned independently.
///
/// # Errors
/// [`BlockProblem`] when its root can't be read.
pub fn partitions(forest: &Forest<'_>) -> Result<Vec<(u64, u64)>, BlockProblem> {
    const ENOUGH: usize = 256;
    let Some(root) = forest.snapshot.tree(ids::EXTENT_TREE) else { return Ok(Vec::new()) };
    let mut starts = vec![0];
    let mut level = vec![root];
    while !level.is_empty() && starts.len() < ENOUGH {
        let mut below = Vec::new();
        for expect in &level {
            let block = match forest.read(expect) {
                Ok(block) => block,
                // The scan will say so.
                Err(_) if expect.first_key.is_some() => continue,
                Err(problem) => return Err(problem),
            };
            if let Some(Block::Node(node)) = block.view() {
                below.extend(node.ptrs().enumerate().map(|(slot, ptr)| expect.child(&node, slot, &ptr)));
            }
        }
        starts.extend(below.iter().filter_map(|expect| expect.first_key).map(|key| key.objectid));
        level = below;
    }
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([u64::MAX]);
    Ok(starts.iter().copied().zip(ends).collect())
}

/// Reads the records of all extents from `first` to `last`, both included.
#[must_use]
pub fn scan(forest: &Forest<'_>, first: u64, last: u64) -> Scan {
    let mut scan = Scan::default();
    let mut builder: Option<(u64, RecordBuilder<'_>)> = None;
    let mut searcher = Searcher::new(*forest, forest.snapshot.tree(ids::EXTENT_TREE));
    let geometry = &forest.snapshot.geometry;
    let mut trees = Trees::new(*forest);
    let read = searcher.range(Key::new(first, 0, 0), Key::new(last, u8::MAX, u64::MAX), |found| {
        let bytenr = found.key.objectid;
        if !is_record_item(found.key.item_type) {
            scan.groups.extend(Group::parse(&found.key, found.data()));
            return;
        }
        if builder.as_ref().is_none_or(|(current, _)| *current != bytenr) {
            let next = RecordBuilder::new(geometry, bytenr);
            scan.take(builder.replace((bytenr, next)), &mut trees);
        }
        if let Some((_, builder)) = &mut builder {
            builder.push(&found.key, found.data(), found.site);
        }
    });
    scan.take(builder, &mut trees);
    scan.problems.extend(read.err());
    scan
}

impl Scan {
    fn take(&mut self, builder: Option<(u64, RecordBuilder<'_>)>, trees: &mut Trees<'_>) {
        let Some((_, builder)) = builder else { return };
        let built = builder.finish();
        self.violations.extend(built.violations);
        let Some(record) = built.record else { return };
        self.ghosts.extend(ghosts::of_record(&record, trees));
        let recorded = record.backrefs.iter().fold(0u64, |sum, backref| {
            sum.wrapping_add(fingerprint(&backref.key).wrapping_mul(backref.count))
        });
        self.rows.push(Row { bytenr: record.bytenr, recorded, facts: Facts::new(&record), len: record.len });
    }
}

/// All extents: what is recorded about each, and what has been found to refer to it so far.
#[derive(Debug, Default)]
pub struct Table {
    bytenrs: Vec<u64>,
    recorded: Vec<u64>,
    facts: Vec<Facts>,
    lens: Vec<u64>,
    held: Vec<AtomicU64>,
    visited: Vec<AtomicU64>,
    /// Of tree blocks: a hash of the first key that the pointers to it name; 0 until there was one.
    first_keys: Vec<AtomicU32>,
    /// Where, in `bytenrs`, each bucket of the address space begins.
    buckets: Vec<u32>,
    bucket_shift: u32,
}

impl Table {
    /// Puts the parts of a scan together, in the order of their ranges.
    #[must_use]
    pub fn new(scans: impl IntoIterator<Item = Scan>) -> Self {
        let mut table = Table::default();
        for scan in scans {
            for row in scan.rows {
                table.bytenrs.push(row.bytenr);
                table.recorded.push(row.recorded);
                table.facts.push(row.facts);
                table.lens.push(row.len);
            }
        }
        table.held.resize_with(table.bytenrs.len(), AtomicU64::default);
        table.first_keys.resize_with(table.bytenrs.len(), AtomicU32::default);
        table.visited.resize_with(table.bytenrs.len().div_ceil(64), AtomicU64::default);
        table.index();
        table
    }

    fn index(&mut self) {
        let Some(&last) = self.bytenrs.last() else { return };
        let wanted = (self.bytenrs.len() as u64).next_power_of_two();
        self.bucket_shift = (64 - last.leading_zeros()).saturating_sub(wanted.trailing_zeros());
        let count = usize::try_from(last >> self.bucket_shift).unwrap_or(0) + 1;
        self.buckets = Vec::with_capacity(count + 1);
        let mut next = 0;
        for bucket in 0..=count as u64 {
            while self.bytenrs.get(next).is_some_and(|bytenr| bytenr >> self.bucket_shift < bucket) {
                next += 1;
            }
            self.buckets.push(u32::try_from(next).unwrap_or(u32::MAX));
        }
    }

    /// Number of extents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytenrs.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytenrs.is_empty()
    }

    /// Number of tree blocks among them.
    #[must_use]
    pub fn tree_blocks(&self) -> u64 {
        self.facts.iter().filter(|facts| facts.metadata()).count() as u64
    }

    /// Row of the extent that begins at `bytenr`.
    #[must_use]
    pub fn row(&self, bytenr: u64) -> Option<usize> {
        let bucket = usize::try_from(bytenr.checked_shr(self.bucket_shift)?).ok()?;
        let from = *self.buckets.get(bucket)? as usize;
        let to = *self.buckets.get(bucket.checked_add(1)?)? as usize;
        let within = self.bytenrs.get(from..to)?;
        within.binary_search(&bytenr).ok().map(|at| from + at)
    }

    /// Generation, level and flags of a row.
    #[must_use]
    pub fn facts(&self, row: usize) -> Option<Facts> {
        self.facts.get(row).copied()
    }

    /// Length of a row's extent, in bytes.
    #[must_use]
    pub fn extent_len(&self, row: usize) -> Option<u64> {
        self.lens.get(row).copied()
    }

    /// Whether `key` is all that is recorded of a row.
    pub(super) fn records_only(&self, row: usize, key: &RefKey) -> bool {
        self.recorded.get(row) == Some(&fingerprint(key))
    }

    /// Adds a reference that a tree holds.
    pub fn hold(&self, row: usize, key: &RefKey) {
        if let Some(held) = self.held.get(row) {
            held.fetch_add(fingerprint(key), Ordering::Relaxed);
        }
    }

    /// Whether this is the first visit to a row's block.
    pub fn visit(&self, row: usize) -> bool {
        let bit = 1 << (row % 64);
        self.visited.get(row / 64).is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }

    /// Whether a pointer says the same about a tree block as its record and the pointers before it. The block itself
    /// is compared with the first one only.
    pub fn agrees(&self, row: usize, expect: &Expect) -> bool {
        let same_generation =
            self.facts(row).is_none_or(|facts| !facts.metadata() || facts.generation() == expect.generation);
        let (Some(key), Some(known)) = (expect.first_key, self.first_keys.get(row)) else {
            return same_generation;
        };
        let hash = fingerprint(&RefKey::data(key.objectid, key.item_type.into(), key.offset)) as u32 | 1;
        let before = known.compare_exchange(0, hash, Ordering::Relaxed, Ordering::Relaxed);
        same_generation && before.map_or_else(|known| known == hash, |_| true)
    }

    /// Extents whose references and backrefs are not the same, by bytenr.
    pub fn mismatches(&self) -> impl Iterator<Item = u64> + '_ {
        let rows = self.bytenrs.iter().zip(&self.recorded).zip(&self.held);
        rows.filter(|((_, recorded), held)| **recorded != held.load(Ordering::Relaxed))
            .map(|((bytenr, _), _)| *bytenr)
    }

    /// All extents, in order.
    pub fn extents(&self) -> impl Iterator<Item = Place> + '_ {
        let rows = self.bytenrs.iter().zip(&self.lens).zip(&self.facts);
        rows.map(|((&bytenr, &len), facts)| Place { bytenr, len, holds: facts.holds() })
    }

    /// The ranges of the extents that begin in `range`.
    pub fn extents_within(&self, (start, end): Range) -> impl Iterator<Item = Range> + '_ {
        let from = self.bytenrs.partition_point(|bytenr| *bytenr < start);
        let rows = self.bytenrs.iter().zip(&self.lens).skip(from);
        rows.map(|(&bytenr, &len)| (bytenr, bytenr.saturating_add(len)))
            .take_while(move |(bytenr, _)| *bytenr < end)
    }

    /// The first part of `range` that lies in no data extent.
    #[must_use]
    pub fn without_data(&self, (start, end): Range) -> Option<Range> {
        let mut at = start;
        let mut row = self.bytenrs.partition_point(|bytenr| *bytenr <= start).saturating_sub(1);
        while at < end {
            let (bytenr, len) =
                (*self.bytenrs.get(row).unwrap_or(&u64::MAX), self.lens.get(row).copied().unwrap_or(0));
            let is_data = self.facts.get(row).is_some_and(|facts| !facts.metadata());
            let extent_end = bytenr.saturating_add(len);
            if is_data && bytenr <= at && at < extent_end {
                at = extent_end;
            } else if bytenr > at || row >= self.bytenrs.len() {
                return Some((at, end.min(bytenr)));
            }
            row += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::OwnerRule;

    fn table(bytenrs: &[u64]) -> Table {
        let facts = Facts(0);
        let rows = bytenrs.iter().map(|&bytenr| Row { bytenr, recorded: 0, facts, len: 4096 }).collect();
        Table::new([Scan { rows, ..Scan::default() }])
    }

    #[test]
    fn every_row_is_found_and_nothing_else() {
        let bytenrs: Vec<u64> =
            (0..5000u64).map(|n| n * n * 4096 + 4096).chain([1 << 60, u64::MAX - 4095]).collect();
        let table = table(&bytenrs);
        for (row, &bytenr) in bytenrs.iter().enumerate() {
            assert_eq!(table.row(bytenr), Some(row));
            assert_eq!(table.row(bytenr + 1), None);
        }
        assert_eq!(table.row(0), None);
        assert_eq!(table.row(u64::MAX), None);
        assert_eq!(Table::default().row(4096), None);
    }

    #[test]
    fn pointers_disagree_in_every_bit() {
        let facts = Facts(Facts::METADATA | 7);
        let table = Table::new([Scan {
            rows: vec![Row { bytenr: 4096, recorded: 0, facts, len: 4096 }],
            ..Scan::default()
        }]);
        let expect = |generation, offset| Expect {
            bytenr: 4096,
            generation,
            level: 0,
            first_key: Some(Key::new(256, 1, offset)),
            limit: None,
            owner: OwnerRule::Any,
            from: (0, 0),
        };
        assert!(table.agrees(0, &expect(7, 0)) && table.agrees(0, &expect(7, 0)));
        assert!(!table.agrees(0, &expect(7, 1)));
        for bit in 0..64 {
            assert!(!table.agrees(0, &expect(7 ^ 1 << bit, 0)), "{bit}");
        }
    }

    #[test]
    fn sums_tell_sets_apart() {
        let a = RefKey::tree(5, 0);
        let b = RefKey::tree(6, 0);
        let c = RefKey::shared_tree(5, 0);
        assert_ne!(fingerprint(&a), fingerprint(&b));
        assert_ne!(fingerprint(&a), fingerprint(&c));
        assert_ne!(fingerprint(&RefKey::shared_data(5)), fingerprint(&c));
        assert_ne!(fingerprint(&a).wrapping_mul(2), fingerprint(&a).wrapping_add(fingerprint(&b)));
    }
}
