//! A disk that fails when a test says so, in front of an image.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use testkit::fuse::{Disk, Mounted, WriteReply};
use testkit::mounts;

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
    // Unmounted before its directory is removed.
    disk: Mounted,
    faults: Arc<Mutex<Faults>>,
    _dir: TempDir,
}

impl FailingDisk {
    /// In front of the image at `path`. The calling thread moves into a mount namespace of its own: the program must be
    /// started by it.
    pub fn new(path: &Path) -> Self {
        mounts::enter_private().expect("a mount namespace: this needs root");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let faults = Arc::new(Mutex::new(Faults::default()));
        let image = File::options().read(true).write(true).open(path).expect("the image");
        let failing = Failing { image, faults: Arc::clone(&faults) };
        let disk = Mounted::new(failing, "failing-disk", dir.path()).expect("FUSE");
        FailingDisk { disk, faults, _dir: dir }
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        self.disk.file()
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

struct Failing {
    image: File,
    faults: Arc<Mutex<Faults>>,
}

impl Failing {
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

    /// How many bytes of a request are to be carried out.
    fn carried_out(&self, kind: Kind, offset: u64, len: usize) -> io::Result<usize> {
        match self.fate(kind, offset, len as u64) {
            Some(How::Error(error)) => Err(io::Error::from_raw_os_error(error)),
            Some(How::Short(short)) => Ok(short.min(len)),
            None => Ok(len),
        }
    }
}

impl Disk for Failing {
    const ASYNCHRONOUS: bool = false;

    fn size(&self) -> u64 {
        self.image.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.carried_out(Kind::Read, offset, len)?];
        let read = self.image.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8], reply: WriteReply) {
        let written = self.carried_out(Kind::Write, offset, bytes.len());
        reply.send(written.and_then(|len| self.image.write_all_at(&bytes[..len], offset).map(|()| len)));
    }

    fn flush(&self) -> io::Result<()> {
        self.carried_out(Kind::Flush, 0, 0).map(|_| ())
    }

    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        // SAFETY: a system call on a descriptor of our own.
        let done =
            unsafe { libc::fallocate(self.image.as_raw_fd(), mode, offset.cast_signed(), len.cast_signed()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
