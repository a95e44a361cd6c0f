//! The extent tree of a recorded state.

use std::collections::BTreeSet;

use oracle::Volume;
use parser::key::item;
use parser::{Block, Key, ids};

use crate::disk::Memory;

/// The extent tree of one state of the disk.
pub struct ExtentTree {
    /// Its leaves, and where the copies of each lie.
    pub leaves: Vec<(Vec<u8>, Vec<u64>)>,
    /// Addresses of all extents.
    pub extents: BTreeSet<u64>,
}

impl ExtentTree {
    /// Reads it.
    ///
    /// # Panics
    /// When the state is not sound.
    #[must_use]
    pub fn read(memory: &Memory) -> Self {
        Self::try_read(memory).unwrap_or_else(|error| panic!("a recorded state is not sound: {error}"))
    }

    fn try_read(memory: &Memory) -> Result<Self, String> {
        let mut read = |offset: u64, buffer: &mut [u8]| memory.read_at(offset, buffer);
        let mut volume = Volume::open(&mut read)?;
        let mut places = Vec::new();
        let mut extents = BTreeSet::new();
        let roots = oracle::roots(&mut volume)?;
        for root in roots.iter().filter(|root| root.key.objectid == ids::EXTENT_TREE) {
            volume.walk(root.bytenr, root.level, &mut |bytenr, block| {
                let Block::Leaf(leaf) = block else { return };
                places.push(bytenr);
                let is_extent = |key: &Key| [item::EXTENT_ITEM, item::METADATA_ITEM].contains(&key.item_type);
                let keys = leaf.items().map(|(key, _)| key);
                extents.extend(keys.filter(is_extent).map(|key| key.objectid));
            })?;
        }
        let mut leaves = Vec::new();
        for bytenr in places {
            leaves.push((volume.block(bytenr)?.to_vec(), volume.copies(bytenr)?));
        }
        Ok(ExtentTree { leaves, extents })
    }
}
