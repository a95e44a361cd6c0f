//! What the device says about itself: feature bits and the configuration space.

use std::mem::{offset_of, size_of};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES, virtio_blk_config,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::limits::{ERASE_SECTORS, ERASE_SEGMENTS, MAX_PHYSICAL_BLOCK, SECTOR_SIZE, SEGMENT_SIZE, SEGMENTS};

/// Alignment of discards, in sectors: what is punched out of a file is rounded to its blocks.
const DISCARD_ALIGNMENT: u32 = 8;

/// Feature bits offered to the guest.
pub(super) fn features(read_only: bool) -> u64 {
    let offered = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_CONFIG_WCE,
    ];
    let bits =
        offered.iter().fold(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(), |bits, bit| bits | 1 << bit);
    if read_only {
        bits | 1 << VIRTIO_BLK_F_RO
    } else {
        bits | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
    }
}

/// Whether a guest that took `features` flushes. One that can't expects every completed write to be durable.
pub(super) fn has_flush(features: u64) -> bool {
    features & (1 << VIRTIO_BLK_F_FLUSH) != 0
}

/// Whether a guest that took `features` is told of its write cache, and may turn it off and on.
pub(super) fn has_cache_switch(features: u64) -> bool {
    features & (1 << VIRTIO_BLK_F_CONFIG_WCE) != 0
}

/// What a write of `bytes` at `offset` of the configuration space sets the write cache to, if it does: the one field a
/// guest may write.
pub(super) fn write_cache_setting(offset: u32, bytes: &[u8]) -> Option<bool> {
    let at = (offset_of!(virtio_blk_config, wce) as u32).checked_sub(offset)?;
    bytes.get(at as usize).map(|byte| *byte != 0)
}

/// Features of the vhost-user protocol.
pub(super) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::BACKEND_REQ
}

/// What the configuration space says of a disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Size in bytes at first.
    pub(super) len: u64,
    /// Bytes of a logical block.
    pub(super) block_size: u32,
    /// Bytes that are read and written at once below, a power of two.
    pub(super) io_size: u32,
    pub(super) num_queues: u16,
}

/// Where blocks lie in those below, in logical blocks: `struct virtio_blk_topology`.
#[derive(Debug, PartialEq, Eq)]
struct Topology {
    physical_block_exp: u8,
    min_io_size: u16,
    opt_io_size: u32,
}

impl Layout {
    /// What is below begins at a block of its own, so the offset of alignment is 0.
    fn topology(&self) -> Topology {
        let physical = self.io_size.clamp(self.block_size, MAX_PHYSICAL_BLOCK.max(self.block_size));
        let blocks = physical / self.block_size;
        // A size that is only the physical block's is no further advice.
        let best = if self.io_size > physical { self.io_size / self.block_size } else { 0 };
        Topology {
            physical_block_exp: blocks.ilog2() as u8,
            min_io_size: u16::try_from(blocks).unwrap_or(u16::MAX),
            opt_io_size: best,
        }
    }
}

/// The configuration space, little-endian.
pub(super) fn config_space(layout: Layout) -> Vec<u8> {
    let Layout { len, block_size, num_queues, .. } = layout;
    let topology = layout.topology();
    let block_sectors = block_size / SECTOR_SIZE as u32;
    let mut space = vec![0; size_of::<virtio_blk_config>()];
    let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(offset_of!(virtio_blk_config, size_max), &SEGMENT_SIZE.to_le_bytes());
    put(offset_of!(virtio_blk_config, seg_max), &SEGMENTS.to_le_bytes());
    put(offset_of!(virtio_blk_config, blk_size), &block_size.to_le_bytes());
    put(offset_of!(virtio_blk_config, physical_block_exp), &[topology.physical_block_exp]);
    put(offset_of!(virtio_blk_config, min_io_size), &topology.min_io_size.to_le_bytes());
    put(offset_of!(virtio_blk_config, opt_io_size), &topology.opt_io_size.to_le_bytes());
    // There is a write cache until the guest turns it off.
    put(offset_of!(virtio_blk_config, wce), &[1]);
    put(offset_of!(virtio_blk_config, num_queues), &num_queues.to_le_bytes());
    put(offset_of!(virtio_blk_config, max_discard_sectors), &ERASE_SECTORS.to_le_bytes());
    put(offset_of!(virtio_blk_config, max_discard_seg), &ERASE_SEGMENTS.to_le_bytes());
    put(
        offset_of!(virtio_blk_config, discard_sector_alignment),
        &DISCARD_ALIGNMENT.max(block_sectors).to_le_bytes(),
    );
    put(offset_of!(virtio_blk_config, max_write_zeroes_sectors), &ERASE_SECTORS.to_le_bytes());
    put(offset_of!(virtio_blk_config, max_write_zeroes_seg), &ERASE_SEGMENTS.to_le_bytes());
    put(offset_of!(virtio_blk_config, write_zeroes_may_unmap), &[1]);
    set_capacity(&mut space, len);
    space
}

