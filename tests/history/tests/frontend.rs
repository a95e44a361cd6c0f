//! The way from the loop device to the image keeps every byte, before anything is concluded from what comes along it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use btrfs_shadow::image::Image as _;
use btrfs_shadow::tap::{CopyFate, Draining, Erase, HoldDone, Tap, WritePlan};
use history::frontend::{Frontend, Gate};
use history::rng::Rng;

const SIZE: u64 = 64 << 20;
const THREADS: u64 = 4;
/// Each thread has a part of the disk of its own.
const PART: u64 = SIZE / THREADS;
const WRITES: u64 = 400;
const BLOCK: u64 = 4096;

/// Plans by the place, so that all three ways are gone; holds are answered late, from another thread.
struct Thirds {
    image: Arc<Gate>,
    written: AtomicU64,
    held: AtomicU64,
    flushed: AtomicU64,
    delay: Duration,
    /// While it is set, no held write is answered.
    shut: Mutex<bool>,
    opened: Condvar,
    /// While a write is held, others were carried out.
    overtaken: AtomicU64,
    holding: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Thirds {
    fn new(image: &Arc<Gate>, delay: Duration) -> Arc<Self> {
        Arc::new(Thirds {
            image: Arc::clone(image),
            written: AtomicU64::new(0),
            held: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            delay,
            shut: Mutex::new(false),
            opened: Condvar::new(),
            overtaken: AtomicU64::new(0),
            holding: AtomicU64::new(0),
            wrong: Mutex::default(),
        })
    }
}

/// The tap, as an owner of what it hands to threads.
struct Handle(Arc<Thirds>);

impl Tap for Handle {
    fn plan(&self, offset: u64, _: u64) -> WritePlan {
        if self.0.holding.load(Ordering::SeqCst) > 0 {
            self.0.overtaken.fetch_add(1, Ordering::SeqCst);
        }
        match offset / BLOCK % 8 {
            0 => WritePlan::Hold,
            1..4 => WritePlan::Copy,
            _ => WritePlan::Direct,
        }
    }

    fn copied(&self, _: u64, _: &mut Vec<u8>) -> CopyFate {
        CopyFate::Write
    }

    fn written(&self, offset: u64, bytes: Vec<u8>) {
        self.0.written.fetch_add(1, Ordering::SeqCst);
        let mut there = vec![0; bytes.len()];
        self.0.image.read_at(&mut there, offset).unwrap();
        if there != bytes {
            self.0.wrong.lock().unwrap().push(format!("written before it was, at {offset}"));
        }
    }

    fn write_failed(&self, offset: u64, _: u64) {
        self.0.wrong.lock().unwrap().push(format!("a write failed at {offset}"));
    }

    fn flush_begins(&self) -> u64 {
        self.0.flushed.load(Ordering::SeqCst)
    }

    fn flushed(&self, begun: u64) {
        if self.0.flushed.fetch_add(1, Ordering::SeqCst) < begun {
            self.0.wrong.lock().unwrap().push("a flush was complete before it began".to_owned());
        }
    }

    fn erases(&self, _: Erase, _: u64, _: u64) -> bool {
        true
    }

    fn erased(&self, offset: u64, len: u64) {
        let mut there = vec![1; len as usize];
        self.0.image.read_at(&mut there, offset).unwrap();
        if there.iter().any(|byte| *byte != 0) {
            self.0.wrong.lock().unwrap().push(format!("erased before it was, at {offset}"));
        }
    }

    fn hold(&self, offset: u64, bytes: Vec<u8>, done: HoldDone) {
        let thirds = Arc::clone(&self.0);
        thirds.holding.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            std::thread::sleep(thirds.delay);
            drop(thirds.opened.wait_while(thirds.shut.lock().unwrap(), |shut| *shut).unwrap());
            thirds.held.fetch_add(1, Ordering::SeqCst);
            let result = thirds.image.write_at(&bytes, offset);
            thirds.holding.fetch_sub(1, Ordering::SeqCst);
            done(result);
        });
    }

    fn draining(&self, _: Draining) {}

    fn connected(&self) {}

    fn interrupted(&self) {}

    fn disconnected(&self) {}
}

