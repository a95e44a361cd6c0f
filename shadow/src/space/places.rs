//! Where the extents of a whole file system lie: each against the block group it begins in, one behind the other.
//!
//! Nobody has seen the block groups go that are gone: what is known of them is that no chunk lies where one must have
//! been. Knows nothing of sums and free space.

use parser::{Chunk, ChunkMap};

use crate::audit::Table;
use crate::codes::Code;
use crate::space::explained::Explained;
use crate::space::extents::{self, Gap, Place};
use crate::space::group::{Group, chunk_range};
use crate::space::groups::unlike_chunk;
use crate::space::ranges::Range;
use crate::violation::Violation;

/// Extents, one behind the other, that lie where no chunk is: their block group is gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Homeless {
    /// The first, which is in none.
    first: Place,
    /// Where the last begins.
    last: u64,
    /// How many there are.
    count: u64,
    /// Bytes of all of them.
    pub(super) bytes: u64,
}

impl Homeless {
    /// One report for all of them: it is one block group that they have lost.
    pub(super) fn violation(&self) -> Violation {
        let Homeless { first: Place { bytenr, len, .. }, last, count, bytes } = *self;
        let message = match count {
            1 => format!("extent [{bytenr} {len}] lies in no block group"),
            _ => format!(
                "extent [{bytenr} {len}] lies in no block group, nor do {} more up to the one at {last}, {bytes} bytes in all",
                count - 1
            ),
        };
        Violation::new(Code::SpaceExtentOutsideBlockGroup, bytenr, len, message).with_worth(0u64, count)
    }

    /// Whether all that is to say of them has been said: there is one, and it crosses the edge.
    pub(super) fn is_told(&self, found: &[Violation]) -> bool {
        let crosses = |found: &Violation| {
            found.code == Code::SpaceBlockGroupOverlap && found.bytenr == self.first.bytenr
        };
        self.count == 1 && found.iter().any(crosses)
    }

    /// Whether the first of them begins in a range.
    pub(super) fn begins_in(&self, (start, end): Range) -> bool {
        (start..end).contains(&self.first.bytenr)
    }
}

/// Every extent in its block group.
pub(super) struct Places<'a> {
    chunks: &'a ChunkMap,
    groups: &'a [Group],
    /// What is reported of extents already.
    explained: &'a Explained,
    /// What is wrong with extents, but for those in no block group.
    pub(super) found: Vec<Violation>,
    /// Extents in no block group.
    pub(super) homeless: Vec<Homeless>,
    /// Extents that leave the last of all chunks: whether a block group was there is known in the end.
    over_the_last: Vec<Place>,
    /// Between which chunks the last of the homeless lies.
    gap: usize,
}

impl<'a> Places<'a> {
    pub(super) fn new(chunks: &'a ChunkMap, groups: &'a [Group], explained: &'a Explained) -> Self {
        let (found, homeless, over_the_last) = Default::default();
        Places { chunks, groups, explained, found, homeless, over_the_last, gap: 0 }
    }

    /// Looks at all extents of `table`.
    pub(super) fn look_at(&mut self, table: &Table) {
        let mut previous: Option<(u64, u64)> = None;
        let mut groups = self.groups.iter().peekable();
        let mut chunk = None;
        for extent in table.extents() {
            let Place { bytenr, len, .. } = extent;
            self.found.extend(
                previous
                    .replace((bytenr, len))
                    .filter(|(start, len)| start.saturating_add(*len) > bytenr)
                    .map(|before| extents::overlap(before, bytenr)),
            );
            while groups.next_if(|group| group.range().1 <= bytenr).is_some() {}
            let group = groups.peek().filter(|group| group.start <= bytenr);
            chunk = chunk
                .filter(|chunk: &&Chunk| (chunk.logical..chunk.end()).contains(&bytenr))
                .or_else(|| self.chunks.chunk_at(bytenr));
            match (group, chunk) {
                // Where the two are unlike each other, that is the finding.
                (Some(group), chunk) if unlike_chunk(chunk, Some(group)).is_some() => {}
                (Some(group), _) => self.take(extent, group.range(), group.flags),
                (None, Some(chunk)) => self.take(extent, chunk_range(chunk), chunk.flags),
                (None, None) => self.take_homeless(extent),
            }
            self.found.extend(chunk.and_then(|chunk| extent.on_super_block(chunk)));
        }
        self.judge_over_the_last();
    }

    /// An extent that begins in a block group.
    fn take(&mut self, extent: Place, group: Range, flags: parser::BlockFlags) {
        let outside = extent.outside(Some((group, flags)));
        if extent.end() <= group.1 {
            self.found.extend(outside);
            return;
        }
        match self.gap_at(group.1) {
            Some(gap) if gap.end == u64::MAX => self.over_the_last.push(extent),
            gap => self.found.extend(gap.and_then(|gap| gap.crossed_by(&extent)).or(outside)),
        }
    }

    /// The addresses around `bytenr` that belong to no chunk; `None` where a block group item says that they do.
    fn gap_at(&self, bytenr: u64) -> Option<Gap> {
        let gap = Gap::at(self.chunks, bytenr)?;
        let behind = self.groups.partition_point(|group| group.range().1 <= gap.start);
        let is_claimed = self.groups.get(behind).is_some_and(|group| group.start < gap.end);
        (!is_claimed).then_some(gap)
    }

    /// Behind the last chunk a block group was where other extents still lie; else nothing says that there was one.
    fn judge_over_the_last(&mut self) {
        let Some(last) = self.chunks.chunks().last() else { return };
        let start = last.end();
        let end = self.homeless.last().map_or(0, |extents| extents.last);
        for extent in std::mem::take(&mut self.over_the_last) {
            let crossed = Gap { start, end }.crossed_by(&extent);
            self.found.extend(crossed.or_else(|| extent.outside(Some((chunk_range(last), last.flags)))));
        }
    }

    fn take_homeless(&mut self, extent: Place) {
        let Place { bytenr, len, .. } = extent;
        self.found.extend(self.gap_at(bytenr).and_then(|gap| gap.crossed_by(&extent)));
        if self.explained.names(bytenr) {
            return;
        }
        let gap = self.chunks.chunks().partition_point(|chunk| chunk.logical <= bytenr);
        match self.homeless.last_mut().filter(|_| self.gap == gap) {
            Some(run) => {
                run.count = run.count.saturating_add(1);
                run.bytes = run.bytes.saturating_add(len);
                run.last = bytenr;
            }
            None => self.homeless.push(Homeless { first: extent, last: bytenr, count: 1, bytes: len }),
        }
        self.gap = gap;
    }
}
