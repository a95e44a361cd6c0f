//! Bytes of every structure a test file system needs, by the parser's layouts.

use std::collections::BTreeMap;

use parser::key::item;
use parser::layout as disk;
use parser::superblock::{self, incompat};
use parser::{Block, ChecksumType, Key, ids};
use zerocopy::{FromZeros as _, IntoBytes as _};

/// Items of a tree by key.
pub type Items = BTreeMap<Key, Vec<u8>>;

/// UUID of every test file system.
pub const FSID: [u8; 16] = *b"test file system";
/// UUID of its only device.
const DEV_UUID: [u8; 16] = *b"the only device!";

/// What holds for a whole file system.
#[derive(Debug, Clone)]
pub struct Config {
    pub nodesize: u32,
    pub sectorsize: u32,
    pub csum: ChecksumType,
    pub dup: bool,
    pub skinny: bool,
    pub simple_quota: bool,
}

impl Default for Config {
    fn default() -> Self {
        let csum = ChecksumType::Crc32c;
        Config { nodesize: 4096, sectorsize: 4096, csum, dup: true, skinny: true, simple_quota: false }
    }
}

impl Config {
    /// Feature bits that fit.
    pub fn incompat(&self) -> u64 {
        let mut bits = incompat::MIXED_BACKREF | incompat::BIG_METADATA;
        if self.skinny {
            bits |= incompat::SKINNY_METADATA;
        }
        if self.simple_quota {
            bits |= incompat::SIMPLE_QUOTA;
        }
        bits
    }

    /// Bytes a leaf has for items and their data.
    pub fn leaf_space(&self) -> usize {
        self.nodesize as usize - 101
    }
}

/// A pointer in a node, or to a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ptr {
    pub key: Key,
    pub bytenr: u64,
    pub generation: u64,
}

/// What a tree block holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    Leaf(Vec<(Key, Vec<u8>)>),
    Node(Vec<Ptr>),
}

impl Content {
    pub fn first_key(&self) -> Key {
        match self {
            Content::Leaf(items) => items.first().map_or(Key::MIN, |(key, _)| *key),
            Content::Node(ptrs) => ptrs.first().map_or(Key::MIN, |ptr| ptr.key),
        }
    }
}

/// A tree block before it is bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSpec {
    pub bytenr: u64,
    pub generation: u64,
    pub owner: u64,
    pub level: u8,
    pub reloc: bool,
    pub content: Content,
}

impl BlockSpec {
    pub fn ptrs(&self) -> &[Ptr] {
        match &self.content {
            Content::Node(ptrs) => ptrs,
            Content::Leaf(_) => &[],
        }
    }

    pub fn items(&self) -> &[(Key, Vec<u8>)] {
        match &self.content {
            Content::Leaf(items) => items,
            Content::Node(_) => &[],
        }
    }

    pub fn ptr(&self) -> Ptr {
        Ptr { key: self.content.first_key(), bytenr: self.bytenr, generation: self.generation }
    }
}

/// A root item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootSpec {
    pub bytenr: u64,
    pub level: u8,
    pub generation: u64,
    pub refs: u32,
    pub cursor: Option<(Key, u8)>,
    pub last_snapshot: u64,
}

/// A chunk on the only device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSpec {
    pub logical: u64,
    pub length: u64,
    pub flags: u64,
    pub stripes: Vec<u64>,
}

impl ChunkSpec {
    pub fn contains(&self, bytenr: u64) -> bool {
        (self.logical..self.logical + self.length).contains(&bytenr)
    }
}

fn disk_key(key: &Key) -> disk::DiskKey {
    disk::DiskKey { objectid: key.objectid.into(), item_type: key.item_type, offset: key.offset.into() }
}

