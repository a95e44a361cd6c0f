//! Faults that take more than one block: what refers to an extent and what records it agree, and both are wrong.
//!
//! They are planted among the new leaves of a commit, so that whoever looks at references alone finds nothing.

mod groups;
mod roots;

use std::collections::{BTreeMap, BTreeSet};

use parser::file_extent::Encoding;
use parser::key::item;
use parser::{BackRef, Block, BlockFlags, ChunkMap, FileExtent, Key, ids, layout, superblock};

use crate::backref::Extent;
use crate::edit::{self, Item, Leaf};
use crate::rng::Rng;
use crate::{Planted, checksum_type};

const SECTOR: u64 = 4096;

/// What the kernel keeps free around each super block.
const SUPER_STRIPE: u64 = 64 << 10;

/// Longer than any block group of the tests.
const LONG: u64 = 1 << 32;

/// A kind of fault in several blocks.
#[derive(Debug, Clone, Copy)]
pub struct SetKind {
    /// Its name.
    pub name: &'static str,
    /// The codes of which one must be reported, the most fitting first.
    pub expected: &'static [&'static str],
    edit: fn(&mut Set<'_>, &mut Rng) -> Option<String>,
}

const fn kind(
    name: &'static str,
    expected: &'static [&'static str],
    edit: fn(&mut Set<'_>, &mut Rng) -> Option<String>,
) -> SetKind {
    SetKind { name, expected, edit }
}

/// Every kind.
pub const KINDS: &[SetKind] = &[
    kind("data-extents-overlap", &["space/extent-overlap"], overlap),
    kind("data-extent-over-the-end", &["space/extent-outside-block-group"], over_the_end),
    kind("data-extent-on-super-block", &["space/extent-on-super-block"], on_super_block),
    kind("data-extent-among-metadata", &["space/extent-type"], among_metadata),
    // Afterwards there is no block group that could be said not to be empty.
    kind(
        "block-group-removed",
        &["space/block-group-not-empty", "space/extent-outside-block-group"],
        groups::removed,
    ),
    kind(
        "extent-over-the-edge-of-a-removed-group",
        // Behind the last of all chunks, there is nothing at that edge for `check`.
        &["space/block-group-overlap", "ref/stale-extent"],
        groups::over_the_edge,
    ),
    kind("leaf-in-the-name-of-no-root", &["ref/unknown-root"], roots::in_the_name_of_none),
];

/// The leaves of a commit that can be changed.
struct Set<'a> {
    leaves: BTreeMap<u64, Leaf>,
    owners: BTreeMap<u64, u64>,
    /// Leaves behind which nothing stands in their tree.
    last: BTreeSet<u64>,
    around: &'a Around<'a>,
}

/// What is known of the file system beside the blocks.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// Its chunk map after the commit.
    pub map: &'a ChunkMap,
    /// Its chunk map before it.
    pub old_map: &'a ChunkMap,
    /// Addresses of all extents before the commit.
    pub old_extents: &'a BTreeSet<u64>,
}

/// Plants a fault among the new tree blocks of a commit, by logical address. Returns what was planted, and the blocks
/// that changed.
#[must_use]
pub fn mutate_set<'b>(
    blocks: impl IntoIterator<Item = (u64, &'b [u8])>,
    around: &Around<'_>,
    kind: &SetKind,
    seed: u64,
) -> Option<(Planted, BTreeMap<u64, Vec<u8>>)> {
    let mut csum = None;
    let mut set = Set { leaves: BTreeMap::new(), owners: BTreeMap::new(), last: BTreeSet::new(), around };
    for (bytenr, bytes) in blocks {
        let Some(leaf) = Leaf::parse(bytes) else { continue };
        csum = csum.or_else(|| checksum_type(bytes));
        set.owners.insert(bytenr, Block::parse(bytes).ok()?.header().owner());
        set.leaves.insert(bytenr, leaf);
    }
    let csum = csum?;
    let before = set.leaves.clone();
    set.last.extend(set.last_of_extents());
    let change = (kind.edit)(&mut set, &mut Rng::new(seed))?;
    let mut changed = BTreeMap::new();
    for (bytenr, mut leaf) in set.leaves {
        let original = &before[&bytenr];
        if leaf.items == original.items && leaf.owner() == original.owner() {
            continue;
        }
        // Another first key would be another fault.
        leaf.settle(original, set.last.contains(&bytenr)).then_some(())?;
        let mut bytes = leaf.build()?;
        csum.seal(&mut bytes);
        changed.insert(bytenr, bytes);
    }
    let block = *changed.keys().next()?;
    let planted = Planted { kind: kind.name.to_owned(), block, change, expected: kind.expected.to_vec() };
    Some((planted, changed))
}

