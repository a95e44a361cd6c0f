//! Block groups that go, and what should have gone before them.

use parser::extent::FLAG_DATA;
use parser::key::item;
use parser::{BackRef, BlockFlags, Chunk, Key, ids, layout};

use super::{SECTOR, Set};
use crate::backref::Extent;
use crate::edit::{Item, Leaf};
use crate::rng::Rng;

/// A block group of data is gone, and its chunk with it, as if all that lies in it had been freed.
pub(super) fn removed(set: &mut Set<'_>, rng: &mut Rng) -> Option<String> {
    let groups = set.removable(rng);
    Some(set.remove(groups.first()?))
}

/// The items of a block group: its chunk's, and its own.
type Items = (Key, Key);

/// An extent item over an edge of a block group that this very commit removes; where it removes none, one is removed
/// besides.
pub(super) fn over_the_edge(set: &mut Set<'_>, rng: &mut Rng) -> Option<String> {
    let (old, new) = (set.around.old_map, set.around.map);
    let is_gone = |chunk: &&Chunk| {
        new.chunks().iter().all(|other| other.end() <= chunk.logical || chunk.end() <= other.logical)
    };
    let mut found = None;
    for chunk in old.chunks().iter().filter(is_gone) {
        found = found.or_else(|| set.place_over_edge((chunk.logical, chunk.end())));
    }
    let mut note = String::new();
    if found.is_none() {
        let was_there = |start: u64| old.chunk_at(start).is_some_and(|chunk| chunk.logical == start);
        for items in set.removable(rng).into_iter().filter(|(_, group)| was_there(group.objectid)) {
            let (_, group) = items;
            found = set.place_over_edge((group.objectid, group.objectid + group.offset));
            if found.is_some() {
                note = format!(", {}", set.remove(&items));
                break;
            }
        }
    }
    let (at, edge) = found?;
    let len = 2 * SECTOR;
    let leaf = set.leaves.get_mut(&at)?;
    let start = edge - SECTOR;
    let fixed =
        layout::ExtentItem { refs: 1.into(), generation: leaf.generation().into(), flags: FLAG_DATA.into() };
    let backref = BackRef::ExtentData { root: ids::FS_TREE, objectid: 257, offset: 0, count: 1 };
    let extent = Extent { fixed, info: None, inline: vec![backref] };
    leaf.items.push(Item { key: Key::new(start, item::EXTENT_ITEM, len), data: extent.build() });
    Some(format!("extent [{start} {len}]: put over the edge of a block group that is removed{note}"))
}

impl Set<'_> {
    /// Block groups of data that hold extents, with all that tells of them among the leaves, in random order.
    fn removable(&self, rng: &mut Rng) -> Vec<Items> {
        let of_type = |leaf: &Leaf, item_type: u8| -> Vec<Key> {
            leaf.items.iter().map(|item| item.key).filter(|key| key.item_type == item_type).collect()
        };
        let all = |tree: u64, item_type: u8| -> Vec<Key> {
            self.of_tree(tree).flat_map(|(_, leaf)| of_type(leaf, item_type)).collect()
        };
        let chunks = all(ids::CHUNK_TREE, item::CHUNK_ITEM);
        let mut groups = all(ids::EXTENT_TREE, item::BLOCK_GROUP_ITEM);
        groups.extend(all(ids::BLOCK_GROUP_TREE, item::BLOCK_GROUP_ITEM));
        let extents = all(ids::EXTENT_TREE, item::EXTENT_ITEM);
        let order = rng.order(chunks.len()).into_iter();
        let of_chunk = |index: usize| {
            let start = chunks[index].offset;
            let flags = self.around.map.chunk_at(start)?.flags.0;
            let group = groups.iter().find(|group| group.objectid == start)?;
            let within = start..start + group.offset;
            let is_wanted = flags & BlockFlags::TYPE_MASK == BlockFlags::DATA
                && extents.iter().any(|key| within.contains(&key.objectid));
            is_wanted.then_some((chunks[index], *group))
        };
        order.filter_map(of_chunk).collect()
    }

    fn remove(&mut self, (chunk, group): &Items) -> String {
        for leaf in self.leaves.values_mut() {
            leaf.items.retain(|item| item.key != *chunk && item.key != *group);
        }
        format!("{chunk} and {group}: lost")
    }

    /// An edge of a block group where an extent can be put across, and the leaf for its item.
    fn place_over_edge(&self, (start, end): (u64, u64)) -> Option<(u64, u64)> {
        let at = |edge: u64| Some((self.room(edge.checked_sub(SECTOR)?, 2 * SECTOR)?, edge));
        at(start).or_else(|| at(end))
    }

    /// The leaf of the extent tree in which an extent item for this range may be put: nothing lies there, or did.
    fn room(&self, start: u64, len: u64) -> Option<u64> {
        let at = self.leaf_around(start)?;
        let leaf = &self.leaves[&at];
        let end_of = |item: &Item| {
            let len = match item.key.item_type {
                item::EXTENT_ITEM => item.key.offset,
                item::METADATA_ITEM => leaf.nodesize as u64,
                _ => return None,
            };
            Some((item.key.objectid, item.key.objectid + len))
        };
        let meets = |(other, end): (u64, u64)| other < start + len && start < end;
        let is_taken = leaf.items.iter().filter_map(end_of).any(meets);
        let was_taken = self.around.old_extents.range(start..start + len).next().is_some();
        (!is_taken && !was_taken).then_some(at)
    }
}
