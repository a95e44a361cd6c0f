//! The image lock: between processes of ours, and between ours and QEMU's, which follow the same scheme.

#[path = "common/engines.rs"]
mod engines;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use engines::IO_URING;
use replay::Backend;
use replay::driver::Driver;
use replay::history::Change;
use tempfile::TempDir;
use testkit::{Image, Spec};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_btrfs-shadow"))
}

fn image() -> Image {
    Spec::new("lock", "").sized(128).mkfs()
}

fn serve(image: &Path, options: &[&str]) -> Backend {
    Backend::start_with(program(), image, options)
}

/// Runs `serve` where it must be refused; what it says.
#[track_caller]
fn refused(image: &Path, options: &[&str]) -> String {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(program());
    command.args(["serve", "--blk-file"]).arg(image).arg("--socket-path").arg(dir.path().join("socket"));
    said(&command.args(options).output().expect("btrfs-shadow serve"), image)
}

/// `check` is refused, and `serve` with and without leave to write; what that says. All at once: each waits for a while.
#[track_caller]
fn all_refused(image: &Path) -> [String; 3] {
    std::thread::scope(|scope| {
        let checked = scope.spawn(|| said(&check(image, &[]), image));
        let served = [&[][..], &["--read-only"]].map(|options| scope.spawn(move || refused(image, options)));
        let [writing, reading] = served.map(|thread| thread.join().expect("refused"));
        [checked.join().expect("refused"), writing, reading]
    })
}

fn check(image: &Path, options: &[&str]) -> Output {
    Command::new(program()).arg("check").args(options).arg(image).output().expect("btrfs-shadow check")
}

/// What a program said that could not run, and named the image.
#[track_caller]
fn said(output: &Output, image: &Path) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(&format!("cannot lock {}", image.display())), "{text}");
    text
}

/// A qemu-storage-daemon that exports an image, or has refused to.
struct StorageDaemon {
    child: Child,
    dir: TempDir,
}

impl StorageDaemon {
    fn start(image: &Path, driver: &str, writable: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket: PathBuf = dir.path().join("socket");
        let (read_only, writable) = if writable { ("off", "on") } else { ("on", "off") };
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver={driver},node-name=disk,filename={},read-only={read_only}", image.display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,writable={writable},addr.type=unix,addr.path={}",
                socket.display()
            ))
            .stdin(Stdio::null())
            .stderr(File::create(dir.path().join("stderr")).expect("a log file"))
            .spawn()
            .expect("qemu-storage-daemon, which vm-scripts/test installs");
        let mut daemon = StorageDaemon { child, dir };
        let deadline = Instant::now() + PATIENCE;
        while !daemon.has_ended() && !socket.exists() {
            assert!(Instant::now() < deadline, "qemu-storage-daemon neither serves nor ends");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_some()
    }

    #[track_caller]
    fn assert_serving(&mut self) {
        assert!(!self.has_ended(), "{}", self.stderr());
    }

    /// It found the image locked.
    #[track_caller]
    fn assert_refused(&mut self) {
        assert!(self.has_ended(), "it serves");
        assert!(self.stderr().contains(" lock"), "{}", self.stderr());
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).expect("its log")
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_served_image_is_served_once_and_not_checked() {
    let image = image();
    let first = serve(image.path(), &[]);
    let texts = all_refused(image.path());
    for (text, way_out) in texts.iter().zip(["--force-share", "--locking off", "--locking off"]) {
        assert!(text.contains("another process is writing to it") && text.contains(way_out), "{text}");
    }
    // Nothing is written here.
    assert_eq!(check(image.path(), &["-U"]).status.code(), Some(0));
    drop(first);
    assert_eq!(check(image.path(), &[]).status.code(), Some(0));
    drop(serve(image.path(), &[]));
}

#[test]
fn readers_share_and_keep_writers_out() {
    let image = image();
    let readers = [serve(image.path(), &["--read-only"]), serve(image.path(), &["--read-only"])];
    assert_eq!(check(image.path(), &[]).status.code(), Some(0));
    let text = refused(image.path(), &[]);
    assert!(text.contains("lets nobody write"), "{text}");
    drop(readers);
    drop(serve(image.path(), &[]));
}

#[test]
fn without_locking_it_is_as_if_nobody_else_were_there() {
    let image = image();
    let _writer = serve(image.path(), &[]);
    drop(serve(image.path(), &["--locking", "off"]));
    // It has neither taken nor given back the other's.
    refused(image.path(), &[]);
}

#[test]
fn what_qemu_writes_to_is_neither_served_nor_checked() {
    let image = image();
    let mut daemon = StorageDaemon::start(image.path(), "file", true);
    daemon.assert_serving();
    assert!(all_refused(image.path()).iter().all(|text| text.contains("writing to it")));
    assert_eq!(check(image.path(), &["--force-share"]).status.code(), Some(0));
    daemon.assert_serving();
    drop(daemon);
    drop(serve(image.path(), &[]));
}

/// qemu-storage-daemon lets others write beside a reader; a node above it, as virtual machines and qemu-img have, does
/// not.
#[test]
fn what_qemu_reads_is_read() {
    let image = image();
    let mut daemon = StorageDaemon::start(image.path(), "file", false);
    daemon.assert_serving();
    assert_eq!(check(image.path(), &[]).status.code(), Some(0));
    drop(serve(image.path(), &["--read-only"]));
}

#[test]
fn qemu_does_not_write_to_what_is_served_or_checked() {
    let image = image();
    for options in [&[][..], &["--read-only"]] {
        let _ours = serve(image.path(), options);
        StorageDaemon::start(image.path(), "file", true).assert_refused();
    }
    let _ours = serve(image.path(), &["--read-only"]);
    StorageDaemon::start(image.path(), "file", false).assert_serving();
}

#[test]
fn the_lock_of_a_process_that_was_killed_under_load_is_no_obstacle() {
    let image = image();
    for round in 0..10u8 {
        let direct = round % 2 == 1 && *IO_URING;
        let backend = serve(image.path(), if direct { &["--direct-io"] } else { &[] });
        let mut driver: Driver = backend.connect();
        for queue in [0, 1] {
            driver.begin(queue, &Change { offset: 96 << 20, bytes: vec![round; 64 << 10] });
        }
        // Killed, and started again at once.
        drop(backend);
    }
    drop(serve(image.path(), &[]));
}

/// A loop device on an image, where this may be made.
struct Device(String);

impl Device {
    fn attach(image: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(image).output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        output.status.success().then_some(Device(name))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn block_devices_too() {
    let image = image();
    let Some(device) = Device::attach(image.path()) else {
        eprintln!("no loop devices here: not tested");
        return;
    };
    let path = Path::new(&device.0);
    let mut daemon = StorageDaemon::start(path, "host_device", true);
    daemon.assert_serving();
    all_refused(path);
    drop(daemon);
    let ours = serve(path, &[]);
    StorageDaemon::start(path, "host_device", true).assert_refused();
    let output = check(path, &[]);
    said(&output, path);
    drop(ours);
    assert_eq!(check(path, &[]).status.code(), Some(0));
}
