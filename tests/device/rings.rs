//! Rings that are stopped, reset and started again, and the notifications that go with them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use btrfs_shadow::tap::{Draining, WritePlan};

use crate::frontend::*;
use crate::harness::{Device, Event, PATIENCE, Setup};

const DATA: u64 = FREE + 0x1000;
const STATUS: u64 = FREE + 0x100;

fn hold_first() -> Device {
    Setup::plan(|offset, _| if offset == 0 { WritePlan::Hold } else { WritePlan::Direct }).start()
}

/// Offers a write to sector 0 and returns when it is held.
fn begin_held(device: &Device, frontend: &mut Frontend) {
    frontend.put_header(FREE, T_OUT, 0);
    frontend.fill(STATUS, &[0xff]);
    frontend.fill(DATA, &[5; 512]);
    let descs = [desc(FREE, 16, 0), desc(DATA, 512, 0), desc(STATUS, 1, WRITE)];
    frontend.put_chain(&chain(0, &descs));
    frontend.offer(0);
    frontend.kick();
    device.tap.wait_for(Event::Held(0, 512));
}

/// Does `stop`, which must wait for the held write, and releases that.
fn stop_around_release(device: &Device, frontend: &mut Frontend, stop: fn(&mut Frontend)) {
    std::thread::scope(|scope| {
        let used = frontend.used_idx();
        let stopping = scope.spawn(|| {
            stop(frontend);
            frontend
        });
        std::thread::sleep(Duration::from_millis(150));
        assert!(!stopping.is_finished(), "stopped with a request in flight");
        device.tap.release();
        let frontend = stopping.join().unwrap();
        assert_eq!(frontend.used_idx(), used.wrapping_add(1), "stopped before the request was answered");
        assert_eq!(frontend.used_within(PATIENCE), Some((0, 1)));
        assert_eq!(frontend.bytes(STATUS, 1), [S_OK]);
        assert!(frontend.call.read().is_ok(), "the guest wasn't told");
    });
}

#[test]
fn stopping_a_ring_waits_for_what_is_held() {
    for features in [0, F_EVENT_IDX] {
        let device = hold_first();
        let mut frontend = Frontend::connect(&device.socket, features);
        begin_held(&device, &mut frontend);
        stop_around_release(&device, &mut frontend, |frontend| assert_eq!(frontend.stop_ring(), 1));
        // A stopped ring is left alone, kicks or not, and goes on where it was.
        let before = frontend.bytes(0, FREE as usize);
        frontend.kick();
        std::thread::sleep(Duration::from_millis(50));
        assert!(frontend.bytes(0, FREE as usize) == before);
        frontend.start_ring();
        assert_eq!(frontend.proper(T_IN, 0, Some((DATA, 512))), S_OK);
        assert_eq!(frontend.bytes(DATA, 512), [5; 512]);
    }
}

#[test]
fn resetting_the_device_waits_for_what_is_held() {
    let device = hold_first();
    let mut frontend = Frontend::connect(&device.socket, 0);
    begin_held(&device, &mut frontend);
    stop_around_release(&device, &mut frontend, Frontend::reset_device);
}

#[test]
fn restarted_many_times_under_load() {
    let device = Setup::default().start();
    let mut frontend = Frontend::connect(&device.socket, F_EVENT_IDX);
    frontend.put_header(FREE, T_IN, 1);
    frontend.put_chain(&chain(0, &[desc(FREE, 16, 0), desc(DATA, 4096, WRITE), desc(STATUS, 1, WRITE)]));
    for _ in 0..200 {
        let offered = 8;
        for _ in 0..offered {
            frontend.offer(0);
        }
        frontend.kick();
        // Stopped somewhere in the middle; what was taken is answered, the rest is taken after the start.
        let base = frontend.stop_ring();
        assert_eq!(frontend.used_idx(), base);
        std::thread::sleep(Duration::from_micros(200));
        assert_eq!(frontend.used_idx(), base, "written to after the stop");
        let avail = frontend.avail;
        frontend.avail = base;
        frontend.start_ring();
        frontend.avail = avail;
        frontend.kick();
        for _ in 0..offered {
            assert_eq!(frontend.used_within(PATIENCE), Some((0, 4097)));
        }
    }
}

