//! Guests and frontends that change what the device is just using, and frontends that say anything: the device stays, and
//! what was right before is right afterwards.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use btrfs_shadow::device::limits::TURN;
use btrfs_shadow::tap::WritePlan;
use vm_memory::{Bytes, GuestAddress};

use crate::frontend::*;
use crate::harness::{Device, Event, PATIENCE, SIZE, Setup};

const DATA: u64 = FREE + 0x1000;
const STATUS: u64 = FREE + 0x100;
/// In the second region, which a memory table may lack.
const FAR: u64 = REGION + 0x1000;

/// The same numbers in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// A new frontend gets what is right.
fn serves_on(device: &Device, what: &str) {
    device.put_on_disk(SIZE - 512, &[0x42; 512]);
    let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
    assert_eq!(frontend.proper(T_IN, SIZE / 512 - 1, Some((DATA, 512))), S_OK, "after {what}");
    assert_eq!(frontend.bytes(DATA, 512), [0x42; 512], "after {what}");
}

fn offer_write(frontend: &mut Frontend, sector: u64, data: u64, status: u64) {
    frontend.put_header(FREE, T_OUT, sector);
    frontend.fill(status, &[0xff]);
    frontend.put_chain(&chain(0, &[desc(FREE, 16, 0), desc(data, 512, 0), desc(status, 1, WRITE)]));
    frontend.offer(0);
    frontend.kick();
}

#[test]
fn memory_changed_while_a_write_is_held() {
    let device = Setup::plan(|_, _| WritePlan::Hold).start();
    let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
    frontend.fill(DATA, &[5; 512]);
    offer_write(&mut frontend, 0, DATA, STATUS);
    device.tap.wait_for(Event::Held(0, 512));
    // The request, its data and its descriptors become something else.
    frontend.fill(DATA, &[9; 512]);
    frontend.put_header(FREE, T_IN, 77);
    frontend.put_chain(&[desc(0xdead_0000_0000, u32::MAX, INDIRECT); 3]);
    device.tap.release();
    assert_eq!(frontend.used_within(PATIENCE), Some((0, 1)));
    assert_eq!(frontend.bytes(STATUS, 1), [S_OK]);
    assert_eq!(device.on_disk(0, 512), [5; 512], "what was copied first is what is written");
}

#[test]
fn a_memory_table_that_changes_while_requests_are_in_flight() {
    let device =
        Setup::plan(|offset, _| if offset == 0 { WritePlan::Hold } else { WritePlan::Direct }).start();
    let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
    frontend.fill(FAR, &[6; 512]);
    offer_write(&mut frontend, 0, FAR, FAR + 0x800);
    device.tap.wait_for(Event::Held(0, 512));
    // The region that data and status are in is gone from the table; its request keeps it until it is answered.
    frontend.set_mem_table(1);
    device.tap.release();
    assert_eq!(frontend.used_within(PATIENCE), Some((0, 1)));
    assert_eq!(frontend.bytes(FAR + 0x800, 1), [S_OK]);
    assert_eq!(device.on_disk(0, 512), [6; 512]);
    // A new request finds it gone, until it is back.
    offer_write(&mut frontend, 8, FAR, STATUS);
    assert_eq!(frontend.used_within(PATIENCE), Some((0, 1)));
    assert_eq!(frontend.bytes(STATUS, 1), [S_IOERR]);
    frontend.set_mem_table(2);
    offer_write(&mut frontend, 8, FAR, STATUS);
    assert_eq!(frontend.used_within(PATIENCE), Some((0, 1)));
    assert_eq!(frontend.bytes(STATUS, 1), [S_OK]);
    assert_eq!(device.on_disk(4096, 512), [6; 512]);
}

/// Whatever the device makes of rings that lie on one another, on data or outside memory, it makes it of this guest only.
#[test]
fn rings_that_overlap() {
    let device = Setup::default().start();
    let areas = [
        ("all at once", [0, 0, 0]),
        ("used on available", [0, 0x1000, 0x1000]),
        ("used on descriptors", [0, 0, 0x1000]),
        ("used on the request", [0, FREE, 0x1000]),
        ("used on the data", [0, DATA, 0x1000]),
        ("available on descriptors", [0, 0x2000, 16]),
        ("over the end of a region", [REGION - 64, 0x2000, 0x1000]),
        ("used over the end of memory", [0, 2 * REGION - 16, 0x1000]),
        ("available over the end of memory", [0, 0x2000, 2 * REGION - 16]),
    ];
    for (what, areas) in areas {
        let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
        frontend.stop_ring();
        frontend.start_ring_at(areas);
        for round in 0..64 {
            // Requests as they should be, wherever the rings are.
            frontend.put_header(FREE, T_IN, 1);
            let descs = chain(0, &[desc(FREE, 16, 0), desc(DATA, 4096, WRITE), desc(STATUS, 1, WRITE)]);
            frontend.put_descs(areas[0], &descs);
            let index = GuestAddress(areas[2] + 2);
            let _ = frontend.memory.store(round as u16, index, Ordering::Release);
            frontend.kick();
        }
        // It can still be stopped, which waits for whatever it has taken.
        frontend.stop_ring();
        frontend.start_ring();
        drop(frontend);
        serves_on(&device, what);
    }
}

