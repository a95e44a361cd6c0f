//! The target `ring`: a guest that does with its rings and its memory whatever the input says, over a real image.
//!
//! Whatever that is, the queue comes to rest, memory beside the guest's is neither read nor written, and what is taken
//! off the ring is bounded. As long as the guest leaves its rings alone, each request is answered exactly once.

mod guest;
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
use btrfs_shadow::image::{EngineKind, Image, RawImage, RawOptions};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::bytes::Bytes;
use crate::memory::bounded;
use guest::{BORDER, Guest, LOW_END};
use tap::{Fate, ScriptedTap};

/// The longest input.
pub const MAX_LEN: usize = 4096;

/// What an input may take: what a queue may copy, the request that goes beyond it, and some more.
const MEMORY: usize = MAX_COPIED + 8 * DISK as usize;

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
    pub const COUNT: u8 = 12;
}

/// What all inputs use again: making it takes longer than most inputs.
struct Ground {
    guest: Guest,
    disk: File,
}

static GROUND: LazyLock<Mutex<Ground>> = LazyLock::new(|| {
    // SAFETY: a terminated name.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "no memory for a disk");
    // SAFETY: just made, and nobody else's.
    let disk = unsafe { File::from_raw_fd(fd) };
    Mutex::new(Ground { guest: Guest::new(), disk })
});

/// Plays an input.
pub fn run(input: &[u8]) {
    let ground = GROUND.lock().unwrap_or_else(PoisonError::into_inner);
    ground.guest.clear();
    ground.disk.set_len(0).and_then(|()| ground.disk.set_len(DISK)).expect("the disk");
    bounded(MEMORY, || Play::new(&ground, input).play());
    assert!(ground.guest.is_whole(), "memory beside the guest's was written to");
    assert!(!holds_border(&ground.disk), "memory beside the guest's was read");
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

struct Play<'a> {
    guest: &'a Guest,
    script: Bytes<'a>,
    memory: GuestMemoryMmap<()>,
    tap: Arc<ScriptedTap>,
    queue: BareQueue,
    ring: RingPlace,
    /// What the next entry of the available ring is.
    available: u16,
    /// Whether the rings are only used as rings, and every head is one.
    honest: bool,
    scribbling: Option<(u64, u64, u8)>,
    other_table: bool,
}