/// The block's bytes, with the right checksum.
pub fn encode(spec: &BlockSpec, config: &Config) -> Vec<u8> {
    const HEADER: usize = size_of::<disk::Header>();
    let mut bytes = vec![0; config.nodesize as usize];
    let count = spec.items().len() + spec.ptrs().len();
    let reloc = if spec.reloc { parser::block::FLAG_RELOC } else { 0 };
    let header = disk::Header {
        csum: [0; 32],
        fsid: FSID,
        bytenr: spec.bytenr.into(),
        flags: (1 << 56 | parser::block::FLAG_WRITTEN | reloc).into(),
        chunk_tree_uuid: [7; 16],
        generation: spec.generation.into(),
        owner: spec.owner.into(),
        nritems: u32::try_from(count).unwrap().into(),
        level: spec.level,
    };
    bytes[..HEADER].copy_from_slice(header.as_bytes());
    let body = &mut bytes[HEADER..];
    let mut end = body.len();
    for (slot, (key, data)) in spec.items().iter().enumerate() {
        end -= data.len();
        let (offset, size) = (u32::try_from(end).unwrap(), u32::try_from(data.len()).unwrap());
        let item = disk::Item { key: disk_key(key), offset: offset.into(), size: size.into() };
        let at = slot * size_of::<disk::Item>();
        assert!(at + size_of::<disk::Item>() <= end, "leaf {} is too full", spec.bytenr);
        body[at..at + size_of::<disk::Item>()].copy_from_slice(item.as_bytes());
        body[end..end + data.len()].copy_from_slice(data);
    }
    for (slot, ptr) in spec.ptrs().iter().enumerate() {
        let at = slot * size_of::<disk::KeyPtr>();
        let ptr = disk::KeyPtr {
            key: disk_key(&ptr.key),
            blockptr: ptr.bytenr.into(),
            generation: ptr.generation.into(),
        };
        body[at..at + size_of::<disk::KeyPtr>()].copy_from_slice(ptr.as_bytes());
    }
    config.csum.seal(&mut bytes);
    bytes
}

/// The block that the bytes are, if they are one.
pub fn decode(bytes: &[u8]) -> Option<BlockSpec> {
    let block = Block::parse(bytes).ok()?;
    let header = block.header();
    let content = match block {
        Block::Leaf(leaf) => Content::Leaf(leaf.items().map(|(key, data)| (key, data.to_vec())).collect()),
        Block::Node(node) => {
            let ptr =
                |ptr: parser::NodePtr| Ptr { key: ptr.key, bytenr: ptr.bytenr, generation: ptr.generation };
            Content::Node(node.ptrs().map(ptr).collect())
        }
    };
    Some(BlockSpec {
        bytenr: header.bytenr(),
        generation: header.generation(),
        owner: header.owner(),
        level: header.level(),
        reloc: header.is_reloc(),
        content,
    })
}

pub fn root_item(root: &RootSpec) -> Vec<u8> {
    let mut item = disk::RootItem::new_zeroed();
    let (cursor, level) = root.cursor.unwrap_or_default();
    item.legacy.generation = root.generation.into();
    item.legacy.bytenr = root.bytenr.into();
    item.legacy.bytes_used = 4096.into();
    item.legacy.refs = root.refs.into();
    item.legacy.last_snapshot = root.last_snapshot.into();
    item.legacy.drop_progress = disk_key(&cursor);
    item.legacy.drop_level = level;
    item.legacy.level = root.level;
    item.generation_v2 = root.generation.into();
    item.as_bytes().to_vec()
}

/// Name of a subvolume.
pub fn subvolume_name(id: u64) -> String {
    format!("s{id}")
}

/// Directory entry of a subvolume.
pub fn subvolume_entry(id: u64) -> Vec<u8> {
    let name = subvolume_name(id);
    let mut entry = disk::DirItem::new_zeroed();
    entry.location = disk_key(&Key::new(id, item::ROOT_ITEM, u64::MAX));
    entry.name_len = u16::try_from(name.len()).unwrap().into();
    entry.dir_type = parser::dir::TYPE_DIR;
    [entry.as_bytes(), name.as_bytes()].concat()
}

/// Link to a subvolume: a root ref and its backref.
pub fn subvolume_ref(id: u64) -> Vec<u8> {
    let name = subvolume_name(id);
    let name_len = u16::try_from(name.len()).unwrap().into();
    let link = disk::RootRef { dirid: 256.into(), sequence: id.into(), name_len };
    [link.as_bytes(), name.as_bytes()].concat()
}

/// A regular file extent item: `num` bytes at `offset` of the extent of `len` bytes at `bytenr`.
pub fn file_extent(bytenr: u64, len: u64, offset: u64, num: u64) -> Vec<u8> {
    let mut item = disk::FileExtent::new_zeroed();
    item.head.ram_bytes = len.into();
    item.head.extent_type = 1;
    item.disk_bytenr = bytenr.into();
    item.disk_num_bytes = len.into();
    item.offset = offset.into();
    item.num_bytes = num.into();
    item.as_bytes().to_vec()
}

