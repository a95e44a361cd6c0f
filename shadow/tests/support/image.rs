//! A disk in memory that counts what is read from it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use parser::map::Physical;
use shadow::{BlockSource, Origin, ReadError, TreeBlock};

use super::bytes::Config;

/// Tree blocks by place. What was never written reads as zeros.
#[derive(Debug)]
pub struct Image {
    config: Config,
    blocks: HashMap<u64, Arc<TreeBlock>>,
    reads: Mutex<Vec<u64>>,
    /// Places that fail, and how.
    failing: HashMap<u64, ReadError>,
    /// How blocks came to their places, where that is known.
    pub origins: HashMap<u64, Origin>,
    /// Writes so far.
    writes: u64,
}

impl Image {
    pub fn new(config: &Config) -> Self {
        Image {
            config: config.clone(),
            blocks: HashMap::new(),
            reads: Mutex::default(),
            failing: HashMap::new(),
            origins: HashMap::new(),
            writes: 0,
        }
    }

    pub fn write(&mut self, offset: u64, bytes: Vec<u8>) {
        self.writes += 1;
        let block = TreeBlock::new(bytes.into(), self.config.csum, self.config.sectorsize);
        self.blocks.insert(offset, Arc::new(block));
    }

    pub fn bytes(&self, offset: u64) -> Option<&[u8]> {
        self.blocks.get(&offset).map(|block| block.bytes())
    }

    pub fn fail(&mut self, offset: u64, error: ReadError) {
        self.failing.insert(offset, error);
    }

    /// Logical addresses of the blocks that were read since this was asked last, and how many reads there were.
    pub fn take_reads(&self) -> (BTreeSet<u64>, usize) {
        let reads = std::mem::take(&mut *self.reads.lock().unwrap());
        (reads.iter().copied().collect(), reads.len())
    }
}

impl BlockSource for Image {
    fn read(&self, place: Physical) -> Result<Arc<TreeBlock>, ReadError> {
        if let Some(error) = self.failing.get(&place.offset) {
            return Err(error.clone());
        }
        let block = self.blocks.get(&place.offset).cloned().unwrap_or_else(|| {
            let zeros = vec![0; self.config.nodesize as usize];
            Arc::new(TreeBlock::new(zeros.into(), self.config.csum, self.config.sectorsize))
        });
        let bytenr = parser::Header::parse(block.bytes()).map_or(0, |header| header.bytenr());
        self.reads.lock().unwrap().push(bytenr);
        Ok(block)
    }

    fn origin(&self, place: Physical, _len: u64) -> Origin {
        self.origins.get(&place.offset).copied().unwrap_or(Origin::Unknown)
    }

    fn epoch(&self) -> Option<u64> {
        Some(self.writes)
    }
}
