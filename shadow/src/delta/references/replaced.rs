//! Chunks that are gone: what lies at their addresses now is something else.

use crate::forest::Forest;
use crate::space::LostChunk;

/// Logical ranges whose chunk is another one than before.
#[derive(Debug, Default)]
pub struct ReplacedRanges(Vec<(u64, u64)>);

impl ReplacedRanges {
    /// Compares the chunk maps of two commits. What lay in a chunk that was `lost` with all its extents is still there,
    /// as far as references go.
    #[must_use]
    pub fn new(old: &Forest<'_>, new: &Forest<'_>, lost: &[LostChunk]) -> Self {
        let (old, new) = (&old.snapshot.chunks, &new.snapshot.chunks);
        let gone = |chunk: &&parser::Chunk| {
            // A chunk that was made again lies elsewhere: what it took is not given out before the commit.
            new.chunk_at(chunk.logical).is_none_or(|now| !now.is_where(chunk))
                && !lost.iter().any(|lost| lost.chunk.logical == chunk.logical)
        };
        ReplacedRanges(old.chunks().iter().filter(gone).map(|chunk| (chunk.logical, chunk.end())).collect())
    }

    /// Whether the address lay in a chunk that is gone.
    #[must_use]
    pub fn contains(&self, bytenr: u64) -> bool {
        self.0.iter().any(|&(start, end)| (start..end).contains(&bytenr))
    }

    /// The ranges: first address and first past the end.
    #[must_use]
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }
}
