//! Faults planted on purpose, to show and test that they are caught: `serve --plant-fault KIND[@GENERATION]`.
//!
//! A fault changes tree blocks after they were copied out of guest memory and before they are written and captured,
//! as a bug of the guest's file system would have: with a right checksum, and the same in all copies. It stays with
//! one item for one transaction: a block may be written several times before the commit that makes it reachable.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use parser::key::item;
use parser::{Block, Key, ids};

use crate::capture::Regions;
use crate::tap::CopyFate;

/// What to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Adds one to the refs field of an extent item.
    ExtentRefs,
    /// Changes the root in an inline tree block backref.
    BackrefRoot,
    /// Loses the writes of a leaf of a subvolume, acknowledged all the same.
    LoseBlock,
}

const KINDS: [(&str, FaultKind); 3] = [
    ("extent-refs", FaultKind::ExtentRefs),
    ("backref-root", FaultKind::BackrefRoot),
    ("lose-block", FaultKind::LoseBlock),
];

/// A fault and when to plant it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultSpec {
    /// What to break.
    pub kind: FaultKind,
    /// In which transaction; `None` is the first that offers an opportunity.
    pub generation: Option<u64>,
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
        let known = KINDS.iter().find(|(known, _)| *known == name);
        let (_, kind) = known.ok_or_else(|| {
            let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
            format!("unknown fault '{name}': one of {}", names.join(", "))
        })?;
        Ok(FaultSpec { kind: *kind, generation })
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(_, kind)| kind == self).map_or("", |(name, _)| *name);
        f.write_str(name)
    }
}

/// What the fault has settled on: a transaction, and an item that says which block it is in, wherever that block
/// is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    generation: u64,
    owner: u64,
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
            match self.spec.kind {
                FaultKind::LoseBlock if single => return CopyFate::Lose,
                FaultKind::LoseBlock => block.fill(0),
                FaultKind::ExtentRefs | FaultKind::BackrefRoot => {
                    let target = *self.target.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(target) = target {
                        self.break_item(block, &target.key);
                        regions.geometry.csum.seal(block);
                    }
                }
            }
        }
        CopyFate::Write
    }

    /// Whether `block` is one to be broken; settles on a target at the first opportunity.
    fn settles_on(&self, block: &[u8]) -> bool {
        let Ok(Block::Leaf(leaf)) = Block::parse(block) else { return false };
        let header = leaf.header();
        let (generation, owner) = (header.generation(), header.owner());
        let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = *target {
            let same = target.generation == generation && target.owner == owner;
            return same && leaf.items().any(|(key, _)| key == target.key);
        }
        if self.spec.generation.is_some_and(|wanted| wanted != generation) {
            return false;
        }
        let eligible = match self.spec.kind {
            FaultKind::LoseBlock if ids::is_fs_tree(owner) => leaf.key(0),
            FaultKind::ExtentRefs | FaultKind::BackrefRoot if owner == ids::EXTENT_TREE => {
                let slot = (0..leaf.len()).find(|&slot| self.item_byte(&leaf, slot).is_some());
                slot.and_then(|slot| leaf.key(slot))
            }
            _ => None,
        };
        let Some(key) = eligible else { return false };
        tracing::warn!(
            "planting fault {} in generation {generation}, tree {owner}, item {key}",
            self.spec.kind
        );
        *target = Some(Target { generation, owner, key });
        true
    }

    /// Offset, within the item's data, of the byte to be changed.
    fn item_byte(&self, leaf: &parser::Leaf<'_>, slot: usize) -> Option<usize> {
        let key = leaf.key(slot)?;
        let data = leaf.data(slot);
        match (self.spec.kind, key.item_type) {
            (FaultKind::ExtentRefs, item::EXTENT_ITEM | item::METADATA_ITEM) if data.len() >= 24 => Some(0),
            // Behind the 24 bytes of a skinny extent item: the inline ref's type, then its root.
            (FaultKind::BackrefRoot, item::METADATA_ITEM) if data.get(24) == Some(&item::TREE_BLOCK_REF) => {
                Some(25)
            }
            _ => None,
        }
    }

    fn break_item(&self, block: &mut [u8], key: &Key) {
        let found = match Block::parse(block) {
            Ok(Block::Leaf(leaf)) => {
                let slot = leaf.lower_bound(key);
                let byte = self.item_byte(&leaf, slot);
                byte.and_then(|byte| Some(data_offset(block, leaf.data(slot))? + byte))
            }
            _ => None,
        };
        if let Some(byte) = found.and_then(|at| block.get_mut(at)) {
            *byte = byte.wrapping_add(1);
        }
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
        assert_eq!(spec, FaultSpec { kind: FaultKind::ExtentRefs, generation: Some(12) });
        assert_eq!("lose-block".parse::<FaultSpec>().unwrap().generation, None);
        assert!("nonsense".parse::<FaultSpec>().is_err());
        assert!("lose-block@soon".parse::<FaultSpec>().is_err());
    }
}
