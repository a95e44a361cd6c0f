//! What was written is what is read, on every path a write can take and over several queues.

use btrfs_shadow::image::{EngineKind, RawOptions};
use btrfs_shadow::tap::WritePlan;

use crate::client::{Client, Queue};
use crate::engines::IO_URING;
use crate::harness::{Device, Event, SIZE, Setup};

/// A small generator of numbers; the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

const DEPTH: usize = 8;
const SLOT: usize = 64 << 10;

/// Random reads and writes of random length, several in flight, within the queue's own part of the disk, against a
/// model in memory. Requests that are in flight together don't overlap: nobody promises an order.
fn exercise(queue: &mut Queue, part: std::ops::Range<u64>, seed: u64, rounds: usize) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let mut model = vec![0u8; (part.end - part.start) as usize];
    let stripe = (part.end - part.start) / DEPTH as u64;
    for round in 0..rounds {
        let mut reads = Vec::new();
        for slot in 0..DEPTH {
            let sectors = 1 + numbers.below(SLOT as u64 / 512);
            let len = (sectors * 512) as usize;
            let at = slot as u64 * stripe + numbers.below((stripe - len as u64) / 512 + 1) * 512;
            let range = at as usize..at as usize + len;
            if numbers.below(2) == 0 {
                let fill = numbers.below(255) as u8 + 1;
                let bytes = queue.slot(slot * SLOT, len);
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = fill ^ (i / 512) as u8;
                }
                model[range].copy_from_slice(bytes);
                queue.submit_write(part.start + at, slot * SLOT, len, slot);
            } else {
                queue.slot(slot * SLOT, len).fill(0xee);
                queue.submit_read(part.start + at, slot * SLOT, len, slot);
                reads.push((slot, range));
            }
        }
        if numbers.below(8) == 0 {
            queue.submit_flush(DEPTH);
            assert!(queue.wait(DEPTH + 1).iter().all(|&(_, ret)| ret == 0));
        } else {
            assert!(queue.wait(DEPTH).iter().all(|&(_, ret)| ret == 0));
        }
        for (slot, range) in reads {
            assert!(queue.slot(slot * SLOT, range.len()) == &model[range], "round {round} slot {slot}");
        }
    }
    model
}

fn exercise_all(device: &mut Device, queues: usize, rounds: usize) {
    let mut client = Client::connect(&device.socket, queues, DEPTH * SLOT);
    assert_eq!(client.blkio.get_u64("capacity").unwrap(), SIZE);
    let share = SIZE / queues as u64;
    let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let threads: Vec<_> = client
            .queues
            .iter_mut()
            .enumerate()
            .map(|(i, queue)| {
                let start = i as u64 * share;
                scope.spawn(move || exercise(queue, start..start + share, 77 + i as u64, rounds))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (i, model) in models.iter().enumerate() {
        assert!(device.on_disk(i as u64 * share, model.len()) == *model, "image differs, queue {i}");
    }
    drop(client);
    device.tap.wait_for(Event::Disconnected);
}

#[test]
fn direct_writes_on_four_queues() {
    let mut device = Setup::default().start();
    exercise_all(&mut device, 4, 300);
    let events = device.tap.events();
    assert!(!events.iter().any(|event| matches!(event, Event::Copied(..) | Event::Held(..))));
    assert!(events.contains(&Event::Flushed));
}

#[test]
fn copied_writes_on_four_queues() {
    let mut device = Setup::plan(|_, _| WritePlan::Copy).start();
    exercise_all(&mut device, 4, 100);
    let events = device.tap.events();
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
    let written = count(|event| matches!(event, Event::Written(..)));
    assert_eq!(count(|event| matches!(event, Event::Copied(..))), written);
    assert!(written > 1000);
}

#[test]
fn every_plan_at_once_on_four_queues() {
    let mut setup = Setup::plan(|offset, _| match offset / 512 % 3 {
        0 => WritePlan::Direct,
        1 => WritePlan::Copy,
        _ => WritePlan::Hold,
    });
    setup.answer_at_once = true;
    exercise_all(&mut setup.start(), 4, 100);
}

/// The plain engine, and direct I/O with requests that are mostly not aligned to what that needs.
#[test]
fn every_engine_on_two_queues() {
    let sync = RawOptions { engine: EngineKind::Sync, ..RawOptions::default() };
    let direct = RawOptions { direct: true, ..RawOptions::default() };
    let direct = IO_URING.then_some(direct);
    for raw in [sync].into_iter().chain(direct) {
        let mut setup =
            Setup::plan(|offset, _| if offset / 512 % 2 == 0 { WritePlan::Direct } else { WritePlan::Copy });
        setup.raw = raw;
        exercise_all(&mut setup.start(), 2, 100);
    }
}
