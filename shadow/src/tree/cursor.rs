//! A cursor over one tree that stands either on a pointer not followed yet or on an item.

use std::sync::Arc;

use hashbrown::HashSet;
use parser::{Block, Key};

use crate::codes::Code;
use crate::forest::{BlockProblem, Expect, Forest};
use crate::record::Site;
use crate::source::TreeBlock;
use crate::violation::Violation;

/// An item where it stands: the leaf is held, so that its bytes can be looked at later.
#[derive(Debug, Clone)]
pub struct ItemRef {
    /// The item's key.
    pub key: Key,
    /// Leaf and slot.
    pub site: Site,
    leaf: Arc<TreeBlock>,
}

impl ItemRef {
    /// Refers to the item in `slot` of `leaf`; `None` where there is none.
    #[must_use]
    pub fn new(leaf: &Arc<TreeBlock>, slot: usize) -> Option<Self> {
        match leaf.view()? {
            Block::Leaf(view) => {
                let site = Site { block: view.header().bytenr(), slot };
                Some(ItemRef { key: view.key(slot)?, site, leaf: Arc::clone(leaf) })
            }
            Block::Node(_) => None,
        }
    }

    /// The item's data.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        match self.leaf.view() {
            Some(Block::Leaf(view)) => view.data(self.site.slot),
            _ => &[],
        }
    }
}

/// Where a cursor stands.
#[derive(Debug, Clone)]
pub enum Position {
    /// Before a subtree: on the pointer to it.
    Subtree(Expect),
    /// On an item.
    Item(ItemRef),
    /// Behind everything.
    End,
}

impl Position {
    /// The key the cursor stands at; a root counts as the smallest key. `None` at the end.
    #[must_use]
    pub fn key(&self) -> Option<Key> {
        match self {
            Position::Subtree(expect) => Some(expect.first_key.unwrap_or(Key::MIN)),
            Position::Item(item) => Some(item.key),
            Position::End => None,
        }
    }
}

struct Frame {
    block: Arc<TreeBlock>,
    expect: Expect,
    slot: usize,
}

/// A cursor over the tree below one pointer. A subtree that cannot be read is noted in [`Cursor::problems`] and
/// passed over.
pub struct Cursor<'a> {
    forest: Forest<'a>,
    root: Option<Expect>,
    stack: Vec<Frame>,
    /// A lying guest may make a tree reach the same block many times over; each is entered once.
    entered: HashSet<u64>,
    problems: Vec<BlockProblem>,
}

impl<'a> Cursor<'a> {
    /// A cursor before the tree whose root is `root`.
    #[must_use]
    pub fn new(forest: Forest<'a>, root: Option<Expect>) -> Self {
        Cursor { forest, root, stack: Vec::new(), entered: HashSet::new(), problems: Vec::new() }
    }

    /// What could not be read so far.
    #[must_use]
    pub fn into_problems(self) -> Vec<BlockProblem> {
        self.problems
    }

    /// Where the cursor stands.
    #[must_use]
    pub fn position(&self) -> Position {
        if let Some(root) = self.root {
            return Position::Subtree(root);
        }
        let Some(frame) = self.stack.last() else { return Position::End };
        match frame.block.view() {
            Some(Block::Node(node)) => match node.ptr(frame.slot) {
                Some(ptr) => Position::Subtree(frame.expect.child(&node, frame.slot, &ptr)),
                None => Position::End,
            },
            Some(Block::Leaf(_)) => {
                ItemRef::new(&frame.block, frame.slot).map_or(Position::End, Position::Item)
            }
            None => Position::End,
        }
    }

    /// Passes over what the cursor stands on, a subtree as a whole.
    pub fn skip(&mut self) {
        if self.root.take().is_some() {
            return;
        }
        if let Some(frame) = self.stack.last_mut() {
            frame.slot += 1;
        }
        self.pop_finished();
    }

    /// Enters the subtree the cursor stands before. On an item, does nothing.
    pub fn enter(&mut self) {
        let Position::Subtree(expect) = self.position() else { return };
        // The parent moves on at once: when the child is finished, the cursor stands behind it.
        if self.root.take().is_none()
            && let Some(frame) = self.stack.last_mut()
        {
            frame.slot += 1;
        }
        if !self.entered.insert(expect.bytenr) {
            let message =
                format!("block {} is reached twice in one tree, from block {}", expect.bytenr, expect.from.0);
            let violation =
                Violation::new(Code::TreeDoublyLinked, expect.bytenr, self.forest.nodesize(), message);
            self.problems.push(BlockProblem::Violation(Box::new(violation)));
        } else {
            match self.forest.read(&expect) {
                Ok(block) => self.stack.push(Frame { block, expect, slot: 0 }),
                Err(problem) => self.problems.push(problem),
            }
        }
        self.pop_finished();
    }

    /// Next item in key order, entering every subtree on the way.
    pub fn next_item(&mut self) -> Option<ItemRef> {
        loop {
            match self.position() {
                Position::Subtree(_) => self.enter(),
                Position::Item(item) => {
                    self.skip();
                    return Some(item);
                }
                Position::End => return None,
            }
        }
    }

    /// Passes over what both cursors have in common from where they stand, as far as it is in one block of each:
    /// pointers to the same subtrees, or items with the same data.
    pub(super) fn skip_common(&mut self, other: &mut Cursor<'_>) {
        if self.root.is_some() || other.root.is_some() {
            return;
        }
        let (Some(one), Some(two)) = (self.stack.last_mut(), other.stack.last_mut()) else { return };
        let (at, of) = (one.slot, two.slot);
        let count = match (one.block.view(), two.block.view()) {
            (Some(Block::Node(a)), Some(Block::Node(b))) if a.header().level() == b.header().level() => {
                a.common_run(at, &b, of)
            }
            (Some(Block::Leaf(a)), Some(Block::Leaf(b))) => a.common_run(at, &b, of),
            _ => 0,
        };
        one.slot += count;
        two.slot += count;
        self.pop_finished();
        other.pop_finished();
    }

    fn pop_finished(&mut self) {
        while let Some(frame) = self.stack.last() {
            let len = match frame.block.view() {
                Some(Block::Node(node)) => node.len(),
                Some(Block::Leaf(leaf)) => leaf.len(),
                None => 0,
            };
            if frame.slot < len {
                break;
            }
            self.stack.pop();
        }
    }
}
