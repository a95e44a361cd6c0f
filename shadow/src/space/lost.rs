//! Block groups that go while they hold extents, and what follows from that and from a chunk of a wrong length.
//!
//! A chunk item that is gone or wrong is one fault, and everything that lies in the chunk seems wrong with it: extents in
//! no block group, device extents without a chunk, free space past an end, sums. So what the rules find is held against
//! the chunks as they would be without that fault; what is wrong in either case is a fault of its own. Knows nothing of
//! references: where a chunk is lost nothing has been freed, and they are compared as if it were there.

use std::sync::Arc;

use parser::{Chunk, ChunkMap, Key, ids};

use crate::codes::Code;
use crate::forest::{BlockProblem, Forest, Snapshot};
use crate::space::extents::extent_range;
use crate::space::group::{Groups, chunk_range};
use crate::tree::Searcher;
use crate::violation::{Violation, Worth};

/// A chunk that is gone while extents are recorded where no chunk is any more.
#[derive(Debug, Clone)]
pub struct LostChunk {
    /// The chunk.
    pub chunk: Chunk,
    /// Extents that begin in it.
    pub extents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first of them, address and length.
    pub first: (u64, u64),
}

/// The chunks that a commit has lost. A range that another chunk has taken, in part or as a whole, is none: what lies
/// there may be the new one's.
///
/// # Errors
/// [`BlockProblem`] when the extent tree can't be read.
pub fn lost_chunks(old: &Forest<'_>, new: &Forest<'_>) -> Result<Vec<LostChunk>, BlockProblem> {
    let (before, now) = (&old.snapshot.chunks, &new.snapshot.chunks);
    let mut lost = Vec::new();
    if Arc::ptr_eq(before, now) {
        return Ok(lost);
    }
    let mut items = Searcher::new(*new, new.snapshot.tree(ids::EXTENT_TREE));
    for chunk in before.chunks().iter().filter(|chunk| is_vacant(now, chunk)) {
        let (start, end) = chunk_range(chunk);
        let Some(last) = end.checked_sub(1) else { continue };
        let (mut extents, mut bytes, mut first) = (0u64, 0u64, None);
        items.range(Key::new(start, 0, 0), Key::new(last, u8::MAX, u64::MAX), |item| {
            let Some(extent) = extent_range(&item.key, new.nodesize()) else { return };
            extents = extents.saturating_add(1);
            bytes = bytes.saturating_add(extent.1);
            first.get_or_insert(extent);
        })?;
        lost.extend(first.map(|first| LostChunk { chunk: chunk.clone(), extents, bytes, first }));
    }
    Ok(lost)
}

/// Whether no chunk lies where `chunk` lay.
fn is_vacant(now: &ChunkMap, chunk: &Chunk) -> bool {
    let (start, end) = chunk_range(chunk);
    now.chunks().iter().all(|other| other.end() <= start || end <= other.logical)
}

/// Both states of a commit with the chunks as they would be if none had been lost, and each were as long as its block
/// group; `None` where that is how they are.
///
/// # Errors
/// [`BlockProblem`] when the block groups can't be read.
pub fn supposed(
    (old, new): (&Forest<'_>, &Forest<'_>),
    lost: &[LostChunk],
) -> Result<Option<(Snapshot, Snapshot)>, BlockProblem> {
    let before = as_long_as_groups(old)?;
    let now = as_long_as_groups(new)?;
    if before.is_none() && now.is_none() && lost.is_empty() {
        return Ok(None);
    }
    let chunks_of = |forest: &Forest<'_>, fitted: Option<Vec<Chunk>>| {
        fitted.unwrap_or_else(|| forest.snapshot.chunks.chunks().to_vec())
    };
    let mut all = chunks_of(new, now);
    all.extend(lost.iter().map(|lost| lost.chunk.clone()));
    let with = |forest: &Forest<'_>, chunks: Vec<Chunk>| {
        // Where they would overlap, nothing can be supposed.
        let chunks = ChunkMap::new(chunks).ok()?;
        Some(Snapshot { chunks: Arc::new(chunks), ..forest.snapshot.clone() })
    };
    Ok(with(old, chunks_of(old, before)).zip(with(new, all)))
}

