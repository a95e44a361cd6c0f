//! A guest's driver: the blkio vhost-user client with one buffer per slot.

use std::mem::MaybeUninit;
use std::path::Path;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

use crate::harness::PATIENCE;

/// A connected driver with its queues and a buffer for all of them.
pub struct Client {
    // First, because queues point into what the others own.
    pub queues: Vec<Queue>,
    pub blkio: Blkio,
}

/// One queue and its part of the buffer.
pub struct Queue {
    queue: Blkioq,
    buffer: *mut u8,
    len: usize,
}

// SAFETY: the buffer is this queue's alone; the test moves a queue to one thread.
unsafe impl Send for Queue {}

impl Client {
    pub fn connect(socket: &Path, queues: usize, buffer: usize) -> Self {
        Self::connect_with(socket, queues, buffer, false)
    }

    pub fn connect_with(socket: &Path, queues: usize, buffer: usize, read_only: bool) -> Self {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").unwrap();
        blkio.set_str("path", socket.to_str().unwrap()).unwrap();
        blkio.set_bool("read-only", read_only).unwrap();
        blkio.connect().unwrap();
        blkio.set_i32("num-queues", queues as i32).unwrap();
        let started = blkio.start().unwrap();
        // A region for each queue, so that guest memory has several.
        let queues = started
            .queues
            .into_iter()
            .map(|queue| {
                let region: MemoryRegion = blkio.alloc_mem_region(buffer).unwrap();
                blkio.map_mem_region(&region).unwrap();
                Queue { queue, buffer: region.addr as *mut u8, len: buffer }
            })
            .collect();
        Self { queues, blkio }
    }
}

impl Queue {
    /// `len` bytes of the buffer at `at`.
    pub fn slot(&mut self, at: usize, len: usize) -> &mut [u8] {
        assert!(at + len <= self.len);
        // SAFETY: within the buffer, which is mapped as long as the client lives; the device touches it only while a
        // request is in flight, and tests look at it only afterwards.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.add(at), len) }
    }

    pub fn submit_read(&mut self, offset: u64, at: usize, len: usize, tag: usize) {
        let buffer = self.slot(at, len).as_mut_ptr();
        self.queue.read(offset, buffer, len, tag, ReqFlags::empty());
    }

    pub fn submit_write(&mut self, offset: u64, at: usize, len: usize, tag: usize) {
        let buffer = self.slot(at, len).as_ptr();
        self.queue.write(offset, buffer, len, tag, ReqFlags::empty());
    }

    /// A write whose data is scattered over pieces of `piece` bytes with gaps between them.
    pub fn submit_scattered(&mut self, write: bool, offset: u64, pieces: &[libc::iovec], tag: usize) {
        let count = pieces.len() as u32;
        if write {
            self.queue.writev(offset, pieces.as_ptr(), count, tag, ReqFlags::empty());
        } else {
            self.queue.readv(offset, pieces.as_ptr(), count, tag, ReqFlags::empty());
        }
    }

    pub fn submit_flush(&mut self, tag: usize) {
        self.queue.flush(tag, ReqFlags::empty());
    }

    /// Waits for `min` completions: tags and results, in the order of completion.
    pub fn wait(&mut self, min: usize) -> Vec<(usize, i32)> {
        self.wait_for_some(min, min)
    }

    /// Waits for `min` completions and takes up to `max`.
    pub fn wait_for_some(&mut self, min: usize, max: usize) -> Vec<(usize, i32)> {
        let mut completions: Vec<MaybeUninit<Completion>> = (0..max).map(|_| MaybeUninit::uninit()).collect();
        let mut timeout = PATIENCE;
        let count = self.queue.do_io(&mut completions, min, Some(&mut timeout), None).unwrap();
        completions[..count]
            .iter()
            // SAFETY: the first `count` have been filled in.
            .map(|completion| unsafe { completion.assume_init_ref() })
            .map(|completion| (completion.user_data, completion.ret))
            .collect()
    }

    /// Makes sure that what was submitted is seen, without waiting.
    pub fn kick(&mut self) {
        self.queue.do_io(&mut [], 0, None, None).unwrap();
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> i32 {
        self.slot(0, bytes.len()).copy_from_slice(bytes);
        self.submit_write(offset, 0, bytes.len(), 0);
        self.wait(1)[0].1
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        self.submit_read(offset, 0, len, 0);
        match self.wait(1)[0].1 {
            0 => Ok(self.slot(0, len).to_vec()),
            error => Err(error),
        }
    }

    pub fn erase(&mut self, offset: u64, len: u64, zeroes: bool) -> i32 {
        match zeroes {
            true => self.queue.write_zeroes(offset, len, 0, ReqFlags::empty()),
            false => self.queue.discard(offset, len, 0, ReqFlags::empty()),
        }
        self.wait(1)[0].1
    }

    pub fn flush(&mut self) -> i32 {
        self.submit_flush(0);
        self.wait(1)[0].1
    }
}
