//! Half-deleted subvolumes: which pointers no longer hold a reference.
//!
//! A subvolume is deleted from left to right over many transactions. Its root item says how far that has come; the
//! subtrees before the cursor are gone, while the nodes above them still point there.

use hashbrown::HashMap;
use parser::{Block, Key, RootItem};

use crate::forest::{BlockProblem, Expect, Forest, RootId};

/// First slot, of each node on the path of a drop cursor, that still holds a reference.
pub type Masks = HashMap<u64, usize>;

/// The masks of all subvolumes that are being deleted.
pub fn all(forest: &Forest<'_>, problems: &mut Vec<BlockProblem>) -> Masks {
    let mut masks = Masks::new();
    for (id, item) in forest.snapshot.roots.iter() {
        if let Some((key, level)) = item.drop_cursor()
            && let Err(problem) = path(forest, *id, item, key, level, &mut masks)
        {
            problems.push(problem);
        }
    }
    masks
}

/// Follows the cursor of one root from its root block down to `drop_level`.
fn path(
    forest: &Forest<'_>,
    id: RootId,
    item: &RootItem,
    cursor: Key,
    drop_level: u8,
    masks: &mut Masks,
) -> Result<(), BlockProblem> {
    let mut expect = Expect::root(id, item);
    loop {
        let block = forest.read(&expect)?;
        let Some(Block::Node(node)) = block.view() else { return Ok(()) };
        let header = node.header();
        if header.level() <= drop_level {
            let first = node.ptrs().position(|ptr| ptr.key >= cursor).unwrap_or(node.len());
            masks.insert(header.bytenr(), first);
            return Ok(());
        }
        let slot = node.slot_for(&cursor).unwrap_or(0);
        masks.insert(header.bytenr(), slot);
        let Some(ptr) = node.ptr(slot) else { return Ok(()) };
        expect = expect.child(&node, slot, &ptr);
    }
}
