//! What changed between two versions of a tree, subtrees that both share passed over unread.

use parser::Key;

use crate::forest::{BlockProblem, Expect, Forest};
use crate::tree::cursor::{Cursor, ItemRef, Position};

/// An item that differs. Items that only moved to another leaf are not reported.
#[derive(Debug)]
pub enum Change {
    /// Only the new tree has it.
    Added(ItemRef),
    /// Only the old tree has it.
    Removed(ItemRef),
    /// Both have it, with different data: old, new.
    Modified(ItemRef, ItemRef),
}

impl Change {
    /// Key of the item.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Change::Added(item) | Change::Removed(item) | Change::Modified(item, _) => item.key,
        }
    }

    /// The item in the old tree.
    #[must_use]
    pub fn before(&self) -> Option<&ItemRef> {
        match self {
            Change::Removed(item) | Change::Modified(item, _) => Some(item),
            Change::Added(_) => None,
        }
    }

    /// The item in the new tree.
    #[must_use]
    pub fn after(&self) -> Option<&ItemRef> {
        match self {
            Change::Added(item) | Change::Modified(_, item) => Some(item),
            Change::Removed(_) => None,
        }
    }
}

/// Compares the tree at `old` with the one at `new` and hands every difference to `visit`, in key order. Subtrees
/// with the same address and generation hold the same bytes and are not read. Returns what could not be read: then
/// the differences are not all there is, and some of them may be none.
pub fn diff(
    old: (Forest<'_>, Option<Expect>),
    new: (Forest<'_>, Option<Expect>),
    mut visit: impl FnMut(Change),
) -> Vec<BlockProblem> {
    let mut old = Cursor::new(old.0, old.1);
    let mut new = Cursor::new(new.0, new.1);
    loop {
        old.skip_common(&mut new);
        match (old.position(), new.position()) {
            (Position::End, Position::End) => break,
            (Position::Subtree(a), Position::Subtree(b)) => meet_subtrees(&mut old, &mut new, &a, &b),
            (Position::Item(a), Position::Item(b)) => {
                if a.key == b.key {
                    if a.data() != b.data() {
                        visit(Change::Modified(a, b));
                    }
                    old.skip();
                    new.skip();
                } else if a.key < b.key {
                    visit(Change::Removed(a));
                    old.skip();
                } else {
                    visit(Change::Added(b));
                    new.skip();
                }
            }
            // An item before all of the other side's subtree has no counterpart in it; else the subtree must be
            // looked into first.
            (Position::Item(a), other) => {
                if other.key().is_none_or(|key| a.key < key) {
                    visit(Change::Removed(a));
                    old.skip();
                } else {
                    new.enter();
                }
            }
            (other, Position::Item(b)) => {
                if other.key().is_none_or(|key| b.key < key) {
                    visit(Change::Added(b));
                    new.skip();
                } else {
                    old.enter();
                }
            }
            (Position::Subtree(_), Position::End) => old.enter(),
            (Position::End, Position::Subtree(_)) => new.enter(),
        }
    }
    let mut problems = old.into_problems();
    problems.extend(new.into_problems());
    problems
}

/// Both cursors stand before a subtree: pass over both if they are one and the same, else enter the one that must
/// be entered for the cursors to be able to meet again.
fn meet_subtrees(old: &mut Cursor<'_>, new: &mut Cursor<'_>, a: &Expect, b: &Expect) {
    if (a.bytenr, a.generation, a.level) == (b.bytenr, b.generation, b.level) {
        old.skip();
        new.skip();
        return;
    }
    let (key_a, key_b) = (a.first_key.unwrap_or(Key::MIN), b.first_key.unwrap_or(Key::MIN));
    // The one that begins first may hold what the other is; of two that begin together, the higher one may.
    let order = key_a.cmp(&key_b).then(b.level.cmp(&a.level));
    if order.is_le() {
        old.enter();
    }
    if order.is_ge() {
        new.enter();
    }
}
