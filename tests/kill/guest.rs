//! A guest's memory, rings and driver, and a frontend that survives its backend as QEMU does with `reconnect=1`: it
//! connects again, and tells the new backend where the rings are and what their used indices say.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use vm_memory::{Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket as _;

use crate::PATIENCE;

pub const QUEUES: usize = 2;
/// Requests in flight on a queue.
pub const SLOTS: usize = 16;
/// Bytes of data in a request.
pub const DATA: usize = 64 << 10;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const WRITE_ZEROES: u32 = 13;

const RING: u16 = 64;
const USER_BASE: u64 = 0x7000_0000_0000;
/// Memory of a queue, and what lies where in it.
const AREA: u64 = 4 << 20;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const FIRST_SLOT: u64 = 0x10000;
/// Memory of a request: header, status, range to erase, indirect table, data.
const SLOT: u64 = 0x11000;
const STATUS: u64 = 0x10;
const RANGE: u64 = 0x20;
const TABLE: u64 = 0x40;
const PAYLOAD: u64 = 0x1000;

/// EVENT_IDX, INDIRECT, FLUSH, CONFIG_WCE, WRITE_ZEROES, VERSION_1, and the protocol features, as bits.
const FEATURES: u64 = 1 << 29 | 1 << 28 | 1 << 9 | 1 << 11 | 1 << 14 | 1 << 32 | 1 << 30;
/// MQ and CONFIG.
const PROTOCOL: u64 = 1 | 1 << 9;
/// Where the configuration space says whether the write cache is on.
const WCE: u32 = 32;

/// A request that was answered: queue, slot, status.
pub type Answer = (usize, usize, u8);

struct Ring {
    avail: u16,
    used: u16,
    kick: EventFd,
    call: EventFd,
    flying: [bool; SLOTS],
}

pub struct Guest {
    memory: GuestMemoryMmap<()>,
    file: File,
    rings: Vec<Ring>,
    socket: Option<UnixStream>,
}

