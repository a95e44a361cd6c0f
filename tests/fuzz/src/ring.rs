//! The target `ring`: a guest that does with its rings and its memory whatever the input says, over a real image.
//!
//! Rings are stopped and taken up again with requests in flight, and so they are after the process was killed, by a record
//! that may have been tampered with.
//!
//! Whatever that is, the queue comes to rest, memory beside the guest's is neither read nor written, the image keeps its
//! length, and what is taken off the ring is bounded. As long as the guest leaves its rings alone, each request is answered
//! exactly once; with a record that is wrong, there aren't more answers than requests.

mod account;
mod driver;
mod guest;
mod late;
mod seeds;
mod tap;

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use btrfs_shadow::device::bare::{BareQueue, DiskPlace, RingPlace};
use btrfs_shadow::device::limits::MAX_COPIED;
use btrfs_shadow::engine::Engine;
use btrfs_shadow::image::{EngineKind, Image, RawImage, RawOptions};
use vm_memory::GuestMemoryMmap;

use crate::bytes::Bytes;
use crate::memory::bounded;
use account::{Account, Trust, used};
use guest::{BORDER, Guest, LOW_END};
use late::{Conductor, Late};
pub use seeds::seeds;
use tap::{Fate, ScriptedTap};

/// The longest input.
pub const MAX_LEN: usize = 4096;

/// What an input may take: what a queue may copy, the request that goes beyond it, and some more.
const MEMORY: usize = MAX_COPIED + 8 * DISK as usize;

/// Requests that a queue takes in a turn, and about as many as an input may have it take: a ring can be made so that each
/// answer is another request.
const TURN: usize = 256;
const MOST: usize = 1024;

/// Bytes of the disk.
const DISK: u64 = 1 << 20;

/// Where rings are, as long as the input doesn't say otherwise.
const RING: RingPlace =
    RingPlace { size: 16, descriptors: 0, available: 0x1000, used: 0x2000, next: 0, event_idx: false };
/// The rings end before this.
const FREE: u64 = 0x6000;

/// What a step does; numbers beyond begin again.
mod step {
    pub const REQUEST: u8 = 0;
    pub const DESCRIPTOR: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const RUN: u8 = 3;
    pub const WRITE: u8 = 4;
    pub const HEADER: u8 = 5;
    pub const ANSWER: u8 = 6;
    pub const INDEX: u8 = 7;
    pub const RESTART: u8 = 8;
    pub const TABLE: u8 = 9;
    pub const SCRIBBLE: u8 = 10;
    pub const INDIRECT: u8 = 11;
    pub const COMPLETE: u8 = 12;
    pub const KILL: u8 = 13;
    pub const COUNT: u8 = 14;
}

/// What all inputs use again: making it takes longer than most inputs.
struct Ground {
    guest: Guest,
    disk: Arc<File>,
}

static GROUND: LazyLock<Mutex<Ground>> = LazyLock::new(|| {
    // SAFETY: a terminated name.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "no memory for a disk");
    // SAFETY: just made, and nobody else's.
    let disk = unsafe { File::from_raw_fd(fd) };
    Mutex::new(Ground { guest: Guest::new(), disk: Arc::new(disk) })
});

/// Plays an input.
pub fn run(input: &[u8]) {
    let ground = GROUND.lock().unwrap_or_else(PoisonError::into_inner);
    ground.guest.clear();
    ground.disk.set_len(0).and_then(|()| ground.disk.set_len(DISK)).expect("the disk");
    bounded(MEMORY, || Play::new(&ground, input).play());
    assert!(ground.guest.is_whole(), "memory beside the guest's was written to");
    assert!(!holds_border(&ground.disk), "memory beside the guest's was read");
    assert_eq!(
        ground.disk.metadata().expect("the disk").len(),
        DISK,
        "the image was written to behind its end"
    );
}

/// Whether the disk holds what lies beside guest memory: a piece of it, wherever that begins.
fn holds_border(disk: &File) -> bool {
    let mut at = 0;
    while let Some(start) = seek(disk, at, libc::SEEK_DATA) {
        at = seek(disk, start, libc::SEEK_HOLE).unwrap_or(DISK);
        let mut bytes = vec![0; (at - start) as usize];
        disk.read_exact_at(&mut bytes, start).expect("the disk");
        let mut pieces = bytes.split(|byte| *byte == BORDER[0]).skip(1);
        if pieces.any(|piece| piece.starts_with(&BORDER[1..])) {
            return true;
        }
    }
    false
}

fn seek(disk: &File, at: u64, whence: i32) -> Option<u64> {
    // SAFETY: lseek has no preconditions; the descriptor is open as long as `disk` is borrowed.
    let found = unsafe { libc::lseek(disk.as_raw_fd(), at as libc::off_t, whence) };
    u64::try_from(found).ok().filter(|found| *found < DISK)
}

