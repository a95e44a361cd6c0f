//! A frontend and driver without manners: vhost-user messages and rings written by hand.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::harness::PATIENCE;

pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_INDIRECT: u64 = 1 << 28;
pub const F_FLUSH: u64 = 1 << 9;
pub const F_CONFIG_WCE: u64 = 1 << 11;
const F_VERSION_1: u64 = 1 << 32;
const F_PROTOCOL: u64 = 1 << 30;
/// Of the protocol: the backend may have a channel of its own.
pub const F_BACKEND_REQ: u64 = 1 << 5;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;

pub const S_OK: u8 = 0;
pub const S_IOERR: u8 = 1;
pub const S_UNSUPP: u8 = 2;

/// Two regions of this size, one after the other in the guest and apart in the frontend.
pub const REGION: u64 = 1 << 20;
pub const QUEUE_SIZE: u16 = 16;
const USER_BASE: u64 = 0x7000_0000_0000;
const GUARD: u64 = 1 << 30;

const DESC: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// From here on memory is free for requests.
pub const FREE: u64 = 0x10000;

#[derive(Debug, Clone, Copy)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

pub fn desc(addr: u64, len: u32, flags: u16) -> Desc {
    Desc { addr, len, flags, next: 0 }
}

/// Links descriptors, the first of which gets the index `first`, one after the other.
pub fn chain(first: u16, descs: &[Desc]) -> Vec<Desc> {
    let mut descs = descs.to_vec();
    let last = descs.len() - 1;
    for (i, desc) in descs[..last].iter_mut().enumerate() {
        desc.flags |= NEXT;
        desc.next = first + i as u16 + 1;
    }
    descs
}

/// A connection with one ring.
pub struct Frontend {
    socket: UnixStream,
    pub memory: GuestMemoryMmap<()>,
    files: Vec<File>,
    kick: EventFd,
    pub call: EventFd,
    pub avail: u16,
    pub used: u16,
}

impl Frontend {
    pub fn connect(path: &Path, features: u64) -> Self {
        let mut frontend = Self::open(path);
        frontend.handshake(features);
        frontend.start_ring();
        frontend
    }

    /// The same, with a channel on which the backend may speak for itself; the frontend's end of it.
    pub fn connect_with_channel(path: &Path, features: u64) -> (Self, UnixStream) {
        let mut frontend = Self::open(path);
        frontend.handshake_with(features, F_BACKEND_REQ);
        let channel = frontend.give_channel();
        frontend.start_ring();
        (frontend, channel)
    }

    /// SET_BACKEND_REQ_FD: the frontend's end of a new channel.
    pub fn give_channel(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.tell(21, &[], &[theirs.as_raw_fd()]);
        // Answered when it has been done.
        self.ask(1, &[]);
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours
    }

    /// What a backend offers: feature bits, those of the protocol, and `size` bytes of the configuration space.
    pub fn examine(path: &Path, size: u32) -> (u64, u64, Vec<u8>) {
        let mut frontend = Self::open(path);
        frontend.tell(3, &[], &[]);
        let features = frontend.ask(1, &[]);
        let protocol = frontend.ask(15, &[]);
        // CONFIG and MQ.
        frontend.tell(16, &u64::to_le_bytes(1 << 9 | 1), &[]);
        frontend.tell(2, &(F_VERSION_1 | F_PROTOCOL).to_le_bytes(), &[]);
        (features, protocol, frontend.config(0, size))
    }

    fn open(path: &Path) -> Self {
        let files: Vec<File> = (0..2).map(|_| memfd(REGION)).collect();
        let ranges = files.iter().enumerate().map(|(i, file)| {
            let file = FileOffset::new(file.try_clone().unwrap(), 0);
            (GuestAddress(i as u64 * REGION), REGION as usize, Some(file))
        });
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        let frontend = Self {
            socket: UnixStream::connect(path).unwrap(),
            memory,
            files,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            avail: 0,
            used: 0,
        };
        frontend.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        frontend
    }