impl<'a> Play<'a> {
    fn new(ground: &'a Ground, input: &'a [u8]) -> Self {
        let mut script = Bytes::new(input);
        let how = script.u8();
        let engine = if how & 3 == 3 { EngineKind::Auto } else { EngineKind::Sync };
        let path = format!("/proc/self/fd/{}", ground.disk.as_raw_fd());
        let raw = RawOptions { engine, read_only: how & 0x1c == 0x1c, ..RawOptions::default() };
        let image: Arc<dyn Image> = Arc::new(RawImage::open_with(Path::new(&path), raw).expect("the disk"));
        let tap = Arc::new(ScriptedTap { image: image.clone(), plan: script.u8(), held: Mutex::default() });
        let disk = DiskPlace {
            len: DISK,
            read_only: image.read_only(),
            write_through: how & 0x20 != 0,
            poll: if how & 0x40 != 0 { Duration::from_micros(20) } else { Duration::ZERO },
        };
        let memory = ground.guest.table(false);
        let engine = image.engine().expect("an engine");
        let queue = BareQueue::new(engine, tap.clone(), disk, memory.clone()).expect("a queue");
        let mut play = Play {
            guest: &ground.guest,
            script,
            memory,
            tap,
            queue,
            ring: RingPlace { event_idx: how & 0x80 != 0, ..RING },
            available: 0,
            honest: true,
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
        self.run_queue();
        let next = self.queue.stop();
        assert_eq!(self.queue.in_flight(), 0, "requests are left in flight by a queue that was stopped");
        if self.honest {
            assert_eq!(next, self.available, "requests were left in the ring");
            let used: u16 = self.memory.read_obj(GuestAddress(self.ring.used + 2)).unwrap_or(next);
            assert_eq!(used, next, "requests were taken and not answered");
        }
    }

    fn step(&mut self) {
        match self.script.u8() % step::COUNT {
            step::REQUEST => self.request(),
            step::DESCRIPTOR => {
                let (index, desc) = (self.script.u8(), self.descriptor());
                self.put(self.ring.descriptors, index.into(), desc);
            }
            step::OFFER => {
                let head = self.script.u8();
                self.offer(head.into());
            }
            step::RUN => self.run_queue(),
            step::WRITE => {
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
                self.honest = false;
                self.write(self.ring.available + 2, &index.to_le_bytes());
            }
            step::RESTART => self.restart(),
            step::TABLE => {
                // The second region of low memory is elsewhere, or back; the rings stay where they are.
                self.other_table = !self.other_table;
                self.memory = self.guest.table(self.other_table);
                self.queue.set_memory(self.memory.clone());
            }
            step::SCRIBBLE => {
                let (start, len, seed) = (self.script.u16(), self.script.u8(), self.script.u8());
                self.honest &= u64::from(start) >= FREE;
                self.scribbling = (seed != 0).then_some((start.into(), len.into(), seed));
            }
            _ => {
                let (at, index, desc) = (self.address(), self.script.u8(), self.descriptor());
                self.put(at, index.into(), desc);
            }
        }
    }

    /// Everything that is available is taken, whatever is done to memory meanwhile.
    fn run_queue(&mut self) {
        let Some((start, len, seed)) = self.scribbling else { return self.queue.run() };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| self.guest.scribble(start, len, seed, &stop));
            // Even if the queue panics: the other thread must end.
            let _stop = OnDrop(&stop);
            self.queue.run();
        });
    }

    fn start(&mut self) {
        self.available = self.ring.next;
        if self.queue.start(self.ring).is_err() {
            self.honest = false;
        }
        if self.honest {
            for index in [self.ring.available + 2, self.ring.used + 2] {
                self.write_ring(index, &self.available.to_le_bytes());
            }
        }
    }

    /// The ring is stopped and started, where it was or elsewhere.
    fn restart(&mut self) {
        let how = self.script.u8();
        let next = self.queue.stop();
        if self.honest {
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
        self.honest &= how & 3 == 0;
        let available = self.available;
        self.start();
        if how & 3 == 0 {
            // What was offered is still there.
            self.available = available;
            self.write_ring(self.ring.available + 2, &available.to_le_bytes());
        }
    }

    /// A guest address: most are in low memory, some at its borders, some nowhere.
    fn address(&mut self) -> u64 {
        let (kind, low) = (self.script.u8(), u64::from(self.script.u16()));
        match kind % 16 {
            0 => 60_000 - 256 + low % 512,
            1 => LOW_END.wrapping_sub(256).wrapping_add(low % 512),
            2 => (1 << 40) + low % 4200,
            3 => (1 << 32) + low,
            4 => u64::MAX - low,
            5 => self.script.u64(),
            6 => low * 2,
            7 => low & 0x1fff,
            _ => FREE + low % (60_000 - FREE),
        }
    }

    fn descriptor(&mut self) -> [u8; 16] {
        let address = self.address();
        let (kind, len) = (self.script.u8(), self.script.u16());
        let len = match kind % 8 {
            0 => u32::MAX - u32::from(len),
            1 => u32::from(len) << 16,
            2 | 3 => u32::from(len % 64),
            4 => u32::from(len),
            _ => u32::from(len % 16) * 512,
        };
        // What the device writes to must not be the rings.
        self.honest &= address >= FREE && address.checked_add(len.into()).is_some();
        let (flags, next) = (self.script.u8() & 7, self.script.u8());
        // In an indirect table anything may stand.
        self.honest &= flags & 4 == 0;
        let mut desc = [0; 16];
        desc[..8].copy_from_slice(&address.to_le_bytes());
        desc[8..12].copy_from_slice(&len.to_le_bytes());
        desc[12..14].copy_from_slice(&u16::from(flags).to_le_bytes());
        desc[14..].copy_from_slice(&u16::from(next).to_le_bytes());
        desc
    }

    fn put(&mut self, table: u64, index: u64, desc: [u8; 16]) {
        let at = table.wrapping_add(index * 16);
        let in_table = table == self.ring.descriptors && index < self.ring.size.into();
        if in_table { self.write_ring(at, &desc) } else { self.write(at, &desc) }
    }

    /// A request as a driver makes it, of up to three pieces of data.
    fn request(&mut self) {
        let (kind, sector, shape) = (self.script.u8(), self.script.u16(), self.script.u8());
        let first = u16::from(shape & 15) % self.ring.size;
        let kind = [0, 1, 1, 1, 4, 8, 11, 13][usize::from(kind % 8)];
        let header = FREE + u64::from(first) * 64;
        self.header(header, kind, u64::from(sector) % (DISK / 512 + 1));
        let is_input = matches!(kind, 0 | 8);
        let mut pieces = vec![(header, 16, 0)];
        for piece in 0..u64::from(shape >> 4 & 3) {
            let len = if kind > 8 { 16 } else { 512 << (shape >> 6) };
            pieces.push((FREE + 0x1000 + piece * 0x1000, len, if is_input { 2 } else { 0 }));
        }
        pieces.push((header + 32, 1, 2));
        let count = pieces.len();
        for (index, (address, len, flags)) in pieces.into_iter().enumerate() {
            let last = index + 1 == count;
            let at = (first + index as u16) % self.ring.size;
            let next = if last { 0 } else { (at + 1) % self.ring.size };
            let mut desc = [0; 16];
            desc[..8].copy_from_slice(&address.to_le_bytes());
            desc[8..12].copy_from_slice(&u32::to_le_bytes(len));
            desc[12..14].copy_from_slice(&u16::to_le_bytes(flags | u16::from(!last)));
            desc[14..].copy_from_slice(&next.to_le_bytes());
            self.put(self.ring.descriptors, at.into(), desc);
        }
        self.offer(first);
    }

    fn header(&mut self, at: u64, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.write(at, &header);
    }

    /// Makes the chain at `head` available. An honest driver waits while the ring is full.
    fn offer(&mut self, head: u16) {
        if self.honest {
            let used: u16 = self.memory.read_obj(GuestAddress(self.ring.used + 2)).unwrap_or(0);
            if self.available.wrapping_sub(used) >= self.ring.size {
                return;
            }
        }
        self.honest &= head < self.ring.size;
        let slot = self.ring.available + 4 + u64::from(self.available % self.ring.size) * 2;
        self.write_ring(slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write_ring(self.ring.available + 2, &self.available.to_le_bytes());
    }

    /// Writes to guest memory, as far as it is there.
    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.honest &= at >= FREE;
        self.write_ring(at, bytes);
    }

    fn write_ring(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(at));
    }
}

