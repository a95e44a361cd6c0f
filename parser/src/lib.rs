//! btrfs on-disk structures as borrowed views over untrusted bytes.
//!
//! Bytes go in; a view or a [`ParseError`] comes out. The crate does no I/O, knows no clock, and its views allocate
//! nothing; no input makes it panic. It knows what a structure looks like, not whether what it says is true: that is
//! the `shadow` crate's business.
//!
//! [`layout`] is the only module that knows byte offsets. The names of fields are the kernel's
//! (`include/uapi/linux/btrfs_tree.h`), with `type` spelled out where Rust reserves it.

#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod block;
pub mod check;
pub mod chunk;
mod common;
#[cfg(feature = "checksum")]
pub mod csum;
pub mod dev;
pub mod dir;
pub mod error;
pub mod extent;
pub mod file_extent;
pub mod free_space;
pub mod ids;
pub mod inode;
pub mod inode_ref;
pub mod key;
pub mod layout;
pub mod map;
pub mod quota;
pub mod root;
pub mod superblock;
pub mod uuid;

pub use block::{Block, Header, Leaf, Node, NodePtr};
pub use chunk::{BlockFlags, ChunkItem};
#[cfg(feature = "checksum")]
pub use csum::ChecksumType;
pub use error::ParseError;
pub use extent::{BackRef, ExtentItem};
pub use file_extent::FileExtent;
pub use key::Key;
pub use map::{Chunk, ChunkMap};
pub use root::RootItem;
pub use superblock::SuperBlock;

/// A 16-byte UUID as it stands on disk.
pub type Uuid = [u8; 16];