    /// Hangs up. The guest is still there, and its rings are.
    pub fn hang_up(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Connects again, for the same guest; starts no ring.
    pub fn reach(&mut self, path: &Path, features: u64) {
        self.hang_up();
        self.socket = UnixStream::connect(path).unwrap();
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        self.handshake(features);
    }

    /// Sets up ring 0 to be gone on with from the used index, as QEMU does where it has lost a backend.
    pub fn start_ring_where_used(&mut self) {
        let used = self.used_idx();
        let avail = std::mem::replace(&mut self.avail, used);
        self.start_ring();
        self.avail = avail;
    }

    /// The guest's next driver has rings that were never used.
    pub fn begin_rings_anew(&mut self) {
        self.fill(0, &[0; FREE as usize]);
        (self.avail, self.used) = (0, 0);
    }

    fn handshake(&mut self, features: u64) {
        self.handshake_with(features, 0);
    }

    fn handshake_with(&mut self, features: u64, protocol_features: u64) {
        self.tell(3, &[], &[]);
        let offered = self.ask(1, &[]);
        let features = features | F_VERSION_1 | F_PROTOCOL;
        assert_eq!(offered & features, features);
        // CONFIG, MQ and RESET_DEVICE.
        let protocol = self.ask(15, &[]);
        let wanted = 1 << 9 | 1 | 1 << 13 | protocol_features;
        assert_eq!(protocol & wanted, wanted);
        self.tell(16, &u64::to_le_bytes(wanted), &[]);
        self.set_features(features);
        self.set_mem_table(self.files.len());
    }

    /// SET_FEATURES, which a reset makes necessary again.
    pub fn set_features(&mut self, features: u64) {
        self.tell(2, &(features | F_VERSION_1 | F_PROTOCOL).to_le_bytes(), &[]);
    }

    /// SET_MEM_TABLE: the first `count` regions.
    pub fn set_mem_table(&mut self, count: usize) {
        let mut table = (count as u64).to_le_bytes().to_vec();
        for i in 0..count as u64 {
            for word in [i * REGION, REGION, USER_BASE + i * GUARD, 0] {
                table.extend(word.to_le_bytes());
            }
        }
        let fds: Vec<RawFd> = self.files[..count].iter().map(AsRawFd::as_raw_fd).collect();
        self.tell(5, &table, &fds);
        // Answered when it has been done.
        self.ask(1, &[]);
    }

    /// Sets up ring 0 where it was left.
    pub fn start_ring(&mut self) {
        self.start_ring_at([DESC, USED, AVAIL]);
    }

    /// The same, with descriptors, used and available ring at these guest addresses.
    pub fn start_ring_at(&mut self, areas: [u64; 3]) {
        self.tell(8, &words(&[0, QUEUE_SIZE.into()]), &[]);
        self.tell(10, &words(&[0, self.avail.into()]), &[]);
        let mut addr = words(&[0, 0]);
        for area in areas.into_iter().chain([0]) {
            addr.extend((USER_BASE + area / REGION * GUARD + area % REGION).to_le_bytes());
        }
        self.tell(9, &addr, &[]);
        let (kick, call) = (self.kick.as_raw_fd(), self.call.as_raw_fd());
        self.tell(13, &0u64.to_le_bytes(), &[call]);
        self.tell(12, &0u64.to_le_bytes(), &[kick]);
        self.tell(18, &words(&[0, 1]), &[]);
        // Answered when all of the above has been done.
        self.ask(1, &[]);
    }

    /// GET_VRING_BASE: returns when the ring has stopped.
    pub fn stop_ring(&mut self) -> u16 {
        (self.ask(11, &words(&[0, 0])) >> 32) as u16
    }

    pub fn reset_device(&mut self) {
        self.tell(34, &[], &[]);
        self.ask(1, &[]);
    }

    pub fn config(&mut self, offset: u32, size: u32) -> Vec<u8> {
        let mut body = words(&[offset, size, 0]);
        body.resize(12 + size as usize, 0);
        self.tell(24, &body, &[]);
        self.reply()[12..].to_vec()
    }

    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) {
        let mut body = words(&[offset, bytes.len() as u32, 0]);
        body.extend(bytes);
        self.tell(25, &body, &[]);
        // Answered when it has been done.
        self.ask(1, &[]);
    }

    pub fn tell(&mut self, code: u32, body: &[u8], fds: &[RawFd]) {
        let mut message = words(&[code, 1, body.len() as u32]);
        message.extend(body);
        assert_eq!(self.socket.send_with_fds(&[&message[..]], fds).unwrap(), message.len());
    }

    pub fn ask(&mut self, code: u32, body: &[u8]) -> u64 {
        self.tell(code, body, &[]);
        u64::from_le_bytes(self.reply()[..8].try_into().unwrap())
    }

