//! What the live trees refer to.
//!
//! Every live tree block counts once, however many trees share it. A block whose extent has FULL_BACKREF gives what it
//! points to by its own address, any other by its header's owner. Log trees and the remap tree have no part in it.

use std::collections::{BTreeMap, BTreeSet};

use parser::key::item;
use parser::{Block, FileExtent, Key, ids};

use crate::recorded::{Recorded, Root, roots};
use crate::report::{Multiset, RefKey};
use crate::volume::Volume;

/// What the walk over all trees finds.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// References by extent and holder.
    pub(crate) references: Multiset,
    /// Length of each extent as its references give it.
    pub(crate) lengths: BTreeMap<u64, u64>,
    /// Every live tree block.
    pub(crate) tree_blocks: BTreeSet<u64>,
    /// What could not be read, in words.
    pub(crate) problems: Vec<String>,
}

/// What a pointer says about the block it points to.
struct Expected {
    bytenr: u64,
    level: u8,
    generation: u64,
    /// `None` for a root.
    first_key: Option<Key>,
}

impl Expected {
    /// What the block says of itself, where that is something else.
    fn contradiction(&self, block: &Block<'_>) -> Option<String> {
        let found = (block.header().level(), block.header().generation());
        let wanted = (self.level, self.generation);
        let first_key = block.first_key();
        if found == wanted && (self.first_key.is_none() || self.first_key == first_key) {
            return None;
        }
        let key = self.first_key;
        let bytenr = self.bytenr;
        Some(format!(
            "block {bytenr}: level and generation {found:?} first key {first_key:?}, wanted {wanted:?} {key:?}"
        ))
    }
}

/// Walks all trees.
pub(crate) fn collect(volume: &mut Volume<'_>, recorded: &Recorded) -> Result<Held, String> {
    let mut roots = roots(volume)?;
    roots.retain(|root| root.key.objectid != ids::REMAP_TREE && root.key.objectid != ids::TREE_LOG);
    // A half deleted tree masks pointers only in blocks that belong to it alone. Walking it last means that whatever
    // it shares has been visited, unmasked, on behalf of another tree.
    roots.sort_by_key(|root| root.cursor.is_some());
    let mut walk = Walk { volume, recorded, held: Held::default() };
    for root in &roots {
        walk.root(root);
    }
    Ok(walk.held)
}

struct Walk<'a, 'b> {
    volume: &'a mut Volume<'b>,
    recorded: &'a Recorded,
    held: Held,
}

impl Walk<'_, '_> {
    fn root(&mut self, root: &Root) {
        let key = if root.key.objectid == ids::TREE_RELOC {
            RefKey::SharedTree { parent: root.bytenr }
        } else {
            RefKey::Tree { root: root.key.objectid }
        };
        let (bytenr, level, generation) = (root.bytenr, root.level, root.generation);
        let expected = Expected { bytenr, level, generation, first_key: None };
        self.point_to_block(&expected, key, root.cursor);
    }

    /// Counts a reference to a tree block and, the first time, everything the block refers to.
    fn point_to_block(&mut self, expected: &Expected, key: RefKey, cursor: Option<(Key, u8)>) {
        let bytenr = expected.bytenr;
        self.count(bytenr, key, self.volume.nodesize() as u64);
        let is_new = self.held.tree_blocks.insert(bytenr);
        let bytes = match self.volume.block(bytenr) {
            Ok(bytes) => bytes,
            Err(problem) => return self.held.problems.push(problem),
        };
        let block = match Block::parse(&bytes) {
            Ok(block) => block,
            Err(error) => return self.held.problems.push(format!("block {bytenr}: {error}")),
        };
        // Every pointer must be right, not only the first that leads to a shared block.
        if let Some(problem) = expected.contradiction(&block) {
            return self.held.problems.push(problem);
        }
        if !is_new {
            return;
        }
        let header = block.header();
        self.check_item(bytenr, expected);
        let is_full = self.recorded.extents.get(&bytenr).is_some_and(|extent| extent.is_full_backref());
        match block {
            Block::Node(node) => {
                let key = if is_full {
                    RefKey::SharedTree { parent: bytenr }
                } else {
                    RefKey::Tree { root: header.owner() }
                };
                let first = cursor.map_or(0, |cursor| first_unmasked(&node, cursor));
                for slot in first..node.len() {
                    let Some(ptr) = node.ptr(slot) else { continue };
                    let level = expected.level - 1;
                    let (bytenr, generation) = (ptr.bytenr, ptr.generation);
                    let child = Expected { bytenr, level, generation, first_key: Some(ptr.key) };
                    // The cursor leads down along one path: the first pointer that is not masked.
                    let below = cursor.filter(|(_, drop_level)| slot == first && level >= *drop_level);
                    self.point_to_block(&child, key, below);
                }
            }
            Block::Leaf(leaf) => {
                for (key, data) in leaf.items().filter(|(key, _)| key.item_type == item::EXTENT_DATA) {
                    self.file_extent(bytenr, header.owner(), is_full, &key, data);
                }
            }
        }
    }

    /// Compares a live block with its extent item; a missing one is found when references are compared.
    fn check_item(&mut self, bytenr: u64, block: &Expected) {
        let Some(extent) = self.recorded.extents.get(&bytenr) else { return };
        let recorded = (extent.level, extent.generation, extent.is_tree_block());
        if recorded != (Some(block.level.into()), block.generation, true) {
            let (level, generation) = (block.level, block.generation);
            self.held.problems.push(format!(
                "block {bytenr}: level {level} generation {generation}, but the extent item says {extent:?}"
            ));
        }
    }

    fn file_extent(&mut self, leaf: u64, owner: u64, is_full: bool, key: &Key, data: &[u8]) {
        let extent = match FileExtent::parse(data) {
            Ok(extent) => extent,
            Err(error) => return self.held.problems.push(format!("leaf {leaf} {key}: {error}")),
        };
        let Some(range) = extent.extent() else { return };
        let holder = if is_full {
            RefKey::SharedData { parent: leaf }
        } else {
            let offset = key.offset.wrapping_sub(range.offset);
            RefKey::Data { root: owner, objectid: key.objectid, offset }
        };
        self.count(range.disk_bytenr, holder, range.disk_num_bytes);
    }

    fn count(&mut self, bytenr: u64, key: RefKey, length: u64) {
        *self.held.references.entry((bytenr, key)).or_default() += 1;
        let known = *self.held.lengths.entry(bytenr).or_insert(length);
        if known != length {
            self.held.problems.push(format!("extent {bytenr}: referenced with lengths {known} and {length}"));
        }
    }
}

/// First slot of a node on a half deleted tree's path whose pointer still counts. Above the cursor's level that is
/// the slot the cursor lies in; at its level the first slot not before the cursor.
fn first_unmasked(node: &parser::Node<'_>, (key, drop_level): (Key, u8)) -> usize {
    if node.header().level() > drop_level {
        node.slot_for(&key).unwrap_or(0)
    } else {
        node.ptrs().take_while(|ptr| ptr.key < key).count()
    }
}
