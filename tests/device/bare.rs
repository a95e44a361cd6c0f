//! A queue without a frontend, driven step by step.

use std::sync::mpsc;
use std::time::Duration;

use btrfs_shadow::device::bare::{BareQueue, DiskPlace, RingPlace};
use btrfs_shadow::image::{EngineKind, Image, RawImage, RawOptions};
use btrfs_shadow::tap::WritePlan;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::harness::{PATIENCE, SIZE, TestTap};

const RING: RingPlace =
    RingPlace { size: 16, descriptors: 0, available: 0x1000, used: 0x2000, next: 0, event_idx: false };

/// A queue that, once it has learnt that this pays, looks for requests for a time without end.
fn patient_queue(engine: EngineKind, memory: &GuestMemoryMmap<()>) -> BareQueue {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let raw = RawOptions { engine, ..RawOptions::default() };
    let image = std::sync::Arc::new(RawImage::open_with(file.path(), raw).unwrap());
    let (tap, engine) = (TestTap::new(image.clone(), |_, _| WritePlan::Direct), image.engine().unwrap());
    let poll = Duration::from_secs(3600);
    let disk = DiskPlace { len: SIZE, read_only: false, write_through: false, poll };
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