fn set_up(delay: Duration) -> (tempfile::TempDir, Arc<Gate>, Arc<Thirds>, Frontend) {
    let dir = tempfile::TempDir::with_prefix("hist-frontend-").unwrap();
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    let image = Arc::new(Gate::open(&path, false).unwrap());
    let thirds = Thirds::new(&image, delay);
    let frontend =
        Frontend::new(dir.path(), Arc::clone(&image), Arc::new(Handle(Arc::clone(&thirds)))).unwrap();
    (dir, image, thirds, frontend)
}

/// Memory at an address that direct I/O takes.
struct Aligned {
    memory: Vec<u8>,
    skip: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + BLOCK as usize];
        let skip = memory.as_ptr().align_offset(BLOCK as usize);
        Aligned { memory, skip }
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.skip..self.skip + len]
    }
}

fn open(device: &Path, flags: i32) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(device).unwrap()
}

/// Writes and reads at random in one part of the disk, with direct I/O; the model is memory.
fn exercise(device: &Path, part: u64, model: &mut [u8]) {
    let mut rng = Rng::new(part + 1);
    let file = open(device, libc::O_DIRECT);
    let most = 2 << 20;
    let mut buffer = Aligned::new(most);
    for number in 0..WRITES {
        // Sizes up to 2 MiB: longer than what one FUSE request takes.
        let blocks = 1 << rng.below(10);
        let at = rng.below(PART / BLOCK - blocks) * BLOCK;
        let len = (blocks * BLOCK) as usize;
        let bytes = buffer.bytes(len);
        if rng.chance(70) {
            for (index, word) in bytes.chunks_mut(8).enumerate() {
                word.copy_from_slice(&(part << 56 | number << 32 | index as u64).to_le_bytes());
            }
            file.write_all_at(bytes, part * PART + at).unwrap();
            model[at as usize..at as usize + len].copy_from_slice(bytes);
        } else {
            file.read_exact_at(bytes, part * PART + at).unwrap();
            assert!(*bytes == model[at as usize..at as usize + len], "part {part}, read {number} at {at}");
        }
        if rng.chance(5) {
            file.sync_all().unwrap();
        }
    }
}

#[test]
fn every_byte_arrives() {
    let (dir, image, thirds, frontend) = set_up(Duration::from_millis(2));
    let device = frontend.device().to_owned();
    let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let device = device.as_path();
        let work = |part| {
            scope.spawn(move || {
                let mut model = vec![0; PART as usize];
                exercise(device, part, &mut model);
                model
            })
        };
        let threads: Vec<_> = (0..THREADS).map(work).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Through the page cache as well, in pieces that are no blocks.
    let mut model = models.concat();
    let file = open(&device, 0);
    let mut rng = Rng::new(99);
    for _ in 0..200 {
        let (at, len) = (rng.below(SIZE - 100_000), rng.between(1, 100_000) as usize);
        let byte = rng.draw() as u8;
        file.write_all_at(&vec![byte; len], at).unwrap();
        model[at as usize..at as usize + len].fill(byte);
    }
    let flushed = thirds.flushed.load(Ordering::SeqCst);
    file.sync_all().unwrap();
    assert!(thirds.flushed.load(Ordering::SeqCst) > flushed, "an fsync of the device must flush the image");
    drop(file);
    // What was acknowledged is in the image, whatever is cached above it.
    let mut bytes = vec![0; SIZE as usize];
    image.read_at(&mut bytes, 0).unwrap();
    let first = bytes.iter().zip(&model).position(|(one, other)| one != other);
    assert_eq!(first, None, "first byte of the image that differs");
    drop(frontend);
    let bytes = std::fs::read(dir.path().join("disk.img")).unwrap();
    assert!(bytes == model, "the image file after all is taken down");
    assert_eq!(*thirds.wrong.lock().unwrap(), Vec::<String>::new());
    let held = thirds.held.load(Ordering::SeqCst);
    assert!(held > 50 && thirds.written.load(Ordering::SeqCst) > 50, "{held} held");
}

