//! The model over bytes: whether what stands on the disk holds together, decided by reading everything.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use parser::key::item;
use parser::{BackRef, ExtentItem, Key, RootItem, ids};

use super::bytes::{self, BlockSpec};
use super::model::{self, Blocks, Extent, Holder, Start};
use super::world::World;

/// What the extent tree says.
#[derive(Debug, Default)]
struct Recorded {
    extents: BTreeMap<u64, Extent>,
    refs: BTreeMap<u64, u64>,
}

/// Ok where every pointer is right and references and backrefs are the same; else what is wrong first.
pub fn examine(world: &World, superblock: &[u8]) -> Result<(), String> {
    let superblock = parser::SuperBlock::parse(superblock).map_err(|error| error.to_string())?;
    let oracle = Oracle { world, blocks: RefCell::default() };
    let (root, chunk) = (superblock.root(), superblock.chunk_root());
    let mut starts = Vec::new();
    let mut roots = vec![
        (ids::ROOT_TREE, root.0, root.1, superblock.generation(), None),
        (ids::CHUNK_TREE, chunk.0, chunk.1, superblock.chunk_root_generation(), None),
    ];
    let root_items = oracle.items(root.0, root.1, superblock.generation(), None)?;
    for (key, data) in root_items.iter().filter(|(key, _)| key.item_type == item::ROOT_ITEM) {
        let root = RootItem::parse(data).map_err(|error| error.to_string())?;
        roots.push((key.objectid, root.bytenr, root.level, root.generation, root.drop_cursor()));
    }
    let mut recorded = Err("no extent tree".to_owned());
    for (tree, bytenr, level, generation, cursor) in roots {
        let items = oracle.items(bytenr, level, generation, cursor)?;
        if tree == ids::EXTENT_TREE {
            recorded = record(&items);
        }
        starts.push(Start { tree, bytenr, cursor });
    }
    let recorded = recorded?;
    let blocks = oracle.blocks.into_inner();
    let get = |bytenr| blocks.get(&bytenr).cloned();
    let full = |bytenr| recorded.extents.get(&bytenr).is_some_and(|extent| extent.full);
    let held =
        model::held(&starts, &Blocks { get: &get, full: &full, nodesize: world.config.nodesize.into() });
    compare(&recorded, &held.extents)
}

fn compare(recorded: &Recorded, held: &BTreeMap<u64, Extent>) -> Result<(), String> {
    for (bytenr, extent) in held {
        let Some(record) = recorded.extents.get(bytenr) else {
            return Err(format!("{bytenr} has no record"));
        };
        if (extent.len, extent.level, &extent.refs) != (record.len, record.level, &record.refs) {
            return Err(format!("{bytenr}: held {extent:?}, recorded {record:?}"));
        }
        if extent.level.is_some() && extent.generation != record.generation {
            return Err(format!("{bytenr}: generation"));
        }
        if recorded.refs.get(bytenr) != Some(&record.total()) {
            return Err(format!("{bytenr}: refs"));
        }
    }
    match recorded.extents.keys().find(|bytenr| !held.contains_key(bytenr)) {
        Some(bytenr) => Err(format!("nobody holds {bytenr}")),
        None => Ok(()),
    }
}

fn record(items: &[(Key, Vec<u8>)]) -> Result<Recorded, String> {
    let mut recorded = Recorded::default();
    for (key, data) in items {
        let bytenr = key.objectid;
        if matches!(key.item_type, item::EXTENT_ITEM | item::METADATA_ITEM) {
            let parsed = ExtentItem::parse(key.item_type, data).map_err(|error| error.to_string())?;
            let level = match key.item_type {
                item::METADATA_ITEM => Some(u8::try_from(key.offset).map_err(|_| "level")?),
                _ => parsed.block_info_level(),
            };
            let len = if key.item_type == item::METADATA_ITEM { 4096 } else { key.offset };
            let full = parsed.flags() & parser::extent::FLAG_FULL_BACKREF != 0;
            let extent = Extent { len, level, generation: parsed.generation(), full, ..Extent::default() };
            if recorded.extents.insert(bytenr, extent).is_some() {
                return Err(format!("{bytenr} has two items"));
            }
            recorded.refs.insert(bytenr, parsed.refs());
            for inline in parsed.inline_refs() {
                add(&mut recorded, bytenr, &inline.map_err(|error| error.to_string())?)?;
            }
        } else if BackRef::is_keyed_type(key.item_type) {
            add(&mut recorded, bytenr, &BackRef::parse_keyed(key, data).map_err(|error| error.to_string())?)?;
        } else if key.item_type != item::BLOCK_GROUP_ITEM {
            // Of a type that says nothing about extents.
            continue;
        }
    }
    Ok(recorded)
}

fn add(recorded: &mut Recorded, bytenr: u64, backref: &BackRef) -> Result<(), String> {
    let holder = match *backref {
        BackRef::TreeBlock { root } => Holder::Tree(root),
        BackRef::SharedBlock { parent } => Holder::SharedTree(parent),
        BackRef::ExtentData { root, objectid: inode, offset, .. } => Holder::Data { root, inode, offset },
        BackRef::SharedData { parent, .. } => Holder::SharedData(parent),
        BackRef::Owner { .. } => return Err("owner ref".to_owned()),
    };
    let extent = recorded.extents.get_mut(&bytenr).ok_or("a stray backref")?;
    match extent.refs.insert(holder, backref.count()) {
        None => Ok(()),
        Some(_) => Err(format!("{bytenr}: {holder:?} twice")),
    }
}

struct Oracle<'a> {
    world: &'a World,
    blocks: RefCell<HashMap<u64, BlockSpec>>,
}

impl Oracle<'_> {
    /// All items below a pointer, everything that the pointer says checked.
    fn items(
        &self,
        bytenr: u64,
        level: u8,
        generation: u64,
        cursor: Option<(Key, u8)>,
    ) -> Result<Vec<(Key, Vec<u8>)>, String> {
        let block = self.read(bytenr)?;
        if (block.bytenr, block.level, block.generation) != (bytenr, level, generation) {
            return Err(format!("{bytenr} is not what its parent says"));
        }
        let mut items = block.items().to_vec();
        // What was dropped is not there any more.
        let skip = cursor.map_or(0, |cursor| model::first_slot(&block, cursor));
        for (slot, ptr) in block.ptrs().iter().enumerate().skip(skip) {
            let below = cursor.filter(|(_, drop_level)| slot == skip && level > *drop_level);
            items.extend(self.items(ptr.bytenr, level - 1, ptr.generation, below)?);
            if self.read(ptr.bytenr)?.content.first_key() != ptr.key {
                return Err(format!("{}: first key", ptr.bytenr));
            }
        }
        Ok(items)
    }

    fn read(&self, bytenr: u64) -> Result<BlockSpec, String> {
        if let Some(known) = self.blocks.borrow().get(&bytenr) {
            return Ok(known.clone());
        }
        let mapped = self.world.chunks.iter().find(|chunk| chunk.contains(bytenr)).ok_or("unmapped")?;
        let bytes = self.world.image.bytes(mapped.stripes[0] + bytenr - mapped.logical).ok_or("unwritten")?;
        let block =
            shadow::TreeBlock::new(bytes.into(), self.world.config.csum, self.world.config.sectorsize);
        if !block.csum_ok() || block.fault().is_some() {
            return Err(format!("{bytenr} is damaged"));
        }
        let block = bytes::decode(bytes).ok_or("no block")?;
        self.blocks.borrow_mut().insert(bytenr, block.clone());
        Ok(block)
    }
}
