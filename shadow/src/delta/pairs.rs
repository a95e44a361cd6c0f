//! Blocks that were copied on write: the copy and its original, and what differs between them.
//!
//! Where the original is gone, what both hold cancels out. Where it lives on in a snapshot nothing does, but the
//! pointers that both have were checked when the original was.

use std::ops::Range;

use hashbrown::HashMap;
use parser::{Block, Key};

use crate::edges::{Edge, Target};
use crate::forest::Expect;

/// What a block was copied from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Original {
    /// How to reach it.
    pub(super) expect: Expect,
    /// The extent tree says that its only reference is dropped.
    pub(super) gone: bool,
}

/// Originals and their copies.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// By address of the copy: the original.
    originals: HashMap<u64, Original>,
    /// By address of the original: what only it holds, once that is known.
    rests: HashMap<u64, Vec<Edge>>,
}

impl Pairs {
    /// Notes that `to` seems to be the copy of `from`.
    pub(super) fn propose(&mut self, from: Expect, to: Expect, gone: bool) {
        self.originals.entry(to.bytenr).or_insert(Original { expect: from, gone });
    }

    /// The original of the block at `bytenr`. With one copy it cancels out; with another it does not, any more.
    pub(super) fn original_of(&self, bytenr: u64) -> Option<Original> {
        let original = self.originals.get(&bytenr)?;
        let gone = original.gone && !self.rests.contains_key(&original.expect.bytenr);
        Some(Original { gone, ..*original })
    }

    /// Notes what only the original at `bytenr` holds.
    pub(super) fn settle(&mut self, bytenr: u64, rest: Vec<Edge>) {
        self.rests.insert(bytenr, rest);
    }

    /// What is left to be dropped when the original at `bytenr` dies; `None` when it was compared with nothing.
    pub(super) fn take_rest(&mut self, bytenr: u64) -> Option<Vec<Edge>> {
        self.rests.remove(&bytenr)
    }
}

/// Slots in a row that say the same in both blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// First slot in the original.
    original: usize,
    /// First slot in the copy.
    copy: usize,
    len: usize,
}

/// What two blocks, each in key order, have in common by a look at their bytes.
#[derive(Debug, Default)]
pub(super) struct Common {
    /// In the order of the slots, on both sides.
    runs: Vec<Run>,
}

impl Common {
    /// Compares two blocks.
    pub(super) fn new(original: &Block<'_>, copy: &Block<'_>) -> Self {
        match (original, copy) {
            (Block::Node(old), Block::Node(new)) => Common::merge(
                |slot| old.key(slot),
                |slot| new.key(slot),
                |slot, other| old.common_run(slot, new, other),
            ),
            (Block::Leaf(old), Block::Leaf(new)) => Common::merge(
                |slot| old.key(slot),
                |slot| new.key(slot),
                |slot, other| old.common_run(slot, new, other),
            ),
            _ => Common::default(),
        }
    }

    fn merge(
        original: impl Fn(usize) -> Option<Key>,
        copy: impl Fn(usize) -> Option<Key>,
        run: impl Fn(usize, usize) -> usize,
    ) -> Self {
        let mut common = Common::default();
        let (mut old, mut new) = (0, 0);
        loop {
            let len = run(old, new);
            if len > 0 {
                common.runs.push(Run { original: old, copy: new, len });
                (old, new) = (old + len, new + len);
            }
            let (Some(old_key), Some(new_key)) = (original(old), copy(new)) else { return common };
            let order = old_key.cmp(&new_key);
            old += usize::from(order.is_le());
            new += usize::from(order.is_ge());
        }
    }

    /// Slots of the original, of `len`, that the copy does not hold.
    pub(super) fn gone(&self, len: usize) -> impl Iterator<Item = Range<usize>> {
        between(self.runs.iter().map(|run| (run.original, run.len)), len)
    }

    /// Slots of the copy, of `len`, that the original did not hold.
    pub(super) fn made(&self, len: usize) -> impl Iterator<Item = Range<usize>> {
        between(self.runs.iter().map(|run| (run.copy, run.len)), len)
    }

