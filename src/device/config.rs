//! What the device says about itself: feature bits and the configuration space.

use std::mem::{offset_of, size_of};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
    virtio_blk_config,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::limits::{ERASE_SECTORS, ERASE_SEGMENTS, SECTOR_SIZE, SEGMENT_SIZE, SEGMENTS};

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

/// Whether a guest that took `features` has a write cache that it flushes. One that can't flush expects every
/// completed write to be durable.
pub(super) fn has_write_cache(features: u64) -> bool {
    features & (1 << VIRTIO_BLK_F_FLUSH) != 0
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
}

/// The configuration space, little-endian, of a disk of `len` bytes.
pub(super) fn config_space(len: u64, num_queues: u16) -> Vec<u8> {
    let mut space = vec![0; size_of::<virtio_blk_config>()];
    let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(offset_of!(virtio_blk_config, capacity), &(len / SECTOR_SIZE).to_le_bytes());
    put(offset_of!(virtio_blk_config, size_max), &SEGMENT_SIZE.to_le_bytes());
    put(offset_of!(virtio_blk_config, seg_max), &SEGMENTS.to_le_bytes());
    put(offset_of!(virtio_blk_config, blk_size), &(SECTOR_SIZE as u32).to_le_bytes());
    // There is a write cache until the guest turns it off.
    put(offset_of!(virtio_blk_config, wce), &[1]);
    put(offset_of!(virtio_blk_config, num_queues), &num_queues.to_le_bytes());
    put(offset_of!(virtio_blk_config, max_discard_sectors), &ERASE_SECTORS.to_le_bytes());
    put(offset_of!(virtio_blk_config, max_discard_seg), &ERASE_SEGMENTS.to_le_bytes());
    put(offset_of!(virtio_blk_config, discard_sector_alignment), &DISCARD_ALIGNMENT.to_le_bytes());
    put(offset_of!(virtio_blk_config, max_write_zeroes_sectors), &ERASE_SECTORS.to_le_bytes());
    put(offset_of!(virtio_blk_config, max_write_zeroes_seg), &ERASE_SEGMENTS.to_le_bytes());
    put(offset_of!(virtio_blk_config, write_zeroes_may_unmap), &[1]);
    space
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

    #[test]
    fn capacity_is_in_whole_sectors() {
        let space = config_space(10 * 512 + 511, 3);
        assert_eq!(read_config(&space, 0, 8), 10u64.to_le_bytes());
        assert_eq!(read_config(&space, 34, 2), 3u16.to_le_bytes());
    }

    #[test]
    fn reads_are_exact() {
        let space = config_space(1 << 30, 1);
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
    }

    #[test]
    fn read_only_is_offered_only_for_read_only_images() {
        let erase = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        assert_eq!(features(true) ^ features(false), 1 << VIRTIO_BLK_F_RO | erase);
        assert!(has_write_cache(features(false)));
    }
}
