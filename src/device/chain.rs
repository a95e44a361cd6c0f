//! From a descriptor chain to a request.
//!
//! Nothing in a chain is to be believed: it may loop, end early, point nowhere or in the wrong direction. Whatever it
//! holds, the outcome is a request or a refusal, and the status byte if there is a place for it.

use std::ops::ControlFlow;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::Memory;
use super::limits::MAX_DESCRIPTORS;
use super::request::{self, Disk, Refusal, Request};
use crate::engine::SharedSlices;

/// Type, a reserved word and the sector: `struct virtio_blk_outhdr`.
const HEADER_SIZE: usize = 16;

/// A chain taken apart.
#[derive(Debug)]
pub(super) struct Parsed {
    /// Where the status byte goes; known to be mapped.
    pub(super) status: Option<GuestAddress>,
    pub(super) request: Result<Request, Refusal>,
    /// Of the buffers and the header, which stay as they are while the request is in flight: whether a chain at the same
    /// place is still the same request.
    pub(super) fingerprint: u64,
}

/// Takes apart a chain, whose descriptors point to `memory`.
pub(super) fn parse(chain: impl Iterator<Item = Descriptor>, memory: &Arc<Memory>, disk: Disk) -> Parsed {
    let mut segments = Segments::default();
    let whole = segments.collect(chain);
    let buffers = segments.fingerprint();
    let status = segments.take_status(memory);
    let request = match (whole, status) {
        (Err(reason), _) => Err(Refusal::Malformed(reason)),
        (Ok(()), None) => Err(Refusal::Malformed("no room for the status")),
        (Ok(()), Some(_)) => segments.as_request(memory, disk),
    };
    let fingerprint = segments.header.iter().fold(buffers, |hash, word| mix(hash, *word));
    Parsed { status, request, fingerprint }
}

fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A piece of guest memory, not yet known to be mapped.
#[derive(Debug, Clone, Copy)]
struct Segment {
    addr: GuestAddress,
    len: usize,
}

/// The descriptors of a chain by direction.
#[derive(Debug, Default)]
struct Segments {
    /// Read by the device.
    readable: Vec<Segment>,
    /// Written by the device.
    writable: Vec<Segment>,
    /// Whether the chain was followed to its end and the device may write there.
    status_expected: bool,
    /// The header, once it was read.
    header: [u64; 2],
}

impl Segments {
    fn fingerprint(&self) -> u64 {
        let all = self.readable.iter().chain(&self.writable);
        let hash = all.fold(self.readable.len() as u64 + 1, |hash, segment| {
            mix(mix(hash, segment.addr.0), segment.len as u64)
        });
        mix(hash, self.writable.len() as u64)
    }

    /// Reads the descriptors. The library ends a chain silently where it can't go on; such a chain is told by its last
    /// descriptor, which names a successor.
    fn collect(&mut self, chain: impl Iterator<Item = Descriptor>) -> Result<(), &'static str> {
        let mut last = None;
        let mut outcome = Ok(());
        for (count, descriptor) in chain.enumerate() {
            let segment = Segment { addr: descriptor.addr(), len: descriptor.len() as usize };
            if count >= MAX_DESCRIPTORS {
                outcome = Err("too many descriptors");
                // Followed to its end for the sake of the status byte.
                if descriptor.is_write_only() && segment.len != 0 {
                    self.writable.truncate(MAX_DESCRIPTORS);
                    self.writable.push(segment);
                }
            } else if descriptor.is_write_only() {
                self.writable.extend((segment.len != 0).then_some(segment));
            } else if self.writable.is_empty() {
                self.readable.extend((segment.len != 0).then_some(segment));
            } else {
                outcome = Err("readable descriptor after a writable one");
            }
            last = Some(descriptor);
        }
        match last {
            None => Err("no descriptors"),
            Some(descriptor) if descriptor.has_next() => Err("chain breaks off"),
            Some(descriptor) => {
                self.status_expected = descriptor.is_write_only();
                outcome
            }
        }
    }

    /// Splits off the last writable byte, if it is mapped.
    fn take_status(&mut self, memory: &Memory) -> Option<GuestAddress> {
        if !self.status_expected {
            return None;
        }
        let last = self.writable.last_mut()?;
        last.len -= 1;
        let addr = last.addr.0.checked_add(last.len as u64).map(GuestAddress)?;
        if last.len == 0 {
            self.writable.pop();
        }
        memory.address_in_range(addr).then_some(addr)
    }

    fn as_request(&mut self, memory: &Arc<Memory>, disk: Disk) -> Result<Request, Refusal> {
        let header = self.take_header(memory)?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
        self.header = [word(0).into(), sector];
        match word(0) {
            VIRTIO_BLK_T_IN if !self.readable.is_empty() => {
                Err(Refusal::Malformed("read into readable memory"))
            }
            VIRTIO_BLK_T_IN => {
                let data = resolve(memory, &self.writable)?;
                Ok(Request::Read { offset: disk.offset(sector, data.len() as u64)?, data })
            }
            VIRTIO_BLK_T_OUT if disk.read_only => Err(Refusal::Malformed("write to a read-only disk")),
            VIRTIO_BLK_T_OUT if !self.writable.is_empty() => {
                Err(Refusal::Malformed("write from writable memory"))
            }
            VIRTIO_BLK_T_OUT => {
                let data = resolve(memory, &self.readable)?;
                Ok(Request::Write { offset: disk.offset(sector, data.len() as u64)?, data })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Request::GetId { data: resolve(memory, &self.writable)? }),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if disk.read_only => {
                Err(Refusal::Malformed("discard or zeroes on a read-only disk"))
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if !self.writable.is_empty() => {
                Err(Refusal::Malformed("ranges in writable memory"))
            }
            kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => {
                request::erase(&resolve(memory, &self.readable)?, kind == VIRTIO_BLK_T_WRITE_ZEROES, disk)
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    /// Splits off the header, which the guest may have scattered.
    fn take_header(&mut self, memory: &Memory) -> Result<[u8; HEADER_SIZE], Refusal> {
        let mut header = [0; HEADER_SIZE];
        let mut rest = &mut header[..];
        for segment in &mut self.readable {
            let (now, later) = rest.split_at_mut(segment.len.min(rest.len()));
            memory
                .read_slice(now, segment.addr)
                .map_err(|_| Refusal::Malformed("header is not in guest memory"))?;
            // Can wrap only to the address after the last one, and then nothing is left.
            segment.addr.0 = segment.addr.0.wrapping_add(now.len() as u64);
            segment.len -= now.len();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        if !rest.is_empty() {
            return Err(Refusal::Malformed("header is too short"));
        }
        self.readable.retain(|segment| segment.len != 0);
        Ok(header)
    }
}

/// Where `segments` are mapped. One of them may cross regions of guest memory and become several slices.
fn resolve(memory: &Arc<Memory>, segments: &[Segment]) -> Result<SharedSlices, Refusal> {
    let mut slices = Vec::with_capacity(segments.len());
    let found = segments.iter().try_for_each(|segment| {
        for slice in memory.get_slices(segment.addr, segment.len) {
            let Ok(slice) = slice else { return ControlFlow::Break(()) };
            slices
                .push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
        }
        ControlFlow::Continue(())
    });
    if found.is_break() {
        return Err(Refusal::Malformed("data is not in guest memory"));
    }
    // SAFETY: the slices are within the mappings of `memory`, which the Arc keeps; mappings of guest memory are
    // readable and writable, and nobody makes references to them.
    Ok(unsafe { SharedSlices::new(slices, memory.clone()) })
}
