//! What a tree block must satisfy by itself, without looking at any other: key order and item layout
//! (`btrfs_check_leaf`, `btrfs_check_node` in the kernel's tree-checker.c).

use core::fmt;

use crate::block::{Block, Leaf, Node};
use crate::key::Key;
use crate::layout;

/// A block that is not well formed. `slot` is the item or pointer concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFault {
    /// A key that is not greater than the one before it.
    KeyOrder {
        /// Slot of the second of the two keys.
        slot: usize,
        /// Key of the slot before.
        previous: Key,
        /// Key of the slot.
        key: Key,
    },
    /// Item data that does not end where the data of the item before begins, or reaches into the item array.
    ItemBounds {
        /// Slot of the item.
        slot: usize,
        /// Where its data should end, in bytes from the end of the header.
        expected_end: usize,
        /// Where it ends.
        end: usize,
    },
    /// A node without pointers.
    EmptyNode,
    /// A pointer to address 0 or to an address that is no multiple of the sector size.
    BlockPointer {
        /// Slot of the pointer.
        slot: usize,
        /// The address.
        bytenr: u64,
    },
}

impl fmt::Display for BlockFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockFault::KeyOrder { slot, previous, key } => {
                write!(f, "slot={slot}, bad key order, prev {previous} current {key}")
            }
            BlockFault::ItemBounds { slot, expected_end, end } => {
                write!(f, "slot={slot}, unexpected item end, have {end} expect {expected_end}")
            }
            BlockFault::EmptyNode => write!(f, "invalid nritems 0 for a node"),
            BlockFault::BlockPointer { slot, bytenr } => {
                write!(f, "slot={slot}, invalid block pointer {bytenr}")
            }
        }
    }
}

/// Checks key order and item layout of a block; `sectorsize` in bytes.
///
/// # Errors
/// The first fault found.
pub fn block(block: &Block<'_>, sectorsize: u32) -> Result<(), BlockFault> {
    match block {
        Block::Node(block) => node(block, sectorsize),
        Block::Leaf(block) => leaf(block),
    }
}

fn node(node: &Node<'_>, sectorsize: u32) -> Result<(), BlockFault> {
    if node.is_empty() {
        return Err(BlockFault::EmptyNode);
    }
    let mut previous = None;
    for (slot, ptr) in node.ptrs().enumerate() {
        key_order(previous.replace(ptr.key), ptr.key, slot)?;
        if ptr.bytenr == 0 || !ptr.bytenr.is_multiple_of(u64::from(sectorsize.max(1))) {
            return Err(BlockFault::BlockPointer { slot, bytenr: ptr.bytenr });
        }
    }
    Ok(())
}

fn leaf(leaf: &Leaf<'_>) -> Result<(), BlockFault> {
    let mut previous = None;
    let array_end = leaf.len() * size_of::<layout::Item>();
    let mut expected_end = leaf.body_len();
    for slot in 0..leaf.len() {
        let (Some(key), Some((start, size))) = (leaf.key(slot), leaf.data_range(slot)) else { break };
        key_order(previous.replace(key), key, slot)?;
        let end = start.saturating_add(size);
        if end != expected_end || start < array_end {
            return Err(BlockFault::ItemBounds { slot, expected_end, end });
        }
        expected_end = start;
    }
    Ok(())
}

fn key_order(previous: Option<Key>, key: Key, slot: usize) -> Result<(), BlockFault> {
    match previous {
        Some(previous) if previous >= key => Err(BlockFault::KeyOrder { slot, previous, key }),
        _ => Ok(()),
    }
}
