//! A file system that a test changes block by block or tree by tree, and commits.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use parser::key::item;
use parser::{BlockFlags, Key, ids};
use shadow::forest::RootId;

use super::bytes::{self, BlockSpec, ChunkSpec, Config, Content, Items, Ptr, RootSpec};
use super::image::Image;
use super::layout::{Shape, layout};
use super::model::{self, Blocks, Extent, Held, Start};

const MIB: u64 = 1 << 20;
pub const SYSTEM: u64 = 16 * MIB;
pub const METADATA: u64 = 32 * MIB;
pub const DATA: u64 = 64 * MIB;

/// A root item's key.
pub fn tree(tree: u64) -> RootId {
    RootId { tree, offset: 0 }
}

type Edit<'a, T> = Option<Box<dyn Fn(&mut T) + 'a>>;

/// What goes wrong in a commit.
#[derive(Default)]
pub struct Fault<'a> {
    /// Changes what the extent tree records, consistently in itself.
    pub records: Edit<'a, BTreeMap<u64, Extent>>,
    /// Changes the items of the extent tree before it is built: everything else fits.
    pub extents: Edit<'a, Items>,
    /// Changes the new blocks by address; what refers to them stays.
    pub blocks: Edit<'a, BTreeMap<u64, BlockSpec>>,
    /// Changes the bytes of one new block, after its checksum was computed.
    pub bytes: (u64, Edit<'a, Vec<u8>>),
}

impl<'a> Fault<'a> {
    pub fn none() -> Self {
        Fault::default()
    }

    pub fn records(edit: impl Fn(&mut BTreeMap<u64, Extent>) + 'a) -> Self {
        Fault { records: Some(Box::new(edit)), ..Fault::default() }
    }

    pub fn extents(edit: impl Fn(&mut Items) + 'a) -> Self {
        Fault { extents: Some(Box::new(edit)), ..Fault::default() }
    }

    pub fn block(bytenr: u64, edit: impl Fn(&mut BlockSpec) + 'a) -> Self {
        let edit = move |blocks: &mut BTreeMap<u64, BlockSpec>| {
            edit(blocks.get_mut(&bytenr).expect("the block is not one of this commit"));
        };
        Fault { blocks: Some(Box::new(edit)), ..Fault::default() }
    }

    pub fn bytes(bytenr: u64, edit: impl Fn(&mut Vec<u8>) + 'a) -> Self {
        Fault { bytes: (bytenr, Some(Box::new(edit))), ..Fault::default() }
    }
}

/// A tree that every commit builds anew.
#[derive(Debug, Clone, Default)]
struct Managed {
    blocks: BTreeMap<u64, BlockSpec>,
    root: Option<(Ptr, u8)>,
}

/// How far the building of a managed tree has come: rounds of it go on until nothing changes any more.
#[derive(Debug, Default)]
struct Building {
    old: Managed,
    /// Addresses for new blocks, by level.
    pools: BTreeMap<u8, Vec<u64>>,
    /// Old blocks that a round had no use for. They stay out, or rounds might go in circles.
    out: BTreeSet<u64>,
}

/// The file system, in the middle of a transaction.
#[derive(Debug)]
pub struct World {
    pub config: Config,
    pub shape: Shape,
    pub image: Image,
    /// The last commit.
    pub generation: u64,
    pub chunks: Vec<ChunkSpec>,
    pub roots: BTreeMap<RootId, RootSpec>,
    /// Blocks of all trees but the extent, root and chunk tree.
    pub blocks: BTreeMap<u64, BlockSpec>,
    /// Blocks that have FULL_BACKREF.
    pub full: BTreeSet<u64>,
    /// Blocks that a kernel forgets to flag so.
    pub forgotten: BTreeSet<u64>,
    /// Extents whose backrefs all stand in items of their own.
    pub keyed: BTreeSet<u64>,
    /// More items of the root tree: orphans.
    pub root_tree_items: Items,
    managed: BTreeMap<u64, Managed>,
    data_generations: BTreeMap<u64, u64>,
    /// Extents of the last commit: taken until the next but one.
    pub committed: BTreeMap<u64, Extent>,
    fresh: BTreeMap<u64, u64>,
    /// Extents that a fault left in the extent tree: the allocator does not give them out.
    pub leaked: BTreeMap<u64, u64>,
    /// Subvolumes that have a directory entry.
    names: BTreeSet<u64>,
}

