//! The ioctls of btrfs and of file cloning that histories use. Each is one system call on plain structures.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

const CLONE: libc::Ioctl = 0x4004_9409;
const CLONE_RANGE: libc::Ioctl = 0x4020_940d;
const DEDUPE_RANGE: libc::Ioctl = 0xc018_9436;
const SYNC: libc::Ioctl = 0x9408;
const SNAP_CREATE_V2: libc::Ioctl = 0x5000_9417;
const SUBVOL_CREATE_V2: libc::Ioctl = 0x5000_9418;
const SNAP_DESTROY: libc::Ioctl = 0x5000_940f;
const START_SYNC: libc::Ioctl = 0x8008_9418;
const WAIT_SYNC: libc::Ioctl = 0x4008_9416;
const QUOTA_CTL: libc::Ioctl = 0xc010_9428;
const DEFRAG_RANGE: libc::Ioctl = 0x4030_9410;
const GETFLAGS: libc::Ioctl = 0x8008_6601;
const SETFLAGS: libc::Ioctl = 0x4008_6602;

const SUBVOL_RDONLY: u64 = 1 << 1;
const QUOTA_ENABLE_SIMPLE: u64 = 4;

/// Files whose data may be compressed.
pub const FLAG_COMPRESS: i64 = 0x4;
/// Files whose data is overwritten in place.
pub const FLAG_NOCOW: i64 = 0x0080_0000;

fn call<T>(file: &File, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: every request above is used with the structure the kernel expects for it, which lives for the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument).cast::<c_void>()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes `to` share all of `from`.
///
/// # Errors
/// The kernel's.
pub fn clone_file(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: takes a descriptor by value.
    match unsafe { libc::ioctl(to.as_raw_fd(), CLONE, from.as_raw_fd()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes `len` bytes at `to_offset` share those at `from_offset`.
///
/// # Errors
/// The kernel's.
pub fn clone_range(from: &File, from_offset: u64, len: u64, to: &File, to_offset: u64) -> io::Result<()> {
    let mut range = [i64::from(from.as_raw_fd()).cast_unsigned(), from_offset, len, to_offset];
    call(to, CLONE_RANGE, &mut range)
}

/// Makes two ranges share their data, if it is equal; whether it was.
///
/// # Errors
/// The kernel's.
pub fn dedupe(from: &File, from_offset: u64, len: u64, to: &File, to_offset: u64) -> io::Result<bool> {
    #[repr(C)]
    struct Arguments {
        offset: u64,
        len: u64,
        count: u16,
        reserved: [u16; 3],
        to: i64,
        to_offset: u64,
        deduped: u64,
        status: i32,
        reserved2: u32,
    }
    let mut arguments = Arguments {
        offset: from_offset,
        len,
        count: 1,
        reserved: [0; 3],
        to: i64::from(to.as_raw_fd()),
        to_offset,
        deduped: 0,
        status: 0,
        reserved2: 0,
    };
    call(from, DEDUPE_RANGE, &mut arguments)?;
    match arguments.status {
        0 => Ok(true),
        1 => Ok(false),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

#[repr(C)]
struct VolumeArguments {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

fn split(path: &Path) -> io::Result<(File, [u8; 4040])> {
    let (Some(parent), Some(file_name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut name = [0; 4040];
    let bytes = file_name.as_encoded_bytes();
    name.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
    Ok((File::open(parent)?, name))
}

/// Makes a subvolume.
///
/// # Errors
/// The kernel's.
pub fn create_subvolume(path: &Path) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let mut arguments = VolumeArguments { fd: 0, transid: 0, flags: 0, unused: [0; 4], name };
    call(&parent, SUBVOL_CREATE_V2, &mut arguments)
}

/// Makes a snapshot of the subvolume `of`.
///
/// # Errors
/// The kernel's.
pub fn snapshot(of: &Path, path: &Path, read_only: bool) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let source = File::open(of)?;
    let flags = if read_only { SUBVOL_RDONLY } else { 0 };
    let fd = i64::from(source.as_raw_fd());
    call(&parent, SNAP_CREATE_V2, &mut VolumeArguments { fd, transid: 0, flags, unused: [0; 4], name })
}

/// Deletes a subvolume; its blocks are dropped later.
///
/// # Errors
/// The kernel's.
pub fn delete_subvolume(path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Arguments {
        fd: i64,
        name: [u8; 4088],
    }
    let (parent, short) = split(path)?;
    let mut arguments = Arguments { fd: 0, name: [0; 4088] };
    arguments.name[..short.len()].copy_from_slice(&short);
    call(&parent, SNAP_DESTROY, &mut arguments)
}

/// Commits the running transaction without writing out file data first.
///
/// # Errors
/// The kernel's.
pub fn commit(root: &File) -> io::Result<()> {
    let mut transid = 0u64;
    call(root, START_SYNC, &mut transid)?;
    call(root, WAIT_SYNC, &mut transid)
}

/// Writes out data, commits, and wakes the thread that drops deleted subvolumes.
///
/// # Errors
/// The kernel's.
pub fn sync_and_clean(root: &File) -> io::Result<()> {
    call(root, SYNC, &mut 0u64)
}

/// Writes out all data, and commits.
///
/// # Errors
/// The kernel's.
pub fn sync(root: &File) -> io::Result<()> {
    // SAFETY: a system call on a descriptor of our own.
    match unsafe { libc::syncfs(root.as_raw_fd()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Turns simple quotas on.
///
/// # Errors
/// The kernel's.
pub fn enable_simple_quotas(root: &File) -> io::Result<()> {
    call(root, QUOTA_CTL, &mut [QUOTA_ENABLE_SIMPLE, 0])
}

/// Defragments a file; `compression` 0 is none, then zlib, lzo, zstd.
///
/// # Errors
/// The kernel's.
pub fn defragment(file: &File, threshold: u32, compression: u32) -> io::Result<()> {
    #[repr(C)]
    struct Arguments {
        start: u64,
        len: u64,
        flags: u64,
        threshold: u32,
        compression: u32,
        unused: [u32; 4],
    }
    // Compress, and start the I/O.
    let flags = if compression == 0 { 2 } else { 3 };
    let mut arguments = Arguments { start: 0, len: u64::MAX, flags, threshold, compression, unused: [0; 4] };
    call(file, DEFRAG_RANGE, &mut arguments)
}

/// Sets one of the `FLAG_` bits of a file, or clears it.
///
/// # Errors
/// The kernel's.
pub fn set_flag(file: &File, flag: i64, on: bool) -> io::Result<()> {
    let mut flags = 0i64;
    call(file, GETFLAGS, &mut flags)?;
    flags = if on { flags | flag } else { flags & !flag };
    call(file, SETFLAGS, &mut flags)
}