/// A data extent with one reference, and where its two items stand: leaf and slot.
#[derive(Debug, Clone, Copy)]
struct Found {
    bytenr: u64,
    len: u64,
    record: (u64, usize),
    reference: (u64, usize),
}

impl Set<'_> {
    fn of_tree(&self, tree: u64) -> impl Iterator<Item = (u64, &Leaf)> {
        self.leaves.iter().filter(move |(at, _)| self.owners[at] == tree).map(|(at, leaf)| (*at, leaf))
    }

    fn item(&mut self, (leaf, slot): (u64, usize)) -> Option<&mut Item> {
        self.leaves.get_mut(&leaf)?.items.get_mut(slot)
    }

    /// All data extents of this commit with both their items among the leaves, in random order.
    fn data(&self, rng: &mut Rng) -> Vec<Found> {
        let mut found = Vec::new();
        for (at, leaf) in self.of_tree(ids::EXTENT_TREE) {
            for (slot, item) in leaf.items.iter().enumerate() {
                let Some(extent) = Extent::parse(item).filter(Extent::is_data) else { continue };
                let [BackRef::ExtentData { root, objectid, count: 1, .. }] = extent.inline[..] else {
                    continue;
                };
                let Key { objectid: bytenr, offset: len, .. } = item.key;
                let is_new = extent.fixed.generation.get() == leaf.generation();
                if !is_new || extent.fixed.refs.get() != 1 {
                    continue;
                }
                let reference = self.reference(root, objectid, bytenr);
                found.extend(reference.map(|reference| Found { bytenr, len, record: (at, slot), reference }));
            }
        }
        rng.order(found.len()).into_iter().map(|index| found[index]).collect()
    }

    /// The file extent of an inode that refers to an extent, uncompressed.
    fn reference(&self, root: u64, inode: u64, bytenr: u64) -> Option<(u64, usize)> {
        self.of_tree(root).find_map(|(at, leaf)| {
            let slot = leaf.items.iter().position(|item| {
                let is_plain = || Encoding::parse(&item.data).is_ok_and(|encoding| encoding.compression == 0);
                let range = || FileExtent::parse(&item.data).ok()?.extent();
                (item.key.objectid, item.key.item_type) == (inode, item::EXTENT_DATA)
                    && range().is_some_and(|range| range.disk_bytenr == bytenr)
                    && is_plain()
            })?;
            Some((at, slot))
        })
    }

    /// Gives an extent another length, in both places.
    fn resize(&mut self, found: &Found, len: u64) -> Option<String> {
        self.item(found.record)?.key.offset = len;
        edit::change::<layout::FileExtent>(&mut self.item(found.reference)?.data, |extent| {
            extent.disk_num_bytes = len.into();
            extent.head.ram_bytes = len.into();
        })?;
        Some(format!("extent {}: length {} became {len}, in the file extent too", found.bytenr, found.len))
    }
}

fn overlap(set: &mut Set<'_>, rng: &mut Rng) -> Option<String> {
    let (found, next) = set.data(rng).into_iter().find_map(|found| {
        let items = &set.leaves[&found.record.0].items;
        let next = items.get(found.record.1 + 1).filter(|next| next.key.item_type == item::EXTENT_ITEM)?;
        // In the same block group, for sure.
        (next.key.objectid == found.bytenr + found.len).then_some((found, next.key.objectid))
    })?;
    set.resize(&found, next - found.bytenr + SECTOR)
}

fn over_the_end(set: &mut Set<'_>, rng: &mut Rng) -> Option<String> {
    let found = *set.data(rng).first()?;
    set.resize(&found, LONG)
}

/// An extent moved to a copy of the super block.
fn on_super_block(set: &mut Set<'_>, rng: &mut Rng) -> Option<String> {
    let found = set.data(rng).into_iter().find(|found| found.len <= SUPER_STRIPE)?;
    let (leaf, to) = set.super_copies().into_iter().find_map(|to| Some((set.leaf_around(to)?, to)))?;
    set.move_to(&found, leaf, to)
}