impl World {
    /// Chunks, an empty top-level subvolume, nothing committed.
    pub fn new(config: Config) -> Self {
        let copies = if config.dup { 2 } else { 1 };
        let chunk = |logical, length, flags, copies: u64| ChunkSpec {
            logical,
            length,
            flags: if copies > 1 { flags | BlockFlags::DUP } else { flags },
            // Beside the super block's copy at 64 MiB.
            stripes: (0..copies).map(|copy| logical * 4 + MIB + copy * 2 * length).collect(),
        };
        let chunks = vec![
            chunk(SYSTEM, MIB, BlockFlags::SYSTEM, copies),
            chunk(METADATA, 16 * MIB, BlockFlags::METADATA, copies),
            chunk(DATA, 16 * MIB, BlockFlags::DATA, 1),
        ];
        let mut world = World {
            image: Image::new(&config),
            config,
            shape: Shape::default(),
            generation: 9,
            chunks,
            roots: BTreeMap::new(),
            blocks: BTreeMap::new(),
            full: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            keyed: BTreeSet::new(),
            root_tree_items: Items::new(),
            managed: BTreeMap::new(),
            data_generations: BTreeMap::new(),
            committed: BTreeMap::new(),
            fresh: BTreeMap::new(),
            leaked: BTreeMap::new(),
            names: BTreeSet::new(),
        };
        world.write_tree(
            tree(ids::FS_TREE),
            Items::from([(Key::new(256, item::INODE_ITEM, 0), bytes::inode_item())]),
        );
        world
    }

    /// The running transaction.
    pub fn next(&self) -> u64 {
        self.generation + 1
    }

    /// Free space of `len` bytes in a chunk with these flags.
    pub fn alloc(&mut self, flags: u64, len: u64, align: u64) -> u64 {
        for chunk in self.chunks.iter().filter(|chunk| chunk.flags & flags != 0) {
            let mut at = chunk.logical;
            while at + len <= chunk.logical + chunk.length {
                let taken = |(&start, end): (&u64, u64)| (start < at + len && end > at).then_some(end);
                let committed = self.committed.range(..at + len).rev().take(1);
                let committed = committed.filter_map(|(start, extent)| taken((start, start + extent.len)));
                let fresh = self.fresh.range(..at + len).rev().take(1);
                let fresh = fresh.filter_map(|(start, len)| taken((start, start + len)));
                let leaked = self.leaked.range(..at + len).rev().take(1);
                let leaked = leaked.filter_map(|(start, len)| taken((start, start + len)));
                match committed.chain(fresh).chain(leaked).max() {
                    None => {
                        self.fresh.insert(at, len);
                        return at;
                    }
                    Some(end) => at = end.next_multiple_of(align),
                }
            }
        }
        panic!("no space left");
    }

    /// A new data extent.
    pub fn alloc_data(&mut self, len: u64) -> u64 {
        let bytenr = self.alloc(BlockFlags::DATA, len, 4096);
        self.data_generations.insert(bytenr, self.next());
        bytenr
    }

    /// A new tree block.
    pub fn block(&mut self, owner: u64, level: u8, content: Content) -> Ptr {
        let nodesize = self.config.nodesize.into();
        let bytenr = self.alloc(BlockFlags::METADATA, nodesize, nodesize);
        self.block_at(bytenr, owner, level, content)
    }

    /// A new tree block at this address, whatever was there.
    pub fn block_at(&mut self, bytenr: u64, owner: u64, level: u8, content: Content) -> Ptr {
        let spec = BlockSpec { bytenr, generation: self.next(), owner, level, reloc: false, content };
        let ptr = spec.ptr();
        self.fresh.insert(bytenr, self.config.nodesize.into());
        self.full.remove(&bytenr);
        self.blocks.insert(bytenr, spec);
        ptr
    }