/// Says in `space` that the disk has `len` bytes.
pub(super) fn set_capacity(space: &mut [u8], len: u64) {
    let at = offset_of!(virtio_blk_config, capacity);
    space[at..at + size_of::<u64>()].copy_from_slice(&(len / SECTOR_SIZE).to_le_bytes());
}

/// Whether reading `size` bytes from `offset` tells how large the disk is.
pub(super) fn tells_capacity(offset: u32, size: u32) -> bool {
    offset as usize <= offset_of!(virtio_blk_config, capacity)
        && offset.saturating_add(size) as usize >= offset_of!(virtio_blk_config, capacity) + size_of::<u64>()
}

/// Whether reading `size` bytes from `offset` tells whether the write cache is on.
pub(super) fn tells_write_cache(offset: u32, size: u32) -> bool {
    let at = offset_of!(virtio_blk_config, wce) as u32;
    (offset..offset.saturating_add(size)).contains(&at)
}

/// Says in `space` whether the write cache is on.
pub(super) fn set_write_cache(space: &mut [u8], on: bool) {
    space[offset_of!(virtio_blk_config, wce)] = on.into();
}

/// `size` bytes of `space` from `offset`: exactly that many, zeros where the space has ended, because the library
/// fails the connection otherwise, and frontends ask for as much as their own headers know.
pub(super) fn read_config(space: &[u8], offset: u32, size: u32) -> Vec<u8> {
    let rest = space.get(offset as usize..).unwrap_or_default();
    let mut bytes = rest[..rest.len().min(size as usize)].to_vec();
    bytes.resize(size as usize, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(len: u64, block_size: u32, io_size: u32) -> Layout {
        Layout { len, block_size, io_size, num_queues: 3 }
    }

    #[test]
    fn topology_is_in_logical_blocks() {
        let topology = |block_size, io_size| {
            let topology = layout(1 << 20, block_size, io_size).topology();
            (topology.physical_block_exp, topology.min_io_size, topology.opt_io_size)
        };
        assert_eq!(topology(512, 512), (0, 1, 0));
        assert_eq!(topology(512, 4096), (3, 8, 0));
        assert_eq!(topology(4096, 512), (0, 1, 0), "a physical block is no smaller than a logical one");
        assert_eq!(topology(512, 65536), (7, 128, 0));
        assert_eq!(topology(4096, 1 << 20), (4, 16, 256));
        assert_eq!(topology(512, 1 << 31), (7, 128, 1 << 22));
    }

    #[test]
    fn capacity_is_in_whole_sectors() {
        let space = config_space(layout(10 * 512 + 511, 512, 4096));
        assert_eq!(read_config(&space, 0, 8), 10u64.to_le_bytes());
        assert_eq!(read_config(&space, 34, 2), 3u16.to_le_bytes());
    }

    #[test]
    fn capacity_follows_and_is_told_to_who_reads_all_of_it() {
        let mut space = config_space(layout(1 << 30, 512, 4096));
        let rest = space[8..].to_vec();
        set_capacity(&mut space, 3 * 512);
        assert_eq!(read_config(&space, 0, 8), 3u64.to_le_bytes());
        assert_eq!(space[8..], rest);
        assert!(tells_capacity(0, 8) && tells_capacity(0, 60) && tells_capacity(0, u32::MAX));
        assert!(!tells_capacity(0, 7) && !tells_capacity(1, 60) && !tells_capacity(u32::MAX, u32::MAX));
    }

    #[test]
    fn reads_are_exact() {
        let space = config_space(layout(1 << 30, 512, 4096));
        for (offset, size) in [(0, 60), (0, 96), (0, 256), (90, 20), (96, 4), (u32::MAX, 8), (5, 0)] {
            assert_eq!(read_config(&space, offset, size).len(), size as usize);
        }
    }

    #[test]
    fn only_the_write_cache_can_be_set() {
        assert_eq!(write_cache_setting(32, &[0]), Some(false));
        assert_eq!(write_cache_setting(30, &[0, 0, 1, 0]), Some(true));
        assert_eq!(write_cache_setting(33, &[0, 0]), None);
        assert_eq!(write_cache_setting(0, &[0; 32]), None);
        assert!(tells_write_cache(32, 1) && tells_write_cache(0, u32::MAX));
        assert!(!tells_write_cache(0, 32) && !tells_write_cache(33, u32::MAX) && !tells_write_cache(32, 0));
    }

    #[test]
    fn read_only_is_offered_only_for_read_only_images() {
        let erase = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        assert_eq!(features(true) ^ features(false), 1 << VIRTIO_BLK_F_RO | erase);
        assert!(has_flush(features(false)));
    }
}