/// Sets a flag when it is dropped.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn stopping_under_load() {
    let mut device = Setup::plan(|_, _| WritePlan::Copy).start();
    let mut frontend = Frontend::connect(&device.socket, F_EVENT_IDX | F_FLUSH);
    frontend.put_header(FREE, T_OUT, 1);
    frontend.put_chain(&chain(0, &[desc(FREE, 16, 0), desc(DATA, 512, 0), desc(STATUS, 1, WRITE)]));
    let (answered, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // Never lets the ring run empty, until the device has stopped.
        let (answered, stopped) = (&answered, &stopped);
        scope.spawn(move || {
            (0..QUEUE_SIZE).for_each(|_| frontend.offer(0));
            frontend.kick();
            while !stopped.load(Ordering::SeqCst) {
                if frontend.used_within(Duration::from_millis(10)).is_some() {
                    answered.fetch_add(1, Ordering::SeqCst);
                    frontend.offer(0);
                    frontend.kick();
                }
            }
        });
        // The load must end even if this thread can't go on.
        let _stopped = OnDrop(stopped);
        let deadline = Instant::now() + PATIENCE;
        while answered.load(Ordering::SeqCst) <= 100 {
            assert!(Instant::now() < deadline, "requests aren't answered");
            std::thread::sleep(Duration::from_millis(1));
        }
        device.finish();
    });
    // Whatever was copied has been written as well.
    let events = device.tap.events();
    let copied = events.iter().filter(|event| matches!(event, Event::Copied(..))).count();
    let written = events.iter().filter(|event| matches!(event, Event::Written(..))).count();
    assert_eq!(copied, written);
    assert_eq!(events.last(), Some(&Event::Disconnected));
}

#[test]
fn nothing_is_written_for_a_frontend_that_is_gone() {
    let device = hold_first();
    let mut frontend = Frontend::connect(&device.socket, 0);
    begin_held(&device, &mut frontend);
    let memory = frontend.memory.clone();
    drop(frontend);
    // Said when the rings have been given up.
    device.tap.wait_for(Event::Draining(Draining::Session));
    device.tap.release();
    device.tap.wait_for(Event::Disconnected);
    let mut status = [0];
    vm_memory::Bytes::read_slice(&memory, &mut status, vm_memory::GuestAddress(STATUS)).unwrap();
    assert_eq!(status, [0xff]);
    assert_eq!(device.on_disk(0, 512), [5; 512]);
}

#[test]
fn a_guest_without_flush_gets_durable_writes() {
    let device = hold_first();
    let mut frontend = Frontend::connect(&device.socket, 0);
    let flushes = || device.tap.events().iter().filter(|event| **event == Event::Flushed).count();
    assert_eq!(frontend.proper(T_OUT, 8, Some((DATA, 512))), S_OK);
    assert_eq!(flushes(), 1);
    begin_held(&device, &mut frontend);
    assert_eq!(flushes(), 1);
    device.tap.release();
    assert_eq!(frontend.used_within(PATIENCE), Some((0, 1)));
    assert_eq!(flushes(), 2);
    drop(frontend);

    let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
    assert_eq!(frontend.proper(T_OUT, 8, Some((DATA, 512))), S_OK);
    assert_eq!(flushes(), 2);
    assert_eq!(frontend.proper(T_FLUSH, 0, None), S_OK);
    assert_eq!(flushes(), 3);
}

/// Whether an interrupt comes within `patience`; it follows the index it is about.
fn interrupted_within(frontend: &Frontend, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if frontend.call.read().is_ok() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn interrupts_come_when_they_are_wanted() {
    let device = Setup::default().start();
    let mut frontend = Frontend::connect(&device.socket, F_EVENT_IDX);
    frontend.set_used_event(2);
    for done in 1..=4 {
        assert_eq!(frontend.proper(T_IN, 0, Some((DATA, 512))), S_OK);
        let patience = if done == 3 { PATIENCE } else { Duration::from_millis(30) };
        assert_eq!(interrupted_within(&frontend, patience), done == 3, "after {done}");
    }
    drop(frontend);
    let mut frontend = Frontend::connect(&device.socket, 0);
    assert_eq!(frontend.proper(T_IN, 0, Some((DATA, 512))), S_OK);
    assert!(interrupted_within(&frontend, PATIENCE));
}