    fn reply(&mut self) -> Vec<u8> {
        let mut header = [0; 12];
        self.socket.read_exact(&mut header).unwrap();
        let mut body = vec![0; u32::from_le_bytes(header[8..].try_into().unwrap()) as usize];
        self.socket.read_exact(&mut body).unwrap();
        body
    }

    /// Sends what is no message at all.
    pub fn babble(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// Sends any message, without waiting for what comes of it; false if there is nobody to hear it any more.
    pub fn utter(&mut self, code: u32, flags: u32, body: &[u8], fds: &[RawFd]) -> bool {
        let mut message = words(&[code, flags, body.len() as u32]);
        message.extend(body);
        self.socket.send_with_fds(&[&message[..]], fds).is_ok()
    }

    /// Reads what the device has to say, until it hangs up.
    pub fn hear_it_out(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut self.socket, &mut std::io::sink());
    }

    pub fn put_descs(&self, table: u64, descs: &[Desc]) {
        for (i, desc) in descs.iter().enumerate() {
            let at = table + i as u64 * 16;
            self.memory.write_obj(desc.addr, GuestAddress(at)).unwrap();
            self.memory.write_obj(desc.len, GuestAddress(at + 8)).unwrap();
            self.memory.write_obj(desc.flags, GuestAddress(at + 12)).unwrap();
            self.memory.write_obj(desc.next, GuestAddress(at + 14)).unwrap();
        }
    }

    /// Puts `descs` at the beginning of the descriptor table.
    pub fn put_chain(&self, descs: &[Desc]) {
        self.put_descs(DESC, descs);
    }

    /// Makes the chain at `head` available without a kick.
    pub fn offer(&mut self, head: u16) {
        let slot = AVAIL + 4 + u64::from(self.avail % QUEUE_SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.set_avail(self.avail);
    }

    pub fn set_avail(&self, idx: u16) {
        self.memory.store(idx, GuestAddress(AVAIL + 2), Ordering::Release).unwrap();
        fence(Ordering::SeqCst);
    }

    /// With EVENT_IDX: interrupt me when the used index passes `idx`.
    pub fn set_used_event(&self, idx: u16) {
        let at = AVAIL + 4 + u64::from(QUEUE_SIZE) * 2;
        self.memory.store(idx, GuestAddress(at), Ordering::Release).unwrap();
        fence(Ordering::SeqCst);
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Reads a kick that the device may not have read yet.
    pub fn take_back_kick(&self) {
        let _ = self.kick.read();
    }

    pub fn used_idx(&self) -> u16 {
        self.memory.load(GuestAddress(USED + 2), Ordering::Acquire).unwrap()
    }

    /// The next entry of the used ring, if it comes within `patience`.
    pub fn used_within(&mut self, patience: Duration) -> Option<(u32, u32)> {
        let deadline = Instant::now() + patience;
        while self.used_idx() == self.used {
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        let slot = USED + 4 + u64::from(self.used % QUEUE_SIZE) * 8;
        self.used = self.used.wrapping_add(1);
        let entry = |at: u64| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        Some((entry(slot), entry(slot + 4)))
    }

    /// Offers `descs` as they are, head first, and returns the length in the used ring.
    pub fn request(&mut self, descs: &[Desc]) -> u32 {
        self.put_chain(descs);
        self.offer(0);
        self.kick();
        let (head, len) = self.used_within(PATIENCE).expect("no answer");
        assert_eq!(head, 0);
        len
    }

    pub fn put_header(&self, at: u64, kind: u32, sector: u64) {
        self.memory.write_obj(kind, GuestAddress(at)).unwrap();
        self.memory.write_obj(0u32, GuestAddress(at + 4)).unwrap();
        self.memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn fill(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// A request as it should be; its status.
    pub fn proper(&mut self, kind: u32, sector: u64, data: Option<(u64, u32)>) -> u8 {
        self.put_header(FREE, kind, sector);
        self.fill(FREE + 16, &[0xff]);
        let flags = if kind == T_OUT { 0 } else { WRITE };
        let mut descs = vec![desc(FREE, 16, 0)];
        descs.extend(data.map(|(addr, len)| desc(addr, len, flags)));
        descs.push(desc(FREE + 16, 1, WRITE));
        self.request(&chain(0, &descs));
        self.bytes(FREE + 16, 1)[0]
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn memfd(len: u64) -> File {
    // SAFETY: a terminated name.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just made.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).unwrap();
    file
}