/// Longer than a few requests take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_held_write_keeps_nobody_waiting() {
    let (_dir, _image, thirds, frontend) = set_up(Duration::ZERO);
    let device = frontend.device().to_owned();
    *thirds.shut.lock().unwrap() = true;
    let holder = std::thread::spawn({
        let device = device.clone();
        move || {
            let mut buffer = Aligned::new(BLOCK as usize);
            open(&device, libc::O_DIRECT).write_all_at(buffer.bytes(BLOCK as usize), 0).unwrap();
        }
    });
    while thirds.holding.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let (done, others) = mpsc::channel();
    std::thread::spawn(move || {
        let file = open(&device, libc::O_DIRECT);
        let mut buffer = Aligned::new(BLOCK as usize);
        for block in [1, 5, 6] {
            file.write_all_at(buffer.bytes(BLOCK as usize), block * BLOCK).unwrap();
            file.read_exact_at(buffer.bytes(BLOCK as usize), block * BLOCK).unwrap();
        }
        drop(file);
        done.send(()).unwrap();
    });
    let waited = others.recv_timeout(PATIENCE);
    let answered = holder.is_finished();
    // Whatever came of it, the device can be taken down only without requests in flight.
    *thirds.shut.lock().unwrap() = false;
    thirds.opened.notify_all();
    holder.join().unwrap();
    assert_eq!(waited, Ok(()), "others had to wait for the held write");
    assert!(!answered, "the held write was answered before it was done");
    assert_eq!(thirds.held.load(Ordering::SeqCst), 1);
}

#[test]
fn a_flush_waits_for_nothing_less_than_the_image() {
    let (_dir, image, thirds, frontend) = set_up(Duration::ZERO);
    let file = open(frontend.device(), 0);
    for round in 1..=5 {
        file.write_all_at(&[round; 10_000], 4 * BLOCK).unwrap();
        file.sync_all().unwrap();
        let mut bytes = [0; 10_000];
        image.read_at(&mut bytes, 4 * BLOCK).unwrap();
        assert_eq!(bytes, [round; 10_000]);
        assert_eq!(image.flushes.load(Ordering::SeqCst), thirds.flushed.load(Ordering::SeqCst));
        assert!(thirds.flushed.load(Ordering::SeqCst) >= u64::from(round));
    }
}

#[test]
fn a_cut_fails_what_follows_and_loses_only_what_was_not_flushed() -> io::Result<()> {
    let dir = tempfile::TempDir::with_prefix("hist-gate-")?;
    let path = dir.path().join("disk.img");
    File::create(&path)?.set_len(SIZE)?;
    for seed in 0..50 {
        let gate = Gate::open(&path, true)?;
        gate.write_at(&[1; 8192], 0)?;
        gate.flush()?;
        gate.write_at(&[2; 4096], 4096)?;
        gate.write_at(&[3; 4096], 4096)?;
        let cut = gate.cut(&mut Rng::new(seed))?;
        assert_eq!(cut.unflushed, 1);
        assert!(gate.write_at(&[4; 1], 0).is_err() && gate.flush().is_err());
        let mut bytes = [0; 8192];
        gate.read_at(&mut bytes, 0)?;
        assert_eq!(bytes[..4096], [1; 4096]);
        assert!([1, 2, 3].map(|byte| [byte; 4096]).iter().any(|one| bytes[4096..] == *one), "seed {seed}");
        assert!(bytes[4096] == 3 || cut.lost == 1);
        gate.power_on();
        gate.write_at(&[5; 1], 0)?;
    }
    Ok(())
}