/// An extent moved to free space between two tree blocks.
fn among_metadata(set: &mut Set<'_>, rng: &mut Rng) -> Option<String> {
    let (found, (leaf, to)) =
        set.data(rng).into_iter().find_map(|found| Some((found, set.gap(found.len)?)))?;
    set.move_to(&found, leaf, to)
}

impl Set<'_> {
    /// Gives an extent another address, in both places; its record goes to `leaf`.
    fn move_to(&mut self, found: &Found, leaf: u64, to: u64) -> Option<String> {
        // First, as the record need not be in another leaf.
        edit::change::<layout::FileExtent>(&mut self.item(found.reference)?.data, |extent| {
            extent.disk_bytenr = to.into();
        })?;
        let record = self.leaves.get_mut(&found.record.0)?.items.remove(found.record.1);
        let key = Key { objectid: to, ..record.key };
        self.leaves.get_mut(&leaf)?.items.push(Item { key, ..record });
        Some(format!("extent {}: moved to {to}, and its file extent with it", found.bytenr))
    }

    /// Logical addresses that lie over copies of the super block. Nothing is ever allocated there.
    fn super_copies(&self) -> Vec<u64> {
        let of_chunk = |chunk: &parser::Chunk| {
            let len = chunk.stripe_size().unwrap_or(0);
            let copies = superblock::OFFSETS.into_iter();
            let within = |copy: u64| {
                let stripe = chunk
                    .stripes
                    .iter()
                    .find(|stripe| (stripe.offset..stripe.offset + len).contains(&copy))?;
                Some(chunk.logical + (copy - stripe.offset))
            };
            copies.filter_map(within).collect::<Vec<_>>()
        };
        self.around.map.chunks().iter().flat_map(of_chunk).collect()
    }

    /// The leaf of the extent tree that has records before and behind an address, or before it and is the last.
    fn leaf_around(&self, address: u64) -> Option<u64> {
        let is_around = |(at, leaf): &(u64, &Leaf)| {
            let (first, last) = (leaf.items.first()?.key.objectid, leaf.items.last()?.key.objectid);
            Some(first < address && (address < last || address > last && self.last.contains(at)))
        };
        self.of_tree(ids::EXTENT_TREE).find(|leaf| is_around(leaf) == Some(true)).map(|(at, _)| at)
    }

    /// The last leaf of the extent tree, if it is a new one: all that lay behind it is gone with its block group.
    fn last_of_extents(&self) -> Option<u64> {
        let end = |leaf: &Leaf| leaf.items.last().map(|item| item.key.objectid);
        let (at, leaf) = self.of_tree(ids::EXTENT_TREE).max_by_key(|(_, leaf)| end(leaf))?;
        // Backrefs of the last extent may go on behind the leaf.
        let last = leaf.items.last()?;
        let is_closed = last.key.item_type == item::BLOCK_GROUP_ITEM
            || Extent::parse(last).is_some_and(|extent| extent.is_whole());
        let (end, map) = (end(leaf).filter(|_| is_closed)?, self.around.map);
        let mut behind = self.around.old_extents.range(end.saturating_add(1)..);
        let is_last = behind.all(|bytenr| map.chunk_at(*bytenr).is_none());
        // Where block group items stand among the extents, there may be one on an old leaf.
        (is_last && map.chunks().iter().all(|chunk| chunk.logical <= end)).then_some(at)
    }

    /// A leaf of the extent tree, and an address behind one of its tree blocks, with this much room before the next.
    fn gap(&self, len: u64) -> Option<(u64, u64)> {
        self.of_tree(ids::EXTENT_TREE).find_map(|(at, leaf)| {
            let nodesize = leaf.nodesize as u64;
            let is_block = |item: &Item| Extent::parse(item).is_some_and(|extent| extent.is_tree_block());
            let gap = leaf.items.windows(2).find_map(|pair| {
                let (before, behind) = (&pair[0], &pair[1]);
                let start = before.key.objectid + nodesize;
                let group =
                    self.around.map.chunk_at(start).filter(|chunk| chunk.flags.0 & BlockFlags::DATA == 0)?;
                let was_used = self.around.old_extents.range(start..start + len).next().is_some();
                let is_whole = !was_used
                    && is_block(before)
                    && is_block(behind)
                    && start + len <= behind.key.objectid
                    && group.logical <= before.key.objectid
                    && behind.key.objectid < group.end();
                is_whole.then_some(start)
            })?;
            Some((at, gap))
        })
    }
}
