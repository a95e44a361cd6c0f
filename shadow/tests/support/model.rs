//! The model: which references a set of trees holds, computed from nothing, and the items that record them.

use std::collections::{BTreeMap, BTreeSet};

use parser::key::item;
use parser::layout as disk;
use parser::{FileExtent, Key, ids};
use zerocopy::IntoBytes as _;

use super::bytes::{BlockSpec, Config};

/// Who holds a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    Tree(u64),
    SharedTree(u64),
    Data { root: u64, inode: u64, offset: u64 },
    SharedData(u64),
}

/// An extent and all references to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extent {
    pub len: u64,
    /// Level of a tree block.
    pub level: Option<u8>,
    pub generation: u64,
    pub full: bool,
    pub refs: BTreeMap<Holder, u32>,
}

impl Extent {
    pub fn total(&self) -> u64 {
        self.refs.values().map(|&count| u64::from(count)).sum()
    }
}

/// A root to start from.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    pub tree: u64,
    pub bytenr: u64,
    pub cursor: Option<(Key, u8)>,
}

/// What the trees hold.
#[derive(Debug, Default)]
pub struct Held {
    pub extents: BTreeMap<u64, Extent>,
    /// Blocks reached from the roots of each tree.
    pub reached: BTreeMap<u64, BTreeSet<u64>>,
}

/// Where blocks come from, and which have FULL_BACKREF.
pub struct Blocks<'a> {
    pub get: &'a dyn Fn(u64) -> Option<BlockSpec>,
    pub full: &'a dyn Fn(u64) -> bool,
    pub nodesize: u64,
}

/// All references held by the trees that begin at `starts`. Each block counts once; half-deleted trees come last, as
/// what they share is not theirs to mask.
pub fn held(starts: &[Start], blocks: &Blocks<'_>) -> Held {
    let mut starts = starts.to_vec();
    starts.sort_by_key(|start| start.cursor.is_some());
    let mut held = Held::default();
    for start in starts {
        let holder = if start.tree == ids::TREE_RELOC {
            Holder::SharedTree(start.bytenr)
        } else {
            Holder::Tree(start.tree)
        };
        let mut reached = held.reached.remove(&start.tree).unwrap_or_default();
        visit(&mut held.extents, &mut reached, blocks, start.bytenr, holder, start.cursor);
        held.reached.insert(start.tree, reached);
    }
    held
}

fn visit(
    extents: &mut BTreeMap<u64, Extent>,
    reached: &mut BTreeSet<u64>,
    blocks: &Blocks<'_>,
    bytenr: u64,
    holder: Holder,
    cursor: Option<(Key, u8)>,
) {
    let known = extents.contains_key(&bytenr);
    reached.insert(bytenr);
    let Some(block) = (blocks.get)(bytenr) else { return };
    let full = (blocks.full)(bytenr);
    let extent = extents.entry(bytenr).or_default();
    extent.len = blocks.nodesize;
    extent.level = Some(block.level);
    extent.generation = block.generation;
    extent.full = full;
    *extent.refs.entry(holder).or_default() += 1;
    let skip = cursor.map_or(0, |cursor| first_slot(&block, cursor));
    for (slot, ptr) in block.ptrs().iter().enumerate().skip(skip) {
        let holder = if full { Holder::SharedTree(bytenr) } else { Holder::Tree(block.owner) };
        let below = cursor.filter(|(_, level)| slot == skip && block.level > *level);
        if known {
            reach(reached, blocks, ptr.bytenr);
        } else {
            visit(extents, reached, blocks, ptr.bytenr, holder, below);
        }
    }
    if known {
        return;
    }
    for (key, data) in block.items().iter().filter(|(key, _)| key.item_type == item::EXTENT_DATA) {
        let Some(range) = FileExtent::parse(data).ok().and_then(|extent| extent.extent()) else { continue };
        let holder = if full {
            Holder::SharedData(bytenr)
        } else {
            let offset = key.offset.wrapping_sub(range.offset);
            Holder::Data { root: block.owner, inode: key.objectid, offset }
        };
        let extent = extents.entry(range.disk_bytenr).or_default();
        // References that disagree about the length agree with no record.
        let agrees = extent.refs.is_empty() || extent.len == range.disk_num_bytes;
        extent.len = if agrees { range.disk_num_bytes } else { u64::MAX };
        *extent.refs.entry(holder).or_default() += 1;
    }
}

fn reach(reached: &mut BTreeSet<u64>, blocks: &Blocks<'_>, bytenr: u64) {
    if reached.insert(bytenr)
        && let Some(block) = (blocks.get)(bytenr)
    {
        block.ptrs().iter().for_each(|ptr| reach(reached, blocks, ptr.bytenr));
    }
}

