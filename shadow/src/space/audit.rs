//! All rules about space, for a whole file system.
//!
//! The table of all extents is at hand, in order. Block groups are met in the same order, and their free space too:
//! one pass over all three is enough. Checksum items are looked at as their leaves are visited ([`CsumCheck`]).

use std::sync::{Mutex, PoisonError};

use parser::{Block, ChunkMap, ids};

use crate::audit::Table;
use crate::codes::Code;
use crate::forest::{BlockProblem, Forest, Geometry};
use crate::space::checksums::{covered, neighbourhood, overlap, without_extent};
use crate::space::commit::is_told;
use crate::space::devices;
use crate::space::explained::Explained;
use crate::space::free_space::{Sweep, is_valid};
use crate::space::group::{Group, all_in_own_tree, has_own_tree};
use crate::space::groups::{unlike_chunk, wrong_bytes_used, wrong_used};
use crate::space::places::{Homeless, Places};
use crate::space::ranges::Range;
use crate::violation::Violation;

/// What all rules have found.
#[derive(Debug, Default)]
pub struct Audited {
    /// What is wrong.
    pub violations: Vec<Violation>,
    /// What could not be read. The walk over all trees comes upon it too.
    pub problems: Vec<BlockProblem>,
}

/// Holds a whole file system to every rule but those about checksums. `groups` are the block group items that stand in
/// the extent tree, `reported` is what was found out about references.
#[must_use]
pub fn audit(forest: Forest<'_>, table: &Table, groups: Vec<Group>, reported: &[Violation]) -> Audited {
    let mut audited = Audited::default();
    let groups = match has_own_tree(&forest.snapshot.geometry) {
        true => match all_in_own_tree(forest) {
            Ok(groups) => groups,
            Err(problems) => return Audited { problems, ..audited },
        },
        false => groups,
    };
    let nodesize = forest.nodesize();
    let explained = Explained::new(reported, nodesize);
    let mut places = Places::new(&forest.snapshot.chunks, &groups, &explained);
    places.look_at(table);
    let Places { mut found, homeless, .. } = places;
    found.retain(|violation| !is_told(&explained, violation));
    let untold: Vec<_> = homeless.iter().filter(|extents| !extents.is_told(&found)).collect();
    found.extend(untold.into_iter().map(Homeless::violation));
    let explained = Explained::new(reported.iter().chain(&found), nodesize);
    found.extend(against_chunks(&forest.snapshot.chunks, &groups));
    found.extend(sums(&forest, table, &groups, (&explained, &homeless)));
    audited.violations = found;
    audited.violations.extend(free_space(forest, table, &groups, &explained));
    match devices::whole(forest) {
        // Which is then the finding.
        Ok(_) if reported.iter().any(|known| known.code == Code::TreeDevExtent) => {}
        Ok(found) => {
            let told: Vec<u64> = audited.violations.iter().map(|known| known.bytenr).collect();
            let is_news = |found: &Violation| {
                let range = (found.bytenr, found.bytenr.saturating_add(found.len));
                let is_told =
                    told.contains(&found.bytenr) || homeless.iter().any(|extents| extents.begins_in(range));
                found.code != Code::SpaceDevExtent || !is_told
            };
            audited.violations.extend(found.into_iter().filter(is_news));
        }
        Err(problems) => audited.problems.extend(problems),
    }
    audited
}

/// Every chunk against the block group at its address, and the other way round.
fn against_chunks(chunks: &ChunkMap, groups: &[Group]) -> Vec<Violation> {
    let group_at = |start: u64| {
        let at = groups.binary_search_by_key(&start, |group| group.start).ok()?;
        groups.get(at)
    };
    let chunk_at = |start: u64| chunks.chunk_at(start).filter(|chunk| chunk.logical == start);
    let of_chunks =
        chunks.chunks().iter().filter_map(|chunk| unlike_chunk(Some(chunk), group_at(chunk.logical)));
    let alone = groups.iter().filter(|group| chunk_at(group.start).is_none());
    of_chunks.chain(alone.filter_map(|group| unlike_chunk(None, Some(group)))).collect()
}

