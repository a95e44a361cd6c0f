//! A queue without a frontend, driven step by step.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use btrfs_shadow::device::bare::{BareQueue, DiskPlace, RingPlace};
use btrfs_shadow::device::limits::{MAX_COPIED, MAX_COPY, TURN};
use btrfs_shadow::engine::{Buffer, Completion, Engine, Erase};
use btrfs_shadow::image::{EngineKind, Image, RawImage, RawOptions};
use btrfs_shadow::tap::WritePlan;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::frontend::{Desc, INDIRECT, T_OUT, WRITE, chain, desc};
use crate::harness::{PATIENCE, SIZE, TestTap};

const RING: RingPlace =
    RingPlace { size: 16, descriptors: 0, available: 0x1000, used: 0x2000, next: 0, event_idx: false };

/// A queue that, once it has learnt that this pays, looks for requests for a time without end.
fn patient_queue(engine: EngineKind, memory: &GuestMemoryMmap<()>) -> BareQueue {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let raw = RawOptions { engine, ..RawOptions::default() };
    let image = Arc::new(RawImage::open_with(file.path(), raw).unwrap());
    let (tap, engine) = (TestTap::new(image.clone(), |_, _| WritePlan::Direct), image.engine().unwrap());
    let poll = Duration::from_secs(3600);
    let disk = DiskPlace { len: SIZE, read_only: false, write_through: false, poll, turn: TURN };
    let queue = BareQueue::new(engine, tap, disk, memory.clone()).unwrap();
    queue.start(RING).unwrap();
    queue
}

/// What it takes to spin for ever: the index says there are requests, and the ring yields none.
#[test]
fn a_broken_ring_does_not_keep_its_queue_looking() {
    for engine in [EngineKind::Auto, EngineKind::Sync] {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        let mut queue = patient_queue(engine, &memory);
        // Two short sleeps, so that it is worth looking.
        queue.run();
        queue.run();
        // More than the ring holds.
        memory.write_obj(1000u16, GuestAddress(RING.available + 2)).unwrap();
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || {
            queue.run();
            done.send(queue.in_flight())
        });
        assert_eq!(ended.recv_timeout(PATIENCE), Ok(0), "the queue goes on and on");
    }
}

/// The used ring lies over the available ring, so that each answer is another request: the queue comes back all the same,
/// wants to be called again, and can be stopped.
#[test]
fn a_ring_that_feeds_itself_does_not_keep_its_queue() {
    for engine in [EngineKind::Auto, EngineKind::Sync] {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        let mut queue = patient_queue(engine, &memory);
        queue.stop();
        // Answers are given ahead of what is taken.
        let ring = RingPlace { used: RING.available, next: 4, ..RING };
        memory.write_obj(5u16, GuestAddress(ring.available + 2)).unwrap();
        queue.start(ring).unwrap();
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let taken = [queue.run(), queue.run(), queue.run()];
            done.send((taken, queue.is_called_back(), queue.in_flight())).unwrap();
            let next = queue.stop();
            queue.run();
            done.send(([next.into(), 0, 0], queue.is_called_back(), queue.in_flight()))
        });
        assert_eq!(ended.recv_timeout(PATIENCE), Ok(([TURN; 3], true, 0)));
        assert_eq!(ended.recv_timeout(PATIENCE), Ok(([4 + 3 * TURN, 0, 0], false, 0)));
    }
}

/// A disk that takes everything, and completes nothing until it is told to.
#[derive(Default)]
struct Slow {
    waiting: Vec<(u64, Buffer)>,
}

#[derive(Clone, Default)]
struct SlowDisk(Arc<Mutex<Slow>>, Arc<AtomicBool>);

impl SlowDisk {
    /// Bytes of its own that the disk was given, and hasn't given back.
    fn owned(&self) -> usize {
        let slow = self.0.lock().unwrap();
        slow.waiting
            .iter()
            .map(|(_, buffer)| if let Buffer::Owned(bytes) = buffer { bytes.len() } else { 0 })
            .sum()
    }

    fn go_on(&self) {
        self.1.store(true, Ordering::SeqCst);
    }
}

impl Engine for SlowDisk {
    fn read_vectored(&mut self, _offset: u64, buffer: Buffer, token: u64) {
        self.0.lock().unwrap().waiting.push((token, buffer));
    }

    fn write_vectored(&mut self, _offset: u64, buffer: Buffer, token: u64) {
        self.0.lock().unwrap().waiting.push((token, buffer));
    }

