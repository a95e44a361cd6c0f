//! What the model finds: references, records, and where they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::recorded::{self, Extent};
use crate::references;
use crate::volume::{ReadAt, Volume};

/// Who holds a reference; the counterpart of a backref without its count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefKey {
    /// A tree block, by the owner of the block that points to it.
    Tree {
        /// Tree id.
        root: u64,
    },
    /// A tree block, by the address of the FULL_BACKREF block that points to it.
    SharedTree {
        /// Logical address.
        parent: u64,
    },
    /// Data, by a file.
    Data {
        /// Tree id: owner of the leaf.
        root: u64,
        /// Inode number.
        objectid: u64,
        /// File offset minus offset into the extent.
        offset: u64,
    },
    /// Data, by the address of the FULL_BACKREF leaf that holds the file extent item.
    SharedData {
        /// Logical address.
        parent: u64,
    },
}

impl fmt::Display for RefKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RefKey::Tree { root } => write!(f, "tree block, root {root}"),
            RefKey::SharedTree { parent } => write!(f, "tree block, parent {parent}"),
            RefKey::Data { root, objectid, offset } => {
                write!(f, "data, root {root} inode {objectid} offset {}", *offset as i64)
            }
            RefKey::SharedData { parent } => write!(f, "data, parent {parent}"),
        }
    }
}

/// References counted by extent and holder.
pub type Multiset = BTreeMap<(u64, RefKey), u64>;

/// All that the model found.
#[derive(Debug)]
pub struct Report {
    /// Generation of the super block.
    pub generation: u64,
    /// What the live trees refer to.
    pub references: Multiset,
    /// What the extent tree records, inline and keyed.
    pub recorded: Multiset,
    /// The extent items, by bytenr.
    pub extents: BTreeMap<u64, Extent>,
    /// Owner refs of simple quotas, which are no references.
    pub owner_refs: usize,
    /// Live tree blocks.
    pub tree_blocks: BTreeSet<u64>,
    /// Where references and records differ, and what could not be read, in words. Empty in a sound file system.
    pub differences: Vec<String>,
    /// Sums that do not add up: block groups, bytes used, free space. Empty in a sound file system.
    pub accounting: Vec<String>,
}

/// Examines the file system on a device, given by a function that reads from it.
///
/// # Errors
/// When no file system can be opened: super block or chunk tree are not in order.
pub fn examine<'a>(read: &'a mut ReadAt<'a>) -> Result<Report, String> {
    examine_volume(&mut Volume::open(read)?)
}

/// Examines an opened file system.
///
/// # Errors
/// When the root tree cannot be read.
pub fn examine_volume(volume: &mut Volume<'_>) -> Result<Report, String> {
    let generation = volume.super_block().generation();
    let recorded = recorded::read(volume)?;
    let held = references::collect(volume, &recorded)?;
    let mut differences = recorded.problems.clone();
    differences.extend(held.problems);
    compare_counts(&held.references, &recorded.backrefs, &mut differences);
    for (bytenr, extent) in &recorded.extents {
        check_extent(*bytenr, extent, &mut differences);
        check_sum(*bytenr, extent.refs, &recorded.backrefs, &mut differences);
    }
    for (bytenr, length) in &held.lengths {
        check_length(*bytenr, *length, &recorded.extents, &mut differences);
    }
    let accounting = crate::accounting::check(volume, &recorded)?;
    Ok(Report {
        generation,
        references: held.references,
        recorded: recorded.backrefs,
        extents: recorded.extents,
        owner_refs: recorded.owner_refs,
        tree_blocks: held.tree_blocks,
        differences,
        accounting,
    })
}

fn compare_counts(references: &Multiset, recorded: &Multiset, differences: &mut Vec<String>) {
    let everything: BTreeSet<_> = references.keys().chain(recorded.keys()).collect();
    for &(bytenr, key) in everything {
        let held = references.get(&(bytenr, key)).copied().unwrap_or(0);
        let noted = recorded.get(&(bytenr, key)).copied().unwrap_or(0);
        if held != noted {
            differences.push(format!("extent {bytenr} ({key}): {held} references, {noted} recorded"));
        }
    }
}

fn check_extent(bytenr: u64, extent: &Extent, differences: &mut Vec<String>) {
    if extent.refs == 0 {
        differences.push(format!("extent {bytenr}: refs is 0"));
    }
}

fn check_sum(bytenr: u64, refs: u64, recorded: &Multiset, differences: &mut Vec<String>) {
    let first = (bytenr, RefKey::Tree { root: 0 });
    let own = recorded.range(first..).take_while(|((other, _), _)| *other == bytenr);
    let sum: u64 = own.map(|(_, count)| count).sum();
    if sum != refs {
        differences.push(format!("extent {bytenr}: refs is {refs}, its backrefs sum up to {sum}"));
    }
}

fn check_length(bytenr: u64, length: u64, extents: &BTreeMap<u64, Extent>, differences: &mut Vec<String>) {
    match extents.get(&bytenr) {
        None => differences.push(format!("extent {bytenr}: referenced, but there is no extent item")),
        Some(extent) if extent.length != length => {
            let recorded = extent.length;
            differences
                .push(format!("extent {bytenr}: referenced with length {length}, recorded with {recorded}"));
        }
        Some(_) => {}
    }
}
