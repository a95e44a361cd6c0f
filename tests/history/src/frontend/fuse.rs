//! The disk image as one FUSE file, every request of which goes through a tap as the device's requests do.
//!
//! Nothing is cached on the way: the file is opened for direct I/O, so that a write is complete when it is answered
//! and an fsync reaches the image.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use btrfs_shadow::image::Image as _;
use btrfs_shadow::tap::{CopyFate, Erase, Tap, WritePlan};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, Session, WriteFlags,
};

use crate::frontend::gate::Gate;

/// Name of the file.
pub const NAME: &str = "disk";

const INODE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);
/// Requests served at once, those held not counted.
const THREADS: usize = 4;

/// One file.
struct Disk {
    image: Arc<Gate>,
    tap: Arc<dyn Tap>,
}

/// Mounts the file `NAME` at the directory `at` and serves it until the result is dropped.
///
/// # Errors
/// When FUSE can't be used.
pub fn mount(image: Arc<Gate>, tap: Arc<dyn Tap>, at: &Path) -> io::Result<fuser::BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("btrfs-shadow-history".to_owned())];
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    Session::new(Disk { image, tap }, at, &config)?.spawn()
}

impl Disk {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o700, 0),
            INODE => (FileType::RegularFile, 0o600, self.image.len()),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// As `device::worker` does it: plan, copy, carry out, tell the tap, answer.
    fn carry_out(&self, offset: u64, data: &[u8], reply: ReplyWrite) {
        let written = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let answer = move |result: io::Result<()>| match result {
            Ok(()) => reply.written(written),
            Err(_) => reply.error(Errno::EIO),
        };
        let plan = self.tap.plan(offset, data.len() as u64);
        if plan == WritePlan::Direct {
            return answer(self.image.write_at(data, offset));
        }
        let mut bytes = data.to_vec();
        match (self.tap.copied(offset, &mut bytes), plan) {
            (CopyFate::Lose, _) => answer(Ok(())),
            (CopyFate::Refuse, _) => answer(Err(io::ErrorKind::PermissionDenied.into())),
            (CopyFate::Write, WritePlan::Hold) if self.image.is_dead() => {
                answer(Err(io::ErrorKind::Other.into()));
            }
            (CopyFate::Write, WritePlan::Hold) => self.tap.hold(offset, bytes, Box::new(answer)),
            (CopyFate::Write, _) => {
                let result = self.image.write_at(&bytes, offset);
                match &result {
                    Ok(()) => self.tap.written(offset, bytes),
                    Err(_) => self.tap.write_failed(offset, bytes.len() as u64),
                }
                answer(result);
            }
        }
    }
}

impl Filesystem for Disk {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // More is waiting than is served: a held write must not keep others from coming in.
        let _ = config.set_max_background(64);
        // The loop driver carries out one request after the other, unless the file takes them asynchronously.
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(|_| io::Error::other("no FUSE_ASYNC_DIO"))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(INODE) {
            Some(attributes) if parent == INodeNo::ROOT && name == NAME => {
                reply.entry(&TTL, &attributes, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Parallel, because a write waits for its answer under the file's lock otherwise.
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.image.is_dead() {
            return reply.error(Errno::EIO);
        }
        let delay = self.image.read_delay.load(Ordering::Relaxed);
        if delay > 0 {
            std::thread::sleep(Duration::from_millis(delay));
        }
        let size = u64::from(size).min(self.image.len().saturating_sub(offset));
        let mut bytes = vec![0; size as usize];
        match self.image.read_at(&mut bytes, offset) {
            Ok(()) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.carry_out(offset, data, reply);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let begun = self.tap.flush_begins();
        match self.image.flush() {
            Ok(()) => {
                self.tap.flushed(begun);
                reply.ok();
            }
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    /// What the loop driver makes of a discard.
    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE {
            return reply.error(Errno::EOPNOTSUPP);
        }
        if !self.tap.erases(Erase::Discard, offset, length) {
            return reply.error(Errno::EIO);
        }
        let result = self.image.punch(offset, length);
        self.tap.erased(offset, length);
        match result {
            Ok(()) => reply.ok(),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(self.image.len() / 4096, 0, 0, 1, 0, 4096, 255, 4096);
    }
}
