//! What a guest may ask for, and what is refused. Knows nothing of descriptors.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::limits::{ERASE_SECTORS, ERASE_SEGMENTS, SECTOR_SIZE};
use crate::engine::SharedSlices;
use crate::tap::Erase;

/// Sector, number of sectors, flags: `struct virtio_blk_discard_write_zeroes`.
const ERASE_SIZE: usize = 16;

/// What a request is checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    /// Size in bytes, as far as it can be addressed in sectors.
    pub(super) len: u64,
    /// Bytes of a logical block, a power of two of sectors. What isn't whole blocks isn't carried out.
    pub(super) block_size: u32,
    pub(super) read_only: bool,
}

impl Disk {
    /// The byte offset of a request of `len` bytes.
    pub(super) fn offset(self, sector: u64, len: u64) -> Result<u64, Refusal> {
        if !len.is_multiple_of(self.block_size.into()) {
            return Err(Refusal::Malformed("length is not in whole blocks"));
        }
        let offset = sector.checked_mul(SECTOR_SIZE);
        if offset.is_some_and(|offset| !offset.is_multiple_of(self.block_size.into())) {
            return Err(Refusal::Malformed("offset is not in whole blocks"));
        }
        match offset.and_then(|offset| offset.checked_add(len)) {
            Some(end) if end <= self.len => Ok(end - len),
            _ => Err(Refusal::Malformed("beyond the end of the disk")),
        }
    }
}

/// What the guest wants. Offsets and lengths are whole blocks, and ranges lie within the disk.
#[derive(Debug)]
pub(super) enum Request {
    Read {
        offset: u64,
        data: SharedSlices,
    },
    Write {
        offset: u64,
        data: SharedSlices,
    },
    Flush,
    GetId {
        data: SharedSlices,
    },
    /// Discard or write zeroes, to each of these ranges: byte offset and length.
    Erase {
        kind: Erase,
        ranges: Vec<(u64, u64)>,
    },
}

impl Request {
    /// Bytes of data that are read or written.
    pub(super) fn transferred(&self) -> usize {
        match self {
            Request::Read { data, .. } | Request::Write { data, .. } => data.len(),
            Request::Flush | Request::GetId { .. } | Request::Erase { .. } => 0,
        }
    }
}

/// Why a request isn't carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not the device's to do; the guest may ask, and isn't worth a complaint.
    Unsupported,
    /// The request makes no sense.
    Malformed(&'static str),
}

impl Refusal {
    pub(super) fn status(self) -> u8 {
        match self {
            Refusal::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
            Refusal::Malformed(_) => VIRTIO_BLK_S_IOERR as u8,
        }
    }
}

/// The ranges of a discard or write zeroes request. One kind of zeroes for all of them: the guest may leave it to the
/// device whether a range is unmapped, so those that may be only are if all may.
pub(super) fn erase(data: &SharedSlices, zeroes: bool, disk: Disk) -> Result<Request, Refusal> {
    if data.is_empty() || !data.len().is_multiple_of(ERASE_SIZE) {
        return Err(Refusal::Malformed("ranges to erase are cut short"));
    }
    if data.len() / ERASE_SIZE > ERASE_SEGMENTS as usize {
        return Err(Refusal::Malformed("too many ranges to erase"));
    }
    let mut ranges = Vec::new();
    let mut unmap = true;
    let bytes = data.to_vec();
    for chunk in bytes.chunks_exact(ERASE_SIZE) {
        let word = |at: usize| u32::from_le_bytes([chunk[at], chunk[at + 1], chunk[at + 2], chunk[at + 3]]);
        let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
        let (count, flags) = (word(8), word(12));
        let allowed = if zeroes { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
        if flags & !allowed != 0 {
            return Err(Refusal::Unsupported);
        }
        if count > ERASE_SECTORS {
            return Err(Refusal::Malformed("range to erase is too long"));
        }
        unmap &= flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        let len = u64::from(count) * SECTOR_SIZE;
        ranges.push((disk.offset(sector, len)?, len));
    }
    let kind = match (zeroes, unmap) {
        (false, _) => Erase::Discard,
        (true, unmap) => Erase::Zeroes { unmap },
    };
    Ok(Request::Erase { kind, ranges })
}
