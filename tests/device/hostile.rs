//! Guests and frontends that do what they mustn't: the device answers what can be answered, and stays.

use std::time::Duration;

use btrfs_shadow::image::RawOptions;
use btrfs_shadow::tap::WritePlan;

use crate::frontend::*;
use crate::harness::{Device, Event, PATIENCE, SIZE, Setup};

const DATA: u64 = FREE + 0x1000;
const STATUS: u64 = FREE + 0x100;
const TABLE: u64 = FREE + 0x8000;
const NOWHERE: u64 = 0xdead_0000_0000;

fn status() -> Desc {
    desc(STATUS, 1, WRITE)
}

fn header() -> Desc {
    desc(FREE, 16, 0)
}

struct Bench {
    device: Device,
    frontend: Frontend,
}

impl Bench {
    fn new(features: u64) -> Self {
        let device = Setup::default().start();
        device.put_on_disk(0, &[0x42; 512]);
        let frontend = Frontend::connect(&device.socket, features);
        Self { device, frontend }
    }

    /// Sends a chain with a header of `kind` and expects the used length and, if there is one, the status.
    fn expect(&mut self, what: &str, kind: u32, sector: u64, descs: &[Desc], outcome: Option<u8>) {
        self.frontend.put_header(FREE, kind, sector);
        self.frontend.fill(STATUS, &[0xff]);
        let len = self.frontend.request(descs);
        let got = self.frontend.bytes(STATUS, 1)[0];
        match outcome {
            Some(status) => assert_eq!((len, got), (1, status), "{what}"),
            None => assert_eq!((len, got), (0, 0xff), "{what}"),
        }
        self.is_alive(what);
    }

    fn is_alive(&mut self, what: &str) {
        assert_eq!(self.frontend.proper(T_IN, 0, Some((DATA, 512))), S_OK, "after {what}");
        assert_eq!(self.frontend.bytes(DATA, 512), [0x42; 512], "after {what}");
    }
}

#[test]
fn chains_that_lead_astray() {
    let mut bench = Bench::new(0);
    let to = |desc: Desc, next: u16| Desc { next, flags: desc.flags | NEXT, ..desc };
    let data = desc(DATA, 512, WRITE);
    bench.expect("loop", T_IN, 0, &[to(header(), 1), to(data, 0)], None);
    bench.expect("loop of one", T_IN, 0, &[to(header(), 0)], None);
    bench.expect("loop with a status in it", T_IN, 0, &[to(header(), 1), to(status(), 1)], None);
    bench.expect("next beyond the table", T_IN, 0, &[to(header(), 999)], None);
    bench.expect(
        "indirect where it wasn't negotiated, nowhere",
        T_IN,
        0,
        &[desc(NOWHERE, 48, INDIRECT)],
        None,
    );
    bench.expect("no status", T_FLUSH, 0, &chain(0, &[header()]), None);
    bench.expect("status is empty", T_FLUSH, 0, &chain(0, &[header(), desc(STATUS, 0, WRITE)]), None);
    bench.expect("status is read-only", T_FLUSH, 0, &chain(0, &[header(), desc(STATUS, 1, 0)]), None);
    bench.expect("status is nowhere", T_FLUSH, 0, &chain(0, &[header(), desc(NOWHERE, 1, WRITE)]), None);
    bench.expect("status wraps", T_FLUSH, 0, &chain(0, &[header(), desc(u64::MAX, 2, WRITE)]), None);
    bench.expect("no header", T_IN, 0, &chain(0, &[status()]), Some(S_IOERR));
    bench.expect("header is short", T_IN, 0, &chain(0, &[desc(FREE, 15, 0), status()]), Some(S_IOERR));
    bench.expect("header is nowhere", T_IN, 0, &chain(0, &[desc(NOWHERE, 16, 0), status()]), Some(S_IOERR));
    bench.expect("header wraps", T_IN, 0, &chain(0, &[desc(u64::MAX - 3, 16, 0), status()]), Some(S_IOERR));
    let nowhere = [header(), desc(NOWHERE, 512, WRITE), status()];
    bench.expect("data is nowhere", T_IN, 0, &chain(0, &nowhere), Some(S_IOERR));
    let wraps = [header(), desc(u64::MAX - 100, 512, WRITE), status()];
    bench.expect("data wraps", T_IN, 0, &chain(0, &wraps), Some(S_IOERR));
    let past = [header(), desc(2 * REGION - 256, 512, WRITE), status()];
    bench.expect("data leaves guest memory", T_IN, 0, &chain(0, &past), Some(S_IOERR));
    let huge = [header(), desc(DATA, 0xffff_f000, WRITE), status()];
    bench.expect("data is huge", T_IN, 0, &chain(0, &huge), Some(S_IOERR));
    let too_huge = [header(), desc(DATA, u32::MAX, WRITE), status()];
    bench.expect("more than 4 GiB", T_IN, 0, &chain(0, &too_huge), None);
}

