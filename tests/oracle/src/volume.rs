//! Reads tree blocks of a file system on one device by logical address.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use parser::key::item;
use parser::{Block, ChecksumType, Chunk, ChunkItem, ChunkMap, SuperBlock, superblock};

/// Fills a buffer from a byte offset of the device.
pub type ReadAt<'a> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'a;

/// An opened file system.
pub struct Volume<'a> {
    read: &'a mut ReadAt<'a>,
    super_block: Vec<u8>,
    map: ChunkMap,
    devid: u64,
    nodesize: usize,
    csum: ChecksumType,
    fsids: Vec<parser::Uuid>,
    cache: BTreeMap<u64, Result<Rc<[u8]>, String>>,
}

impl<'a> Volume<'a> {
    /// Reads super block, system chunk array and chunk tree.
    ///
    /// # Errors
    /// When one of them is not in order.
    pub fn open(read: &'a mut ReadAt<'a>) -> Result<Self, String> {
        let mut bytes = vec![0; superblock::SIZE];
        read(superblock::OFFSETS[0], &mut bytes).map_err(|error| format!("super block: {error}"))?;
        let sb = SuperBlock::parse(&bytes).map_err(|error| error.to_string())?;
        if !sb.verify_csum() {
            return Err("super block: checksum".to_owned());
        }
        let mut chunks = Vec::new();
        for chunk in sb.sys_chunks() {
            let (logical, item) = chunk.map_err(|error| error.to_string())?;
            chunks.push(Chunk::new(logical, &item));
        }
        let map = ChunkMap::new(chunks).map_err(|error| error.to_string())?;
        let (devid, nodesize) = (sb.dev_item().devid, sb.nodesize() as usize);
        let csum = sb.csum().map_err(|error| error.to_string())?;
        let (fsids, chunk_root) = (vec![*sb.metadata_uuid()], sb.chunk_root());
        let super_block = bytes.clone();
        let mut volume =
            Volume { read, super_block, map, devid, nodesize, csum, fsids, cache: BTreeMap::new() };
        volume.load_chunk_tree(chunk_root)?;
        Ok(volume)
    }

    fn load_chunk_tree(&mut self, (root, level): (u64, u8)) -> Result<(), String> {
        let mut chunks = Vec::new();
        let mut fsids = Vec::new();
        let mut problem = None;
        self.walk(root, level, &mut |_, block| {
            let Block::Leaf(leaf) = block else { return };
            for (key, data) in leaf.items() {
                if key.item_type == item::CHUNK_ITEM {
                    match ChunkItem::parse(data) {
                        Ok(chunk) => chunks.push(Chunk::new(key.offset, &chunk)),
                        Err(error) => problem = Some(error.to_string()),
                    }
                } else if let (item::DEV_ITEM, Ok(device)) =
                    (key.item_type, parser::dev::DevItem::parse(data))
                {
                    fsids.push(device.fsid);
                }
            }
        })?;
        if let Some(problem) = problem {
            return Err(problem);
        }
        self.fsids.extend(fsids);
        self.map = ChunkMap::new(chunks).map_err(|error| error.to_string())?;
        self.cache.clear();
        Ok(())
    }

    /// The super block.
    ///
    /// # Panics
    /// Never: it was parsed when the volume was opened.
    #[must_use]
    pub fn super_block(&self) -> SuperBlock<'_> {
        SuperBlock::parse(&self.super_block).expect("parsed before")
    }

    /// The chunk map.
    #[must_use]
    pub fn map(&self) -> &ChunkMap {
        &self.map
    }

    /// The device's id.
    #[must_use]
    pub fn devid(&self) -> u64 {
        self.devid
    }

    /// Bytes of a tree block.
    #[must_use]
    pub fn nodesize(&self) -> usize {
        self.nodesize
    }

    /// Byte offsets, on the one device, of all copies of a tree block.
    ///
    /// # Errors
    /// When the address is not mapped.
    pub fn copies(&self, bytenr: u64) -> Result<Vec<u64>, String> {
        let places = self.map.copies(bytenr, self.nodesize as u64).map_err(|error| error.to_string())?;
        Ok(places.filter(|place| place.devid == self.devid).map(|place| place.offset).collect())
    }

    /// A tree block: the first copy whose checksum, fsid and address are right.
    ///
    /// # Errors
    /// When no copy is good.
    pub fn block(&mut self, bytenr: u64) -> Result<Rc<[u8]>, String> {
        if let Some(known) = self.cache.get(&bytenr) {
            return known.clone();
        }
        let block = self.read_block(bytenr).map(Rc::from);
        self.cache.insert(bytenr, block.clone());
        block
    }

    fn read_block(&mut self, bytenr: u64) -> Result<Vec<u8>, String> {
        let mut problem = format!("block {bytenr}: no copy on this device");
        for offset in self.copies(bytenr)? {
            let mut bytes = vec![0; self.nodesize];
            match (self.read)(offset, &mut bytes) {
                Ok(()) => match self.check(bytenr, &bytes) {
                    Ok(()) => return Ok(bytes),
                    Err(error) => problem = error,
                },
                Err(error) => problem = format!("block {bytenr}: {error}"),
            }
        }
        Err(problem)
    }

    fn check(&self, bytenr: u64, bytes: &[u8]) -> Result<(), String> {
        if !self.csum.verify(bytes) {
            return Err(format!("block {bytenr}: checksum"));
        }
        let block = Block::parse(bytes).map_err(|error| format!("block {bytenr}: {error}"))?;
        let header = block.header();
        if header.bytenr() != bytenr {
            return Err(format!("block {bytenr}: written for {}", header.bytenr()));
        }
        if !self.fsids.contains(header.fsid()) {
            return Err(format!("block {bytenr}: of another file system"));
        }
        parser::check::block(&block, 4096).map_err(|fault| format!("block {bytenr}: {fault}"))
    }

    /// Visits every block of a tree, parents first.
    ///
    /// # Errors
    /// The first block that cannot be read or whose level is not the expected one.
    pub fn walk(
        &mut self,
        bytenr: u64,
        level: u8,
        visit: &mut dyn FnMut(u64, &Block<'_>),
    ) -> Result<(), String> {
        let bytes = self.block(bytenr)?;
        let block = Block::parse(&bytes).map_err(|error| error.to_string())?;
        if block.header().level() != level {
            return Err(format!("block {bytenr}: level {} instead of {level}", block.header().level()));
        }
        visit(bytenr, &block);
        if let Block::Node(node) = block {
            for ptr in node.ptrs() {
                self.walk(ptr.bytenr, level - 1, visit)?;
            }
        }
        Ok(())
    }
}
