//! Faults planted on purpose, to show and test that they are caught: `serve --plant-fault KIND[@GENERATION]`.
//!
//! A fault changes tree blocks after they were copied out of guest memory and before they are written and captured,
//! as a bug of the guest's file system would have: with a right checksum (but where that is the fault), and the same
//! in all copies. It stays with one item for one transaction: a block may be written several times before the commit
//! that makes it reachable.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use parser::block::HEADER_SIZE;
use parser::key::item;
use parser::{Block, Header, Key, ids};

use crate::capture::Regions;
use crate::tap::CopyFate;

/// A kind of fault: which block it takes, and what it does to it.
#[derive(Debug, PartialEq, Eq)]
struct Kind {
    name: &'static str,
    tree: Tree,
    place: Place,
}

/// Whose blocks are broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tree {
    /// A subvolume.
    Files,
    /// The extent tree.
    Extents,
    /// The root tree.
    Roots,
    /// What an fsync logs.
    Logs,
}

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The write of a leaf is lost, acknowledged all the same.
    Lost,
    /// A leaf becomes zeros.
    Zeros,
    /// A leaf keeps its old checksum.
    Stale,
    /// A byte of a leaf's header, at this offset.
    Header(usize, u8),
    /// A byte of a node's first pointer to a block of the same transaction, at this offset.
    Pointer(usize, u8),
    /// A byte of an item's data: item type, a byte that must be there, the offset, and what is added.
    Item(u8, Option<(usize, u8)>, usize, u8),
    /// A byte of the first item's header.
    ItemHeader(usize, u8),
}

const fn kind(name: &'static str, tree: Tree, place: Place) -> Kind {
    Kind { name, tree, place }
}

const TREE_REF: Option<(usize, u8)> = Some((24, item::TREE_BLOCK_REF));
const DATA_REF: Option<(usize, u8)> = Some((24, item::EXTENT_DATA_REF));
/// A file extent with an extent of its own, not inline.
const REGULAR: Option<(usize, u8)> = Some((20, 1));

use Place::{Item, Pointer};
use Tree::{Extents, Files, Roots};

/// Bytes of a pointer in a node.
const POINTER_SIZE: usize = 33;

/// Every kind. Offsets are those of the on-disk format; what is added to the second byte of an address is a block.
const KINDS: [Kind; 30] = [
    kind("extent-refs", Extents, Item(item::METADATA_ITEM, None, 0, 1)),
    kind("extent-generation", Extents, Item(item::METADATA_ITEM, None, 8, 1)),
    kind("backref-root", Extents, Item(item::METADATA_ITEM, TREE_REF, 25, 1)),
    kind("backref-type", Extents, Item(item::METADATA_ITEM, TREE_REF, 24, 6)),
    kind("data-refs", Extents, Item(item::EXTENT_ITEM, DATA_REF, 0, 1)),
    kind("data-generation", Extents, Item(item::EXTENT_ITEM, DATA_REF, 8, 1)),
    kind("data-flags", Extents, Item(item::EXTENT_ITEM, DATA_REF, 16, 1)),
    kind("data-backref-root", Extents, Item(item::EXTENT_ITEM, DATA_REF, 25, 1)),
    kind("data-backref-inode", Extents, Item(item::EXTENT_ITEM, DATA_REF, 33, 1)),
    kind("data-backref-offset", Extents, Item(item::EXTENT_ITEM, DATA_REF, 42, 16)),
    kind("data-backref-count", Extents, Item(item::EXTENT_ITEM, DATA_REF, 49, 1)),
    kind("file-extent-address", Files, Item(item::EXTENT_DATA, REGULAR, 22, 16)),
    kind("file-extent-length", Files, Item(item::EXTENT_DATA, REGULAR, 30, 16)),
    kind("file-extent-offset", Files, Item(item::EXTENT_DATA, REGULAR, 38, 16)),
    kind("file-extent-type", Files, Item(item::EXTENT_DATA, REGULAR, 20, 6)),
    kind("root-generation", Roots, Item(item::ROOT_ITEM, None, 160, 1)),
    kind("root-address", Roots, Item(item::ROOT_ITEM, None, 177, 64)),
    kind("root-level", Roots, Item(item::ROOT_ITEM, None, 238, 1)),
    kind("pointer-address", Files, Pointer(18, 64)),
    kind("pointer-generation", Files, Pointer(25, 1)),
    kind("first-key", Files, Place::ItemHeader(0, 1)),
    kind("item-offset", Files, Place::ItemHeader(17, 1)),
    kind("header-generation", Files, Place::Header(80, 1)),
    kind("header-owner", Extents, Place::Header(88, 1)),
    kind("header-address", Files, Place::Header(49, 64)),
    kind("lose-block", Files, Place::Lost),
    kind("zero-block", Files, Place::Zeros),
    kind("stale-checksum", Files, Place::Stale),
    kind("log-lost", Tree::Logs, Place::Lost),
    kind("log-generation", Tree::Logs, Place::Header(80, 1)),
];

/// A fault and when to plant it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultSpec {
    /// What to break.
    kind: &'static Kind,
    /// In which transaction; `None` is the first that offers an opportunity.
    generation: Option<u64>,
}

impl FromStr for FaultSpec {
    type Err = String;

    fn from_str(spec: &str) -> Result<Self, String> {
        let (name, generation) = match spec.split_once('@') {
            Some((name, generation)) => {
                let number = generation.parse().map_err(|_| format!("'{generation}' is no generation"))?;
                (name, Some(number))
            }
            None => (spec, None),
        };
        let kind = KINDS.iter().find(|known| known.name == name).ok_or_else(|| {
            let names: Vec<&str> = KINDS.iter().map(|known| known.name).collect();
            format!("unknown fault '{name}': one of {}", names.join(", "))
        })?;
        Ok(FaultSpec { kind, generation })
    }
}

