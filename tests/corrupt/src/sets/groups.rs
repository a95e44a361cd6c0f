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
    let of_type = |leaf: &Leaf, item_type: u8| -> Vec<Key> {
        leaf.items.iter().map(|item| item.key).filter(|key| key.item_type == item_type).collect()
    };
    let chunks: Vec<Key> =
        set.of_tree(ids::CHUNK_TREE).flat_map(|(_, leaf)| of_type(leaf, item::CHUNK_ITEM)).collect();
    let (chunk, group) = rng.order(chunks.len()).into_iter().find_map(|index| {
        let chunk = chunks[index];
        let start = chunk.offset;
        let is_data = set.around.map.chunk_at(start)?.flags.0 & BlockFlags::TYPE_MASK == BlockFlags::DATA;
        let group = [ids::EXTENT_TREE, ids::BLOCK_GROUP_TREE].into_iter().find_map(|tree| {
            let groups = set.of_tree(tree).flat_map(|(_, leaf)| of_type(leaf, item::BLOCK_GROUP_ITEM));
            groups.into_iter().find(|group| group.objectid == start)
        })?;
        let end = start + group.offset;
        let holds_extent = set.of_tree(ids::EXTENT_TREE).any(|(_, leaf)| {
            of_type(leaf, item::EXTENT_ITEM).iter().any(|key| (start..end).contains(&key.objectid))
        });
        (is_data && holds_extent).then_some((chunk, group))
    })?;
    for leaf in set.leaves.values_mut() {
        leaf.items.retain(|item| item.key != chunk && item.key != group);
    }
    Some(format!("{chunk} and {group}: lost"))
}

/// An extent item over an edge of a block group that this very commit removes.
pub(super) fn over_the_edge(set: &mut Set<'_>, rng: &mut Rng) -> Option<String> {
    let (old, new) = (set.around.old_map, set.around.map);
    let is_gone = |chunk: &&Chunk| {
        new.chunks().iter().all(|other| other.end() <= chunk.logical || chunk.end() <= other.logical)
    };
    let edges: Vec<u64> = old.chunks().iter().filter(is_gone).flat_map(|c| [c.logical, c.end()]).collect();
    let (len, edge, at) = rng.order(edges.len()).into_iter().find_map(|index| {
        let (edge, len) = (edges[index], 2 * SECTOR);
        let at = set.room(edge.checked_sub(SECTOR)?, len)?;
        Some((len, edge, at))
    })?;
    let leaf = set.leaves.get_mut(&at)?;
    let start = edge - SECTOR;
    let fixed =
        layout::ExtentItem { refs: 1.into(), generation: leaf.generation().into(), flags: FLAG_DATA.into() };
    let backref = BackRef::ExtentData { root: ids::FS_TREE, objectid: 257, offset: 0, count: 1 };
    let extent = Extent { fixed, info: None, inline: vec![backref] };
    leaf.items.push(Item { key: Key::new(start, item::EXTENT_ITEM, len), data: extent.build() });
    Some(format!("extent [{start} {len}]: put over the edge of a block group that is removed"))
}

impl Set<'_> {
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
