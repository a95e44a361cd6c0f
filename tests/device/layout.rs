//! What the device says of itself: its features and limits beside qemu-storage-daemon's, its blocks, its size.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use btrfs_shadow::device::DeviceOptions;

use crate::client::Client;
use crate::frontend::{F_FLUSH, FREE, Frontend, S_IOERR, S_OK, T_IN, T_OUT};
use crate::harness::{PATIENCE, SIZE, Setup};

/// Bytes of `struct virtio_blk_config` as both know it.
const CONFIG: u32 = 60;

/// qemu-storage-daemon, serving a file.
struct Peer(Child);

impl Peer {
    fn start(image: &Path, socket: &Path) -> Self {
        let blockdev = format!("driver=file,node-name=disk,filename={}", image.display());
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on",
            socket.display()
        );
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &blockdev, "--export", &export]).stdin(Stdio::null());
        let child =
            command.spawn().expect("qemu-storage-daemon; vm-scripts/test installs what the tests need");
        let mut peer = Peer(child);
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            assert!(peer.0.try_wait().unwrap().is_none(), "qemu-storage-daemon ended at once");
            assert!(Instant::now() < deadline, "qemu-storage-daemon opened no socket");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The number of `width` bytes at `offset`.
fn number(config: &[u8], offset: usize, width: usize) -> u64 {
    config[offset..offset + width].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Features that the peer has and this device doesn't, each for a reason.
const NOT_OFFERED: [(u32, &str); 4] = [
    (24, "NOTIFY_ON_EMPTY: of old drivers, without VERSION_1"),
    (26, "VHOST_F_LOG_ALL: live migration is not offered"),
    (27, "ANY_LAYOUT: of old drivers; VERSION_1 says as much"),
    (34, "RING_PACKED: the library has none"),
];

#[test]
fn features_and_limits_are_those_of_qemu_storage_daemon_or_better() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
    File::create(&image).unwrap().set_len(SIZE).unwrap();
    let _peer = Peer::start(&image, &socket);
    let (their_features, their_protocol, theirs) = Frontend::examine(&socket, CONFIG);
    let options = DeviceOptions::default();
    let device = Setup { options, ..Setup::default() }.start();
    let (features, protocol, ours) = Frontend::examine(&device.socket, CONFIG);

    let missing: Vec<u32> = (0..64).filter(|bit| their_features & !features & 1 << bit != 0).collect();
    let known = |bit: &u32| NOT_OFFERED.iter().any(|(known, _)| known == bit);
    assert!(
        missing.iter().all(known),
        "missing: {missing:?}, theirs {their_features:#x}, ours {features:#x}"
    );
    // MQ, REPLY_ACK, BACKEND_REQ, CONFIG.
    for bit in [0, 3, 5, 9] {
        assert!(their_protocol & 1 << bit == 0 || protocol & 1 << bit != 0, "protocol feature {bit}");
    }
    for (what, offset, width) in [
        ("capacity", 0, 8),
        ("seg_max", 12, 4),
        ("num_queues", 34, 2),
        ("max_discard_sectors", 36, 4),
        ("max_discard_seg", 40, 4),
        ("max_write_zeroes_sectors", 48, 4),
        ("max_write_zeroes_seg", 52, 4),
        ("write_zeroes_may_unmap", 56, 1),
    ] {
        let (ours, theirs) = (number(&ours, offset, width), number(&theirs, offset, width));
        assert!(ours >= theirs, "{what}: ours {ours}, theirs {theirs}");
    }
    let blk_size = |config: &[u8]| number(config, 20, 4);
    assert_eq!(blk_size(&ours), blk_size(&theirs));
    // TOPOLOGY is offered by both, and says at least as much: 4096 is the block of every host's file system here.
    assert!(features & 1 << 10 != 0);
    assert!(number(&ours, 24, 1) >= number(&theirs, 24, 1));
    assert_eq!(
        number(&ours, 26, 2),
        1 << number(&ours, 24, 1),
        "the smallest good request is a physical block"
    );
}

#[test]
fn requests_are_whole_blocks() {
    for (block_size, small) in [(512, S_OK), (4096, S_IOERR)] {
        let options = DeviceOptions { num_queues: 1, block_size, ..DeviceOptions::default() };
        let device = Setup { options, ..Setup::default() }.start();
        let mut frontend = Frontend::connect(&device.socket, F_FLUSH);
        assert_eq!(number(&frontend.config(20, 4), 0, 4), u64::from(block_size));
        let data = FREE + 0x1000;
        for kind in [T_IN, T_OUT] {
            assert_eq!(frontend.proper(kind, 8, Some((data, 4096))), S_OK);
            assert_eq!(frontend.proper(kind, 8, Some((data, 512))), small, "shorter than a block");
            assert_eq!(frontend.proper(kind, 1, Some((data, 4096))), small, "not at a block");
        }
    }
}

#[test]
fn a_size_that_no_block_has_is_refused() {
    use btrfs_shadow::cli::Cli;
    use clap::Parser as _;
    let parse =
        |size| Cli::try_parse_from(["btrfs-shadow", "serve", "--blk-file", "x", "--block-size", size]);
    assert!(parse("4096").is_ok());
    for size in ["0", "1024", "4K", "-512"] {
        let error = parse(size).expect_err("refused").to_string();
        assert!(error.contains("512 or 4096") || error.contains("unexpected argument"), "{error}");
    }
}

#[test]
fn the_size_is_looked_at_anew_at_each_connection() {
    let mut device = Setup::default().start();
    let connect = |path| Client::connect(path, 1, 1 << 20);
    let client = connect(&device.socket);
    assert_eq!(client.blkio.get_u64("capacity").unwrap(), SIZE);
    let file = File::options().write(true).open(&device.image).unwrap();
    file.set_len(2 * SIZE + 100).unwrap();
    drop(client);
    let mut client = connect(&device.socket);
    assert_eq!(client.blkio.get_u64("capacity").unwrap(), 2 * SIZE);
    assert_eq!(client.queues[0].write(2 * SIZE - 4096, &[7; 4096]), 0);
    assert_eq!(device.on_disk(2 * SIZE - 4096, 4096), [7; 4096]);
    drop(client);
    file.set_len(SIZE / 2).unwrap();
    let client = connect(&device.socket);
    assert_eq!(client.blkio.get_u64("capacity").unwrap(), SIZE / 2);
    drop(client);
    device.finish();
}