impl fmt::Display for FaultSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name)
    }
}

/// What the fault has settled on: a transaction, and an item that says which block it is in, wherever that block
/// is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    generation: u64,
    owner: u64,
    level: u8,
    key: Key,
}

/// A fault waiting for its opportunity, or at work.
#[derive(Debug)]
pub struct FaultPlan {
    spec: FaultSpec,
    target: Mutex<Option<Target>>,
}

impl FaultPlan {
    /// A plan that has not found its target.
    #[must_use]
    pub fn new(spec: FaultSpec) -> Self {
        FaultPlan { spec, target: Mutex::new(None) }
    }

    /// Breaks what is to be broken in a write of `bytes` at `offset`.
    pub fn apply(&self, offset: u64, bytes: &mut [u8], regions: &Regions) -> CopyFate {
        let places: Vec<usize> =
            regions.candidates(offset, bytes).map(|(place, _)| (place - offset) as usize).collect();
        let nodesize = regions.geometry.nodesize as usize;
        let single = places.len() == 1 && bytes.len() == nodesize;
        for at in places {
            let Some(block) = bytes.get_mut(at..at + nodesize) else { continue };
            if !self.settles_on(block) {
                continue;
            }
            match self.spec.kind.place {
                Place::Lost if single => return CopyFate::Lose,
                Place::Lost | Place::Zeros => block.fill(0),
                _ => {
                    let target = *self.target.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(byte) = target.and_then(|target| self.byte(block, &target.key)) {
                        let (at, more) = byte;
                        block[at] = block[at].wrapping_add(more);
                        if self.spec.kind.place != Place::Stale {
                            regions.geometry.csum.seal(block);
                        }
                    }
                }
            }
        }
        CopyFate::Write
    }

    /// Whether `block` is one to be broken; settles on a target at the first opportunity.
    fn settles_on(&self, block: &[u8]) -> bool {
        let Ok(header) = Header::parse(block) else { return false };
        let (generation, owner, level) = (header.generation(), header.owner(), header.level());
        let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = *target {
            let same = target.generation == generation && target.owner == owner && target.level == level;
            return same && keys(block).contains(&target.key);
        }
        if self.spec.generation.is_some_and(|wanted| wanted != generation) {
            return false;
        }
        let is_tree = match self.spec.kind.tree {
            Files => ids::is_fs_tree(owner),
            Extents => owner == ids::EXTENT_TREE,
            Roots => owner == ids::ROOT_TREE,
            Tree::Logs => owner == ids::TREE_LOG,
        };
        let is_level = (level > 0) == matches!(self.spec.kind.place, Pointer(..));
        let found = keys(block).into_iter().find(|key| self.byte(block, key).is_some());
        let Some(key) = found.filter(|_| is_tree && is_level) else { return false };
        tracing::warn!("planting fault {} in generation {generation}, tree {owner}, item {key}", self.spec);
        *target = Some(Target { generation, owner, level, key });
        true
    }

    /// Which byte of the block is changed, and by how much, when the fault is at `key`.
    fn byte(&self, block: &[u8], key: &Key) -> Option<(usize, u8)> {
        let first = HEADER_SIZE;
        match (self.spec.kind.place, Block::parse(block).ok()?) {
            (Place::Header(at, more), Block::Leaf(_)) => Some((at, more)),
            (Place::ItemHeader(at, more), Block::Leaf(_)) => Some((first + at, more)),
            (Place::Lost | Place::Zeros, Block::Leaf(_)) => Some((0, 0)),
            (Place::Stale, Block::Leaf(_)) => Some((block.len() - 1, 1)),
            (Pointer(at, more), Block::Node(node)) => {
                let generation = node.header().generation();
                // One that this transaction has written.
                let slot = node.ptrs().position(|ptr| ptr.key == *key && ptr.generation == generation)?;
                Some((first + slot * POINTER_SIZE + at, more))
            }
            (Item(wanted, begins, at, more), Block::Leaf(leaf)) => {
                let slot = leaf.lower_bound(key);
                let data = leaf.data(slot);
                let is_it = leaf.key(slot) == Some(*key)
                    && key.item_type == wanted
                    && begins.is_none_or(|(at, byte)| data.get(at) == Some(&byte))
                    && at < data.len();
                is_it.then(|| data_offset(block, data).map(|offset| (offset + at, more)))?
            }
            _ => None,
        }
    }
}

/// All keys of a block.
fn keys(block: &[u8]) -> Vec<Key> {
    match Block::parse(block) {
        Ok(Block::Leaf(leaf)) => leaf.items().map(|(key, _)| key).collect(),
        Ok(Block::Node(node)) => node.ptrs().map(|ptr| ptr.key).collect(),
        Err(_) => Vec::new(),
    }
}

/// Where `data`, a part of `block`, begins in it.
fn data_offset(block: &[u8], data: &[u8]) -> Option<usize> {
    (data.as_ptr() as usize).checked_sub(block.as_ptr() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read_and_refused() {
        let spec: FaultSpec = "extent-refs@12".parse().unwrap();
        assert_eq!((spec.kind.name, spec.generation), ("extent-refs", Some(12)));
        assert_eq!("lose-block".parse::<FaultSpec>().unwrap().generation, None);
        assert!("nonsense".parse::<FaultSpec>().is_err());
        assert!("lose-block@soon".parse::<FaultSpec>().is_err());
    }
}