    /// The block at an address, as it is now.
    pub fn get(&self, bytenr: u64) -> BlockSpec {
        let managed = self.managed.values().find_map(|tree| tree.blocks.get(&bytenr));
        managed.or_else(|| self.blocks.get(&bytenr)).expect("no such block").clone()
    }

    /// Makes a block the root of a tree.
    pub fn set_root(&mut self, id: RootId, ptr: Ptr) {
        let level = self.blocks[&ptr.bytenr].level;
        let (bytenr, generation) = (ptr.bytenr, ptr.generation);
        let last_snapshot = self.roots.get(&id).map_or(0, |root| root.last_snapshot);
        let root = RootSpec { bytenr, level, generation, refs: 1, cursor: None, last_snapshot };
        self.roots.insert(id, root);
    }

    /// All blocks of a tree, the root first.
    pub fn tree_blocks(&self, id: RootId) -> Vec<u64> {
        let mut found = Vec::new();
        let mut pending: Vec<u64> = self.roots.get(&id).map(|root| root.bytenr).into_iter().collect();
        while let Some(bytenr) = pending.pop() {
            found.push(bytenr);
            pending.extend(self.blocks[&bytenr].ptrs().iter().rev().map(|ptr| ptr.bytenr));
        }
        found
    }

    /// All items of a tree.
    pub fn items(&self, id: RootId) -> Items {
        let blocks = self.tree_blocks(id);
        blocks.iter().flat_map(|bytenr| self.blocks[bytenr].items().to_vec()).collect()
    }

    /// Makes a tree hold these items, keeping the blocks that are as they must be. Inodes get their inode item, and
    /// trees that are never empty the top directory.
    pub fn write_tree(&mut self, id: RootId, mut items: Items) {
        let never_empty = [ids::FS_TREE, ids::DATA_RELOC_TREE].contains(&id.tree) && items.is_empty();
        let inodes: Vec<u64> =
            items.keys().map(|key| key.objectid).chain(never_empty.then_some(256)).collect();
        for inode in inodes.into_iter().filter(|_| ids::is_fs_tree(id.tree) || never_empty) {
            items.entry(Key::new(inode, item::INODE_ITEM, 0)).or_insert_with(bytes::inode_item);
        }
        let mut known: HashMap<(u8, Content), Ptr> = HashMap::new();
        for bytenr in self.tree_blocks(id) {
            let block = &self.blocks[&bytenr];
            known.insert((block.level, block.content.clone()), block.ptr());
        }
        let (shape, config) = (self.shape.clone(), self.config.clone());
        let (ptr, _) =
            layout(&items, &shape, &config, |level, content| match known.get(&(level, content.clone())) {
                Some(ptr) => *ptr,
                None => self.block(id.tree, level, content),
            });
        let before = self.roots.get(&id).copied();
        // The root block of a tree is its own: one that was shared becomes so by being copied.
        let ptr = match self.blocks[&ptr.bytenr].owner == id.tree {
            true => ptr,
            false => self.copy_block(ptr.bytenr, id.tree),
        };
        if before.is_none_or(|before| before.bytenr != ptr.bytenr) {
            self.set_root(id, ptr);
        }
    }

    /// A copy of a block, owned by another tree.
    pub fn copy_block(&mut self, bytenr: u64, owner: u64) -> Ptr {
        let BlockSpec { level, content, .. } = self.blocks[&bytenr].clone();
        self.block(owner, level, content)
    }

    /// A snapshot: a new root block over the same children.
    pub fn snapshot(&mut self, source: RootId, id: u64) -> RootId {
        let root = self.copy_block(self.roots[&source].bytenr, id);
        let to = RootId { tree: id, offset: self.next() };
        self.set_root(to, root);
        let next = self.next();
        self.roots.get_mut(&source).expect("the source").last_snapshot = next;
        to
    }