/// What carries out requests.
#[derive(Clone, Copy)]
enum Means {
    /// At once.
    Plain,
    /// When the input says so.
    Late,
    /// When the kernel does.
    Ring,
}

struct Play<'a> {
    guest: &'a Guest,
    file: Arc<File>,
    script: Bytes<'a>,
    memory: GuestMemoryMmap<()>,
    means: Means,
    image: Arc<dyn Image>,
    tap: Arc<ScriptedTap>,
    conductor: Option<Conductor>,
    queue: BareQueue,
    ring: RingPlace,
    /// What the next entry of the available ring is.
    available: u16,
    /// Requests that were taken.
    taken: usize,
    account: Account,
    scribbling: Option<(u64, u64, u8)>,
    other_table: bool,
}

impl<'a> Play<'a> {
    fn new(ground: &'a Ground, input: &'a [u8]) -> Self {
        let mut script = Bytes::new(input);
        let how = script.u8();
        let means = [Means::Plain, Means::Late, Means::Late, Means::Ring][usize::from(how & 3)];
        let kind = if matches!(means, Means::Ring) { EngineKind::Auto } else { EngineKind::Sync };
        let path = format!("/proc/self/fd/{}", ground.disk.as_raw_fd());
        let raw = RawOptions { engine: kind, read_only: how & 0x1c == 0x1c, ..RawOptions::default() };
        let image: Arc<dyn Image> = Arc::new(RawImage::open_with(Path::new(&path), raw).expect("the disk"));
        let tap = Arc::new(ScriptedTap::new(image.clone(), script.u8()));
        let disk = DiskPlace {
            len: DISK,
            read_only: image.read_only(),
            write_through: how & 0x20 != 0,
            poll: if how & 0x40 != 0 { Duration::from_micros(20) } else { Duration::ZERO },
            turn: TURN,
        };
        let memory = ground.guest.table(false);
        let (engine, conductor) = engine(means, image.as_ref(), &ground.disk);
        let queue = BareQueue::new(engine, tap.clone(), disk, memory.clone()).expect("a queue");
        let mut play = Play {
            guest: &ground.guest,
            file: ground.disk.clone(),
            script,
            memory,
            means,
            image,
            tap,
            conductor,
            queue,
            ring: RingPlace { event_idx: how & 0x80 != 0, ..RING },
            available: 0,
            taken: 0,
            account: Account::new(),
            scribbling: None,
            other_table: false,
        };
        play.start();
        play
    }

    fn play(mut self) {
        while !self.script.is_empty() {
            self.step();
        }
        self.hurry(true);
        // Until it takes no more, if it is known how many there are.
        while self.run_queue() == TURN && self.account.trust() != Trust::Nothing {}
        let next = self.stop();
        self.account.close(self.available, next);
    }

    fn step(&mut self) {
        match self.script.u8() % step::COUNT {
            step::REQUEST => self.request(),
            step::DESCRIPTOR => {
                let (index, desc) = (self.script.u8(), self.descriptor());
                self.put(self.ring.descriptors, index.into(), desc);
            }
            step::OFFER => {
                self.account.untidy();
                let head = self.script.u8();
                self.offer(head.into(), Vec::new());
            }
            step::RUN if self.taken < MOST => drop(self.run_queue()),
            step::RUN => {}
            step::WRITE => {
                self.account.untidy();
                let (at, len) = (self.address(), self.script.u8());
                let bytes = self.script.take(len.into());
                self.write(at, bytes);
            }
            step::HEADER => {
                let (at, kind, sector) = (self.address(), self.script.u8(), self.script.u16());
                self.header(at, kind.into(), sector.into());
            }
            step::ANSWER => {
                let fate = [Fate::Write, Fate::Refuse, Fate::Forget][usize::from(self.script.u8() % 3)];
                self.tap.answer(fate);
            }
            step::INDEX => {
                let index = self.script.u16();
                self.account.at_most(Trust::Nothing);
                self.write(self.ring.available + 2, &index.to_le_bytes());
            }
            step::RESTART => self.restart(),
            step::TABLE => {
                // The second region of low memory is elsewhere, or back; the rings stay where they are.
                self.account.untidy();
                self.other_table = !self.other_table;
                self.memory = self.guest.table(self.other_table);
                self.queue.set_memory(self.memory.clone());
            }
            step::SCRIBBLE => {
                let (start, len, seed) = (self.script.u16(), self.script.u8(), self.script.u8());
                self.account.untidy();
                self.account.only_if(u64::from(start) >= FREE);
                self.scribbling = (seed != 0).then_some((start.into(), len.into(), seed));
            }
            step::COMPLETE => {
                let which = self.script.u8();
                if let Some(conductor) = &self.conductor {
                    conductor.complete(usize::from(which & 0x7f), which & 0x80 != 0);
                }
            }
            step::KILL => self.kill(),
            _ => {
                let (at, index, desc) = (self.address(), self.script.u8(), self.descriptor());
                self.put(at, index.into(), desc);
            }
        }
    }

