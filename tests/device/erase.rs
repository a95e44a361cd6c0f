//! Discards and zeros.

use btrfs_shadow::image::RawOptions;
use btrfs_shadow::tap::Erase;

use crate::client::Client;
use crate::frontend::*;
use crate::harness::{Event, Setup};

const DATA: u64 = FREE + 0x1000;
const STATUS: u64 = FREE + 0x100;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;
const UNMAP: u32 = 1;

/// A range as the driver names it.
fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Sends a request with these ranges; its status.
fn erase(frontend: &mut Frontend, kind: u32, ranges: &[u8]) -> u8 {
    frontend.put_header(FREE, kind, 0);
    frontend.fill(DATA, ranges);
    frontend.fill(STATUS, &[0xff]);
    let descs = chain(0, &[desc(FREE, 16, 0), desc(DATA, ranges.len() as u32, 0), desc(STATUS, 1, WRITE)]);
    frontend.request(&descs);
    frontend.bytes(STATUS, 1)[0]
}

#[test]
fn what_is_erased_is_zeros_and_the_tap_knows() {
    let device = Setup::default().start();
    device.put_on_disk(0, &[7; 65536]);
    let mut client = Client::connect(&device.socket, 1, 4096);
    assert_eq!(client.queues[0].erase(4096, 8192, false), 0);
    assert_eq!(client.queues[0].erase(32768, 4096, true), 0);
    assert_eq!(device.on_disk(0, 4096), [7; 4096]);
    assert_eq!(device.on_disk(4096, 8192), [0; 8192]);
    assert_eq!(device.on_disk(12288, 20480), [7; 20480]);
    assert_eq!(device.on_disk(32768, 4096), [0; 4096]);
    assert_eq!(device.on_disk(36864, 4096), [7; 4096]);
    let events = device.tap.events();
    let at = |event: Event| events.iter().position(|other| *other == event).expect("an event");
    assert!(at(Event::Erases(Erase::Discard, 4096, 8192)) < at(Event::Erased(4096, 8192)));
    assert!(at(Event::Erases(Erase::Zeroes { unmap: true }, 32768, 4096)) < at(Event::Erased(32768, 4096)));
}

#[test]
fn several_ranges_are_one_request() {
    let device = Setup { trouble: Some(8192), ..Setup::default() }.start();
    device.put_on_disk(0, &[7; 65536]);
    let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
    let ranges = [range(0, 8, 0), range(32, 8, 0), range(64, 0, 0)].concat();
    assert_eq!(erase(&mut frontend, T_DISCARD, &ranges), S_OK);
    assert_eq!(device.on_disk(0, 4096), [0; 4096]);
    assert_eq!(device.on_disk(4096, 12288), [7; 12288]);
    assert_eq!(device.on_disk(16384, 4096), [0; 4096]);
    // One of them is refused, so none is erased.
    let ranges = [range(40, 8, 0), range(16, 8, 0)].concat();
    assert_eq!(erase(&mut frontend, T_DISCARD, &ranges), S_IOERR);
    assert_eq!(device.on_disk(20480, 4096), [7; 4096]);
    let asked = [Event::Erases(Erase::Discard, 20480, 4096), Event::Erases(Erase::Discard, 8192, 4096)];
    assert!(asked.iter().all(|event| device.tap.events().contains(event)));
    assert!(!device.tap.events().contains(&Event::Erased(20480, 4096)));
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let device = Setup::default().start();
    device.put_on_disk(0, &[7; 65536]);
    let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
    let sectors = crate::harness::SIZE / 512;
    let mut expect = |what: &str, kind: u32, ranges: &[u8], status: u8| {
        assert_eq!(erase(&mut frontend, kind, ranges), status, "{what}");
        assert_eq!(frontend.proper(T_IN, 0, Some((DATA, 512))), S_OK, "after {what}");
    };
    expect("nothing", T_DISCARD, &[], S_IOERR);
    expect("cut short", T_DISCARD, &range(0, 8, 0)[..15], S_IOERR);
    expect("one and a half", T_WRITE_ZEROES, &[range(0, 8, 0), vec![0; 8]].concat(), S_IOERR);
    expect("behind the end", T_DISCARD, &range(sectors - 7, 8, 0), S_IOERR);
    expect("far behind the end", T_WRITE_ZEROES, &range(u64::MAX, 8, 0), S_IOERR);
    expect("too long", T_DISCARD, &range(0, u32::MAX, 0), S_IOERR);
    expect("too many", T_DISCARD, &range(0, 8, 0).repeat(65), S_IOERR);
    expect("a discard that unmaps", T_DISCARD, &range(0, 8, UNMAP), S_UNSUPP);
    expect("an unknown flag", T_WRITE_ZEROES, &range(0, 8, 2), S_UNSUPP);
    assert_eq!(device.on_disk(0, 65536), [7; 65536]);
    expect("all there may be", T_WRITE_ZEROES, &range(8, 1, UNMAP).repeat(64), S_OK);
    assert_eq!(device.on_disk(4096, 512), [0; 512]);
    drop(frontend);

    let device =
        Setup { raw: RawOptions { read_only: true, ..RawOptions::default() }, ..Setup::default() }.start();
    device.put_on_disk(0, &[7; 512]);
    let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
    assert_eq!(erase(&mut frontend, T_DISCARD, &range(0, 1, 0)), S_IOERR);
    assert_eq!(erase(&mut frontend, T_WRITE_ZEROES, &range(0, 1, 0)), S_IOERR);
    assert_eq!(device.on_disk(0, 512), [7; 512]);
}
