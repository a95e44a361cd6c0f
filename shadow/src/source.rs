//! Where tree blocks come from.

use std::sync::Arc;

use parser::check::BlockFault;
use parser::map::Physical;
use parser::{Block, ChecksumType, ParseError, check};
use thiserror::Error;

/// A tree block's bytes and what was found out about them when they were read or captured: once, however often
/// the block is looked at.
#[derive(Debug)]
pub struct TreeBlock {
    bytes: Box<[u8]>,
    csum_ok: bool,
    fault: Option<StructureFault>,
}

/// What is wrong with the structure of a block, seen by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StructureFault {
    /// It does not have the form of a tree block.
    Parse(ParseError),
    /// It is not well formed.
    Check(BlockFault),
}

impl TreeBlock {
    /// Takes over the bytes of a block; computes its checksum and checks its structure.
    #[must_use]
    pub fn new(bytes: Box<[u8]>, csum: ChecksumType, sectorsize: u32) -> Self {
        let csum_ok = csum.verify(&bytes);
        let fault = match Block::parse(&bytes) {
            Ok(block) => check::block(&block, sectorsize).err().map(StructureFault::Check),
            Err(error) => Some(StructureFault::Parse(error)),
        };
        TreeBlock { bytes, csum_ok, fault }
    }

    /// All bytes of the block.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the checksum is right.
    #[must_use]
    pub fn csum_ok(&self) -> bool {
        self.csum_ok
    }

    /// What is wrong with the structure.
    #[must_use]
    pub fn fault(&self) -> Option<StructureFault> {
        self.fault
    }

    /// The block as a view; `None` where it has no form.
    #[must_use]
    pub fn view(&self) -> Option<Block<'_>> {
        Block::parse(&self.bytes).ok()
    }
}

/// Why a block could not be read. None of these says anything about what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReadError {
    /// The place lies past the end of the device.
    #[error("devid {devid} offset {offset} lies past the end of the device")]
    OutOfBounds {
        /// Device.
        devid: u64,
        /// Byte offset.
        offset: u64,
    },
    /// The device is not one the program serves.
    #[error("devid {0} is not served here")]
    ForeignDevice(u64),
    /// The disk failed.
    #[error("I/O error: {0}")]
    Io(String),
}

/// How the bytes at a place came there, where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nobody knows.
    Unknown,
    /// Written and flushed.
    Durable,
    /// Written since the commit before last, and not flushed.
    NotFlushed,
    /// A write to them is not complete.
    InFlight,
    /// Not written since the commit before last.
    NotWritten,
}

/// Reads tree blocks by their place. What is written by the guest is seen as soon as its write has completed.
pub trait BlockSource: Sync {
    /// Reads the tree block at `place`.
    ///
    /// # Errors
    /// [`ReadError`] when there are no bytes to be had.
    fn read(&self, place: Physical) -> Result<Arc<TreeBlock>, ReadError>;

    /// Says how the `len` bytes at `place` came there.
    fn origin(&self, _place: Physical, _len: u64) -> Origin {
        Origin::Unknown
    }

    /// Counts the writes to where tree blocks may lie: as long as it says the same, whatever was read would be read
    /// again. `None` where nobody counts.
    fn epoch(&self) -> Option<u64> {
        None
    }

    /// Whether the last write to any of the `len` bytes at `place` failed, as the guest was told: what lies there is
    /// not what it has committed, and no fault of its own while there is another copy.
    fn write_failed(&self, _place: Physical, _len: u64) -> bool {
        false
    }
}
