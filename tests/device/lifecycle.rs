//! Connections that come and go, requests that fail, writes that are held.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use btrfs_shadow::device::{DeviceOptions, Server, SessionEnd, Socket, StopHandle};
use btrfs_shadow::image::RawOptions;
use btrfs_shadow::tap::WritePlan;

use crate::client::Client;
use crate::harness::{Event, PATIENCE, SIZE, Setup, alone};

const EIO: i32 = -libc::EIO;
/// Where the plans below hold writes.
const SUPER: u64 = 64 << 10;

fn hold_super() -> Setup {
    Setup::plan(
        |offset, len| {
            if offset <= SUPER && SUPER < offset + len { WritePlan::Hold } else { WritePlan::Direct }
        },
    )
}

/// Long enough that something that mustn't happen would have.
fn a_while() {
    std::thread::sleep(Duration::from_millis(150));
}

#[test]
fn impossible_ranges_fail_and_nothing_else_does() {
    let device = Setup::default().start();
    let mut client = Client::connect(&device.socket, 1, 1 << 20);
    let queue = &mut client.queues[0];
    assert_eq!(queue.read(SIZE, 512), Err(EIO));
    assert_eq!(queue.read(SIZE - 512, 1024), Err(EIO));
    assert_eq!(queue.write(SIZE - 512, &[1; 1024]), EIO);
    assert_eq!(queue.read(1 << 60, 512), Err(EIO));
    assert_eq!(queue.write(SIZE - 512, &[2; 512]), 0);
    assert_eq!(queue.read(SIZE - 1024, 1024), Ok([[0; 512], [2; 512]].concat()));
    assert_eq!(queue.flush(), 0);
    assert_eq!(device.on_disk(SIZE - 512, 512), [2; 512]);
}

#[test]
fn scattered_over_memory_regions() {
    let device =
        Setup::plan(|offset, _| if offset == 0 { WritePlan::Direct } else { WritePlan::Copy }).start();
    let mut client = Client::connect(&device.socket, 2, 1 << 20);
    let mut pieces = Vec::new();
    for i in 0..16 {
        // Odd lengths and places, from both queues' regions by turns; 31 * 16 + 16 = 512.
        let piece = client.queues[i % 2].slot(i * 4096 + i, if i == 15 { 47 } else { 31 });
        piece.fill(i as u8 + 1);
        pieces.push(libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() });
    }
    let expected: Vec<u8> = (0..16u8).flat_map(|i| vec![i + 1; if i == 15 { 47 } else { 31 }]).collect();
    for offset in [0, 8192] {
        client.queues[0].submit_scattered(true, offset, &pieces, 1);
        assert_eq!(client.queues[0].wait(1), [(1, 0)]);
        assert_eq!(device.on_disk(offset, 512), expected);
    }
    device.put_on_disk(0, &[0x55; 512]);
    client.queues[0].submit_scattered(false, 0, &pieces, 2);
    assert_eq!(client.queues[0].wait(1), [(2, 0)]);
    for i in 0..16 {
        let len = if i == 15 { 47 } else { 31 };
        let around = client.queues[i % 2].slot(i * 4096 + i - i.min(1), len + 1 + i.min(1)).to_vec();
        assert!(around[i.min(1)..][..len].iter().all(|&byte| byte == 0x55));
        assert_eq!(*around.last().unwrap(), 0, "written past the piece");
    }
}

#[test]
fn a_read_only_image_is_offered_as_such() {
    let raw = RawOptions { read_only: true, ..RawOptions::default() };
    let device = Setup { raw, ..Setup::default() }.start();
    device.put_on_disk(4096, b"contents");
    let mut client = Client::connect_with(&device.socket, 1, 4096, true);
    assert_eq!(&client.queues[0].read(4096, 512).unwrap()[..8], b"contents");
    assert_eq!(client.queues[0].flush(), 0);
}

#[test]
fn many_sessions_one_after_the_other() {
    let mut device = Setup::default().start();
    for round in 0..30u8 {
        let mut client = Client::connect(&device.socket, 1 + usize::from(round) % 4, 4096);
        if round > 0 {
            let before = client.queues[0].read(u64::from(round - 1) * 512, 512).unwrap();
            assert_eq!(before, [round; 512]);
        }
        for queue in &mut client.queues {
            assert_eq!(queue.write(u64::from(round) * 512, &[round + 1; 512]), 0);
        }
        if round % 3 == 0 {
            // Left with a request in flight that nobody waits for.
            client.queues[0].submit_read(0, 0, 4096, 9);
            client.queues[0].kick();
        }
    }
    device.tap.wait_for(Event::Disconnected);
    device.finish();
    let events = device.tap.events();
    let connections = events.iter().filter(|event| matches!(event, Event::Connected | Event::Disconnected));
    let turns: Vec<_> = connections.collect();
    assert_eq!(turns.len(), 60);
    assert!(turns.chunks(2).all(|turn| turn == [&Event::Connected, &Event::Disconnected]));
}

