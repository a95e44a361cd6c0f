//! Sums that must add up: block groups, the super block's bytes used, and the free space tree.

use std::collections::BTreeMap;

use parser::dev::BlockGroupItem;
use parser::free_space::{BITMAP_SIZE, FreeSpaceInfo, bitmap_runs};
use parser::key::item;
use parser::superblock::compat_ro;
use parser::{Block, ids};

use crate::recorded::{Recorded, roots};
use crate::volume::Volume;

/// A block group: bytes and `used`, by start.
type Groups = BTreeMap<u64, (u64, u64)>;

/// Checks all sums; returns what is wrong, in words.
///
/// # Errors
/// When a tree cannot be read.
pub fn check(volume: &mut Volume<'_>, recorded: &Recorded) -> Result<Vec<String>, String> {
    let groups = block_groups(volume)?;
    let mut wrong = block_group_used(&groups, recorded);
    wrong.extend(bytes_used(volume.super_block().bytes_used(), &groups));
    wrong.extend(free_space(volume, &groups, recorded)?);
    Ok(wrong)
}

/// Reads every block group item, from the extent tree or the block group tree.
///
/// # Errors
/// When a tree cannot be read.
fn block_groups(volume: &mut Volume<'_>) -> Result<Groups, String> {
    let mut groups = Groups::new();
    for root in roots(volume)? {
        if ![ids::EXTENT_TREE, ids::BLOCK_GROUP_TREE].contains(&root.key.objectid) {
            continue;
        }
        volume.walk(root.bytenr, root.level, &mut |_, block| {
            let Block::Leaf(leaf) = block else { return };
            for (key, data) in leaf.items().filter(|(key, _)| key.item_type == item::BLOCK_GROUP_ITEM) {
                if let Ok(group) = BlockGroupItem::parse(data) {
                    groups.insert(key.objectid, (key.offset, group.used));
                }
            }
        })?;
    }
    Ok(groups)
}

/// `used` of each block group against the extents in it.
#[must_use]
pub fn block_group_used(groups: &Groups, recorded: &Recorded) -> Vec<String> {
    let mut wrong = Vec::new();
    for (&start, &(length, used)) in groups {
        let within = recorded.extents.range(start..start.saturating_add(length));
        let sum: u64 = within.map(|(_, extent)| extent.length).sum();
        if sum != used {
            wrong.push(format!("block group {start}: used is {used}, its extents take {sum}"));
        }
    }
    wrong
}

/// The super block's `bytes_used` against the block groups.
#[must_use]
pub fn bytes_used(bytes_used: u64, groups: &Groups) -> Option<String> {
    let sum: u64 = groups.values().map(|(_, used)| used).sum();
    (sum != bytes_used)
        .then(|| format!("super block: bytes_used is {bytes_used}, the block groups hold {sum}"))
}

/// The free space tree against the gaps between extents. Entries outside any block group are left by old versions of
/// mkfs and mean nothing.
///
/// # Errors
/// When the tree cannot be read.
fn free_space(volume: &mut Volume<'_>, groups: &Groups, recorded: &Recorded) -> Result<Vec<String>, String> {
    let valid = compat_ro::FREE_SPACE_TREE | compat_ro::FREE_SPACE_TREE_VALID;
    if volume.super_block().compat_ro_flags() & valid != valid {
        return Ok(Vec::new());
    }
    let sector = u64::from(volume.super_block().sectorsize());
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut counts = BTreeMap::new();
    for root in roots(volume)?.iter().filter(|root| root.key.objectid == ids::FREE_SPACE_TREE) {
        volume.walk(root.bytenr, root.level, &mut |_, block| {
            let Block::Leaf(leaf) = block else { return };
            for (key, data) in leaf.items() {
                match key.item_type {
                    item::FREE_SPACE_INFO => {
                        let count = FreeSpaceInfo::parse(data).map(|info| u64::from(info.extent_count));
                        counts.insert(key.objectid, count);
                    }
                    item::FREE_SPACE_EXTENT => runs.push((key.objectid, key.objectid + key.offset)),
                    item::FREE_SPACE_BITMAP => {
                        assert!(data.len() <= BITMAP_SIZE, "bitmap of {} bytes", data.len());
                        runs.extend(bitmap_runs(data).map(|(first, bits)| {
                            let start = key.objectid + first * sector;
                            (start, start + bits * sector)
                        }));
                    }
                    _ => {}
                }
            }
        })?;
    }
    let mut wrong = Vec::new();
    for (&start, &(length, _)) in groups {
        let group = start..start + length;
        let noted = merged(runs.iter().copied().filter(|(from, _)| group.contains(from)));
        let gaps = gaps(start, start + length, recorded);
        if noted != gaps {
            wrong.push(format!("block group {start}: free space {noted:?}, between extents {gaps:?}"));
        }
        if counts.get(&start) != Some(&Ok(gaps.len() as u64)) {
            wrong.push(format!("block group {start}: free space info {:?}", counts.get(&start)));
        }
    }
    Ok(wrong)
}

/// Joins runs that touch: bitmaps cut them at their edges.
fn merged(runs: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (start, end) in runs {
        match merged.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => merged.push((start, end)),
        }
    }
    merged
}

/// The ranges of a block group that no extent takes.
fn gaps(start: u64, end: u64, recorded: &Recorded) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    let mut next = start;
    for (&bytenr, extent) in recorded.extents.range(start..end) {
        if bytenr > next {
            gaps.push((next, bytenr));
        }
        next = next.max(bytenr + extent.length);
    }
    if next < end {
        gaps.push((next, end));
    }
    gaps
}
