//! Block groups: what they say is used against the extents in them, and each against its chunk.
//!
//! A commit is judged by its changes: `used` must change by as much as the extents do. Only where it does not is the
//! block group counted from end to end, and accused if it is wrong now: a commit that mends old damage is not.

use std::collections::{BTreeMap, BTreeSet};

use parser::{Chunk, ChunkMap, Key, ids};

use crate::codes::Code;
use crate::forest::{BlockProblem, Forest};
use crate::space::commit::{Commit, Outcome};
use crate::space::extents::{Neighbours, extent_range};
use crate::space::group::{Group, Groups, chunk_range};
use crate::space::lost::LostChunk;
use crate::tree::Searcher;
use crate::violation::Violation;

/// By how much the two sides of a block group's sum have changed.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    used: i128,
    taken: i128,
}

fn sums(commit: &Commit<'_, '_>) -> BTreeMap<u64, Sums> {
    let mut sums: BTreeMap<u64, Sums> = BTreeMap::new();
    for change in &commit.groups {
        for (group, sign) in [(change.old, -1), (change.new, 1)] {
            let Some(group) = group else { continue };
            sums.entry(group.start).or_default().used += sign * i128::from(group.used);
        }
    }
    for change in commit.extents.changes.values() {
        let sides = [(&change.old, commit.old, -1), (&change.new, commit.new, 1)];
        for (record, forest, sign) in sides {
            let Some(record) = record else { continue };
            let Some(chunk) = forest.snapshot.chunks.chunk_at(record.bytenr) else { continue };
            sums.entry(chunk.logical).or_default().taken += sign * i128::from(record.len);
        }
    }
    sums
}

/// `used` of every block group whose item or extents changed.
pub(crate) fn used(commit: &mut Commit<'_, '_>) -> Outcome {
    let mut found = Vec::new();
    let mut groups = Groups::new(commit.new);
    for (start, sums) in sums(commit) {
        if sums.used == sums.taken {
            continue;
        }
        let Some(group) = groups.at(start)? else { continue };
        if commit.explained.explains_sum(group.range(), sums.used - sums.taken) {
            continue;
        }
        found.extend(wrong_used(&group, taken(commit.new, &group)?));
    }
    Ok(found)
}

/// Bytes that extents take of a block group.
fn taken(forest: Forest<'_>, group: &Group) -> Result<u64, BlockProblem> {
    let mut items = Searcher::new(forest, forest.snapshot.tree(ids::EXTENT_TREE));
    let mut sum = 0u64;
    let Some(last) = group.range().1.checked_sub(1) else { return Ok(0) };
    items.range(Key::new(group.start, 0, 0), Key::new(last, u8::MAX, u64::MAX), |item| {
        let len = extent_range(&item.key, forest.nodesize()).map_or(0, |(_, len)| len);
        sum = sum.saturating_add(len);
    })?;
    Ok(sum)
}

/// A block group whose `used` is not the sum of its extents.
#[must_use]
pub fn wrong_used(group: &Group, taken: u64) -> Option<Violation> {
    let Group { start, len, used, .. } = *group;
    (used != taken).then(|| {
        let message = format!("block group [{start} {len}] used {used} but extent items used {taken}");
        Violation::new(Code::SpaceBlockGroupUsed, start, len, message).with_worth(taken, used)
    })
}

/// The super block's `bytes_used`, where it did not change as the block groups did. Where it changed as the extents
/// did, the block groups are to blame.
pub(crate) fn bytes_used(commit: &mut Commit<'_, '_>) -> Outcome {
    if let Some(must_change) = commit.bytes_used.take() {
        *must_change = Some(sums(commit).values().map(|sums| sums.used).sum());
        return Ok(Vec::new());
    }
    let side = |forest: &Forest<'_>| forest.snapshot.super_view().map_or(0, |view| view.bytes_used());
    let now = side(&commit.new);
    let more = i128::from(now) - i128::from(side(&commit.old));
    let sums = sums(commit);
    let total = |of: fn(&Sums) -> i128| sums.values().map(of).sum::<i128>();
    if more == total(|sums| sums.used) || more == total(|sums| sums.taken) {
        return Ok(Vec::new());
    }
    let mut groups = Groups::new(commit.new);
    let mut used = 0u64;
    for chunk in commit.new.snapshot.chunks.chunks() {
        let of_group = match groups.at(chunk.logical)? {
            Some(group) => Some(group.used),
            // Another rule's finding. What it held before, and what the extents have added to it, is known.
            None => used_before(commit.old, chunk, &sums)?,
        };
        let Some(of_group) = of_group else { return Ok(Vec::new()) };
        used = used.saturating_add(of_group);
    }
    Ok(Vec::from_iter(wrong_bytes_used(now, used)))
}

/// What a block group would say that is gone while its chunk is there; `None` where it was not there before either.
fn used_before(
    old: Forest<'_>,
    chunk: &Chunk,
    sums: &BTreeMap<u64, Sums>,
) -> Result<Option<u64>, BlockProblem> {
    let more = sums.get(&chunk.logical).map_or(0, |sums| sums.taken);
    let used = Groups::new(old).at(chunk.logical)?.map(|group| i128::from(group.used).saturating_add(more));
    Ok(used.and_then(|used| u64::try_from(used).ok()))
}