    /// The FULL_BACKREF rule: a block that its owner no longer reaches records its references by its own address.
    pub fn flag_lost_blocks(&mut self) {
        let held = self.held(&[]);
        for bytenr in
            held.extents.iter().filter(|(_, extent)| extent.level.is_some()).map(|(bytenr, _)| *bytenr)
        {
            let block = &self.blocks[&bytenr];
            if self.forgotten.contains(&bytenr) {
                continue;
            }
            if held.reached.get(&block.owner).is_none_or(|reached| !reached.contains(&bytenr)) {
                self.full.insert(bytenr);
            }
        }
    }

    fn held(&self, managed: &[(u64, &Managed)]) -> Held {
        let mut starts: Vec<Start> = Vec::new();
        for (id, root) in &self.roots {
            let cursor = root.cursor.filter(|_| root.refs == 0);
            starts.push(Start { tree: id.tree, bytenr: root.bytenr, cursor });
        }
        for (tree, managed) in managed {
            let root = managed.root.map(|(ptr, _)| ptr.bytenr);
            starts.extend(root.map(|bytenr| Start { tree: *tree, bytenr, cursor: None }));
        }
        let get = |bytenr: u64| {
            let managed = managed.iter().find_map(|(_, managed)| managed.blocks.get(&bytenr));
            Some(managed.or_else(|| self.blocks.get(&bytenr)).expect("a pointer to nothing").clone())
        };
        let full = |bytenr: u64| self.full.contains(&bytenr);
        model::held(&starts, &Blocks { get: &get, full: &full, nodesize: self.config.nodesize.into() })
    }

    /// Builds a tree out of its old blocks and new ones.
    fn manage(&mut self, owner: u64, items: &Items, building: &mut Building) -> Managed {
        let Building { old, pools, out } = building;
        // The super block names the root tree's root by its own generation: it is new in every commit.
        out.extend(old.root.filter(|_| owner == ids::ROOT_TREE).map(|(ptr, _)| ptr.bytenr));
        let kept = old.blocks.values().filter(|block| !out.contains(&block.bytenr));
        let known: HashMap<(u8, &Content), Ptr> =
            kept.map(|block| ((block.level, &block.content), block.ptr())).collect();
        let mut new = Managed::default();
        let mut used: BTreeMap<u8, usize> = BTreeMap::new();
        // Fuller than others, lest the extent tree's own blocks make up most of it.
        let shape = Shape { leaf: 16, node: 8, every: 12, ..self.shape.clone() };
        let root = layout(items, &shape, &self.config.clone(), |level, content| {
            if let Some(ptr) = known.get(&(level, &content)) {
                new.blocks.insert(ptr.bytenr, old.blocks[&ptr.bytenr].clone());
                return *ptr;
            }
            let (pool, used) = (pools.entry(level).or_default(), used.entry(level).or_default());
            if *used == pool.len() {
                let flags = if owner == ids::CHUNK_TREE { BlockFlags::SYSTEM } else { BlockFlags::METADATA };
                let nodesize = self.config.nodesize.into();
                pool.push(self.alloc(flags, nodesize, nodesize));
            }
            let bytenr = pool[*used];
            *used += 1;
            let spec = BlockSpec { bytenr, generation: self.next(), owner, level, reloc: false, content };
            let ptr = spec.ptr();
            new.blocks.insert(bytenr, spec);
            ptr
        });
        out.extend(old.blocks.keys().filter(|bytenr| !new.blocks.contains_key(bytenr)));
        new.root = Some(root);
        new
    }

    fn chunk_items(&self) -> Items {
        let device = (Key::new(ids::DEV_ITEMS, item::DEV_ITEM, 1), bytes::dev_item());
        let chunks = self.chunks.iter().map(|chunk| (bytes::chunk_key(chunk), bytes::chunk_item(chunk)));
        chunks.chain([device]).collect()
    }

