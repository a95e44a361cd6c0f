//! A device served in this process, and a tap that does what a test tells it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use btrfs_shadow::device::{DeviceOptions, Server, SessionEnd, Socket, StopHandle};
use btrfs_shadow::image::{Image, RawImage, RawOptions};
use btrfs_shadow::tap::{CopyFate, Draining, Erase, HoldDone, Tap, WritePlan};
use tempfile::TempDir;

use crate::counting::Counting;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const SIZE: u64 = 16 << 20;

/// What the tap was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Connected,
    Disconnected,
    Copied(u64, usize),
    Written(u64, usize),
    WriteFailed(u64, u64),
    Flushed,
    Erases(Erase, u64, u64),
    Erased(u64, u64),
    Interrupted,
    Resized(u64, u64),
    Held(u64, usize),
    Draining(Draining),
}

type Plan = Box<dyn Fn(u64, u64) -> WritePlan + Send + Sync>;

/// A tap with a plan, a memory of what it was told, and writes that it holds.
pub struct TestTap {
    plan: Plan,
    image: Arc<dyn Image>,
    /// Held writes are answered within `hold`.
    answer_at_once: bool,
    /// Copied writes at this offset are lost, and at the next sector panic; it mustn't be erased.
    trouble: Option<u64>,
    events: Mutex<Vec<Event>>,
    held: Mutex<Vec<(u64, Vec<u8>, HoldDone)>>,
    changed: Condvar,
}