    /// Slots of the copy, of `len`, that the original did not hold, or not behind the same slot.
    pub(super) fn touched(&self, len: usize) -> impl Iterator<Item = Range<usize>> {
        let untouched = |run: &Run| {
            // What begins both blocks stands behind nothing in either.
            let moved = usize::from((run.original, run.copy) != (0, 0));
            (run.copy + moved, run.len - moved)
        };
        between(self.runs.iter().map(untouched), len)
    }
}

/// The slots of `len` that are in none of `runs` (first slot and length).
fn between(runs: impl Iterator<Item = (usize, usize)>, len: usize) -> impl Iterator<Item = Range<usize>> {
    let ends = runs.chain([(len, 0)]);
    ends.scan(0, |from, (start, run)| Some(std::mem::replace(from, start + run)..start))
        .filter(|range| !range.is_empty())
}

/// What differs between two blocks.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// References that only the original holds.
    pub(super) dropped: Vec<Edge>,
    /// References that only the copy holds.
    pub(super) added: Vec<Edge>,
    /// Those of the copy that the original holds as well.
    pub(super) shared: Vec<Edge>,
    /// Pointers to different blocks at the same key: original's, copy's. They may be a pair again.
    pub(super) same_place: Vec<(Edge, Edge)>,
}

/// Compares what two blocks hold, both in key order.
pub(super) fn compare(original: Vec<Edge>, copy: Vec<Edge>) -> Compared {
    let mut compared = Compared::default();
    let (mut original, mut copy) = (original.into_iter().peekable(), copy.into_iter().peekable());
    loop {
        match (original.peek(), copy.peek()) {
            (Some(old), Some(new)) if old.item == new.item => {
                if old.is_same_reference(new) {
                    compared.shared.push(*new);
                } else {
                    if let (Target::Tree(_), Target::Tree(_)) = (old.target, new.target) {
                        compared.same_place.push((*old, *new));
                    }
                    compared.dropped.push(*old);
                    compared.added.push(*new);
                }
                original.next();
                copy.next();
            }
            (Some(old), new) if new.is_none_or(|new| old.item < new.item) => {
                compared.dropped.extend(original.next());
            }
            (_, Some(_)) => compared.added.extend(copy.next()),
            _ => return compared,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares lists of key and value as if they were blocks.
    fn common(original: &[(u64, u8)], copy: &[(u64, u8)]) -> Common {
        let key = |items: &[(u64, u8)], slot: usize| items.get(slot).map(|(id, _)| Key::new(*id, 0, 0));
        let run = |old: usize, new: usize| {
            let pairs = original.iter().skip(old).zip(copy.iter().skip(new));
            pairs.take_while(|(old, new)| old == new).count()
        };
        Common::merge(|slot| key(original, slot), |slot| key(copy, slot), run)
    }

    fn slots(ranges: impl Iterator<Item = Range<usize>>) -> Vec<usize> {
        ranges.flatten().collect()
    }

    #[test]
    fn what_is_not_in_both_is_gone_or_made_and_what_stands_behind_it_is_touched() {
        let original = [(1, 0), (2, 0), (3, 0), (5, 0), (6, 0), (7, 0), (9, 0)];
        let copy = [(1, 0), (2, 1), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0)];
        let common = common(&original, &copy);
        assert_eq!(slots(common.gone(7)), [1, 6]);
        assert_eq!(slots(common.made(8)), [1, 3, 7]);
        assert_eq!(slots(common.touched(8)), [1, 2, 3, 4, 7]);
    }

    #[test]
    fn what_begins_both_stands_behind_nothing_unless_it_did_not_begin_both() {
        let items = [(1, 0), (2, 0)];
        assert_eq!(slots(common(&items, &items).touched(2)), []);
        assert_eq!(slots(common(&items, &items[1..]).touched(1)), [0]);
        assert_eq!(slots(common(&items[1..], &items).touched(2)), [0, 1]);
        assert_eq!(slots(common(&items, &[]).gone(2)), [0, 1]);
        assert_eq!(slots(Common::default().touched(2)), [0, 1]);
    }
}
