//! A write cache that the guest turns off stays off as long as the guest: QEMU says so once, and never again.
//!
//! A process that is killed leaves its record as it is at that moment: that is what the next one gets here. tests/kill kills
//! real ones.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use btrfs_shadow::device::DeviceOptions;
use btrfs_shadow::tap::{Draining, WritePlan};
use tempfile::TempDir;

use crate::frontend::*;
use crate::harness::{Device, Event, PATIENCE, Setup};

const DATA: u64 = FREE + 0x1000;
const STATUS: u64 = FREE + 0x100;
const T_DISCARD: u32 = 11;
/// Where the write cache's setting is in the configuration space.
const WCE: u32 = 32;
const FEATURES: u64 = F_FLUSH | F_CONFIG_WCE;

/// Where a device's processes live, one after the other. Writes to sector 0 are held.
struct Home(Arc<TempDir>);

impl Home {
    fn new() -> Self {
        Self(Arc::new(tempfile::tempdir().unwrap()))
    }

    fn record(&self) -> PathBuf {
        self.0.path().join("record")
    }

    fn start(&self) -> Device {
        let hold_first = |offset, _| if offset == 0 { WritePlan::Hold } else { WritePlan::Direct };
        let options = DeviceOptions { inflight: Some(self.record()), ..DeviceOptions::default() };
        Setup { options, ..Setup::plan(hold_first) }.start_in(&self.0)
    }

