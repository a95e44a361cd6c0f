//! Planting a fault in an image file: finding a block that has what the kind changes, and writing all its copies.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use oracle::Volume;
use oracle::volume::ReadAt;
use parser::Block;

use crate::rng::Rng;
use crate::{Kind, Planted, mutate_block};

/// A live tree block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveBlock {
    /// Whether it is the root of a tree.
    pub is_root: bool,
    /// Its generation.
    pub generation: u64,
}

/// All blocks that the trees reach, but for trees that are half deleted.
///
/// # Errors
/// When one of them cannot be read.
pub fn live_blocks(volume: &mut Volume<'_>) -> Result<BTreeMap<u64, LiveBlock>, String> {
    let mut blocks = BTreeMap::new();
    for root in oracle::roots(volume)?.iter().filter(|root| root.cursor.is_none()) {
        volume.walk(root.bytenr, root.level, &mut |bytenr, block: &Block<'_>| {
            let is_root = bytenr == root.bytenr;
            blocks.entry(bytenr).or_insert(LiveBlock { is_root, generation: block.header().generation() });
        })?;
    }
    Ok(blocks)
}

/// What plants a fault: bytes to be written at offsets of the device.
pub type Patches = Vec<(u64, Vec<u8>)>;

/// Works out a fault of the kind for a device, in a block chosen by the seed, without writing it.
///
/// # Errors
/// When the device cannot be read, or has nothing that the kind could change.
pub fn plan<'a>(read: &'a mut ReadAt<'a>, kind: &Kind, seed: u64) -> Result<(Planted, Patches), String> {
    let mut volume = Volume::open(read)?;
    let generation = volume.super_block().generation();
    let eligible: Vec<u64> = live_blocks(&mut volume)?
        .iter()
        .filter(|(_, block)| !(kind.needs_parent && block.is_root))
        .filter(|(_, block)| !kind.needs_new_block || block.generation == generation)
        .map(|(bytenr, _)| *bytenr)
        .collect();
    for index in Rng::new(seed).order(eligible.len()) {
        let bytenr = eligible[index];
        let mut bytes = volume.block(bytenr)?.to_vec();
        let Some(planted) = mutate_block(&mut bytes, kind, seed) else { continue };
        let copies = volume.copies(bytenr)?;
        return Ok((planted, copies.into_iter().map(|offset| (offset, bytes.clone())).collect()));
    }
    Err(format!("{}: nothing in this image that it could change", kind.name))
}

/// Plants a fault of the kind in an image, in a block chosen by the seed.
///
/// # Errors
/// When the image cannot be read or written, or has nothing that the kind could change.
pub fn corrupt_image(image: &Path, kind: &Kind, seed: u64) -> Result<Planted, String> {
    let text = |error: std::io::Error| error.to_string();
    let file = OpenOptions::new().read(true).write(true).open(image).map_err(text)?;
    let (planted, patches) = plan(&mut |offset, bytes| file.read_exact_at(bytes, offset), kind, seed)?;
    for (offset, bytes) in patches {
        file.write_all_at(&bytes, offset).map_err(text)?;
    }
    Ok(planted)
}