#[test]
fn as_many_queues_as_there_may_be() {
    let options = DeviceOptions { num_queues: 64, ..Default::default() };
    let device = Setup { options, ..Setup::default() }.start();
    let mut client = Client::connect(&device.socket, 64, 4096);
    assert_eq!(client.blkio.get_i32("max-queues").unwrap(), 64);
    for (i, queue) in client.queues.iter_mut().enumerate() {
        assert_eq!(queue.write(i as u64 * 512, &[i as u8; 512]), 0);
    }
    assert_eq!(device.on_disk(63 * 512, 512), [63; 512]);
}

#[test]
fn other_requests_of_the_same_queue_pass_a_held_write() {
    let device = hold_super().start();
    let mut client = Client::connect(&device.socket, 1, 1 << 20);
    let queue = &mut client.queues[0];
    queue.slot(0, 4096).fill(7);
    queue.submit_write(SUPER, 0, 4096, 100);
    for i in 0..50 {
        queue.submit_write(1 << 20, 8192, 512, i);
        queue.submit_read(1 << 20, 16384, 512, i);
        queue.submit_flush(i);
        assert_eq!(queue.wait(3), [(i, 0); 3]);
    }
    assert_eq!(device.tap.held(), 1);
    // The guest changes the memory after it has asked; what was copied is what counts.
    queue.slot(0, 4096).fill(8);
    assert_eq!(device.on_disk(SUPER, 4096), [0; 4096]);
    device.tap.release();
    assert_eq!(queue.wait(1), [(100, 0)]);
    assert_eq!(device.on_disk(SUPER, 4096), [7; 4096]);
}

#[test]
fn a_held_write_that_is_refused_or_forgotten_is_an_error() {
    let device = hold_super().start();
    let mut client = Client::connect(&device.socket, 1, 4096);
    let queue = &mut client.queues[0];
    for (tag, end) in [(1, true), (2, false)] {
        queue.submit_write(SUPER, 0, 4096, tag);
        queue.kick();
        while device.tap.held() == 0 {
            std::thread::yield_now();
        }
        if end {
            device.tap.refuse()
        } else {
            device.tap.forget()
        }
        assert_eq!(queue.wait(1), [(tag, EIO)]);
    }
    assert_eq!(queue.read(SUPER, 512), Ok(vec![0; 512]));
}

#[test]
fn a_session_ends_when_its_held_write_has() {
    let device = hold_super().start();
    let mut client = Client::connect(&device.socket, 2, 4096);
    client.queues[1].slot(0, 4096).fill(3);
    client.queues[1].submit_write(SUPER, 0, 4096, 1);
    client.queues[1].kick();
    device.tap.wait_for(Event::Held(SUPER, 4096));
    drop(client);
    a_while();
    assert!(!device.tap.events().contains(&Event::Disconnected));
    device.tap.release();
    device.tap.wait_for(Event::Disconnected);
    let mut client = Client::connect(&device.socket, 2, 4096);
    assert_eq!(client.queues[0].read(SUPER, 4096), Ok(vec![3; 4096]));
}

#[test]
fn stopping_answers_what_is_held() {
    let mut device = hold_super().start();
    let mut client = Client::connect(&device.socket, 1, 4096);
    client.queues[0].submit_write(SUPER, 0, 4096, 1);
    client.queues[0].kick();
    device.tap.wait_for(Event::Held(SUPER, 4096));
    device.stop.trigger();
    a_while();
    assert!(!device.tap.events().contains(&Event::Disconnected));
    device.tap.release();
    assert_eq!(client.queues[0].wait(1), [(1, 0)]);
    device.tap.wait_for(Event::Disconnected);
    assert_eq!(device.finish(), 0);
    assert!(!device.socket.exists());
}

#[test]
fn stopping_without_a_connection() {
    let mut device = Setup::default().start();
    assert!(device.socket.exists());
    assert_eq!(device.finish(), 0);
    assert!(!device.socket.exists(), "the socket is left behind");
    assert_eq!(device.tap.events(), []);
}