#[test]
fn requests_that_make_no_sense() {
    let mut bench = Bench::new(F_FLUSH);
    let input = |len| chain(0, &[header(), desc(DATA, len, WRITE), status()]);
    let output = |len| chain(0, &[header(), desc(DATA, len, 0), status()]);
    let end = SIZE / 512;
    bench.expect("part of a sector", T_IN, 0, &input(511), Some(S_IOERR));
    bench.expect("part of a sector", T_OUT, 0, &output(513), Some(S_IOERR));
    bench.expect("at the end", T_IN, end, &input(512), Some(S_IOERR));
    bench.expect("over the end", T_OUT, end - 1, &output(1024), Some(S_IOERR));
    bench.expect("far out", T_IN, u64::MAX, &input(512), Some(S_IOERR));
    bench.expect("far out", T_OUT, u64::MAX / 512, &output(512), Some(S_IOERR));
    bench.expect("far out", T_OUT, 1 << 55, &output(512), Some(S_IOERR));
    bench.expect("reading into what is readable", T_IN, 0, &output(512), Some(S_IOERR));
    bench.expect("writing from what is writable", T_OUT, 0, &input(512), Some(S_IOERR));
    let mixed = [header(), desc(DATA, 512, WRITE), desc(DATA, 512, 0), status()];
    bench.expect("readable after writable", T_IN, 0, &chain(0, &mixed), Some(S_IOERR));
    for kind in [2, 3, 5, 14, 16, 99, u32::MAX, 0x8000_0001] {
        bench.expect("unknown type", kind, 0, &input(512), Some(S_UNSUPP));
    }
    let empty = chain(0, &[header(), status()]);
    bench.expect("nothing to read", T_IN, 0, &empty, Some(S_OK));
    bench.expect("nothing to write", T_OUT, end, &empty, Some(S_OK));
    bench.expect("nothing to read, beyond the end", T_IN, end + 1, &empty, Some(S_IOERR));
    bench.expect("flush", T_FLUSH, 0, &empty, Some(S_OK));
    bench.expect("flush with baggage", T_FLUSH, 77, &output(512), Some(S_OK));
}

