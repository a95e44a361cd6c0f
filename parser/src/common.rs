//! What two blocks have in common from one slot of each on: how many pointers or items in a row are the same.
//!
//! A copied block is mostly the same as its original. Long runs are compared as stretches of bytes, which takes a
//! fraction of the time of looking at each item.

use zerocopy::IntoBytes as _;

use crate::block::{Leaf, Node};
use crate::layout;

/// Bytes that are compared at once where the first difference is looked for.
const STRETCH: usize = 256;

impl Node<'_> {
    /// How many pointers from `slot` on are those that `other` has from `other_slot` on.
    #[must_use]
    pub fn common_run(&self, slot: usize, other: &Node<'_>, other_slot: usize) -> usize {
        let (Some(these), Some(those)) = (self.ptrs.get(slot..), other.ptrs.get(other_slot..)) else {
            return 0;
        };
        same_bytes(these.as_bytes(), those.as_bytes()) / size_of::<layout::KeyPtr>()
    }
}

impl Leaf<'_> {
    /// How many items from `slot` on, keys and data, are those that `other` has from `other_slot` on. Both leaves must
    /// be well formed ([`crate::check::block`]); of others nothing is said that could be relied upon.
    #[must_use]
    pub fn common_run(&self, slot: usize, other: &Leaf<'_>, other_slot: usize) -> usize {
        let (Some(these), Some(those)) = (self.items.get(slot..), other.items.get(other_slot..)) else {
            return 0;
        };
        let count = same_headers(these, those);
        let (these, those) = (these.get(..count).unwrap_or(&[]), those.get(..count).unwrap_or(&[]));
        same_data((self.body, these), (other.body, those))
    }
}

/// How many bytes the two have in common from the first on.
fn same_bytes(these: &[u8], those: &[u8]) -> usize {
    let stretches = these.chunks_exact(STRETCH).zip(those.chunks_exact(STRETCH));
    let same = stretches.take_while(|(these, those)| these == those).count() * STRETCH;
    let rest = these.iter().skip(same).zip(those.iter().skip(same));
    same + rest.take_while(|(these, those)| these == those).count()
}

/// How many items have the same keys and sizes, and their data equally far apart.
fn same_headers(these: &[layout::Item], those: &[layout::Item]) -> usize {
    let (Some(this), Some(that)) = (these.first(), those.first()) else { return 0 };
    let apart = |this: &layout::Item, that: &layout::Item| this.offset.get().wrapping_sub(that.offset.get());
    let first = apart(this, that);
    if first == 0 {
        return same_bytes(these.as_bytes(), those.as_bytes()) / size_of::<layout::Item>();
    }
    let same = |(this, that): &(&layout::Item, &layout::Item)| {
        this.key.as_bytes() == that.key.as_bytes() && this.size == that.size && apart(this, that) == first
    };
    these.iter().zip(those).take_while(same).count()
}

/// How many of as many items have the same data. That of items in a row lies in one piece, the first one's last.
fn same_data(these: (&[u8], &[layout::Item]), those: (&[u8], &[layout::Item])) -> usize {
    let count = these.1.len();
    if count == 0 {
        return 0;
    }
    if piece(these).is_some_and(|piece_of_these| Some(piece_of_these) == piece(those)) {
        return count;
    }
    if count == 1 {
        return 0;
    }
    let half = count / 2;
    let ((first, second), (other_first, other_second)) = (these.1.split_at(half), those.1.split_at(half));
    match same_data((these.0, first), (those.0, other_first)) {
        same if same == half => half + same_data((these.0, second), (those.0, other_second)),
        same => same,
    }
}

/// The bytes that the data of items in a row takes; `None` where it does not lie within the block.
fn piece<'a>((body, items): (&'a [u8], &[layout::Item])) -> Option<&'a [u8]> {
    let (first, last) = (items.first()?, items.last()?);
    let start = usize::try_from(last.offset.get()).ok()?;
    let end =
        usize::try_from(first.offset.get()).ok()?.checked_add(usize::try_from(first.size.get()).ok()?)?;
    body.get(start..end)
}
