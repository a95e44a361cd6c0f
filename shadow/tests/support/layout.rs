//! Cuts a list of items into the blocks of a tree. Where it is cut depends on the keys around, so that a change
//! leaves most blocks as they were, and leaves split and merge as items come and go.

use std::collections::BTreeSet;

use parser::Key;

use super::bytes::{Config, Content, Items, Ptr};

/// How full blocks get, and where they are cut.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Most items in a leaf.
    pub leaf: usize,
    /// Most pointers in a node; at least 2.
    pub node: usize,
    /// One in how many keys begins a block before it is full.
    pub every: u64,
    /// Changes where blocks are cut.
    pub salt: u64,
    /// Keys that begin a leaf, whatever the rest says.
    pub cuts: BTreeSet<Key>,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { leaf: 8, node: 5, every: 4, salt: 0, cuts: BTreeSet::new() }
    }
}

impl Shape {
    fn cuts_at(&self, key: &Key, level: u8) -> bool {
        let mut hash = key.objectid ^ self.salt.rotate_left(17) ^ u64::from(level) << 56;
        hash = (hash ^ key.offset.rotate_left(29) ^ u64::from(key.item_type))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 40).is_multiple_of(self.every)
    }
}

/// Hands every block to `place`, children first, and returns the pointer to the root and its level.
pub fn layout(
    items: &Items,
    shape: &Shape,
    config: &Config,
    mut place: impl FnMut(u8, Content) -> Ptr,
) -> (Ptr, u8) {
    let mut leaves: Vec<Vec<(Key, Vec<u8>)>> = vec![Vec::new()];
    let mut used = 0;
    for (key, data) in items {
        let need = 25 + data.len();
        let leaf = leaves.last_mut().unwrap();
        let full = leaf.len() >= shape.leaf || used + need > config.leaf_space();
        let cut = shape.cuts.contains(key) || (leaf.len() > 1 && shape.cuts_at(key, 0));
        if !leaf.is_empty() && (full || cut) {
            leaves.push(Vec::new());
            used = 0;
        }
        used += need;
        leaves.last_mut().unwrap().push((*key, data.clone()));
    }
    let mut level = 0;
    let mut ptrs: Vec<Ptr> = leaves.into_iter().map(|leaf| place(0, Content::Leaf(leaf))).collect();
    while ptrs.len() > 1 {
        level += 1;
        let mut nodes: Vec<Vec<Ptr>> = vec![Vec::new()];
        for ptr in ptrs {
            let node = nodes.last_mut().unwrap();
            // Two at least, so that every level has fewer blocks than the one below.
            if node.len() >= 2 && (node.len() >= shape.node || shape.cuts_at(&ptr.key, level)) {
                nodes.push(Vec::new());
            }
            nodes.last_mut().unwrap().push(ptr);
        }
        ptrs = nodes.into_iter().map(|node| place(level, Content::Node(node))).collect();
    }
    (ptrs[0], level)
}