#[test]
fn a_planted_lost_write_and_a_panic() {
    let mut setup = Setup::plan(|_, _| WritePlan::Copy);
    setup.trouble = Some(8192);
    let device = setup.start();
    let mut client = Client::connect(&device.socket, 1, 4096);
    let queue = &mut client.queues[0];
    assert_eq!(queue.write(8192, &[1; 512]), 0);
    assert_eq!(queue.write(8192 + 512, &[1; 512]), EIO);
    assert_eq!(queue.write(8192 + 1024, &[1; 512]), 0);
    assert_eq!(device.on_disk(8192, 1536), [[0; 512], [0; 512], [1; 512]].concat());
    let events = device.tap.events();
    assert!(!events.contains(&Event::Written(8192, 512)));
    assert!(events.contains(&Event::Written(8192 + 1024, 512)));
}

#[test]
fn inherited_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let device = Setup::default().start();
    let image = || std::sync::Arc::new(btrfs_shadow::image::RawImage::open(&device.image, false).unwrap());
    let stop = StopHandle::new().unwrap();
    let listener = UnixListener::bind(&path).unwrap();

    let clone: OwnedFd = listener.try_clone().unwrap().into();
    let options = DeviceOptions { num_queues: 2, ..Default::default() };
    let mut server = Server::bind(Socket::Fd(clone), image(), device.tap.clone(), options.clone()).unwrap();
    std::thread::scope(|scope| {
        let session = scope.spawn(|| server.serve_one(&stop).unwrap());
        let mut client = Client::connect(&path, 2, 4096);
        assert_eq!(client.queues[1].write(0, &[9; 512]), 0);
        drop(client);
        assert_eq!(session.join().unwrap(), SessionEnd::Disconnected);
    });
    drop(server);
    assert!(path.exists(), "a socket that isn't ours was removed");

    std::thread::scope(|scope| {
        let session = scope.spawn(|| {
            let (stream, _) = listener.accept().unwrap();
            let mut server =
                Server::bind(Socket::Fd(stream.into()), image(), device.tap.clone(), options).unwrap();
            [server.serve_one(&stop).unwrap(), server.serve_one(&stop).unwrap()]
        });
        let mut client = Client::connect(&path, 2, 4096);
        assert_eq!(client.queues[1].read(0, 512), Ok(vec![9; 512]));
        drop(client);
        assert_eq!(session.join().unwrap(), [SessionEnd::Disconnected, SessionEnd::Exhausted]);
    });
}

#[test]
fn a_socket_in_use_is_not_stolen() {
    let device = Setup::default().start();
    let image = std::sync::Arc::new(btrfs_shadow::image::RawImage::open(&device.image, false).unwrap());
    let second = Server::bind(
        Socket::Path(device.socket.clone()),
        image,
        device.tap.clone(),
        DeviceOptions::default(),
    );
    let error = second.err().unwrap().to_string();
    assert!(error.contains("another process is listening"), "{error}");
    let mut client = Client::connect(&device.socket, 1, 4096);
    assert_eq!(client.queues[0].read(0, 512), Ok(vec![0; 512]));
}

/// Counts descriptors and threads of a whole process, so it runs in one of its own.
#[test]
fn sessions_leave_nothing_behind() {
    if !alone("lifecycle::sessions_leave_nothing_behind") {
        return;
    }
    let device = hold_super().start();
    let entries = |dir: &str| -> HashSet<String> {
        let names = std::fs::read_dir(dir).unwrap().filter_map(|entry| entry.ok());
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let session = || {
        let ended = || device.tap.events().iter().filter(|event| **event == Event::Disconnected).count();
        let before = ended();
        let mut client = Client::connect(&device.socket, 4, 4096);
        for queue in &mut client.queues {
            assert_eq!(queue.write(0, &[1; 512]), 0);
        }
        drop(client);
        while ended() == before {
            std::thread::sleep(Duration::from_millis(1));
        }
        a_while();
    };
    session();
    let counts = || (entries("/proc/self/fd").len(), entries("/proc/self/task").len());
    let (fds, threads) = counts();
    for _ in 0..10 {
        session();
    }
    // A thread that has been joined may still be listed for a moment.
    let deadline = Instant::now() + PATIENCE;
    while counts().0 > fds || counts().1 > threads {
        assert!(Instant::now() < deadline, "{:?} descriptors and threads, not {fds}, {threads}", counts());
        std::thread::sleep(Duration::from_millis(10));
    }
}