/// `used` of every block group, and the super block's sum of them.
fn sums(
    forest: &Forest<'_>,
    table: &Table,
    groups: &[Group],
    (explained, homeless): (&Explained, &[Homeless]),
) -> Vec<Violation> {
    let mut found = Vec::new();
    let (mut all_used, mut all_taken) = (0u64, 0u64);
    for group in groups {
        let taken = table
            .extents_within(group.range())
            .fold(0u64, |sum, (start, end)| sum.saturating_add(end.saturating_sub(start)));
        all_used = all_used.saturating_add(group.used);
        all_taken = all_taken.saturating_add(taken);
        if !explained.explains_sum(group.range(), i128::from(group.used) - i128::from(taken)) {
            found.extend(wrong_used(group, taken));
        }
    }
    let bytes_used = forest.snapshot.super_view().map_or(0, |view| view.bytes_used());
    let homeless = homeless.iter().fold(0u64, |sum, extents| sum.saturating_add(extents.bytes));
    let with_homeless = all_taken.saturating_add(homeless);
    // Where it is the sum of the extents, the block groups are to blame, or that there is none.
    let is_missing = forest.snapshot.chunks.chunks().len() != groups.len();
    if bytes_used != all_taken && bytes_used != with_homeless && !is_missing {
        found.extend(wrong_bytes_used(bytes_used, all_used));
    }
    found
}

/// The free space tree, where it is valid.
fn free_space(forest: Forest<'_>, table: &Table, groups: &[Group], explained: &Explained) -> Vec<Violation> {
    if !is_valid(forest.snapshot) {
        return Vec::new();
    }
    let mut sweep = Sweep::new(forest);
    let found: Vec<Violation> = groups
        .iter()
        .filter_map(|group| {
            let range = group.range();
            sweep.group(group, table.extents_within(range), |wrong| explained.explains_range(range, wrong))
        })
        .collect();
    // What was not read seems to be missing.
    if sweep.is_whole() { found } else { Vec::new() }
}

/// Checks checksum items as their leaves come by, in any order, from any thread.
#[derive(Debug, Default)]
pub struct CsumCheck {
    state: Mutex<CsumState>,
}

#[derive(Debug, Default)]
struct CsumState {
    /// What each leaf covers, from its first item to the end of its last.
    leaves: Vec<Range>,
    found: Vec<Violation>,
}

impl CsumCheck {
    /// Looks at a block, if it is a leaf of the checksum tree.
    pub fn visit(&self, block: &Block<'_>, table: &Table, geometry: &Geometry) {
        let Block::Leaf(leaf) = block else { return };
        if leaf.header().owner() != ids::CSUM_TREE {
            return;
        }
        let mut found = Vec::new();
        let mut whole: Option<Range> = None;
        for (key, data) in leaf.items() {
            let Some(range) = covered(&key, data.len(), geometry) else { continue };
            found.extend(whole.and_then(|before| overlap(before, range)));
            whole = Some((whole.map_or(range.0, |(start, _)| start), range.1));
            found.extend(table.without_data(range).map(without_extent));
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.leaves.extend(whole);
        state.found.extend(found);
    }

    /// What was found, leaf against leaf included. `reported` is what was found out about references.
    #[must_use]
    pub fn finish(self, reported: &[Violation], forest: &Forest<'_>) -> Vec<Violation> {
        let CsumState { mut leaves, mut found } =
            self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let explained = Explained::new(reported, forest.nodesize());
        found.retain(|violation| {
            let range = (violation.bytenr, violation.bytenr.saturating_add(violation.len));
            let chunks = neighbourhood(&forest.snapshot.chunks, range);
            violation.code != Code::SpaceCsumWithoutExtent || !explained.explains_range(chunks, range)
        });
        leaves.sort_unstable();
        for pair in leaves.windows(2) {
            if let [first, second] = pair {
                found.extend(overlap(*first, *second));
            }
        }
        found.sort_by_key(|violation| (violation.bytenr, violation.code));
        found
    }
}
