//! A disk of a test's own making as one FUSE file: what it does with each request is its own affair.
//!
//! Nothing is cached on the way: the file is opened for direct I/O, so that each request of whoever uses it gets to the
//! disk, a write is complete when it is answered, and an fsync is a flush.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, WriteFlags,
};

/// Name of the file.
const NAME: &str = "disk";

const INODE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);
/// Requests served at once; a write that is answered later doesn't count.
const THREADS: usize = 4;

/// What is behind the file. Several requests are carried out at once. Errors reach whoever asked with their number, or
/// as `EIO`.
pub trait Disk: Send + Sync + 'static {
    /// Whether the kernel begins a direct request before the last one of the same user has ended: the loop driver
    /// carries out one after the other otherwise. It makes an error of a short write then.
    const ASYNCHRONOUS: bool;

    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Reads `len` bytes at `offset`; fewer of them are a short read.
    ///
    /// # Errors
    /// Those of the disk.
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Writes `bytes` at `offset`, and says so to `reply`, on this thread or on another, at once or later.
    fn write(&self, offset: u64, bytes: &[u8], reply: WriteReply);

    /// Makes sure that what was written before is there to stay.
    ///
    /// # Errors
    /// Those of the disk.
    fn flush(&self) -> io::Result<()>;

    /// `fallocate(2)`, which discards are made of.
    ///
    /// # Errors
    /// Those of the disk.
    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()>;
}

/// Where the outcome of a write is to be told.
pub struct WriteReply(ReplyWrite);

impl WriteReply {
    /// So many bytes were written; fewer than were to be are a short write.
    pub fn send(self, written: io::Result<usize>) {
        match written {
            Ok(len) => self.0.written(u32::try_from(len).unwrap_or(u32::MAX)),
            Err(error) => self.0.error(errno(&error)),
        }
    }
}

/// A mounted disk, unmounted with the value. Whoever uses its file must be done by then.
pub struct Mounted {
    session: Option<BackgroundSession>,
    file: PathBuf,
}

impl Mounted {
    /// Mounts `disk` at the directory `at`, and calls it `name` in the list of mounts.
    ///
    /// # Errors
    /// When FUSE can't be used.
    pub fn new(disk: impl Disk, name: &str, at: &Path) -> io::Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName(name.to_owned())];
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let session = Session::new(OneFile(disk), at, &config)?.spawn()?;
        Ok(Self { session: Some(session), file: at.join(NAME) })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("unmounting FUSE: {error}");
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

/// A file system of one file.
struct OneFile<D>(D);

impl<D: Disk> OneFile<D> {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o700, 0),
            INODE => (FileType::RegularFile, 0o600, self.0.size()),
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
}

fn answer(reply: ReplyEmpty, result: io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

impl<D: Disk> Filesystem for OneFile<D> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // More is waiting than is served: a write that is held must not keep others from coming in.
        let _ = config.set_max_background(64);
        match D::ASYNCHRONOUS.then(|| config.add_capabilities(InitFlags::FUSE_ASYNC_DIO)) {
            Some(Err(_)) => Err(io::Error::other("no FUSE_ASYNC_DIO")),
            _ => Ok(()),
        }
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
        match self.0.read(offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(&error)),
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
        self.0.write(offset, data, WriteReply(reply));
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.0.flush());
    }

    /// Of a descriptor that is closed.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

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
        answer(reply, self.0.fallocate(mode, offset, length));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(self.0.size() / 4096, 0, 0, 1, 0, 4096, 255, 4096);
    }
}
