//! A disk that fails when a test says so: one FUSE file in front of an image, served by this process.
//!
//! Opened for direct I/O, so that nothing is cached on the way and each request of the program gets here.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::ptr::null;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, Session, WriteFlags,
};
use tempfile::TempDir;

const NAME: &str = "disk";
const INODE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    /// Its range does not matter.
    Flush,
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It fails with this error.
    Error(i32),
    /// So many bytes of it are carried out.
    Short(usize),
}

/// What is to go wrong: requests of a kind that touch a range.
#[derive(Debug, Clone)]
struct Fault {
    kind: Kind,
    range: Range<u64>,
    how: How,
    /// How often it happens yet.
    left: usize,
}

#[derive(Debug, Default)]
struct Faults {
    planned: Vec<Fault>,
    /// How often something went wrong.
    happened: usize,
}

/// A disk that fails.
pub struct FailingDisk {
    session: Option<BackgroundSession>,
    faults: Arc<Mutex<Faults>>,
    dir: TempDir,
}

impl FailingDisk {
    /// In front of the image at `path`. The calling thread moves into a mount namespace of its own: the program must be
    /// started by it.
    pub fn new(path: &Path) -> Self {
        private_mounts().expect("a mount namespace: this needs root");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let faults = Arc::new(Mutex::new(Faults::default()));
        let image = File::options().read(true).write(true).open(path).expect("the image");
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("failing-disk".to_owned())];
        config.n_threads = Some(2);
        config.clone_fd = true;
        let disk = Disk { image, faults: Arc::clone(&faults) };
        let session = Session::new(disk, dir.path(), &config).and_then(Session::spawn).expect("FUSE");
        FailingDisk { session: Some(session), faults, dir }
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(NAME)
    }

    /// The next `times` requests of a kind that touch `range` go wrong.
    pub fn plan(&self, kind: Kind, range: Range<u64>, how: How, times: usize) {
        self.faults.lock().unwrap().planned.push(Fault { kind, range, how, left: times });
    }

    /// Nothing goes wrong any more; how often something has since this was last called.
    pub fn mend(&self) -> usize {
        std::mem::take(&mut *self.faults.lock().unwrap()).happened
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("unmounting FUSE: {error}");
        }
    }
}

/// What is mounted by this thread and its children is nobody else's: other tests make namespaces too, and a copy of the
/// mount in one of them would outlive it.
pub fn private_mounts() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: system calls that change nothing but the calling thread's view of mounts; the path is a constant.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(null(), c"/".as_ptr(), null(), flags, null()) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

struct Disk {
    image: File,
    faults: Arc<Mutex<Faults>>,
}

impl Disk {
    /// What goes wrong with this request, if anything does.
    fn fate(&self, kind: Kind, offset: u64, len: u64) -> Option<How> {
        let mut faults = self.faults.lock().unwrap();
        let end = offset + len;
        let hit = |fault: &&mut Fault| {
            let touches = fault.range.start < end && offset < fault.range.end;
            fault.left > 0 && fault.kind == kind && (touches || kind == Kind::Flush)
        };
        let fault = faults.planned.iter_mut().find(hit)?;
        fault.left -= 1;
        let how = fault.how;
        faults.happened += 1;
        Some(how)
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0),
            INODE => (FileType::RegularFile, self.image.metadata().ok()?.len()),
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
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Disk {
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
        let len = match self.fate(Kind::Read, offset, size.into()) {
            Some(How::Error(error)) => return reply.error(Errno::from_i32(error)),
            Some(How::Short(len)) => len,
            None => size as usize,
        };
        let mut bytes = vec![0; len];
        match self.image.read_at(&mut bytes, offset) {
            Ok(read) => reply.data(&bytes[..read]),
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
        let len = match self.fate(Kind::Write, offset, data.len() as u64) {
            Some(How::Error(error)) => return reply.error(Errno::from_i32(error)),
            Some(How::Short(len)) => len.min(data.len()),
            None => data.len(),
        };
        match self.image.write_all_at(&data[..len], offset) {
            Ok(()) => reply.written(len as u32),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.fate(Kind::Flush, 0, 0) {
            Some(How::Error(error)) => reply.error(Errno::from_i32(error)),
            _ => reply.ok(),
        }
    }

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
        // SAFETY: a system call on a descriptor of our own.
        let done = unsafe {
            libc::fallocate(self.image.as_raw_fd(), mode, offset.cast_signed(), length.cast_signed())
        };
        if done == 0 { reply.ok() } else { reply.error(Errno::EIO) }
    }
}
