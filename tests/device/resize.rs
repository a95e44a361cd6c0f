//! An image that gets another size while a frontend is connected: what the guest is told, and what it may do then.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use btrfs_shadow::device::{DeviceOptions, Server, SessionEnd, Socket, StopHandle};
use btrfs_shadow::image::{Image, RawImage};
use btrfs_shadow::tap::WritePlan;

use crate::frontend::{F_BACKEND_REQ, F_FLUSH, FREE, Frontend, S_IOERR, S_OK, T_IN, T_OUT};
use crate::harness::{Device, Event, PATIENCE, SIZE, Setup, TestTap, alone};

const DATA: u64 = FREE + 0x1000;
const BLOCK: u64 = 4096;

fn device(block_size: u32) -> Device {
    let options = DeviceOptions { num_queues: 1, block_size, ..DeviceOptions::default() };
    Setup { options, ..Setup::default() }.start()
}

/// Bytes, as the configuration space says.
fn capacity(frontend: &mut Frontend) -> u64 {
    u64::from_le_bytes(frontend.config(0, 8).try_into().unwrap()) * 512
}

/// Waits for the configuration space to say so.
fn wait_for_capacity(frontend: &mut Frontend, bytes: u64) {
    let deadline = Instant::now() + PATIENCE;
    while capacity(frontend) != bytes {
        assert!(Instant::now() < deadline, "the capacity does not become {bytes}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads a message from the channel: VHOST_USER_BACKEND_CONFIG_CHANGE_MSG of version 1 that wants no answer.
fn hear(mut channel: &UnixStream) {
    let mut message = [0; 12];
    channel.read_exact(&mut message).expect("a message");
    let words: Vec<u32> =
        message.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, [2, 1, 0]);
}

/// Reads what the channel holds, until a look at the size and another one have passed without a message.
fn hear_until_silent(channel: &UnixStream) {
    channel.set_read_timeout(Some(Duration::from_millis(2500))).unwrap();
    let mut message = [0; 12];
    let error = loop {
        match (&mut &*channel).read_exact(&mut message) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    channel.set_read_timeout(Some(PATIENCE)).unwrap();
}

/// Status of a read and a write of the block at `offset`.
fn try_block(frontend: &mut Frontend, offset: u64) -> [u8; 2] {
    [T_IN, T_OUT].map(|kind| frontend.proper(kind, offset / 512, Some((DATA, BLOCK as u32))))
}

#[test]
fn a_running_guest_is_told_of_a_larger_and_a_smaller_image() {
    if !alone("resize::a_running_guest_is_told_of_a_larger_and_a_smaller_image") {
        return;
    }
    let mut device = device(4096);
    let (mut frontend, channel) = Frontend::connect_with_channel(&device.socket, F_FLUSH);
    assert_eq!(capacity(&mut frontend), SIZE);
    assert_eq!(try_block(&mut frontend, SIZE - BLOCK), [S_OK; 2]);
    assert_eq!(try_block(&mut frontend, SIZE), [S_IOERR; 2]);

    // Not in whole blocks.
    device.resize(2 * SIZE + 4095);
    hear(&channel);
    wait_for_capacity(&mut frontend, 2 * SIZE);
    device.tap.wait_for(Event::Resized(SIZE, 2 * SIZE + 4095));
    frontend.fill(DATA, &[7; BLOCK as usize]);
    assert_eq!(frontend.proper(T_OUT, (2 * SIZE - BLOCK) / 512, Some((DATA, BLOCK as u32))), S_OK);
    assert_eq!(device.on_disk(2 * SIZE - BLOCK, BLOCK as usize), [7; BLOCK as usize]);
    assert_eq!(try_block(&mut frontend, 2 * SIZE), [S_IOERR; 2]);

    hear_until_silent(&channel);
    device.resize(SIZE / 2);
    hear(&channel);
    wait_for_capacity(&mut frontend, SIZE / 2);
    assert_eq!(try_block(&mut frontend, SIZE / 2 - BLOCK), [S_OK; 2]);
    for offset in [SIZE / 2, SIZE - BLOCK, 2 * SIZE - BLOCK] {
        assert_eq!(try_block(&mut frontend, offset), [S_IOERR; 2]);
    }
    assert_eq!(std::fs::metadata(&device.image).unwrap().len(), SIZE / 2, "a refused write made it larger");
    drop(frontend);
    device.finish();
}

/// A guest that is only just starting takes no notice, and QEMU has then not read the size: so it is told again.
#[test]
fn who_does_not_ask_is_told_again_and_who_has_asked_is_not() {
    if !alone("resize::who_does_not_ask_is_told_again_and_who_has_asked_is_not") {
        return;
    }
    let device = device(512);
    let (mut frontend, channel) = Frontend::connect_with_channel(&device.socket, F_FLUSH);
    // It may have come back, and know of another size than that of now.
    hear(&channel);
    hear(&channel);
    // All but the size.
    frontend.config(8, 52);
    hear_one_more(&channel);
    assert_eq!(capacity(&mut frontend), SIZE);
    hear_until_silent(&channel);
    device.resize(2 * SIZE);
    hear(&channel);
    hear(&channel);
    wait_for_capacity(&mut frontend, 2 * SIZE);
    hear_until_silent(&channel);
}

/// What was on its way is read, and then one more.
fn hear_one_more(channel: &UnixStream) {
    channel.set_nonblocking(true).unwrap();
    while (&mut &*channel).read(&mut [0; 12]).is_ok_and(|len| len == 12) {}
    channel.set_nonblocking(false).unwrap();
    hear(channel);
}

/// The last channel is the one that counts, and a frontend that has closed it is none the worse.
#[test]
fn a_channel_is_replaced_or_closed() {
    if !alone("resize::a_channel_is_replaced_or_closed") {
        return;
    }
    let device = device(512);
    let (mut frontend, first) = Frontend::connect_with_channel(&device.socket, F_FLUSH);
    let second = frontend.give_channel();
    hear(&second);
    capacity(&mut frontend);
    // Closed by the device.
    hear_to_the_end(&first);
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = fds();
    let mut third = frontend.give_channel();
    for _ in 1..100 {
        third = frontend.give_channel();
    }
    drop(second);
    assert_eq!(fds(), before);
    drop(third);
    device.resize(2 * SIZE);
    device.tap.wait_for(Event::Resized(SIZE, 2 * SIZE));
    assert_eq!(try_block(&mut frontend, 2 * SIZE - BLOCK), [S_OK; 2]);
    device.resize(3 * SIZE);
    device.tap.wait_for(Event::Resized(2 * SIZE, 3 * SIZE));
    let fourth = frontend.give_channel();
    hear(&fourth);
    assert_eq!(capacity(&mut frontend), 3 * SIZE);
}

fn hear_to_the_end(mut channel: &UnixStream) {
    let mut rest = Vec::new();
    channel.read_to_end(&mut rest).expect("the end");
    assert_eq!(rest.len() % 12, 0);
}

/// Nobody waits for a frontend that doesn't listen.
#[test]
fn a_channel_that_nobody_reads_is_no_obstacle() {
    if !alone("resize::a_channel_that_nobody_reads_is_no_obstacle") {
        return;
    }
    let mut device = device(512);
    let (mut frontend, channel) = Frontend::connect_with_channel(&device.socket, F_FLUSH);
    // Full, from a second descriptor of the device's end, which the frontend has kept.
    let (ours, theirs) = UnixStream::pair().unwrap();
    fill(&theirs);
    frontend.tell(21, &[], &[theirs.as_raw_fd()]);
    frontend.ask(1, &[]);
    assert_eq!(capacity(&mut frontend), SIZE);
    for turn in 2..5 {
        device.resize(turn * SIZE);
        device.tap.wait_for(Event::Resized((turn - 1) * SIZE, turn * SIZE));
        assert_eq!(try_block(&mut frontend, turn * SIZE - BLOCK), [S_OK; 2]);
    }
    // Once there is room, it is told.
    ours.set_nonblocking(true).unwrap();
    while (&mut &ours).read(&mut [0; 65536]).is_ok_and(|len| len > 0) {}
    ours.set_nonblocking(false).unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    hear(&ours);
    drop((channel, theirs));
    drop(frontend);
    device.finish();
}

/// Writes until there is no more room.
fn fill(stream: &UnixStream) {
    // SAFETY: the byte is readable.
    let send = || unsafe { libc::send(stream.as_raw_fd(), c"x".as_ptr().cast(), 1, libc::MSG_DONTWAIT) };
    while send() == 1 {}
}

/// What comes in the place of a channel, and with it: the size is followed all the same, or the connection ends.
#[test]
fn descriptors_that_are_no_channel() {
    if !alone("resize::descriptors_that_are_no_channel") {
        return;
    }
    let device = device(512);
    let (pipe_end, _other) = std::io::pipe().unwrap();
    let (socket, _its_other) = UnixStream::pair().unwrap();
    let wrong: [&[i32]; 3] = [&[], &[pipe_end.as_raw_fd()], &[socket.as_raw_fd(), pipe_end.as_raw_fd()]];
    for fds in wrong {
        let (mut frontend, _channel) = Frontend::connect_with_channel(&device.socket, F_FLUSH);
        frontend.tell(21, &[], fds);
        frontend.hear_it_out();
    }
    // Without the protocol feature it isn't one of the messages that may come.
    let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
    frontend.tell(21, &[], &[socket.as_raw_fd()]);
    frontend.hear_it_out();
    // Sockets as event descriptors beside a channel: it is still told from them.
    let (mut frontend, channel) = Frontend::connect_with_channel(&device.socket, F_FLUSH);
    for _ in 0..10 {
        // SET_VRING_ERR.
        frontend.tell(14, &0u64.to_le_bytes(), &[socket.as_raw_fd()]);
    }
    let channel_2 = frontend.give_channel();
    hear(&channel_2);
    drop((channel, frontend));
    let (_, protocol, _) = Frontend::examine(&device.socket, 8);
    assert!(protocol & F_BACKEND_REQ != 0);
}

/// Messages are forwarded then, and the channel's descriptor is there twice for a moment.
#[test]
fn through_a_socket_that_was_inherited_connected() {
    if !alone("resize::through_a_socket_that_was_inherited_connected") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("socket"), dir.path().join("image"));
    File::create(&file).unwrap().set_len(SIZE).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    for turn in 2..7 {
        let image: Arc<dyn Image> = Arc::new(RawImage::open(&file, false).unwrap());
        let tap = TestTap::new(image.clone(), |_, _| WritePlan::Direct);
        std::thread::scope(|scope| {
            let session = scope.spawn(|| {
                let stream = listener.accept().unwrap().0;
                let options = DeviceOptions::default();
                let mut server = Server::bind(Socket::Fd(stream.into()), image, tap, options).unwrap();
                server.serve_one(&StopHandle::new().unwrap()).unwrap()
            });
            let (mut frontend, channel) = Frontend::connect_with_channel(&path, F_FLUSH);
            assert_eq!(capacity(&mut frontend), (turn - 1) * SIZE);
            File::options().write(true).open(&file).unwrap().set_len(turn * SIZE).unwrap();
            hear(&channel);
            wait_for_capacity(&mut frontend, turn * SIZE);
            drop(frontend);
            assert_eq!(session.join().unwrap(), SessionEnd::Disconnected);
        });
    }
}

/// Of a frontend without a channel nothing is expected, and its guest may use what there is.
#[test]
fn without_a_channel() {
    let device = device(512);
    let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
    assert_eq!(try_block(&mut frontend, SIZE), [S_IOERR; 2]);
    device.resize(2 * SIZE);
    let deadline = Instant::now() + PATIENCE;
    while try_block(&mut frontend, SIZE) != [S_OK; 2] {
        assert!(Instant::now() < deadline, "the size is not followed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(capacity(&mut frontend), 2 * SIZE);
}