/// First slot that a half-deleted tree still holds.
pub fn first_slot(block: &BlockSpec, (cursor, drop_level): (Key, u8)) -> usize {
    let ptrs = block.ptrs();
    if block.level > drop_level {
        ptrs.iter().rposition(|ptr| ptr.key <= cursor).unwrap_or(0)
    } else {
        ptrs.iter().position(|ptr| ptr.key >= cursor).unwrap_or(ptrs.len())
    }
}

/// The items that record an extent. Backrefs stand inline as far as they may, or all in items of their own.
pub fn record(bytenr: u64, extent: &Extent, config: &Config, keyed: bool) -> Vec<(Key, Vec<u8>)> {
    let flags = match (extent.level, extent.full) {
        (None, _) => parser::extent::FLAG_DATA,
        (Some(_), false) => parser::extent::FLAG_TREE_BLOCK,
        (Some(_), true) => parser::extent::FLAG_TREE_BLOCK | parser::extent::FLAG_FULL_BACKREF,
    };
    let head = disk::ExtentItem {
        refs: extent.total().into(),
        generation: extent.generation.into(),
        flags: flags.into(),
    };
    let mut data = head.as_bytes().to_vec();
    let key = match extent.level {
        None => Key::new(bytenr, item::EXTENT_ITEM, extent.len),
        Some(level) if config.skinny => Key::new(bytenr, item::METADATA_ITEM, level.into()),
        Some(level) => {
            data.extend([0; 17]);
            data.push(level);
            Key::new(bytenr, item::EXTENT_ITEM, extent.len)
        }
    };
    if config.simple_quota && extent.level.is_none() {
        data.push(item::EXTENT_OWNER_REF);
        data.extend(5u64.to_le_bytes());
    }
    let most = config.leaf_space() / 16 - 25;
    let mut inline: Vec<_> =
        extent.refs.iter().map(|(holder, count)| (inline_order(holder), holder, *count)).collect();
    inline.sort();
    let mut items = Vec::new();
    let mut overflow = keyed;
    for (_, holder, count) in inline {
        let bytes = inline_bytes(holder, count);
        overflow |= data.len() + bytes.len() > most;
        if overflow {
            items.push(keyed_item(bytenr, holder, count));
        } else {
            data.extend(bytes);
        }
    }
    items.push((key, data));
    items
}

/// By type, and within a type from high to low.
fn inline_order(holder: &Holder) -> (u8, u64) {
    match *holder {
        Holder::Tree(root) => (item::TREE_BLOCK_REF, !root),
        Holder::SharedTree(parent) => (item::SHARED_BLOCK_REF, !parent),
        Holder::Data { root, inode, offset } => {
            (item::EXTENT_DATA_REF, !parser::csum::extent_data_ref_hash(root, inode, offset))
        }
        Holder::SharedData(parent) => (item::SHARED_DATA_REF, !parent),
    }
}

fn data_ref(root: u64, inode: u64, offset: u64, count: u32) -> Vec<u8> {
    disk::ExtentDataRef {
        root: root.into(),
        objectid: inode.into(),
        offset: offset.into(),
        count: count.into(),
    }
    .as_bytes()
    .to_vec()
}

/// An inline backref.
pub fn inline_bytes(holder: &Holder, count: u32) -> Vec<u8> {
    let mut bytes = vec![inline_order(holder).0];
    match *holder {
        Holder::Tree(word) | Holder::SharedTree(word) => bytes.extend(word.to_le_bytes()),
        Holder::Data { root, inode, offset } => bytes.extend(data_ref(root, inode, offset, count)),
        Holder::SharedData(parent) => {
            bytes.extend(parent.to_le_bytes());
            bytes.extend(count.to_le_bytes());
        }
    }
    bytes
}

/// A backref in an item of its own.
pub fn keyed_item(bytenr: u64, holder: &Holder, count: u32) -> (Key, Vec<u8>) {
    match *holder {
        Holder::Tree(root) => (Key::new(bytenr, item::TREE_BLOCK_REF, root), Vec::new()),
        Holder::SharedTree(parent) => (Key::new(bytenr, item::SHARED_BLOCK_REF, parent), Vec::new()),
        Holder::Data { root, inode, offset } => {
            let hash = parser::csum::extent_data_ref_hash(root, inode, offset);
            (Key::new(bytenr, item::EXTENT_DATA_REF, hash), data_ref(root, inode, offset, count))
        }
        Holder::SharedData(parent) => {
            (Key::new(bytenr, item::SHARED_DATA_REF, parent), count.to_le_bytes().to_vec())
        }
    }
}
