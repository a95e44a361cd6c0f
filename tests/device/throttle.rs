//! Limits of requests and bytes a second: kept, for all queues together, and in nobody's way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use btrfs_shadow::device::{DeviceOptions, Limits};
use btrfs_shadow::image::{EngineKind, RawOptions};

use crate::client::Client;
use crate::frontend::{F_EVENT_IDX, F_FLUSH, FREE, Frontend, S_OK, T_FLUSH, T_IN, WRITE, chain, desc};
use crate::harness::{Device, PATIENCE, Setup};

/// What is left unused may be used so much later.
const BURST: Duration = btrfs_shadow::device::limits::THROTTLE_BURST;

fn limited(iops: Option<u64>, bps: Option<u64>) -> Device {
    let options = DeviceOptions { num_queues: 2, limits: Limits { iops, bps }, ..DeviceOptions::default() };
    Setup { options, ..Setup::default() }.start()
}

/// Makes `count` reads of `len` bytes on each queue, all at once; how long that takes.
fn read_many(device: &Device, count: usize, len: usize) -> Duration {
    read_all(&mut Client::connect(&device.socket, 2, 4 << 20), count, len)
}

fn read_all(client: &mut Client, count: usize, len: usize) -> Duration {
    let begun = Instant::now();
    for queue in &mut client.queues {
        (0..count).for_each(|n| queue.submit_read((n * len) as u64, n * len, len, n));
        queue.kick();
    }
    for queue in &mut client.queues {
        assert!(queue.wait(count).iter().all(|(_, result)| *result == 0));
    }
    begun.elapsed()
}

#[test]
fn requests_a_second_are_limited_for_all_queues_together() {
    let device = limited(Some(100), None);
    // Two queues may take one more than is allowed, each.
    let took = read_many(&device, 30, 512);
    assert!(
        took >= Duration::from_millis(10) * (60 - 3) - BURST,
        "60 requests at 100 a second took {took:?}"
    );
    // And a guest that connects anew has to wait for what the one before it has had.
    let took = read_many(&device, 20, 512);
    assert!(took >= Duration::from_millis(10) * (40 - 3) - 2 * BURST, "40 more took {took:?}");
}

#[test]
fn bytes_a_second_are_limited() {
    let device = limited(None, Some(4 << 20));
    let took = read_many(&device, 16, 64 << 10);
    // 2 MiB; the last request of each queue is not waited for.
    let paid = Duration::from_secs(1) * (32 - 3) / 64;
    assert!(took >= paid - BURST, "2 MiB at 4 MiB a second took {took:?}");
}

/// However long a queue is held back, it does something only when it may go on or something has happened.
#[test]
fn a_throttled_queue_sleeps() {
    for engine in [EngineKind::Auto, EngineKind::Sync] {
        let looks = Arc::new(AtomicU64::new(0));
        let options = DeviceOptions {
            num_queues: 2,
            limits: Limits { iops: Some(100), bps: None },
            ..DeviceOptions::default()
        };
        let raw = RawOptions { engine, ..RawOptions::default() };
        let device = Setup { options, raw, looks: looks.clone(), ..Setup::default() }.start();
        let mut client = Client::connect(&device.socket, 2, 4 << 20);
        read_all(&mut client, 25, 512);
        // An alarm that still goes off would be seen.
        std::thread::sleep(Duration::from_millis(200));
        // For each request: a kick, its completion, and on either queue the alarm; and some looks for each of these. A
        // queue that spins looks some hundred thousand times meanwhile.
        let looks = looks.load(Ordering::Relaxed);
        assert!((50..50 * 20).contains(&looks), "50 requests took {looks} looks");
    }
}

/// What is a way round one of the limits for nobody: zeros that the device writes itself, and requests that it refuses.
#[test]
fn zeros_are_bytes_and_a_refused_request_is_a_request() {
    // Type and number of sectors, the limit, and how long the next request has to wait: hours, where there are bytes to pay
    // for, and nearly a second for a request.
    let (bytes, requests) = ((None, Some(1)), (Some(1), None));
    let (no_time, hours, second) = (Duration::ZERO, Duration::MAX, Duration::from_secs(1) - BURST);
    for (kind, count, (iops, bps), wait) in [
        (13u32, 8u32, bytes, hours),
        (11, 8, bytes, no_time),
        (13, 0, bytes, no_time),
        (99, 8, bytes, no_time),
        (11, 8, requests, second),
        (13, u32::MAX, requests, second),
        (99, 8, requests, second),
    ] {
        let device = limited(iops, bps);
        let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
        let data = FREE + 0x1000;
        frontend.fill(data, &[&[0; 8][..], &count.to_le_bytes(), &[0; 4]].concat());
        frontend.put_header(FREE, kind, 0);
        let (header, status) = (desc(FREE, 16, 0), desc(FREE + 16, 1, WRITE));
        let begun = Instant::now();
        frontend.request(&chain(0, &[header, desc(data, 16, 0), status]));
        frontend.put_header(FREE, T_IN, 0);
        frontend.put_chain(&chain(0, &[header, desc(data, 512, WRITE), status]));
        frontend.offer(0);
        frontend.kick();
        let patience = if wait == hours { Duration::from_millis(100) } else { PATIENCE };
        let answer = frontend.used_within(patience);
        let took = begun.elapsed();
        let is_right = if wait == hours { answer.is_none() } else { answer.is_some() && took >= wait };
        assert!(is_right, "type {kind}, {count} sectors: {answer:?} after {took:?}");
    }
}

/// A ring that waits for the throttle can be stopped at once, and goes on where it was.
#[test]
fn a_throttled_ring_can_be_stopped_and_started_again() {
    for features in [F_FLUSH, F_FLUSH | F_EVENT_IDX] {
        // One request, and then none for longer than this test may take.
        let mut device = limited(Some(1), Some(1));
        let mut frontend = Frontend::connect(&device.socket, features);
        let data = FREE + 0x1000;
        assert_eq!(
            frontend.proper(T_IN, 0, Some((data, 4096))),
            S_OK,
            "the first is taken whatever it costs"
        );
        frontend.put_header(FREE, T_IN, 0);
        let read = chain(0, &[desc(FREE, 16, 0), desc(data, 512, WRITE), desc(FREE + 16, 1, WRITE)]);
        frontend.put_chain(&read);
        frontend.offer(0);
        frontend.kick();
        assert!(frontend.used_within(Duration::from_millis(100)).is_none(), "not taken");
        let base = frontend.stop_ring();
        assert_eq!(base, 1, "one request was taken");
        assert!(frontend.used_within(Duration::from_millis(20)).is_none());
        // The request that was not taken is the next.
        frontend.avail = base;
        frontend.start_ring();
        frontend.kick();
        assert!(frontend.used_within(Duration::from_millis(20)).is_none(), "it has to wait still");
        drop(frontend);
        device.finish();
    }
}

#[test]
fn what_was_held_back_is_carried_out_without_another_kick() {
    for features in [F_FLUSH, F_FLUSH | F_EVENT_IDX] {
        let device = limited(Some(5), None);
        let mut frontend = Frontend::connect(&device.socket, features);
        let data = FREE + 0x1000;
        let begun = Instant::now();
        for _ in 0..4 {
            assert_eq!(frontend.proper(T_IN, 0, Some((data, 512))), S_OK);
        }
        assert!(begun.elapsed() >= Duration::from_millis(600) - BURST);
        // Flushes cost nothing, but wait their turn.
        for _ in 0..20 {
            assert_eq!(frontend.proper(T_FLUSH, 0, None), S_OK);
        }
    }
}
