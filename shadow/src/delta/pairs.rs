//! Blocks that were copied on write: the copy and its original, and what differs between them.
//!
//! Where the original is gone, what both hold cancels out. Where it lives on in a snapshot nothing does, but the
//! pointers that both have were checked when the original was.

use hashbrown::HashMap;
use parser::{Block, Key, Node};

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

/// Slots of two blocks, each in key order, that say the same by a look at their bytes.
#[derive(Debug, Default)]
pub(super) struct Common {
    original: Vec<bool>,
    copy: Vec<bool>,
    /// Slots of the copy that stand behind another item than in the original.
    moved: Vec<bool>,
}

impl Common {
    /// Compares two blocks.
    pub(super) fn new(original: &Block<'_>, copy: &Block<'_>) -> Self {
        match (original, copy) {
            (Block::Node(old), Block::Node(new)) => {
                let at =
                    |node: &Node<'_>, slot| node.ptr(slot).map(|ptr| (ptr.key, (ptr.bytenr, ptr.generation)));
                Common::merge((old.len(), new.len()), |slot| at(old, slot), |slot| at(new, slot))
            }
            (Block::Leaf(old), Block::Leaf(new)) => Common::merge(
                (old.len(), new.len()),
                |slot| old.key(slot).map(|key| (key, old.data(slot))),
                |slot| new.key(slot).map(|key| (key, new.data(slot))),
            ),
            _ => Common::default(),
        }
    }

    fn merge<T: PartialEq>(
        lens: (usize, usize),
        original: impl Fn(usize) -> Option<(Key, T)>,
        copy: impl Fn(usize) -> Option<(Key, T)>,
    ) -> Self {
        let mut common = Common {
            original: Vec::with_capacity(lens.0),
            copy: Vec::with_capacity(lens.1),
            moved: Vec::with_capacity(lens.1),
        };
        // Whether what stands before both slots is the same.
        let mut follows = true;
        let (mut old, mut new) = (original(0), copy(0));
        while let (Some((old_key, old_value)), Some((new_key, new_value))) = (&old, &new) {
            let order = old_key.cmp(new_key);
            let same = order.is_eq() && old_value == new_value;
            if order.is_le() {
                common.original.push(same);
            }
            if order.is_ge() {
                common.copy.push(same);
                common.moved.push(!follows);
            }
            follows = same;
            if order.is_le() {
                old = original(common.original.len());
            }
            if order.is_ge() {
                new = copy(common.copy.len());
            }
        }
        common
    }

    /// Whether the copy holds the same as this slot of the original.
    pub(super) fn is_kept(&self, slot: usize) -> bool {
        self.original.get(slot) == Some(&true)
    }

    /// Whether the original held the same as this slot of the copy.
    pub(super) fn is_copied(&self, slot: usize) -> bool {
        self.copy.get(slot) == Some(&true)
    }

    /// Whether the original held the same as this slot of the copy, behind the same item.
    pub(super) fn is_untouched(&self, slot: usize) -> bool {
        self.is_copied(slot) && self.moved.get(slot) == Some(&false)
    }
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