/// Each answer is another request, without end: turn after turn is taken, nobody kicks, and the ring can be stopped.
#[test]
fn a_ring_that_feeds_itself() {
    let device = Setup::default().start();
    let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
    frontend.stop_ring();
    let available = 0x1000;
    let index = GuestAddress(available + 2);
    (frontend.avail, frontend.used) = (4, 5);
    frontend.memory.store(frontend.used, index, Ordering::Release).unwrap();
    frontend.start_ring_at([0, available, available]);
    frontend.kick();
    let deadline = Instant::now() + PATIENCE;
    let passed = || frontend.memory.load::<u16>(index, Ordering::Acquire).unwrap().wrapping_sub(5);
    while usize::from(passed()) <= TURN {
        assert!(Instant::now() < deadline, "it ends with its first turn");
        std::thread::sleep(Duration::from_micros(50));
    }
    frontend.stop_ring();
    drop(frontend);
    serves_on(&device, "a ring without an end");
}

/// Another virtual CPU scribbles over rings, descriptors, headers and data all the while, and rings are stopped, started and
/// reset in the middle.
#[test]
fn everything_changes_all_the_time() {
    let plans = [WritePlan::Direct, WritePlan::Copy, WritePlan::Hold];
    let setup = Setup::plan(move |offset, _| plans[(offset / 512 % 3) as usize]);
    let device = Setup { answer_at_once: true, ..setup }.start();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for features in [F_FLUSH, F_INDIRECT | F_EVENT_IDX] {
        let mut frontend = Frontend::connect(&device.socket, features);
        let (memory, stop) = (frontend.memory.clone(), AtomicBool::new(false));
        let mut seed = Numbers(numbers.below(1 << 40) + 1);
        std::thread::scope(|scope| {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Rings, the first descriptors, headers; small numbers, so that some of it means something.
                    let at = match seed.below(4) {
                        0 => seed.below(0x100),
                        1 => 0x1000 + seed.below(40),
                        2 => 0x2000 + seed.below(140),
                        _ => FREE + seed.below(0x2000),
                    };
                    let value = [seed.below(256), seed.below(4), seed.below(2)][seed.below(3) as usize];
                    let _ = memory.store(value as u8, GuestAddress(at), Ordering::Relaxed);
                }
            });
            let _stop = OnDrop(stop);
            for round in 0..300u16 {
                frontend.put_header(FREE, numbers.below(2) as u32, numbers.below(64));
                let flags = [0, WRITE][numbers.below(2) as usize];
                let data = desc(DATA, 512 * numbers.below(9) as u32, flags);
                frontend.put_chain(&chain(0, &[desc(FREE, 16, 0), data, desc(STATUS, 1, WRITE)]));
                frontend.set_avail(round.wrapping_mul(3));
                frontend.kick();
                match numbers.below(12) {
                    0 => {}
                    1 => {
                        frontend.reset_device();
                        frontend.set_features(features);
                    }
                    2 => {
                        frontend.set_mem_table(1 + numbers.below(2) as usize);
                        continue;
                    }
                    _ => continue,
                }
                frontend.stop_ring();
                frontend.avail = numbers.below(4) as u16;
                frontend.start_ring();
            }
        });
        frontend.stop_ring();
        drop(frontend);
        serves_on(&device, "scribbling");
    }
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_configuration_space_at_its_edges_and_beyond() {
    let device = Setup::default().start();
    for (offset, size) in
        [(0, 0), (0, 256), (255, 1), (256, 1), (0, 257), (u32::MAX, 1), (u32::MAX, u32::MAX)]
    {
        let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
        // Whether it is answered or ends the connection is the library's to say; it allocates no 4 GiB.
        let mut body: Vec<u8> = [offset, size, 0].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        body.resize(12 + size.min(300) as usize, 0xff);
        frontend.utter(24, 1, &body, &[]);
        frontend.utter(25, 1, &body, &[]);
        frontend.hear_it_out();
    }
    let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
    let before = frontend.config(0, 96);
    // Only the write cache can be set, and only to on or off.
    for offset in 0..96u32 {
        if offset != 32 {
            frontend.set_config(offset, &[0xee]);
        }
    }
    assert_eq!(frontend.config(0, 96), before);
    frontend.set_config(0, &[0xee; 96]);
    assert_eq!(frontend.config(0, 96), before);
    drop(frontend);
    serves_on(&device, "configuration");
}

/// Messages of every kind with any flags, bodies and descriptors, right ones among them.
#[test]
fn messages_of_garbage() {
    let device = Setup::default().start();
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    for round in 0..200 {
        let features = [0, F_FLUSH, F_INDIRECT][round % 3];
        let (mut frontend, _channel) = Frontend::connect_with_channel(&device.socket, features);
        let event = frontend.call.try_clone().unwrap();
        let fds = [file.as_raw_fd(), null.as_raw_fd(), event.as_raw_fd()];
        for _ in 0..=numbers.below(6) {
            let code =
                [numbers.below(50) as u32, numbers.below(1 << 32) as u32][usize::from(numbers.below(9) == 0)];
            let flags = [1, 1, 9, 5, 0, numbers.below(1 << 32) as u32][numbers.below(6) as usize];
            let len = [0, 8, 8, 12, 40, 16, 72, 4096][numbers.below(8) as usize];
            let mut body = numbers.bytes(len);
            // Numbers of queues and regions, mostly.
            if numbers.below(2) == 0 {
                body.iter_mut().enumerate().filter(|(at, _)| at % 8 != 0).for_each(|(_, byte)| *byte = 0);
            }
            let sent: Vec<RawFd> = (0..numbers.below(4)).map(|_| fds[numbers.below(3) as usize]).collect();
            if !frontend.utter(code, flags, &body, &sent) {
                break;
            }
        }
        frontend.kick();
        frontend.hear_it_out();
    }
    serves_on(&device, "garbage");
}