impl TestTap {
    pub fn new(
        image: Arc<dyn Image>,
        plan: impl Fn(u64, u64) -> WritePlan + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(TestTap {
            plan: Box::new(plan),
            image,
            answer_at_once: false,
            trouble: None,
            events: Mutex::default(),
            held: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    fn record(&self, event: Event) {
        self.events.lock().unwrap().push(event);
        self.changed.notify_all();
    }

    /// Waits until it was told of this.
    pub fn wait_for(&self, event: Event) {
        let deadline = Instant::now() + PATIENCE;
        let mut events = self.events.lock().unwrap();
        while !events.contains(&event) {
            let left = deadline.checked_duration_since(Instant::now()).expect("waited too long");
            events = self.changed.wait_timeout(events, left).unwrap().0;
        }
    }

    /// Writes and answers the oldest held write.
    pub fn release(&self) {
        let (offset, bytes, done) = self.held.lock().unwrap().remove(0);
        done(self.image.write_at(&bytes, offset));
    }

    /// Answers the oldest held write with an error.
    pub fn refuse(&self) {
        let (_, _, done) = self.held.lock().unwrap().remove(0);
        done(Err(io::Error::other("refused")));
    }

    /// Drops the oldest held write without an answer.
    pub fn forget(&self) {
        drop(self.held.lock().unwrap().remove(0));
    }

    pub fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    /// Waits until it holds a write.
    pub fn wait_for_held(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.held() == 0 {
            assert!(Instant::now() < deadline, "waited too long");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Tap for TestTap {
    fn plan(&self, offset: u64, len: u64) -> WritePlan {
        (self.plan)(offset, len)
    }

    fn copied(&self, offset: u64, bytes: &mut Vec<u8>) -> CopyFate {
        if self.trouble.is_some_and(|trouble| trouble + 512 == offset) {
            panic!("planted");
        }
        self.record(Event::Copied(offset, bytes.len()));
        if self.trouble == Some(offset) { CopyFate::Lose } else { CopyFate::Write }
    }

    fn written(&self, offset: u64, bytes: Vec<u8>) {
        // The contract: the image already holds them.
        let mut on_disk = vec![0; bytes.len()];
        self.image.read_at(&mut on_disk, offset).unwrap();
        assert!(on_disk == bytes || self.events.lock().unwrap().len() > 1000);
        self.record(Event::Written(offset, bytes.len()));
    }

    fn write_failed(&self, offset: u64, len: u64) {
        self.record(Event::WriteFailed(offset, len));
    }

    fn flush_begins(&self) -> u64 {
        self.events.lock().unwrap().len() as u64
    }

    fn flushed(&self, begun: u64) {
        assert!(begun <= self.events.lock().unwrap().len() as u64);
        self.record(Event::Flushed);
    }

    fn erases(&self, kind: Erase, offset: u64, len: u64) -> bool {
        self.record(Event::Erases(kind, offset, len));
        self.trouble != Some(offset)
    }

    fn erased(&self, offset: u64, len: u64) {
        self.record(Event::Erased(offset, len));
    }

    fn resized(&self, before: u64, now: u64) {
        self.record(Event::Resized(before, now));
    }

    fn interrupted(&self) {
        self.record(Event::Interrupted);
    }

    fn hold(&self, offset: u64, bytes: Vec<u8>, done: HoldDone) {
        let len = bytes.len();
        if self.answer_at_once {
            done(self.image.write_at(&bytes, offset));
        } else {
            self.held.lock().unwrap().push((offset, bytes, done));
        }
        self.record(Event::Held(offset, len));
    }

    fn draining(&self, why: Draining) {
        self.record(Event::Draining(why));
    }

    fn connected(&self) {
        self.record(Event::Connected);
    }

    fn disconnected(&self) {
        self.record(Event::Disconnected);
    }
}

/// For a test that looks at the descriptors of its whole process: whether it is alone in one. If not, it has been run in
/// another, and has passed there.
pub fn alone(test: &str) -> bool {
    const CHILD: &str = "DEVICE_TEST_ALONE";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let child = command.args(["--exact", test]).env(CHILD, "1").output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"), "{said}{errors}");
    false
}

/// How a device is to be made.
pub struct Setup {
    pub plan: Plan,
    pub answer_at_once: bool,
    pub trouble: Option<u64>,
    pub raw: RawOptions,
    pub options: DeviceOptions,
    /// What counts how often engines are asked for completions.
    pub looks: Arc<AtomicU64>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            plan: Box::new(|_, _| WritePlan::Direct),
            answer_at_once: false,
            trouble: None,
            raw: RawOptions::default(),
            options: DeviceOptions { num_queues: 4, ..Default::default() },
            looks: Arc::default(),
        }
    }
}

impl Setup {
    pub fn plan(plan: impl Fn(u64, u64) -> WritePlan + Send + Sync + 'static) -> Self {
        Self { plan: Box::new(plan), ..Self::default() }
    }

    pub fn start(self) -> Device {
        self.start_in(&Arc::new(tempfile::tempdir().unwrap()))
    }

    /// The same, in a directory where there may be the image of an earlier one.
    pub fn start_in(self, home: &Arc<TempDir>) -> Device {
        let path = home.path().join("disk.img");
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        file.set_len(SIZE).unwrap();
        let image: Arc<dyn Image> = Arc::new(RawImage::open_with(&path, self.raw).unwrap());
        let tap = Arc::new(TestTap {
            plan: self.plan,
            image: image.clone(),
            answer_at_once: self.answer_at_once,
            trouble: self.trouble,
            events: Mutex::default(),
            held: Mutex::default(),
            changed: Condvar::new(),
        });
        let image = Arc::new(Counting { image, looks: self.looks });
        let socket = home.path().join("vhost.sock");
        let stop = StopHandle::new().unwrap();
        let mut server =
            Server::bind(Socket::Path(socket.clone()), image, tap.clone(), self.options).unwrap();
        let signal = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut sessions = 0;
            while server.serve_one(&signal).unwrap() == SessionEnd::Disconnected {
                sessions += 1;
            }
            sessions
        });
        Device { tap, socket, stop, image: path, file, thread: Some(thread), _home: home.clone() }
    }
}

/// A device that is being served.
pub struct Device {
    pub tap: Arc<TestTap>,
    pub socket: PathBuf,
    pub stop: StopHandle,
    pub image: PathBuf,
    file: File,
    thread: Option<JoinHandle<usize>>,
    _home: Arc<TempDir>,
}

impl Device {
    /// What the image holds.
    pub fn on_disk(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// Makes the image larger or smaller behind the device's back.
    pub fn resize(&self, len: u64) {
        self.file.set_len(len).unwrap();
    }

    pub fn put_on_disk(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
    }

    /// Stops serving; how many sessions ended by themselves before.
    pub fn finish(&mut self) -> usize {
        self.stop.trigger();
        let thread = self.thread.take().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !thread.is_finished() {
            assert!(Instant::now() < deadline, "the device doesn't stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        thread.join().unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop.trigger();
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}