#[test]
fn unusual_but_right() {
    let mut bench = Bench::new(F_INDIRECT);
    let frontend = &mut bench.frontend;
    // Data across the border of two memory regions.
    let border = REGION - 100;
    frontend.fill(border, &[0x33; 512]);
    assert_eq!(frontend.proper(T_OUT, 8, Some((border, 512))), S_OK);
    frontend.fill(border, &[0; 512]);
    assert_eq!(frontend.proper(T_IN, 8, Some((border, 512))), S_OK);
    assert_eq!(frontend.bytes(border, 512), [0x33; 512]);
    assert_eq!(bench.device.on_disk(4096, 512), [0x33; 512]);
    // A header in sixteen pieces, data in halves, status behind the data in one descriptor.
    frontend.put_header(FREE, T_IN, 8);
    let mut descs: Vec<Desc> = (0..13).map(|i| desc(FREE + i, 1, 0)).collect();
    descs.extend([desc(FREE + 13, 3, 0), desc(DATA, 200, WRITE), desc(DATA + 200, 313, WRITE)]);
    assert_eq!(frontend.request(&chain(0, &descs)), 513);
    assert_eq!(frontend.bytes(DATA, 513), [&[0x33; 512][..], &[S_OK]].concat());
    // The serial number into less, as much and more room than it needs.
    for room in [5usize, 20, 100] {
        frontend.fill(DATA, &[0xee; 101]);
        assert_eq!(frontend.proper(T_GET_ID, 0, Some((DATA, room as u32))), S_OK);
        let expected = b"btrfs-shadow\0\0\0\0\0\0\0\0";
        assert_eq!(frontend.bytes(DATA, room.min(20)), expected[..room.min(20)]);
        assert!(frontend.bytes(DATA + room as u64, 1) == [0xee]);
    }
    // Configuration beyond its end.
    assert_eq!(frontend.config(0, 8), (SIZE / 512).to_le_bytes());
    assert_eq!(frontend.config(200, 56), [0; 56]);
    // The same chain twice at once.
    frontend.put_header(FREE, T_IN, 8);
    frontend.put_chain(&chain(0, &[header(), desc(DATA, 512, WRITE), status()]));
    frontend.offer(0);
    frontend.offer(0);
    frontend.kick();
    for _ in 0..2 {
        assert_eq!(frontend.used_within(PATIENCE), Some((0, 513)));
    }
}

#[test]
fn indirect_tables() {
    let mut bench = Bench::new(F_INDIRECT);
    let table = |len: u32| [desc(TABLE, len, INDIRECT)];
    let good = chain(0, &[header(), desc(DATA, 512, WRITE), status()]);
    bench.frontend.put_descs(TABLE, &good);
    bench.frontend.put_header(FREE, T_IN, 0);
    assert_eq!(bench.frontend.request(&table(48)), 513);
    assert_eq!(bench.frontend.bytes(DATA, 512), [0x42; 512]);
    bench.expect("table is cut off", T_IN, 0, &table(32), None);
    bench.expect("table is empty", T_IN, 0, &table(0), None);
    bench.expect("table is no table", T_IN, 0, &table(47), None);
    bench.expect("table is nowhere", T_IN, 0, &[desc(NOWHERE, 48, INDIRECT)], None);
    bench.expect("table leaves memory", T_IN, 0, &[desc(2 * REGION - 16, 48, INDIRECT)], None);
    bench.expect("table is huge", T_IN, 0, &table(0xffff_fff0), None);
    bench.frontend.put_descs(TABLE, &[desc(TABLE, 48, INDIRECT)]);
    bench.expect("table in a table", T_IN, 0, &table(48), None);
    bench.frontend.put_descs(TABLE, &[Desc { next: 0, ..desc(FREE, 16, NEXT) }]);
    bench.expect("loop in a table", T_IN, 0, &table(65535 * 16), None);
    let mut long = vec![header()];
    long.extend(std::iter::repeat_n(desc(DATA, 512, WRITE), 2000));
    long.push(status());
    bench.frontend.put_descs(TABLE, &chain(0, &long));
    bench.expect("long chain", T_IN, 0, &table(2002 * 16), Some(S_IOERR));
    // Within the limits, and more slices than one system call takes.
    let mut pieces = vec![header()];
    pieces.extend((0..1022).map(|i| desc(DATA + 512 + i, if i < 1021 { 1 } else { 3 }, WRITE)));
    pieces.last_mut().unwrap().len = 4;
    bench.frontend.put_descs(TABLE, &chain(0, &pieces));
    bench.frontend.put_header(FREE, T_IN, 0);
    assert_eq!(bench.frontend.request(&table(1023 * 16)), 1025);
    assert_eq!(bench.frontend.bytes(DATA + 512, 512), [0x42; 512]);
}