/// A super block whose `bytes_used` is not the sum over the block groups.
#[must_use]
pub fn wrong_bytes_used(bytes_used: u64, used: u64) -> Option<Violation> {
    (bytes_used != used).then(|| {
        let message = format!("super bytes used {bytes_used} mismatches actual used {used}");
        Violation::new(Code::SpaceBytesUsed, 0, 0, message).with_worth(used, bytes_used)
    })
}

/// Chunks and block groups that changed, against each other.
pub(crate) fn chunks(commit: &mut Commit<'_, '_>) -> Outcome {
    let (gone, made) = commit.changed_chunks();
    let mut starts: BTreeSet<u64> = gone.iter().chain(&made).map(|chunk| chunk.logical).collect();
    for change in &commit.groups {
        let shape = |group: Option<Group>| group.map(|group| (group.start, group.len, group.flags));
        if shape(change.old) != shape(change.new) {
            starts.extend(change.old.or(change.new).map(|group| group.start));
        }
    }
    let mut groups = Groups::new(commit.new);
    let mut found = Vec::new();
    for start in starts {
        let chunk = commit.new.snapshot.chunks.chunk_at(start).filter(|chunk| chunk.logical == start);
        found.extend(unlike_chunk(chunk, groups.at(start)?.as_ref()));
    }
    commit.unlike = found.iter().map(|violation: &Violation| violation.bytenr).collect();
    let mut neighbours = Neighbours::new(commit.new);
    for chunk in gone {
        // Where the block group is still there, that is the finding.
        if groups.at(chunk.logical)?.is_none() {
            found.extend(commit.lost.iter().find(|lost| lost.chunk.logical == chunk.logical).map(not_empty));
            found.extend(crossing(&mut neighbours, chunk, &commit.new.snapshot.chunks)?);
        }
    }
    let crosses = |found: &&Violation| found.code == Code::SpaceBlockGroupOverlap;
    commit.crossing = found.iter().filter(crosses).map(|found| found.bytenr).collect();
    Ok(found)
}

/// A chunk that is gone, with its block group, while extents lie where no chunk is any more. Blocks and data that stay
/// are read by no other rule.
fn not_empty(lost: &LostChunk) -> Violation {
    let LostChunk { chunk, extents, bytes, first: (bytenr, len) } = lost;
    let (start, length) = (chunk.logical, chunk.length);
    let message = format!(
        "block group [{start} {length}] was removed while it held {extents} extents, {bytes} bytes in all, the first of \
         them [{bytenr} {len}]; none of them lies in a block group now"
    );
    Violation::new(Code::SpaceBlockGroupNotEmpty, start, length, message).with_worth(0u64, *extents)
}

/// Extents over an edge of a chunk that is gone with its block group (`btrfs_free_ref_tree_range`). Where another has taken
/// its addresses, the edge may lie in the midst of that one.
fn crossing(neighbours: &mut Neighbours<'_>, chunk: &Chunk, now: &ChunkMap) -> Outcome {
    let (start, end) = chunk_range(chunk);
    let mut found = Vec::new();
    for edge in [start, end] {
        let before = neighbours.before(edge)?;
        let Some((bytenr, len)) = before.filter(|(bytenr, len)| bytenr.saturating_add(*len) > edge) else {
            continue;
        };
        if now.chunk_at(bytenr).is_some_and(|now| bytenr.saturating_add(len) <= now.end()) {
            continue;
        }
        if found.iter().any(|known: &Violation| known.bytenr == bytenr) {
            continue;
        }
        let message =
            format!("block entry [{bytenr} {len}] overlaps a block group [{start},{}]!", chunk.length);
        let violation = Violation::new(Code::SpaceBlockGroupOverlap, bytenr, len, message);
        found.push(violation.with_worth(edge, bytenr.saturating_add(len)));
    }
    Ok(found)
}

/// A chunk and the block group at the same address: both or none, and alike.
#[must_use]
pub fn unlike_chunk(chunk: Option<&Chunk>, group: Option<&Group>) -> Option<Violation> {
    let violation =
        |start, len, message: String| Violation::new(Code::SpaceBlockGroupChunk, start, len, message);
    match (chunk, group) {
        (None, None) => None,
        (Some(Chunk { logical, length, .. }), None) => {
            let message = format!("Chunk[256, 228, {logical}] of {length} bytes is not found in block group");
            Some(violation(*logical, *length, message))
        }
        (None, Some(Group { start, len, .. })) => {
            let message = format!("Block group[{start}, {len}] didn't find the relative chunk");
            Some(violation(*start, *len, message))
        }
        (Some(chunk), Some(group)) if chunk.length != group.len => {
            let message = format!(
                "Chunk[256, 228, {}]: length({}) mismatch with block group[{}, {}]",
                chunk.logical, chunk.length, group.start, group.len
            );
            Some(violation(group.start, group.len, message).with_worth(chunk.length, group.len))
        }
        (Some(chunk), Some(group)) if chunk.flags != group.flags => {
            let message = format!(
                "Chunk[256, 228, {}]: type({:#x}) mismatch with block group[{}, {}]: type({:#x})",
                chunk.logical, chunk.flags.0, group.start, group.len, group.flags.0
            );
            Some(violation(group.start, group.len, message).with_worth(chunk.flags.0, group.flags.0))
        }
        _ => None,
    }
}
