//! A disk in memory that counts what is read from it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use parser::map::Physical;
use shadow::{BlockSource, ReadError, TreeBlock};

use super::bytes::Config;

/// Tree blocks by place. What was never written reads as zeros.
#[derive(Debug)]
pub struct Image {
    config: Config,
    blocks: HashMap<u64, Arc<TreeBlock>>,
    reads: Mutex<Vec<u64>>,
    /// Places that fail, and how.
    failing: HashMap<u64, ReadError>,
}

impl Image {
    pub fn new(config: &Config) -> Self {
        Image {
            config: config.clone(),
            blocks: HashMap::new(),
            reads: Mutex::default(),
            failing: HashMap::new(),
        }
    }

    pub fn write(&mut self, offset: u64, bytes: Vec<u8>) {
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
}
