//! The references that stand in no tree block but the super block and the root items: where a walk begins.

use std::collections::BTreeMap;

use parser::{Key, RootItem, ids};

use super::{Add, Walk};
use crate::edges::{Edge, Target};
use crate::forest::{Expect, Forest, RootId};
use crate::record::{RefKey, Site};

impl Walk<'_, '_> {
    /// The references of super block and root items.
    pub(super) fn roots(&mut self) {
        // In a chunk that took the place of another, the same address is another block.
        let replaced = self.inputs.replaced;
        let (before, now) = (&self.inputs.old.snapshot.roots, &self.inputs.new.snapshot.roots);
        let is_changed = |id: &RootId, item: &RootItem| {
            before.get(id) != Some(item) || now.get(id) != Some(item) || replaced.contains(item.bytenr)
        };
        let old = root_edges(&self.inputs.old, is_changed);
        let new = root_edges(&self.inputs.new, is_changed);
        let same_root = |a: &Edge, b: &Edge| same_root(a, b) && !replaced.contains(a.bytenr);
        for (id, edge) in &new {
            match old.get(id) {
                Some(before) if same_root(before, edge) => {
                    // The same root block under a root item that says something else about it.
                    let Target::Tree(expect) = edge.target else { continue };
                    if before != edge
                        && let Err(problem) = self.inputs.new.read(&expect)
                    {
                        self.result.problems.push(problem);
                    }
                }
                Some(before) => {
                    self.propose_pair(before, edge);
                    self.adds.push(Add::unchecked(*edge));
                }
                None => self.adds.push(Add::unchecked(*edge)),
            }
        }
        for (id, edge) in &old {
            if new.get(id).is_none_or(|now| !same_root(now, edge)) {
                self.drops.push(*edge);
            }
        }
    }
}

fn same_root(a: &Edge, b: &Edge) -> bool {
    a.bytenr == b.bytenr && a.key == b.key
}

/// The references that the super block and those root items that are `wanted` hold. Log trees and the remap tree
/// hold none.
pub(crate) fn root_edges(
    forest: &Forest<'_>,
    wanted: impl Fn(&RootId, &RootItem) -> bool,
) -> BTreeMap<RootId, Edge> {
    let mut edges = BTreeMap::new();
    let mut insert = |id: RootId, expect: Expect| {
        let key = if id.tree == ids::TREE_RELOC {
            RefKey::shared_tree(expect.bytenr, expect.level)
        } else {
            RefKey::tree(id.tree, expect.level)
        };
        let site = Site { block: 0, slot: 0 };
        edges.insert(
            id,
            Edge { item: Key::MIN, bytenr: expect.bytenr, key, target: Target::Tree(expect), site },
        );
    };
    if let Some(superblock) = forest.snapshot.super_view() {
        insert(RootId { tree: ids::ROOT_TREE, offset: 0 }, Expect::root_tree(&superblock));
        insert(RootId { tree: ids::CHUNK_TREE, offset: 0 }, Expect::chunk_tree(&superblock));
    }
    for (id, item) in forest.snapshot.roots.iter() {
        if item.bytenr != 0 && holds_references(id.tree) && wanted(id, item) {
            insert(*id, Expect::root(*id, item));
        }
    }
    edges
}

/// Whether the blocks of a tree take part in reference counting.
#[must_use]
pub fn holds_references(tree: u64) -> bool {
    !matches!(tree, ids::REMAP_TREE | ids::TREE_LOG | ids::ROOT_TREE | ids::CHUNK_TREE)
}