impl Guest {
    pub fn new() -> Self {
        let len = AREA * QUEUES as u64;
        // SAFETY: a terminated name.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: just made.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len).unwrap();
        let range = (GuestAddress(0), len as usize, Some(FileOffset::new(file.try_clone().unwrap(), 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let ring = |_| Ring { avail: 0, used: 0, kick: event(), call: event(), flying: [false; SLOTS] };
        Self { memory, file, rings: (0..QUEUES).map(ring).collect(), socket: None }
    }

    /// Connects to whoever comes to listen at `path`.
    pub fn connect(&mut self, path: &Path) {
        let deadline = Instant::now() + PATIENCE;
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < deadline, "no backend: {error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        self.socket = Some(socket);
        self.tell(3, &[], &[]);
        assert_eq!(self.ask(1, &[]) & FEATURES, FEATURES);
        assert_eq!(self.ask(15, &[]) & PROTOCOL, PROTOCOL);
        self.tell(16, &PROTOCOL.to_le_bytes(), &[]);
        self.tell(2, &FEATURES.to_le_bytes(), &[]);
        let mut table = 1u64.to_le_bytes().to_vec();
        for word in [0, AREA * QUEUES as u64, USER_BASE, 0] {
            table.extend(word.to_le_bytes());
        }
        self.tell(5, &table, &[self.file.as_raw_fd()]);
        (0..QUEUES).for_each(|queue| self.start_ring(queue));
        // Answered when all of the above has been done.
        self.ask(1, &[]);
    }

    fn start_ring(&mut self, queue: usize) {
        let (number, area) = (queue as u32, USER_BASE + queue as u64 * AREA);
        self.tell(8, &words(&[number, RING.into()]), &[]);
        self.tell(10, &words(&[number, self.used_index(queue).into()]), &[]);
        let mut addresses = words(&[number, 0]);
        for at in [area, area + USED, area + AVAIL, 0] {
            addresses.extend(at.to_le_bytes());
        }
        self.tell(9, &addresses, &[]);
        let (kick, call) = (self.rings[queue].kick.as_raw_fd(), self.rings[queue].call.as_raw_fd());
        self.tell(12, &u64::from(number).to_le_bytes(), &[kick]);
        self.tell(13, &u64::from(number).to_le_bytes(), &[call]);
        self.tell(18, &words(&[number, 1]), &[]);
    }

    /// Stops the rings in order, with nothing in flight, and disconnects.
    pub fn disconnect(&mut self) {
        self.stop();
        self.lose_connection();
    }

    /// Stops the rings in order, with nothing in flight, as QEMU does when its virtual machine is stopped.
    pub fn stop(&mut self) {
        for queue in 0..QUEUES {
            let base = (self.ask(11, &words(&[queue as u32, 0])) >> 32) as u16;
            assert_eq!(base, self.rings[queue].avail, "what the backend has taken");
            assert_eq!(base, self.used_index(queue), "nothing is in flight");
        }
    }

    /// SET_CONFIG: turns the write cache on or off. Returns when it has been done.
    pub fn turn_write_cache(&mut self, on: bool) {
        let mut body = words(&[WCE, 1, 0]);
        body.push(on.into());
        self.tell(25, &body, &[]);
        self.ask(1, &[]);
    }

    /// GET_CONFIG: whether the write cache is on.
    pub fn has_write_cache(&mut self) -> bool {
        let mut body = words(&[WCE, 1, 0]);
        body.push(0);
        self.tell(24, &body, &[]);
        let mut reply = [0; 25];
        self.socket.as_mut().expect("a connection").read_exact(&mut reply).unwrap();
        reply[24] != 0
    }

    /// Stops the rings and disconnects, whatever has become of what was in flight.
    pub fn disconnect_anyhow(&mut self) {
        for queue in 0..QUEUES {
            self.ask(11, &words(&[queue as u32, 0]));
        }
        self.lose_connection();
    }

    /// Writes and waits for it, with nothing else in flight; the status.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> u8 {
        self.submit((0, 0), OUT, (offset, bytes.len()), bytes, false);
        let answers = self.wait_for_answers();
        assert_eq!((answers.len(), answers[0].0, answers[0].1), (1, 0, 0));
        answers[0].2
    }

    /// Waits for one answer at least: an interrupt may be for nothing.
    pub fn wait_for_answers(&mut self) -> Vec<Answer> {
        loop {
            self.wait();
            let answers = self.answers();
            if !answers.is_empty() {
                return answers;
            }
        }
    }

    /// Flushes, on every queue, and nothing else.
    pub fn flush(&mut self) {
        for queue in 0..QUEUES {
            self.submit((queue, 0), FLUSH, (0, 0), &[], false);
            while self.in_flight() > 0 {
                self.wait();
                assert!(self.answers().iter().all(|(at, _, status)| (*at, *status) == (queue, 0)));
            }
        }
    }

    /// The connection is gone, and with it whatever the backend has not acted upon: kicks, interrupts.
    pub fn lose_connection(&mut self) {
        self.socket = None;
        for ring in &self.rings {
            let _ = ring.kick.read();
            let _ = ring.call.read();
        }
    }

    fn tell(&mut self, code: u32, body: &[u8], fds: &[RawFd]) {
        let mut message = words(&[code, 1, body.len() as u32]);
        message.extend(body);
        let socket = self.socket.as_ref().expect("a connection");
        assert_eq!(socket.send_with_fds(&[&message[..]], fds).unwrap(), message.len());
    }

    fn ask(&mut self, code: u32, body: &[u8]) -> u64 {
        self.tell(code, body, &[]);
        let socket = self.socket.as_mut().expect("a connection");
        let mut reply = [0; 20];
        socket.read_exact(&mut reply).unwrap();
        socket.flush().unwrap();
        u64::from_le_bytes(reply[12..].try_into().unwrap())
    }

    fn used_index(&self, queue: usize) -> u16 {
        self.memory.load(GuestAddress(queue as u64 * AREA + USED + 2), Ordering::Acquire).unwrap()
    }

    pub fn free_slot(&self, queue: usize) -> Option<usize> {
        self.rings[queue].flying.iter().position(|flying| !flying)
    }

    pub fn in_flight(&self) -> usize {
        self.rings.iter().flat_map(|ring| ring.flying).filter(|flying| *flying).count()
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn slot(queue: usize, slot: usize) -> u64 {
        queue as u64 * AREA + FIRST_SLOT + slot as u64 * SLOT
    }

    /// The data of a request.
    pub fn data(&self, queue: usize, slot: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(Self::slot(queue, slot) + PAYLOAD)).unwrap();
        bytes
    }

    /// Makes a request available, with a kick: `offset` and `len` are bytes of the disk, `data` is what is written.
    pub fn submit(
        &mut self,
        (queue, slot): (usize, usize),
        kind: u32,
        (offset, len): (u64, usize),
        data: &[u8],
        indirect: bool,
    ) {
        assert!(!std::mem::replace(&mut self.rings[queue].flying[slot], true));
        let at = Self::slot(queue, slot);
        self.put(at, kind);
        self.put(at + 8, if kind == WRITE_ZEROES { 0 } else { offset / 512 });
        self.put(at + STATUS, 0xffu8);
        self.memory.write_slice(data, GuestAddress(at + PAYLOAD)).unwrap();
        self.put(at + RANGE, offset / 512);
        self.put(at + RANGE + 8, (len / 512) as u32);
        let buffer = match kind {
            IN => Some((at + PAYLOAD, len as u32, 2)),
            OUT => Some((at + PAYLOAD, len as u32, 0)),
            WRITE_ZEROES => Some((at + RANGE, 16, 0)),
            _ => None,
        };
        let mut chain = vec![(at, 16u32, 0u16)];
        chain.extend(buffer);
        chain.push((at + STATUS, 1, 2));
        let (area, head) = (queue as u64 * AREA, slot as u16 * 4);
        let (table, first) = if indirect { (at + TABLE, 0) } else { (area, head) };
        for (n, (addr, len, flags)) in chain.iter().enumerate() {
            let has_next = u16::from(n + 1 < chain.len());
            self.put_descriptor(table, first + n as u16, *addr, *len, flags | has_next);
        }
        if indirect {
            self.put_descriptor(area, head, at + TABLE, chain.len() as u32 * 16, 4);
        }
        self.offer(queue, head);
    }

    fn put_descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16) {
        let at = table + u64::from(index) * 16;
        self.put(at, addr);
        self.put(at + 8, len);
        self.put(at + 12, flags);
        self.put(at + 14, index + 1);
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let area = queue as u64 * AREA;
        let ring = &mut self.rings[queue];
        self.memory
            .write_obj(head, GuestAddress(area + AVAIL + 4 + u64::from(ring.avail % RING) * 2))
            .unwrap();
        ring.avail = ring.avail.wrapping_add(1);
        self.memory.store(ring.avail, GuestAddress(area + AVAIL + 2), Ordering::Release).unwrap();
        fence(Ordering::SeqCst);
        ring.kick.write(1).unwrap();
    }

    /// Takes what was answered. Each request is answered once, and nothing else is.
    pub fn answers(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        for queue in 0..QUEUES {
            let area = queue as u64 * AREA;
            while self.rings[queue].used != self.used_index(queue) {
                let ring = &mut self.rings[queue];
                let at = area + USED + 4 + u64::from(ring.used % RING) * 8;
                let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
                ring.used = ring.used.wrapping_add(1);
                let slot = head as usize / 4;
                let flying = ring
                    .flying
                    .get_mut(slot)
                    .filter(|_| head.is_multiple_of(4))
                    .expect("a head that was offered");
                assert!(std::mem::take(flying), "answered twice: queue {queue} slot {slot}");
                let status = self.memory.read_obj(GuestAddress(Self::slot(queue, slot) + STATUS)).unwrap();
                answers.push((queue, slot, status));
            }
        }
        answers
    }

    /// Waits for an interrupt, as a driver that has nothing else to do; at once if there are answers already.
    pub fn wait(&mut self) {
        for (queue, ring) in self.rings.iter().enumerate() {
            let event = GuestAddress(queue as u64 * AREA + AVAIL + 4 + u64::from(RING) * 2);
            self.memory.store(ring.used, event, Ordering::Release).unwrap();
        }
        fence(Ordering::SeqCst);
        if (0..QUEUES).any(|queue| self.rings[queue].used != self.used_index(queue)) {
            return;
        }
        let poll = |ring: &Ring| libc::pollfd { fd: ring.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut polls: Vec<libc::pollfd> = self.rings.iter().map(poll).collect();
        // SAFETY: an array of valid pollfds.
        let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as _, PATIENCE.as_millis() as i32) };
        assert!(ready > 0, "no interrupt for {} requests in flight", self.in_flight());
        for ring in &self.rings {
            let _ = ring.call.read();
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
