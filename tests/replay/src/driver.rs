//! A guest's driver: writes ranges over two queues in random order, and flushes.

use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

use crate::history::Change;
use crate::rng::Rng;

/// How long the backend may take for a request on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Queues that are used.
const QUEUES: usize = 2;

/// Requests in flight on a queue.
const DEPTH: usize = 16;

/// Largest request, and the buffer of each; not less than a tree block.
const SLOT: usize = 64 << 10;

/// A connected driver.
pub struct Driver {
    // First, because queues point into what the device owns.
    queues: Vec<Queue>,
    _blkio: Blkio,
}

struct Queue {
    queue: Blkioq,
    buffer: *mut u8,
}

/// A request: where, and what.
type Request = (u64, Vec<u8>);

impl Driver {
    /// Connects to a backend.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        let mut blkio = reach(socket);
        blkio.set_i32("num-queues", QUEUES as i32).expect("enough queues");
        let started = blkio.start().expect("a backend that starts");
        let queue = |queue| {
            let region: MemoryRegion = blkio.alloc_mem_region(DEPTH * SLOT).expect("memory");
            blkio.map_mem_region(&region).expect("memory that can be shared");
            Queue { queue, buffer: region.addr as *mut u8 }
        };
        let queues = started.queues.into_iter().map(queue).collect();
        Driver { queues, _blkio: blkio }
    }

    /// Writes everything, in random order, adjacent ranges sometimes as one request.
    ///
    /// # Panics
    /// When a write fails.
    pub fn write(&mut self, changes: &[Change], rng: &mut Rng) {
        let requests = requests(changes, rng);
        for batch in requests.chunks(QUEUES * DEPTH) {
            let (first, second) = batch.split_at(batch.len().min(DEPTH));
            let [one, two] = self.queues.as_mut_slice() else { panic!("two queues") };
            one.submit(first);
            two.submit(second);
            one.wait(first.len());
            two.wait(second.len());
        }
    }

    /// Writes one range and waits for it.
    ///
    /// # Panics
    /// When the write fails.
    pub fn write_one(&mut self, change: &Change) {
        let queue = &mut self.queues[0];
        queue.submit(&[(change.offset, change.bytes.clone())]);
        queue.wait(1);
    }

    /// Submits a write on one of the two queues, and doesn't wait for it.
    ///
    /// # Panics
    /// When it isn't taken.
    pub fn begin(&mut self, queue: usize, change: &Change) {
        self.queues[queue].submit(&[(change.offset, change.bytes.clone())]);
    }

    /// Waits for the write that was begun on a queue: whether it was carried out. `None` when it isn't answered in
    /// time.
    pub fn end(&mut self, queue: usize, patience: Duration) -> Option<bool> {
        self.queues[queue].result(patience)
    }

    /// Writes one range; whether it was carried out.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn attempt(&mut self, change: &Change) -> bool {
        self.begin(0, change);
        self.end(0, PATIENCE).expect("an answer")
    }

    /// Reads a range; `None` if that fails.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn read(&mut self, offset: u64, len: usize) -> Option<Vec<u8>> {
        assert!(len <= SLOT);
        let queue = &mut self.queues[0];
        queue.queue.read(offset, queue.buffer, len, 0, ReqFlags::empty());
        let done = queue.result(PATIENCE).expect("an answer");
        // SAFETY: the slot lies in the region, which is mapped as long as the driver lives, and nothing that uses it is
        // in flight any more.
        done.then(|| unsafe { std::slice::from_raw_parts(queue.buffer, len) }.to_vec())
    }

    /// Flushes; whether that was done.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn attempt_flush(&mut self) -> bool {
        let queue = &mut self.queues[0];
        queue.queue.flush(0, ReqFlags::empty());
        queue.result(PATIENCE).expect("an answer")
    }

    /// Discards a range, or writes zeros to it; whether that was done.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn attempt_erase(&mut self, offset: u64, len: u64, zeroes: bool) -> bool {
        let queue = &mut self.queues[0];
        match zeroes {
            true => queue.queue.write_zeroes(offset, len, 0, ReqFlags::empty()),
            false => queue.queue.discard(offset, len, 0, ReqFlags::empty()),
        }
        queue.result(PATIENCE).expect("an answer")
    }

    /// Discards a range, or writes zeros to it, and waits for it.
    ///
    /// # Panics
    /// When that fails.
    pub fn erase(&mut self, offset: u64, len: u64, zeroes: bool) {
        assert!(self.attempt_erase(offset, len, zeroes), "it was not done");
    }

    /// Flushes.
    ///
    /// # Panics
    /// When that fails.
    pub fn flush(&mut self) {
        let queue = &mut self.queues[0];
        queue.queue.flush(0, ReqFlags::empty());
        queue.wait(1);
    }
}

/// Connects to a socket that may have been bound, but isn't listened on yet.
fn reach(socket: &Path) -> Blkio {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").expect("libblkio's driver");
        blkio.set_str("path", socket.to_str().expect("a plain path")).expect("a path");
        match blkio.connect() {
            Ok(()) => return blkio,
            Err(error) => assert!(Instant::now() < deadline, "no backend answers: {error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ranges put together to requests, in random order.
fn requests(changes: &[Change], rng: &mut Rng) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    for change in changes {
        match requests.last_mut() {
            Some((offset, bytes))
                if *offset + bytes.len() as u64 == change.offset
                    && bytes.len() + change.bytes.len() <= SLOT
                    && rng.below(3) > 0 =>
            {
                bytes.extend_from_slice(&change.bytes);
            }
            _ => requests.push((change.offset, change.bytes.clone())),
        }
    }
    rng.shuffle(&mut requests);
    requests
}

impl Queue {
    fn submit(&mut self, requests: &[Request]) {
        assert!(requests.len() <= DEPTH);
        for (index, (offset, bytes)) in requests.iter().enumerate() {
            assert!(bytes.len() <= SLOT);
            // SAFETY: the slot lies in the region, which is mapped as long as the driver lives, and no request that
            // uses it is in flight: `wait` has seen the end of all before.
            let slot = unsafe {
                let slot = self.buffer.add(index * SLOT);
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), slot, bytes.len());
                slot
            };
            self.queue.write(*offset, slot, bytes.len(), index, ReqFlags::empty());
        }
        self.queue.do_io(&mut [], 0, None, None).expect("requests that are taken");
    }

    fn result(&mut self, mut patience: Duration) -> Option<bool> {
        let mut completions = [MaybeUninit::uninit()];
        match self.queue.do_io(&mut completions, 1, Some(&mut patience), None) {
            // SAFETY: one was filled in.
            Ok(1) => Some(unsafe { completions[0].assume_init_ref() }.ret == 0),
            _ => None,
        }
    }

    fn wait(&mut self, count: usize) {
        let mut completions: Vec<MaybeUninit<Completion>> =
            (0..count).map(|_| MaybeUninit::uninit()).collect();
        let mut timeout = PATIENCE;
        if count == 0 {
            return;
        }
        let done =
            self.queue.do_io(&mut completions, count, Some(&mut timeout), None).expect("completed requests");
        assert_eq!(done, count, "requests that were answered in time");
        for completion in &completions {
            // SAFETY: all `count` have been filled in.
            let result = unsafe { completion.assume_init_ref() }.ret;
            assert_eq!(result, 0, "result of a request");
        }
    }
}