#[test]
fn a_broken_available_ring() {
    let mut bench = Bench::new(0);
    // A head that doesn't exist can't be answered.
    bench.frontend.offer(QUEUE_SIZE);
    bench.frontend.offer(u16::MAX);
    bench.frontend.kick();
    assert_eq!(bench.frontend.used_within(Duration::from_millis(100)), None);
    bench.is_alive("heads that don't exist");
    // More than the ring holds: nothing can be made of it until it is mended.
    bench.frontend.set_avail(bench.frontend.avail.wrapping_add(1000));
    bench.frontend.kick();
    assert_eq!(bench.frontend.used_within(Duration::from_millis(100)), None);
    bench.frontend.set_avail(bench.frontend.avail);
    bench.is_alive("an impossible index");
    // Busy kicking does no harm.
    for _ in 0..1000 {
        bench.frontend.kick();
    }
    bench.is_alive("kicks");
}

/// QEMU reads what is left in the event descriptor of a kick when a guest resets its device.
#[test]
fn kicks_that_somebody_else_reads() {
    let mut bench = Bench::new(0);
    for _ in 0..20_000 {
        bench.frontend.kick();
        bench.frontend.take_back_kick();
    }
    bench.is_alive("kicks that are gone");
}

#[test]
fn random_chains() {
    for features in [0, F_INDIRECT | F_EVENT_IDX | F_FLUSH] {
        let device = Setup::plan(|offset, _| match offset / 512 % 3 {
            0 => WritePlan::Direct,
            _ => WritePlan::Copy,
        })
        .start();
        let mut frontend = Frontend::connect(&device.socket, features);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut below = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        for round in 0..5000 {
            let mut table = Vec::new();
            for _ in 0..QUEUE_SIZE {
                let addr = match below(8) {
                    0 => NOWHERE,
                    1 => 2 * REGION - below(600),
                    2 => REGION - below(600),
                    3 => u64::MAX - below(600),
                    _ => FREE + below(8) * 512,
                };
                let len = match below(6) {
                    0 => below(20) as u32,
                    1 => u32::MAX - below(3) as u32,
                    2 => 16,
                    _ => below(4) as u32 * 512,
                };
                let flags =
                    [0, WRITE, NEXT, NEXT | WRITE, NEXT, NEXT | WRITE, INDIRECT, 7][below(8) as usize];
                table.push(Desc { addr, len, flags, next: below(u64::from(QUEUE_SIZE) + 2) as u16 });
            }
            for slot in 0..8 {
                frontend.put_header(
                    FREE + slot * 512,
                    [0, 1, 4, 8, 99][below(5) as usize],
                    below(SIZE / 512 + 2),
                );
            }
            frontend.put_descs(FREE, &table[..below(3) as usize]);
            frontend.put_chain(&table);
            // Valid heads, so each gets an answer.
            let count = 1 + below(u64::from(QUEUE_SIZE));
            for _ in 0..count {
                frontend.offer(below(u64::from(QUEUE_SIZE)) as u16);
            }
            frontend.kick();
            for _ in 0..count {
                assert!(frontend.used_within(PATIENCE).is_some(), "round {round}");
            }
        }
        device.put_on_disk(0, &[0x42; 512]);
        assert_eq!(frontend.proper(T_IN, 0, Some((DATA, 512))), S_OK);
        assert_eq!(frontend.bytes(DATA, 512), [0x42; 512]);
    }
}

#[test]
fn writes_to_a_read_only_image() {
    let device =
        Setup { raw: RawOptions { read_only: true, ..RawOptions::default() }, ..Setup::default() }.start();
    let mut frontend = Frontend::connect(&device.socket, F_FLUSH | 1 << 5);
    assert_eq!(frontend.proper(T_OUT, 0, Some((DATA, 512))), S_IOERR);
    assert_eq!(frontend.proper(T_FLUSH, 0, None), S_OK);
    assert_eq!(frontend.proper(T_IN, 0, Some((DATA, 512))), S_OK);
}

#[test]
fn a_frontend_that_talks_nonsense() {
    let device = Setup::default().start();
    for nonsense in [&[0xff; 12][..], &[0; 5], &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 9], &[]] {
        let mut frontend = Frontend::connect(&device.socket, 0);
        frontend.babble(nonsense);
    }
    let mut frontend = Frontend::connect(&device.socket, 0);
    assert_eq!(frontend.proper(T_OUT, 0, Some((DATA, 512))), S_OK);
    drop(frontend);
    device.tap.wait_for(Event::Disconnected);
}