    /// Subvolumes that are wanted.
    fn named(&self) -> impl Iterator<Item = u64> + '_ {
        let wanted = self
            .roots
            .iter()
            .filter(|(id, root)| ids::is_fs_tree(id.tree) && id.tree != ids::FS_TREE && root.refs > 0);
        wanted.map(|(id, _)| id.tree)
    }

    /// Directory entries for all subvolumes, in the top directory.
    fn name_subvolumes(&mut self) {
        let named: BTreeSet<u64> = self.named().collect();
        if self.names == named {
            return;
        }
        let mut items = self.items(tree(ids::FS_TREE));
        let is_entry =
            |key: &Key| key.objectid == 256 && [item::DIR_ITEM, item::DIR_INDEX].contains(&key.item_type);
        items.retain(|key, _| !is_entry(key));
        for &id in &named {
            let name = bytes::subvolume_name(id);
            let hash = parser::csum::name_hash(name.as_bytes());
            for key in [Key::new(256, item::DIR_ITEM, hash), Key::new(256, item::DIR_INDEX, id)] {
                items.insert(key, bytes::subvolume_entry(id));
            }
        }
        self.names = named;
        self.write_tree(tree(ids::FS_TREE), items);
    }

    /// What the root tree says of subvolumes beside their root items.
    fn links(&self) -> Items {
        let mut items = Items::new();
        for id in self.named() {
            items.insert(Key::new(ids::FS_TREE, item::ROOT_REF, id), bytes::subvolume_ref(id));
            items.insert(Key::new(id, item::ROOT_BACKREF, ids::FS_TREE), bytes::subvolume_ref(id));
        }
        let deleted = self.roots.iter().filter(|(id, root)| ids::is_fs_tree(id.tree) && root.refs == 0);
        items.extend(deleted.map(|(id, _)| (Key::new(ids::ORPHAN, item::ORPHAN_ITEM, id.tree), Vec::new())));
        items
    }

    fn root_items(&self, extent: &Managed) -> Items {
        let mut items = self.links();
        items.extend(self.root_tree_items.clone());
        let mut insert = |id: &RootId, root: &RootSpec| {
            items.insert(Key::new(id.tree, item::ROOT_ITEM, id.offset), bytes::root_item(root));
        };
        self.roots.iter().for_each(|(id, root)| insert(id, root));
        if let Some(root) = root_spec(extent) {
            insert(&tree(ids::EXTENT_TREE), &root);
        }
        items
    }

    fn extent_items(&self, extents: &BTreeMap<u64, Extent>) -> Items {
        let mut items = Items::new();
        for (&bytenr, extent) in extents {
            items.extend(model::record(bytenr, extent, &self.config, self.keyed.contains(&bytenr)));
        }
        for chunk in &self.chunks {
            let used = extents
                .range(chunk.logical..chunk.logical + chunk.length)
                .map(|(_, extent)| extent.len)
                .sum();
            let key = Key::new(chunk.logical, item::BLOCK_GROUP_ITEM, chunk.length);
            items.insert(key, bytes::block_group_item(used, chunk.flags));
        }
        items
    }

    /// Commits; the super block.
    pub fn commit(&mut self) -> Vec<u8> {
        self.commit_with(&Fault::none())
    }

    /// Commits what the fault makes of it. The world itself stays as it should be.
    pub fn commit_with(&mut self, fault: &Fault<'_>) -> Vec<u8> {
        self.name_subvolumes();
        self.flag_lost_blocks();
        let old = std::mem::take(&mut self.managed);
        let of = |tree: u64| old.get(&tree).cloned().unwrap_or_default();
        let building = |tree: u64| Building { old: of(tree), ..Building::default() };
        let items = self.chunk_items();
        let chunk = self.manage(ids::CHUNK_TREE, &items, &mut building(ids::CHUNK_TREE));
        let (mut extent, mut root) = (of(ids::EXTENT_TREE), of(ids::ROOT_TREE));
        let (mut extent_building, mut root_building) = (building(ids::EXTENT_TREE), building(ids::ROOT_TREE));
        let mut round = 0;
        // The extent tree records its own blocks and those of the root tree, which names its root.
        let (extents, bytes_used) = loop {
            round += 1;
            assert!(round < 200, "the extent tree does not settle");
            if round % 16 == 0 {
                // A circle: other addresses lead out of it.
                extent_building.pools.clear();
            }
            let items = self.root_items(&extent);
            let new_root = self.manage(ids::ROOT_TREE, &items, &mut root_building);
            let managed =
                [(ids::CHUNK_TREE, &chunk), (ids::ROOT_TREE, &new_root), (ids::EXTENT_TREE, &extent)];
            let mut extents = self.held(&managed).extents;
            for (bytenr, data) in extents.iter_mut().filter(|(_, extent)| extent.level.is_none()) {
                data.generation = self.data_generations.get(bytenr).copied().unwrap_or(1);
            }
            let mut recorded = extents.clone();
            if let Some(edit) = &fault.records {
                edit(&mut recorded);
            }
            let in_group = |bytenr: &u64| self.chunks.iter().any(|chunk| chunk.contains(*bytenr));
            let counted = recorded.iter().filter(|(bytenr, _)| in_group(bytenr));
            let bytes_used = counted.map(|(_, extent)| extent.len).sum::<u64>();
            let mut items = self.extent_items(&recorded);
            if let Some(edit) = &fault.extents {
                edit(&mut items);
            }
            let new_extent = self.manage(ids::EXTENT_TREE, &items, &mut extent_building);
            let settled = new_root.blocks == root.blocks && new_extent.blocks == extent.blocks;
            (root, extent) = (new_root, new_extent);
            if settled {
                break (extents, bytes_used);
            }
        };
        let mut superblock = bytes::superblock(
            &self.config,
            self.next(),
            &root_spec(&root).unwrap(),
            &root_spec(&chunk).unwrap(),
        );
        bytes::set_system_chunks(&mut superblock, &self.chunks);
        superblock.bytes_used = bytes_used.into();
        self.managed = [(ids::CHUNK_TREE, chunk), (ids::ROOT_TREE, root), (ids::EXTENT_TREE, extent)].into();
        self.write_new(fault, &extents);
        self.blocks.retain(|bytenr, _| extents.contains_key(bytenr));
        self.full.retain(|bytenr| extents.contains_key(bytenr));
        self.committed = extents;
        self.fresh.clear();
        self.generation += 1;
        bytes::seal(&superblock, self.config.csum)
    }

    fn write_new(&mut self, fault: &Fault<'_>, extents: &BTreeMap<u64, Extent>) {
        let next = self.next();
        let all = self.managed.values().flat_map(|tree| tree.blocks.values()).chain(self.blocks.values());
        let new = all.filter(|block| block.generation == next && extents.contains_key(&block.bytenr));
        let mut new: BTreeMap<u64, BlockSpec> = new.map(|block| (block.bytenr, block.clone())).collect();
        if let Some(edit) = &fault.blocks {
            edit(&mut new);
        }
        for (bytenr, spec) in new {
            let mut bytes = bytes::encode(&spec, &self.config);
            if let (at, Some(edit)) = &fault.bytes
                && *at == bytenr
            {
                edit(&mut bytes);
            }
            self.write(bytenr, &bytes);
        }
    }

    /// Writes all copies of a block.
    pub fn write(&mut self, bytenr: u64, bytes: &[u8]) {
        for place in self.places(bytenr) {
            self.image.write(place, bytes.to_vec());
        }
    }

    /// Where the copies of a block lie.
    pub fn places(&self, bytenr: u64) -> Vec<u64> {
        let chunk = self.chunks.iter().find(|chunk| chunk.contains(bytenr)).expect("no chunk maps the block");
        chunk.stripes.iter().map(|stripe| stripe + bytenr - chunk.logical).collect()
    }

    /// Blocks of the extent, root or chunk tree, the root first.
    pub fn managed_blocks(&self, tree: u64) -> Vec<u64> {
        let managed = &self.managed[&tree];
        let root = managed.root.map(|(ptr, _)| ptr.bytenr);
        root.into_iter()
            .chain(managed.blocks.keys().copied().filter(|bytenr| Some(*bytenr) != root))
            .collect()
    }
}

fn root_spec(tree: &Managed) -> Option<RootSpec> {
    let (ptr, level) = tree.root?;
    let (bytenr, generation) = (ptr.bytenr, ptr.generation);
    Some(RootSpec { bytenr, level, generation, refs: 1, cursor: None, last_snapshot: 0 })
}