    /// Everything that is available is taken, up to a turn, whatever is done to memory meanwhile; how much that was.
    fn run_queue(&mut self) -> usize {
        let taken = match self.scribbling {
            None => self.queue.run(),
            Some((start, len, seed)) => {
                let stop = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| self.guest.scribble(start, len, seed, &stop));
                    // Even if the queue panics: the other thread must end.
                    let _stop = OnDrop(&stop);
                    self.queue.run()
                })
            }
        };
        assert!(taken <= TURN, "a turn without an end");
        self.taken += taken;
        self.account.resumed();
        self.account.look(&self.memory, self.ring, self.available);
        taken
    }

    /// Whether nothing waits for the input any more.
    fn hurry(&self, hasty: bool) {
        if let Some(conductor) = &self.conductor {
            conductor.hurry(hasty);
        }
    }

    fn start(&mut self) {
        self.account.only_if(self.queue.start(self.ring).is_ok());
    }

    /// The ring is stopped, and what is in flight waited for; where it would go on.
    fn stop(&mut self) -> u16 {
        self.hurry(true);
        let next = self.queue.stop();
        self.hurry(false);
        assert_eq!(self.queue.in_flight(), 0, "requests are left in flight by a queue that was stopped");
        self.account.look(&self.memory, self.ring, self.available);
        next
    }

    /// The ring is stopped and started, where it was or elsewhere.
    fn restart(&mut self) {
        let how = self.script.u8();
        let next = self.stop();
        if self.account.trust() != Trust::Nothing {
            assert!(self.available.wrapping_sub(next) <= self.ring.size);
        }
        self.ring.next = next;
        if how & 1 != 0 {
            self.ring.size = 1 << (how >> 4);
            self.ring.next = self.script.u16();
        }
        if how & 2 != 0 {
            let mut place = |align: u64| u64::from(self.script.u32()) % (LOW_END + 0x2000) / align * align;
            (self.ring.descriptors, self.ring.available, self.ring.used) = (place(16), place(2), place(4));
        }
        if how & 3 != 0 {
            self.account.at_most(Trust::Nothing);
            self.available = self.ring.next;
        }
        self.start();
    }

    /// The process is killed with whatever is in flight, and the next one takes up the ring: by the record, which may have
    /// been tampered with, and by what the frontend says.
    fn kill(&mut self) {
        let how = self.script.u8();
        let taken = self.queue.in_flight() as u16;
        if let Some(conductor) = self.conductor.as_ref().filter(|_| how & 1 != 0) {
            conductor.complete_unseen();
        }
        if how & 2 != 0 {
            // The next one may look upon writes in another way.
            self.tap = Arc::new(ScriptedTap::new(self.image.clone(), self.script.u8()));
        }
        let (engine, conductor) = engine(self.means, self.image.as_ref(), &self.file);
        self.queue.killed(engine, self.tap.clone()).expect("a queue");
        self.conductor = conductor;
        self.tap.forget();
        self.account.killed();
        for _ in 0..how >> 5 {
            self.tamper();
        }
        // A frontend knows the used index, one that knows of the record also what is in flight.
        let used = used(&self.memory, self.ring);
        self.ring.next = match how >> 2 & 3 {
            0 | 1 => used,
            2 => used.wrapping_add(taken),
            _ => {
                self.account.at_most(Trust::Nothing);
                self.script.u16()
            }
        };
        self.start();
    }

    /// Changes a word of the record.
    fn tamper(&mut self) {
        self.account.at_most(Trust::Number);
        let (which, how) = (self.script.u8(), self.script.u8());
        let record = self.queue.record();
        let at = if how & 0x80 != 0 { usize::from(self.script.u16()) } else { which.into() };
        let word = &record[at % record.len()];
        let was = word.load(Ordering::Relaxed);
        let now = match how % 8 {
            0 => 0,
            1 => 1,
            2 => was.wrapping_add(1),
            3 => was.wrapping_sub(1),
            4 => was ^ 1 << (how >> 3 & 15),
            5 => self.script.u16().into(),
            6 => self.script.u64(),
            _ => u64::MAX,
        };
        word.store(now, Ordering::Relaxed);
    }
}

fn engine(means: Means, image: &dyn Image, file: &Arc<File>) -> (Box<dyn Engine>, Option<Conductor>) {
    if let Means::Late = means {
        let (engine, conductor) = Late::new(file.clone());
        return (Box::new(engine), Some(conductor));
    }
    (image.engine().expect("an engine"), None)
}

/// Sets a flag at the end.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