    fn erase(&mut self, _kind: Erase, _offset: u64, _len: u64, _token: u64) {
        unreachable!("nothing is erased here");
    }

    fn flush(&mut self, _token: u64) {
        unreachable!("nothing is flushed here");
    }

    fn submit(&mut self) {}

    fn completions(&mut self, into: &mut Vec<Completion>) {
        if self.1.swap(false, Ordering::SeqCst) {
            let waiting = std::mem::take(&mut self.0.lock().unwrap().waiting);
            into.extend(waiting.into_iter().map(|(token, buffer)| Completion {
                token,
                result: Ok(()),
                buffer: Some(buffer),
            }));
        }
    }

    fn has_completions(&mut self) -> bool {
        self.1.load(Ordering::SeqCst)
    }

    fn notifier(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Requests of [`greedy_guest`].
const REQUESTS: u16 = 16;

/// A guest with little memory that writes much of it: the same 64 KiB, a thousand times a request.
fn greedy_guest() -> GuestMemoryMmap<()> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let put = |at: u64, desc: Desc| {
        let words = desc.addr.to_le_bytes().into_iter().chain(desc.len.to_le_bytes());
        let rest = desc.flags.to_le_bytes().into_iter().chain(desc.next.to_le_bytes());
        memory.write_slice(&words.chain(rest).collect::<Vec<u8>>(), GuestAddress(at)).unwrap();
    };
    let (table, data, header, status) = (0x10000, 0x40000, 0x8000, 0x9000);
    let mut descs = vec![desc(header, 16, 0)];
    descs.extend(std::iter::repeat_n(desc(data, 1 << 16, 0), 1022));
    descs.push(desc(status, 1, WRITE));
    for (slot, desc) in chain(0, &descs).into_iter().enumerate() {
        put(table + slot as u64 * 16, desc);
    }
    for head in 0..REQUESTS {
        put(RING.descriptors + u64::from(head) * 16, desc(table, descs.len() as u32 * 16, INDIRECT));
        memory.write_obj(head, GuestAddress(RING.available + 4 + u64::from(head) * 2)).unwrap();
    }
    memory.write_obj(T_OUT, GuestAddress(header)).unwrap();
    memory.write_obj(REQUESTS, GuestAddress(RING.available + 2)).unwrap();
    memory
}

/// Has all requests answered, by a disk that is slow, and looks at how much is copied.
fn assert_bounded(queue: &mut BareQueue, slow: &SlowDisk, memory: &GuestMemoryMmap<()>) {
    let used = || memory.read_obj::<u16>(GuestAddress(RING.used + 2)).unwrap();
    let mut rounds = 0;
    while used() < REQUESTS {
        queue.run();
        assert!(slow.owned() > 0, "nothing is taken any more");
        assert!(slow.owned() <= MAX_COPIED + MAX_COPY, "{} bytes are copied", slow.owned());
        slow.go_on();
        queue.run();
        rounds += 1;
        assert!(rounds <= REQUESTS, "{} of {REQUESTS} requests answered", used());
    }
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn copies_in_flight_are_bounded() {
    let memory = greedy_guest();
    // All that is written is zeros, as a hole is.
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 30).unwrap();
    let image = Arc::new(RawImage::open(file.path(), false).unwrap());
    let disk =
        DiskPlace { len: 1 << 30, read_only: false, write_through: false, poll: Duration::ZERO, turn: TURN };
    let slow = SlowDisk::default();
    let copies = TestTap::new(image.clone(), |_, _| WritePlan::Copy);
    let mut queue = BareQueue::new(Box::new(slow.clone()), copies, disk, memory.clone()).unwrap();
    queue.start(RING).unwrap();
    assert_bounded(&mut queue, &slow, &memory);

    // None of them is copied, all are in flight, and the process is killed; the next one has to copy them.
    let memory = greedy_guest();
    let direct = TestTap::new(image.clone(), |_, _| WritePlan::Direct);
    let mut queue = BareQueue::new(Box::<SlowDisk>::default(), direct, disk, memory.clone()).unwrap();
    queue.start(RING).unwrap();
    queue.run();
    assert_eq!(queue.in_flight(), usize::from(REQUESTS));
    let (slow, copies) = (SlowDisk::default(), TestTap::new(image, |_, _| WritePlan::Copy));
    queue.killed(Box::new(slow.clone()), copies).unwrap();
    queue.start(RING).unwrap();
    assert_bounded(&mut queue, &slow, &memory);
}
