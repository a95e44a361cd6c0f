//! What the oracle sees in one commit, and by how much two commits differ.

use std::collections::BTreeMap;

use btrfs_shadow::image::Image;
use oracle::{RefKey, Report};
use parser::Chunk;

/// One commit as the oracle sees it.
pub struct Picture {
    /// Everything it found.
    pub report: Report,
    /// Where logical ranges lie: one that has moved holds other extents than before.
    chunks: Vec<Chunk>,
    /// Trees with a drop cursor.
    pub half_dropped: usize,
    /// Relocation trees.
    pub relocating: usize,
}

/// Sums of the positive and of the negative differences of a multiset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// References more.
    pub add: u64,
    /// References fewer.
    pub drop: u64,
}

/// An extent and a reference to it. The level keeps blocks apart that take each other's place.
type Key = (u64, bool, Option<u64>, RefKey);

impl Picture {
    /// Asks the oracle about what `image` holds now.
    ///
    /// # Errors
    /// When there is no file system, or its root tree can't be read.
    pub fn take(image: &dyn Image) -> Result<Self, String> {
        let mut read = |offset: u64, buf: &mut [u8]| image.read_at(buf, offset);
        let mut volume = oracle::Volume::open(&mut read)?;
        let report = oracle::examine_volume(&mut volume)?;
        let chunks = volume.map().chunks().to_vec();
        let roots = oracle::roots(&mut volume)?;
        let half_dropped = roots.iter().filter(|root| root.cursor.is_some()).count();
        let relocating = roots.iter().filter(|root| root.key.objectid == parser::ids::TREE_RELOC).count();
        Ok(Picture { report, chunks, half_dropped, relocating })
    }

    /// What changed in the references that the trees hold. Extents of a chunk that has been replaced are others,
    /// even at the same address.
    #[must_use]
    pub fn references_since(&self, last: &Picture) -> Change {
        let replaced = self.replaced_since(last);
        let key = |report: &Report, is_new: bool, (bytenr, key): (u64, RefKey)| {
            let reborn = is_new && replaced.iter().any(|&(start, end)| (start..end).contains(&bytenr));
            (bytenr, reborn, level(report, bytenr), key)
        };
        let before = last.report.references.iter();
        let after = self.report.references.iter();
        difference(
            before.map(|(&one, &count)| (key(&last.report, false, one), count)),
            after.map(|(&one, &count)| (key(&self.report, true, one), count)),
        )
    }

    /// What changed in the references that the extent tree records.
    #[must_use]
    pub fn recorded_since(&self, last: &Picture) -> Change {
        let key = |report: &Report, (bytenr, key): (u64, RefKey)| (bytenr, false, level(report, bytenr), key);
        let before = last.report.recorded.iter();
        let after = self.report.recorded.iter();
        difference(
            before.map(|(&one, &count)| (key(&last.report, one), count)),
            after.map(|(&one, &count)| (key(&self.report, one), count)),
        )
    }

    /// Extent items that are there now and were not, and the other way round.
    #[must_use]
    pub fn extents_since(&self, last: &Picture) -> Change {
        let count = |of: &Picture, not_in: &Picture| {
            of.report.extents.keys().filter(|bytenr| !not_in.report.extents.contains_key(bytenr)).count()
                as u64
        };
        Change { add: count(self, last), drop: count(last, self) }
    }

    fn replaced_since(&self, last: &Picture) -> Vec<(u64, u64)> {
        let now: BTreeMap<u64, &Chunk> = self.chunks.iter().map(|chunk| (chunk.logical, chunk)).collect();
        let gone = |chunk: &&Chunk| {
            now.get(&chunk.logical)
                .is_none_or(|now| now.stripes != chunk.stripes || now.length != chunk.length)
        };
        last.chunks.iter().filter(gone).map(|chunk| (chunk.logical, chunk.logical + chunk.length)).collect()
    }
}

fn level(report: &Report, bytenr: u64) -> Option<u64> {
    report.extents.get(&bytenr).and_then(|extent| extent.level)
}

fn difference(before: impl Iterator<Item = (Key, u64)>, after: impl Iterator<Item = (Key, u64)>) -> Change {
    let mut net: BTreeMap<Key, i64> = BTreeMap::new();
    before.for_each(|(key, count)| *net.entry(key).or_default() -= count.cast_signed());
    after.for_each(|(key, count)| *net.entry(key).or_default() += count.cast_signed());
    let mut change = Change::default();
    for difference in net.into_values() {
        if difference > 0 {
            change.add += difference.unsigned_abs();
        } else {
            change.drop += difference.unsigned_abs();
        }
    }
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_summed_up_by_sign() {
        let key = |bytenr| (bytenr, false, None, RefKey::Tree { root: 5 });
        let before = [(key(1), 3), (key(2), 1), (key(3), 2)];
        let after = [(key(1), 1), (key(3), 2), (key(4), 5)];
        assert_eq!(difference(before.into_iter(), after.into_iter()), Change { add: 5, drop: 3 });
    }
}
