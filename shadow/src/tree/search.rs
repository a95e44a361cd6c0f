//! Searches in one tree that come mostly in key order: the leaf found last is tried first.

use std::sync::Arc;

use parser::{Block, Key, Leaf};

use crate::forest::{BlockProblem, Expect, Forest};
use crate::record::Site;
use crate::source::TreeBlock;
use crate::tree::cursor::ItemRef;

/// A leaf and the key that the next leaf begins with.
type LeafAndNext = (Arc<TreeBlock>, Option<Key>);

/// Finds items of one tree.
pub struct Searcher<'a> {
    forest: Forest<'a>,
    root: Option<Expect>,
    /// Where the last search ended.
    leaf: Option<LeafAndNext>,
}

impl<'a> Searcher<'a> {
    /// Searches the tree whose root is `root`; without one, nothing is ever found.
    #[must_use]
    pub fn new(forest: Forest<'a>, root: Option<Expect>) -> Self {
        Searcher { forest, root, leaf: None }
    }

    /// All items whose keys lie in `[from, to]`, handed to `visit` in key order.
    ///
    /// # Errors
    /// [`BlockProblem`] when a block on the way can't be used.
    pub fn range(&mut self, from: Key, to: Key, mut visit: impl FnMut(ItemRef)) -> Result<(), BlockProblem> {
        self.leaves(from, to, |leaf, _, slot| {
            if let Some(item) = ItemRef::new(leaf, slot) {
                visit(item);
            }
        })
    }

    /// The same for those who need the items only while they look at them: key, data, and where they stand.
    ///
    /// # Errors
    /// As [`Searcher::range`].
    pub fn scan(
        &mut self,
        from: Key,
        to: Key,
        mut visit: impl FnMut(Key, &[u8], Site),
    ) -> Result<(), BlockProblem> {
        self.leaves(from, to, |_, view, slot| {
            if let Some(key) = view.key(slot) {
                visit(key, view.data(slot), Site { block: view.header().bytenr(), slot });
            }
        })
    }

    /// Every leaf and slot at which an item stands whose key lies in `[from, to]`.
    fn leaves(
        &mut self,
        from: Key,
        to: Key,
        mut visit: impl FnMut(&Arc<TreeBlock>, &Leaf<'_>, usize),
    ) -> Result<(), BlockProblem> {
        let mut from = from;
        loop {
            let Some((leaf, next)) = self.leaf_for(&from)? else { return Ok(()) };
            if let Some(Block::Leaf(view)) = leaf.view() {
                for slot in view.lower_bound(&from)..view.len() {
                    if view.key(slot).is_none_or(|key| key > to) {
                        return Ok(());
                    }
                    visit(leaf, &view, slot);
                }
            }
            match next {
                Some(next) if *next <= to && *next > from => from = *next,
                _ => return Ok(()),
            }
        }
    }

    /// The last item whose key is not greater than `key`.
    ///
    /// # Errors
    /// [`BlockProblem`] when a block on the way can't be used.
    pub fn at_or_before(&mut self, key: &Key) -> Result<Option<ItemRef>, BlockProblem> {
        let Some((leaf, _)) = self.leaf_for(key)? else { return Ok(None) };
        let Some(Block::Leaf(view)) = leaf.view() else { return Ok(None) };
        let slot = view.lower_bound(key);
        let slot = if view.key(slot) == Some(*key) { Some(slot) } else { slot.checked_sub(1) };
        Ok(slot.and_then(|slot| ItemRef::new(leaf, slot)))
    }

    /// The first item whose key is not less than `key`.
    ///
    /// # Errors
    /// [`BlockProblem`] when a block on the way can't be used.
    pub fn at_or_after(&mut self, key: &Key) -> Result<Option<ItemRef>, BlockProblem> {
        let mut from = *key;
        loop {
            let Some((leaf, next)) = self.leaf_for(&from)? else { return Ok(None) };
            let Some(Block::Leaf(view)) = leaf.view() else { return Ok(None) };
            match (ItemRef::new(leaf, view.lower_bound(&from)), next) {
                (Some(item), _) => return Ok(Some(item)),
                (None, Some(next)) if *next > from => from = *next,
                _ => return Ok(None),
            }
        }
    }

    /// The leaf that would hold `key`.
    fn leaf_for(&mut self, key: &Key) -> Result<Option<&LeafAndNext>, BlockProblem> {
        let is_there = self.leaf.as_ref().is_some_and(|(leaf, next)| {
            let first = leaf.view().and_then(|view| view.first_key());
            first.is_some_and(|first| first <= *key) && next.is_none_or(|next| *key < next)
        });
        if !is_there {
            self.leaf = self.descend(key)?;
        }
        Ok(self.leaf.as_ref())
    }

    fn descend(&self, key: &Key) -> Result<Option<LeafAndNext>, BlockProblem> {
        let Some(mut expect) = self.root else { return Ok(None) };
        let mut next = None;
        loop {
            let block = self.forest.read(&expect)?;
            match block.view() {
                Some(Block::Node(node)) => {
                    let slot = node.slot_for(key).unwrap_or(0);
                    let Some(ptr) = node.ptr(slot) else { return Ok(None) };
                    next = node.ptr(slot + 1).map(|ptr| ptr.key).or(next);
                    expect = expect.child(&node, slot, &ptr);
                }
                Some(Block::Leaf(_)) => return Ok(Some((block, next))),
                None => return Ok(None),
            }
        }
    }
}
