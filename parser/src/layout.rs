//! Byte layouts: every on-disk structure the program reads, each with its size asserted.
//!
//! The only module that knows where a field lies. All integers are little-endian, all structures packed. Field
//! names are the kernel's; units and meaning are documented at the views that hand them out.
#![allow(missing_docs)]

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Uuid;
use crate::error::ParseError;

/// Declares packed structures and asserts their sizes at compile time.
macro_rules! layouts {
    ($($(#[$doc:meta])* struct $name:ident[$size:literal] { $($field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
            #[repr(C)]
            pub struct $name { $(pub $field: $ty,)* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

layouts! {
    /// `struct btrfs_disk_key`
    struct DiskKey[17] {
        objectid: U64,
        item_type: u8,
        offset: U64,
    }

    /// `struct btrfs_header`
    struct Header[101] {
        csum: [u8; 32],
        fsid: Uuid,
        bytenr: U64,
        flags: U64,
        chunk_tree_uuid: Uuid,
        generation: U64,
        owner: U64,
        nritems: U32,
        level: u8,
    }

    /// `struct btrfs_key_ptr`
    struct KeyPtr[33] {
        key: DiskKey,
        blockptr: U64,
        generation: U64,
    }

    /// `struct btrfs_item`
    struct Item[25] {
        key: DiskKey,
        offset: U32,
        size: U32,
    }

    /// `struct btrfs_dev_item`
    struct DevItem[98] {
        devid: U64,
        total_bytes: U64,
        bytes_used: U64,
        io_align: U32,
        io_width: U32,
        sector_size: U32,
        dev_type: U64,
        generation: U64,
        start_offset: U64,
        dev_group: U32,
        seek_speed: u8,
        bandwidth: u8,
        uuid: Uuid,
        fsid: Uuid,
    }

    /// `struct btrfs_stripe`
    struct Stripe[32] {
        devid: U64,
        offset: U64,
        dev_uuid: Uuid,
    }

    /// `struct btrfs_chunk` without its stripes
    struct Chunk[48] {
        length: U64,
        owner: U64,
        stripe_len: U64,
        chunk_type: U64,
        io_align: U32,
        io_width: U32,
        sector_size: U32,
        num_stripes: U16,
        sub_stripes: U16,
    }

    /// `struct btrfs_root_backup`
    struct RootBackup[168] {
        tree_root: U64,
        tree_root_gen: U64,
        chunk_root: U64,
        chunk_root_gen: U64,
        extent_root: U64,
        extent_root_gen: U64,
        fs_root: U64,
        fs_root_gen: U64,
        dev_root: U64,
        dev_root_gen: U64,
        csum_root: U64,
        csum_root_gen: U64,
        total_bytes: U64,
        bytes_used: U64,
        num_devices: U64,
        unused_64: [U64; 4],
        tree_root_level: u8,
        chunk_root_level: u8,
        extent_root_level: u8,
        fs_root_level: u8,
        dev_root_level: u8,
        csum_root_level: u8,
        unused_8: [u8; 10],
    }

    /// `struct btrfs_super_block`
    struct SuperBlock[4096] {
        csum: [u8; 32],
        fsid: Uuid,
        bytenr: U64,
        flags: U64,
        magic: [u8; 8],
        generation: U64,
        root: U64,
        chunk_root: U64,
        log_root: U64,
        unused_log_root_transid: U64,
        total_bytes: U64,
        bytes_used: U64,
        root_dir_objectid: U64,
        num_devices: U64,
        sectorsize: U32,
        nodesize: U32,
        unused_leafsize: U32,
        stripesize: U32,
        sys_chunk_array_size: U32,
        chunk_root_generation: U64,
        compat_flags: U64,
        compat_ro_flags: U64,
        incompat_flags: U64,
        csum_type: U16,
        root_level: u8,
        chunk_root_level: u8,
        log_root_level: u8,
        dev_item: DevItem,
        label: [u8; 256],
        cache_generation: U64,
        uuid_tree_generation: U64,
        metadata_uuid: Uuid,
        nr_global_roots: U64,
        remap_root: U64,
        remap_root_generation: U64,
        remap_root_level: u8,
        reserved: [u8; 199],
        sys_chunk_array: [u8; 2048],
        super_roots: [RootBackup; 4],
        padding: [u8; 565],
    }

    /// `struct btrfs_extent_item`
    struct ExtentItem[24] {
        refs: U64,
        generation: U64,
        flags: U64,
    }

    /// `struct btrfs_tree_block_info`
    struct TreeBlockInfo[18] {
        key: DiskKey,
        level: u8,
    }

    /// `struct btrfs_extent_data_ref`
    struct ExtentDataRef[28] {
        root: U64,
        objectid: U64,
        offset: U64,
        count: U32,
    }

    /// `struct btrfs_shared_data_ref`
    struct SharedDataRef[4] {
        count: U32,
    }

    /// `struct btrfs_extent_inline_ref` up to its `offset`
    struct InlineRef[9] {
        ref_type: u8,
        offset: U64,
    }

    /// An inline `btrfs_shared_data_ref`: `struct btrfs_extent_inline_ref` and the count behind it
    struct InlineSharedDataRef[13] {
        ref_type: u8,
        parent: U64,
        count: U32,
    }

    /// An inline `btrfs_extent_data_ref`, which starts where the inline ref's `offset` would be
    struct InlineExtentDataRef[29] {
        ref_type: u8,
        data_ref: ExtentDataRef,
    }

    /// `struct btrfs_timespec`
    struct Timespec[12] {
        sec: U64,
        nsec: U32,
    }

    /// `struct btrfs_inode_item`
    struct InodeItem[160] {
        generation: U64,
        transid: U64,
        size: U64,
        nbytes: U64,
        block_group: U64,
        nlink: U32,
        uid: U32,
        gid: U32,
        mode: U32,
        rdev: U64,
        flags: U64,
        sequence: U64,
        reserved: [U64; 4],
        atime: Timespec,
        ctime: Timespec,
        mtime: Timespec,
        otime: Timespec,
    }

    /// `struct btrfs_root_item` up to `level`: what file systems before Linux 3.6 wrote
    struct LegacyRootItem[239] {
        inode: InodeItem,
        generation: U64,
        root_dirid: U64,
        bytenr: U64,
        byte_limit: U64,
        bytes_used: U64,
        last_snapshot: U64,
        flags: U64,
        refs: U32,
        drop_progress: DiskKey,
        drop_level: u8,
        level: u8,
    }

    /// `struct btrfs_root_item`
    struct RootItem[439] {
        legacy: LegacyRootItem,
        generation_v2: U64,
        uuid: Uuid,
        parent_uuid: Uuid,
        received_uuid: Uuid,
        ctransid: U64,
        otransid: U64,
        stransid: U64,
        rtransid: U64,
        ctime: Timespec,
        otime: Timespec,
        stime: Timespec,
        rtime: Timespec,
        reserved: [U64; 8],
    }

    /// `struct btrfs_inode_ref` without the name behind it
    struct InodeRef[10] {
        index: U64,
        name_len: U16,
    }

    /// `struct btrfs_inode_extref` without the name behind it
    struct InodeExtRef[18] {
        parent_objectid: U64,
        index: U64,
        name_len: U16,
    }

    /// `struct btrfs_dir_item` without the name and the data behind it
    struct DirItem[30] {
        location: DiskKey,
        transid: U64,
        data_len: U16,
        name_len: U16,
        dir_type: u8,
    }

    /// `struct btrfs_dir_log_item`
    struct DirLogItem[8] {
        end: U64,
    }

    /// `struct btrfs_qgroup_status_item` up to `rescan`: simple quotas have one more field
    struct QgroupStatus[32] {
        version: U64,
        generation: U64,
        flags: U64,
        rescan: U64,
    }

    /// `struct btrfs_qgroup_info_item`
    struct QgroupInfo[40] {
        generation: U64,
        rfer: U64,
        rfer_cmpr: U64,
        excl: U64,
        excl_cmpr: U64,
    }

    /// `struct btrfs_qgroup_limit_item`
    struct QgroupLimit[40] {
        flags: U64,
        max_rfer: U64,
        max_excl: U64,
        rsv_rfer: U64,
        rsv_excl: U64,
    }

    /// `struct btrfs_root_ref` without the name behind it
    struct RootRef[18] {
        dirid: U64,
        sequence: U64,
        name_len: U16,
    }

    /// `struct btrfs_file_extent_item` up to `type`: all that an inline extent has before its data
    struct InlineFileExtent[21] {
        generation: U64,
        ram_bytes: U64,
        compression: u8,
        encryption: u8,
        other_encoding: U16,
        extent_type: u8,
    }

    /// `struct btrfs_file_extent_item`
    struct FileExtent[53] {
        head: InlineFileExtent,
        disk_bytenr: U64,
        disk_num_bytes: U64,
        offset: U64,
        num_bytes: U64,
    }

    /// `struct btrfs_block_group_item`
    struct BlockGroupItem[24] {
        used: U64,
        chunk_objectid: U64,
        flags: U64,
    }

    /// `struct btrfs_dev_extent`
    struct DevExtent[48] {
        chunk_tree: U64,
        chunk_objectid: U64,
        chunk_offset: U64,
        length: U64,
        chunk_tree_uuid: Uuid,
    }

    /// `struct btrfs_free_space_info`
    struct FreeSpaceInfo[8] {
        extent_count: U32,
        flags: U32,
    }
}

const _: () = {
    assert!(offset_of!(SuperBlock, magic) == 64);
    assert!(offset_of!(SuperBlock, log_root) == 96);
    assert!(offset_of!(SuperBlock, dev_item) == 201);
    assert!(offset_of!(SuperBlock, sys_chunk_array) == 811);
    assert!(offset_of!(SuperBlock, super_roots) == 2859);
    assert!(offset_of!(LegacyRootItem, drop_progress) == 220);
    assert!(offset_of!(FileExtent, disk_bytenr) == 21);
};

/// Where the super block's magic lies.
pub(crate) const MAGIC_AT: usize = offset_of!(SuperBlock, magic);

/// The magic as the number that the kernel compares, for messages.
pub(crate) fn magic_value(super_block: &SuperBlock) -> u64 {
    u64::from_le_bytes(super_block.magic)
}

/// Reads `T` from the first bytes of `bytes`; what follows is ignored.
pub(crate) fn prefix<'a, T>(what: &'static str, bytes: &'a [u8]) -> Result<&'a T, ParseError>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    let truncated = ParseError::Truncated { what, need: size_of::<T>(), have: bytes.len() };
    T::ref_from_prefix(bytes).map(|(value, _)| value).map_err(|_| truncated)
}

/// Reads `T` from bytes that must be exactly as long as it.
pub(crate) fn exact<'a, T>(what: &'static str, bytes: &'a [u8]) -> Result<&'a T, ParseError>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    let need = size_of::<T>();
    if bytes.len() > need {
        return Err(ParseError::Oversized { what, need, have: bytes.len() });
    }
    prefix(what, bytes)
}
/// The CRC-32C in a checksum field; 0 in one that is too short.
#[must_use]
pub fn crc32c(field: &[u8]) -> u32 {
    U32::read_from_prefix(field).map_or(0, |(sum, _)| sum.get())
}