    /// The process ends, and another begins.
    fn replace(&self, mut device: Device, frontend: &mut Frontend, end: End) -> Device {
        match end {
            End::Asked => {
                device.stop.trigger();
                // What is in flight is finished first.
                while device.tap.held() > 0 {
                    device.tap.release();
                }
                device.finish();
            }
            End::Killed => {
                let left = fs::read(self.record()).unwrap();
                frontend.hang_up();
                if device.tap.held() > 0 {
                    // The ring is given up by now: nobody gets this answer.
                    device.tap.wait_for(Event::Draining(Draining::Session));
                    device.tap.forget();
                }
                device.tap.wait_for(Event::Disconnected);
                device.finish();
                fs::write(self.record(), left).unwrap();
            }
        }
        self.start()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// SIGTERM.
    Asked,
    Killed,
}

/// How many flushes there were.
fn flushes(device: &Device) -> usize {
    device.tap.events().iter().filter(|event| **event == Event::Flushed).count()
}

/// A write is answered; whether it was made durable before.
fn write_is_durable(device: &Device, frontend: &mut Frontend) -> bool {
    let before = flushes(device);
    assert_eq!(frontend.proper(T_OUT, 8, Some((DATA, 512))), S_OK);
    match flushes(device) - before {
        0 => false,
        1 => true,
        many => panic!("{many} flushes for one write"),
    }
}

/// Offers a write that is held.
fn begin_held(device: &Device, frontend: &mut Frontend) {
    frontend.put_header(FREE, T_OUT, 0);
    frontend.fill(STATUS, &[0xff]);
    let descs = [desc(FREE, 16, 0), desc(DATA, 512, 0), desc(STATUS, 1, WRITE)];
    frontend.put_chain(&chain(0, &descs));
    frontend.offer(0);
    frontend.kick();
    device.tap.wait_for_held();
}

#[test]
fn a_guest_may_turn_it_off_and_on() {
    let device = Setup::default().start();
    let mut frontend = Frontend::connect(&device.socket, FEATURES);
    assert_eq!(frontend.config(WCE, 1), [1]);
    assert!(!write_is_durable(&device, &mut frontend));
    frontend.set_config(WCE, &[0]);
    assert_eq!(frontend.config(WCE, 1), [0]);
    assert!(write_is_durable(&device, &mut frontend));
    let range = [&8u64.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat();
    frontend.put_header(FREE, T_DISCARD, 0);
    frontend.fill(DATA, &range);
    frontend.request(&chain(0, &[desc(FREE, 16, 0), desc(DATA, 16, 0), desc(STATUS, 1, WRITE)]));
    assert_eq!((frontend.bytes(STATUS, 1), flushes(&device)), (vec![S_OK], 2));
    frontend.set_config(WCE, &[1]);
    assert_eq!(frontend.config(WCE, 1), [1]);
    assert!(!write_is_durable(&device, &mut frontend));
}

/// What QEMU says when its virtual machine is stopped and goes on, and when it is reset. Its guest has set its cache once; the
/// next driver is told what QEMU has kept.
#[test]
fn it_stays_off_when_the_machine_goes_on_or_begins_anew() {
    let device = Setup::default().start();
    let mut frontend = Frontend::connect(&device.socket, FEATURES);
    frontend.set_config(WCE, &[0]);
    for resets in [false, false, true, true, false] {
        frontend.stop_ring();
        if resets {
            frontend.reset_device();
            frontend.begin_rings_anew();
        }
        frontend.set_features(FEATURES);
        frontend.start_ring();
        assert_eq!(frontend.config(WCE, 1), [0]);
        assert!(write_is_durable(&device, &mut frontend));
    }
}

#[test]
fn without_flushes_there_is_none_to_turn_on() {
    let device = Setup::default().start();
    let mut frontend = Frontend::connect(&device.socket, F_CONFIG_WCE);
    assert_eq!(frontend.config(WCE, 1), [0]);
    frontend.set_config(WCE, &[1]);
    assert_eq!(frontend.config(WCE, 1), [0]);
    assert!(write_is_durable(&device, &mut frontend));
    // A frontend was told that there is none, and may tell a driver that could flush.
    frontend.stop_ring();
    frontend.reset_device();
    frontend.begin_rings_anew();
    frontend.set_features(FEATURES);
    frontend.start_ring();
    assert_eq!(frontend.config(WCE, 1), [0]);
    assert!(write_is_durable(&device, &mut frontend));
}

/// A firmware that neither flushes nor is told of a cache says nothing about the driver that comes after it.
#[test]
fn a_driver_that_is_not_told_of_it_leaves_it_on() {
    let device = Setup::default().start();
    let mut frontend = Frontend::connect(&device.socket, 0);
    assert_eq!(frontend.config(WCE, 1), [1]);
    assert!(write_is_durable(&device, &mut frontend));
    frontend.stop_ring();
    frontend.begin_rings_anew();
    frontend.set_features(FEATURES);
    frontend.start_ring();
    assert!(!write_is_durable(&device, &mut frontend));
}

#[test]
fn it_stays_off_in_the_processes_that_follow() {
    for end in [End::Killed, End::Asked] {
        for stopped in [true, false] {
            let home = Home::new();
            let mut device = home.start();
            let mut frontend = Frontend::connect(&device.socket, FEATURES);
            frontend.set_config(WCE, &[0]);
            for round in 0..4 {
                assert_eq!(frontend.config(WCE, 1), [0]);
                assert!(write_is_durable(&device, &mut frontend), "{end:?} {stopped} {round}");
                if stopped {
                    frontend.stop_ring();
                }
                device = home.replace(device, &mut frontend, end);
                frontend.reach(&device.socket, FEATURES);
                if round == 2 {
                    // Nor does it get any further with this one.
                    device = home.replace(device, &mut frontend, end);
                    frontend.reach(&device.socket, FEATURES);
                }
                frontend.start_ring_where_used();
                if stopped {
                    // The machine goes on, which QEMU has made ready for before.
                    frontend.stop_ring();
                    frontend.set_features(FEATURES);
                    frontend.start_ring();
                }
            }
            // On again, and so it stays.
            frontend.set_config(WCE, &[1]);
            assert!(!write_is_durable(&device, &mut frontend));
            device = home.replace(device, &mut frontend, end);
            frontend.reach(&device.socket, FEATURES);
            frontend.start_ring_where_used();
            assert_eq!(frontend.config(WCE, 1), [1]);
            assert!(!write_is_durable(&device, &mut frontend));
        }
    }
}

#[test]
fn it_stays_off_with_a_request_in_flight_at_the_end() {
    for end in [End::Killed, End::Asked] {
        let home = Home::new();
        let mut device = home.start();
        let mut frontend = Frontend::connect(&device.socket, FEATURES);
        frontend.set_config(WCE, &[0]);
        for round in 0..3 {
            begin_held(&device, &mut frontend);
            device = home.replace(device, &mut frontend, end);
            frontend.reach(&device.socket, FEATURES);
            frontend.start_ring_where_used();
            if end == End::Killed {
                // It is begun again.
                device.tap.wait_for_held();
                device.tap.release();
            }
            assert!(frontend.used_within(PATIENCE).is_some());
            assert_eq!(frontend.bytes(STATUS, 1), [S_OK]);
            assert_eq!(flushes(&device), usize::from(end == End::Killed));
            assert!(write_is_durable(&device, &mut frontend), "{end:?} {round}");
        }
    }
}

/// The guest is in its firmware, or its machine is reset, at the moment when the backend ends.
#[test]
fn it_stays_off_when_the_guest_has_begun_anew_meanwhile() {
    for end in [End::Killed, End::Asked] {
        let home = Home::new();
        let mut device = home.start();
        let mut frontend = Frontend::connect(&device.socket, FEATURES);
        frontend.set_config(WCE, &[0]);
        frontend.stop_ring();
        frontend.reset_device();
        device = home.replace(device, &mut frontend, end);
        frontend.begin_rings_anew();
        frontend.reach(&device.socket, FEATURES);
        frontend.start_ring();
        assert_eq!(frontend.config(WCE, 1), [0]);
        assert!(write_is_durable(&device, &mut frontend));
    }
}

#[test]
fn it_is_on_for_another_guest() {
    for end in [None, Some(End::Killed), Some(End::Asked)] {
        let home = Home::new();
        let mut device = home.start();
        let mut gone = Frontend::connect(&device.socket, FEATURES);
        gone.set_config(WCE, &[0]);
        assert!(write_is_durable(&device, &mut gone));
        match end {
            Some(end) => device = home.replace(device, &mut gone, end),
            None => gone.hang_up(),
        }
        // QEMU asks before its guest is there, and tells it so.
        let (_, _, config) = Frontend::examine(&device.socket, WCE + 1);
        assert_eq!(config[WCE as usize], 1);
        let mut frontend = Frontend::connect(&device.socket, FEATURES);
        assert_eq!(frontend.config(WCE, 1), [1]);
        assert!(!write_is_durable(&device, &mut frontend));
        // The record says so as well, and to all who come after.
        device = home.replace(device, &mut frontend, End::Killed);
        let mut frontend = Frontend::connect(&device.socket, FEATURES);
        assert!(!write_is_durable(&device, &mut frontend));
        drop(frontend);
        device.finish();
        assert!(!home.record().exists());
    }
}