/// A file extent item whose data stands in the leaf.
pub fn inline_extent(data: &[u8]) -> Vec<u8> {
    let mut item = disk::InlineFileExtent::new_zeroed();
    item.ram_bytes = (data.len() as u64).into();
    [item.as_bytes(), data].concat()
}

pub fn inode_item() -> Vec<u8> {
    disk::InodeItem { nlink: 1.into(), mode: 0o100_644.into(), ..disk::InodeItem::new_zeroed() }
        .as_bytes()
        .to_vec()
}

pub fn block_group_item(used: u64, flags: u64) -> Vec<u8> {
    disk::BlockGroupItem { used: used.into(), chunk_objectid: 256.into(), flags: flags.into() }
        .as_bytes()
        .to_vec()
}

pub fn chunk_item(chunk: &ChunkSpec) -> Vec<u8> {
    let mut item = disk::Chunk::new_zeroed();
    item.length = chunk.length.into();
    item.owner = 2.into();
    item.stripe_len = 65536.into();
    item.chunk_type = chunk.flags.into();
    item.sector_size = 4096.into();
    item.num_stripes = u16::try_from(chunk.stripes.len()).unwrap().into();
    let mut bytes = item.as_bytes().to_vec();
    for &offset in &chunk.stripes {
        let stripe = disk::Stripe { devid: 1.into(), offset: offset.into(), dev_uuid: DEV_UUID };
        bytes.extend(stripe.as_bytes());
    }
    bytes
}

pub fn chunk_key(chunk: &ChunkSpec) -> Key {
    Key::new(ids::FIRST_CHUNK_TREE, item::CHUNK_ITEM, chunk.logical)
}

fn device() -> disk::DevItem {
    let mut device = disk::DevItem::new_zeroed();
    device.devid = 1.into();
    device.total_bytes = (1 << 40).into();
    device.uuid = DEV_UUID;
    device.fsid = FSID;
    device
}

pub fn dev_item() -> Vec<u8> {
    device().as_bytes().to_vec()
}

/// A super block that names these roots.
pub fn superblock(config: &Config, generation: u64, root: &RootSpec, chunk: &RootSpec) -> disk::SuperBlock {
    let mut bytes = disk::SuperBlock::new_zeroed();
    bytes.fsid = FSID;
    bytes.bytenr = superblock::OFFSETS[0].into();
    bytes.flags = 1.into();
    bytes.magic = superblock::MAGIC;
    bytes.generation = generation.into();
    bytes.root = root.bytenr.into();
    bytes.root_level = root.level;
    bytes.chunk_root = chunk.bytenr.into();
    bytes.chunk_root_level = chunk.level;
    bytes.chunk_root_generation = chunk.generation.into();
    bytes.total_bytes = (1 << 40).into();
    bytes.root_dir_objectid = 6.into();
    bytes.num_devices = 1.into();
    bytes.sectorsize = config.sectorsize.into();
    bytes.nodesize = config.nodesize.into();
    bytes.unused_leafsize = config.nodesize.into();
    bytes.stripesize = config.sectorsize.into();
    bytes.incompat_flags = config.incompat().into();
    bytes.csum_type = (config.csum as u16).into();
    bytes.dev_item = device();
    bytes
}

/// The chunks that the super block's array names: those of the system.
pub fn set_system_chunks(superblock: &mut disk::SuperBlock, chunks: &[ChunkSpec]) {
    let mut array = Vec::new();
    for chunk in chunks.iter().filter(|chunk| chunk.flags & parser::BlockFlags::SYSTEM != 0) {
        array.extend(disk_key(&chunk_key(chunk)).as_bytes());
        array.extend(chunk_item(chunk));
    }
    superblock.sys_chunk_array_size = u32::try_from(array.len()).unwrap().into();
    superblock.sys_chunk_array[..array.len()].copy_from_slice(&array);
}

/// The super block's bytes, sealed.
pub fn seal(superblock: &disk::SuperBlock, csum: ChecksumType) -> Vec<u8> {
    let mut bytes = superblock.as_bytes().to_vec();
    csum.seal(&mut bytes);
    bytes
}
