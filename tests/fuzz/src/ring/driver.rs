//! What the guest writes into its memory: chains as a driver makes them, and anything else.

use vm_memory::{Bytes as _, GuestAddress};

use super::account::{Trust, used};
use super::guest::LOW_END;
use super::{DISK, FREE, Play};

impl Play<'_> {
    /// A guest address: most are in low memory, some at its borders, some nowhere.
    pub(super) fn address(&mut self) -> u64 {
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

    pub(super) fn descriptor(&mut self) -> [u8; 16] {
        self.account.untidy();
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
        self.account.only_if(address >= FREE && address.checked_add(len.into()).is_some());
        let (flags, next) = (self.script.u8() & 7, self.script.u8());
        // In an indirect table anything may stand.
        self.account.only_if(flags & 4 == 0);
        descriptor(address, len, flags.into(), next.into())
    }

    pub(super) fn put(&mut self, table: u64, index: u64, desc: [u8; 16]) {
        let at = table.wrapping_add(index * 16);
        let in_table = table == self.ring.descriptors && index < self.ring.size.into();
        if in_table { self.write_ring(at, &desc) } else { self.write(at, &desc) }
    }

    /// A request as a driver makes it, of up to three pieces of data; a tidy driver waits until it has descriptors.
    pub(super) fn request(&mut self) {
        let (kind, sector, shape) = (self.script.u8(), self.script.u16(), self.script.u8());
        let first = u16::from(shape & 15) % self.ring.size;
        let kind = [0, 1, 1, 1, 4, 8, 11, 13][usize::from(kind % 8)];
        let header = FREE + u64::from(first) * 64;
        let is_input = matches!(kind, 0 | 8);
        let mut pieces = vec![(header, 16, 0)];
        for piece in 0..u64::from(shape >> 4 & 3) {
            let len = if kind > 8 { 16 } else { 512 << (shape >> 6) };
            pieces.push((FREE + 0x1000 + piece * 0x1000, len, if is_input { 2 } else { 0 }));
        }
        pieces.push((header + 32, 1, 2));
        let count = pieces.len() as u16;
        let descriptors: Vec<u16> = (0..count).map(|index| (first + index) % self.ring.size).collect();
        if self.account.must_wait(&descriptors) {
            return;
        }
        self.write_header(header, kind, u64::from(sector) % (DISK / 512 + 1));
        for ((address, len, flags), index) in pieces.into_iter().zip(0..) {
            let last = index + 1 == count;
            let at = (first + index) % self.ring.size;
            let next = if last { 0 } else { (at + 1) % self.ring.size };
            let desc = descriptor(address, len, flags | u16::from(!last), next);
            self.put(self.ring.descriptors, at.into(), desc);
        }
        self.offer(first, descriptors);
    }

    /// A header anywhere.
    pub(super) fn header(&mut self, at: u64, kind: u32, sector: u64) {
        self.account.untidy();
        self.write_header(at, kind, sector);
    }

    fn write_header(&mut self, at: u64, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.write(at, &header);
    }

    /// Makes the chain at `head` available. As long as answers are counted, the driver waits while the ring is full.
    pub(super) fn offer(&mut self, head: u16, descriptors: Vec<u16>) {
        if self.account.trust() != Trust::Nothing
            && self.available.wrapping_sub(used(&self.memory, self.ring)) >= self.ring.size
        {
            return;
        }
        self.account.only_if(head < self.ring.size);
        self.account.offered(head, descriptors);
        let slot = self.ring.available + 4 + u64::from(self.available % self.ring.size) * 2;
        self.write_ring(slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write_ring(self.ring.available + 2, &self.available.to_le_bytes());
    }

    /// Writes to guest memory, as far as it is there.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        self.account.only_if(at >= FREE);
        self.write_ring(at, bytes);
    }

    pub(super) fn write_ring(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(at));
    }
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut desc = [0; 16];
    desc[..8].copy_from_slice(&address.to_le_bytes());
    desc[8..12].copy_from_slice(&len.to_le_bytes());
    desc[12..14].copy_from_slice(&flags.to_le_bytes());
    desc[14..].copy_from_slice(&next.to_le_bytes());
    desc
}