/// All chunks, those that are shorter or longer than their block groups with the length of these; `None` if there are
/// none.
fn as_long_as_groups(forest: &Forest<'_>) -> Result<Option<Vec<Chunk>>, BlockProblem> {
    let mut groups = Groups::new(*forest);
    let mut chunks = forest.snapshot.chunks.chunks().to_vec();
    let mut differ = false;
    for chunk in &mut chunks {
        if let Some(group) = groups.at(chunk.logical)?
            && group.len != chunk.length
        {
            chunk.length = group.len;
            differ = true;
        }
    }
    Ok(differ.then_some(chunks))
}

/// Puts together what follows from a chunk that was made by the commit and is not there: its device extent and the extents
/// in it are. All of these are new, so that nothing else of it can be wrong.
#[must_use]
pub fn fold_missing(mut found: Vec<Violation>, chunks: &ChunkMap) -> Vec<Violation> {
    let of_code = |found: &[Violation], code: Code| -> Vec<(u64, u64)> {
        let these = found.iter().filter(|violation| violation.code == code);
        these.map(|violation| (violation.bytenr, violation.len)).collect()
    };
    let is_missing = |(chunk, _): &(u64, u64)| chunks.chunk_at(*chunk).is_none();
    for (chunk, len) in of_code(&found, Code::SpaceDevExtent).into_iter().filter(is_missing) {
        let within = |bytenr: u64| (chunk..chunk.saturating_add(len)).contains(&bytenr);
        let mut extents = of_code(&found, Code::SpaceExtentOutsideBlockGroup);
        extents.retain(|(bytenr, _)| within(*bytenr));
        let Some(first) = extents.iter().map(|(bytenr, _)| *bytenr).min() else { continue };
        let bytes = extents.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
        found.retain(|violation| match violation.code {
            Code::SpaceExtentOutsideBlockGroup => violation.bytenr == first || !within(violation.bytenr),
            Code::SpaceDevExtent => violation.bytenr != chunk,
            Code::SpaceBytesUsed => !is_off_by(violation, bytes),
            _ => true,
        });
        let kept = found.iter_mut().find(|violation| {
            violation.code == Code::SpaceExtentOutsideBlockGroup && violation.bytenr == first
        });
        if let Some(kept) = kept {
            let count = extents.len() as u64;
            kept.message = format!(
                "{}: chunk {chunk} of {len} bytes has device extents and {count} extents, {bytes} bytes in all, but neither \
                 a chunk item nor a block group",
                kept.message
            );
            (kept.expected, kept.found) = (Worth::Number(0), Worth::Number(count));
        }
    }
    found
}

/// Whether there is more by so much than there should be.
fn is_off_by(violation: &Violation, bytes: u64) -> bool {
    match (&violation.expected, &violation.found) {
        (Worth::Number(expected), Worth::Number(found)) => found.checked_sub(*expected) == Some(bytes),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use parser::BlockFlags;

    use super::*;

    #[test]
    fn what_follows_from_a_missing_chunk_is_one_report() {
        let found = |code, bytenr, len| Violation::new(code, bytenr, len, "");
        let used = |more: u64| found(Code::SpaceBytesUsed, 0, 0).with_worth(1000u64, 1000 + more);
        let all = |used| {
            let outside = Code::SpaceExtentOutsideBlockGroup;
            let extents = [found(outside, 100, 8), found(outside, 160, 8), found(outside, 200, 8)];
            let others = [found(Code::SpaceDevExtent, 100, 100), found(Code::SpaceDevExtent, 900, 10), used];
            let found: Vec<Violation> = extents.into_iter().chain(others).collect();
            let left = fold_missing(found.clone(), &ChunkMap::default());
            // A chunk that is there is another fault than the extent that leaves it.
            let chunk = Chunk {
                logical: 100,
                length: 60,
                flags: BlockFlags(BlockFlags::DATA),
                stripe_len: 65536,
                sub_stripes: 0,
                stripes: Vec::new(),
            };
            assert_eq!(fold_missing(found.clone(), &ChunkMap::new(vec![chunk]).unwrap()).len(), found.len());
            left.iter().map(|found| (found.code, found.bytenr)).collect::<Vec<_>>()
        };
        let outside = Code::SpaceExtentOutsideBlockGroup;
        let left = [(outside, 100), (outside, 200), (Code::SpaceDevExtent, 900)];
        assert_eq!(all(used(16)), left);
        assert_eq!(all(used(24)), [&left[..], &[(Code::SpaceBytesUsed, 0)]].concat());
    }
}
