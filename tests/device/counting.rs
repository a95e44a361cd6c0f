//! An image whose engines count how often they are asked for completions: each time that a queue does anything, it asks. For
//! tests of how much is done for nothing, which don't depend on how fast the machine is.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use btrfs_shadow::engine::{Buffer, Completion, Engine, Erase};
use btrfs_shadow::image::Image;

/// `image`, and how often the engines on it were asked.
pub struct Counting {
    pub image: Arc<dyn Image>,
    pub looks: Arc<AtomicU64>,
}

impl Image for Counting {
    fn len(&self) -> u64 {
        self.image.len()
    }

    fn refresh_len(&self) -> io::Result<u64> {
        self.image.refresh_len()
    }

    fn io_size(&self) -> u32 {
        self.image.io_size()
    }

    fn read_only(&self) -> bool {
        self.image.read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.image.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.image.write_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.image.flush()
    }

    fn prepare(&self, engines: usize) -> io::Result<()> {
        self.image.prepare(engines)
    }

    fn engine(&self) -> io::Result<Box<dyn Engine>> {
        Ok(Box::new(Counted { engine: self.image.engine()?, looks: self.looks.clone() }))
    }
}

struct Counted {
    engine: Box<dyn Engine>,
    looks: Arc<AtomicU64>,
}

impl Engine for Counted {
    fn read_vectored(&mut self, offset: u64, buffer: Buffer, token: u64) {
        self.engine.read_vectored(offset, buffer, token);
    }

    fn write_vectored(&mut self, offset: u64, buffer: Buffer, token: u64) {
        self.engine.write_vectored(offset, buffer, token);
    }

    fn erase(&mut self, kind: Erase, offset: u64, len: u64, token: u64) {
        self.engine.erase(kind, offset, len, token);
    }

    fn flush(&mut self, token: u64) {
        self.engine.flush(token);
    }

    fn submit(&mut self) {
        self.engine.submit();
    }

    fn completions(&mut self, into: &mut Vec<Completion>) {
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.engine.completions(into);
    }

    fn has_completions(&mut self) -> bool {
        self.engine.has_completions()
    }

    fn notifier(&self) -> Option<BorrowedFd<'_>> {
        self.engine.notifier()
    }
}
