//! Disk images: what the device reads and writes and the verifier reads back.
//!
//! Knows nothing about btrfs or about who asks. Formats other than raw come as further implementations of
//! [`Image`].

mod lock;
mod raw;

use std::io;

use crate::engine::Engine;

pub use raw::{EngineKind, LOCK_PATIENCE, RawImage, RawOptions};

/// A disk image. All operations may be called from any thread at once; offsets and lengths are in bytes.
pub trait Image: Send + Sync {
    /// Size in bytes, as it was when it was last looked at.
    fn len(&self) -> u64;

    /// Looks at the size anew; what it is now.
    fn refresh_len(&self) -> io::Result<u64> {
        Ok(self.len())
    }

    /// Bytes that are read and written at once by what is below: reads and writes are best whole multiples of it, and
    /// aligned to it. A power of two.
    fn io_size(&self) -> u32 {
        4096
    }

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Fills `buf` from `offset`. Reading past the end is an error of kind `UnexpectedEof`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes completed writes durable.
    fn flush(&self) -> io::Result<()>;

    /// Makes what `engines` engines at a time will need, so that none of it has to be made later, when that may not be
    /// possible any more.
    fn prepare(&self, engines: usize) -> io::Result<()> {
        let _ = engines;
        Ok(())
    }

    /// A new I/O engine on this image, for one queue.
    fn engine(&self) -> io::Result<Box<dyn Engine>>;
}