/// Sets a flag at the end.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Inputs that get somewhere: requests of every kind, each engine, rings that are moved.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for how in [0, 3, 0x23, 0x43, 0x80, 0xe3, 0x1c] {
        let mut seed = vec![how, 1];
        for kind in 0..8 {
            for (sector, shape) in [(3u16, 0x10), (4, 0x64), (5, 0xb8), (6, 0)] {
                seed.extend([step::REQUEST, kind]);
                seed.extend(sector.to_le_bytes());
                seed.push(shape);
            }
            seed.push(step::RUN);
        }
        seed.extend([step::ANSWER, 0, step::ANSWER, 1, step::TABLE, step::RUN, step::RESTART, 0]);
        seed.extend([step::SCRIBBLE, 0, 0x60, 200, 9, step::REQUEST, 1, 7, 0, 0x30, step::RUN]);
        seed.extend([step::INDIRECT, 8, 0, 1, 0, 9, 0, 0, 2, 16, 0, 1, 1, step::OFFER, 3, step::RUN]);
        seed.extend([step::HEADER, 9, 0, 0, 1, 1, 0, step::WRITE, 9, 0, 1, 4, 1, 2, 3, 4, step::RUN]);
        seed.extend([
            step::RESTART,
            0x73,
            5,
            0,
            0,
            1,
            0,
            0,
            0,
            2,
            0,
            0,
            0,
            3,
            0,
            0,
            step::REQUEST,
            1,
            2,
            0,
            0x20,
        ]);
        seed.extend([step::INDEX, 9, 1, step::RUN, step::DESCRIPTOR, 2, 8, 0, 0, 5, 1, 0, 3, 1, step::RUN]);
        seeds.push(seed);
    }
    seeds
}
