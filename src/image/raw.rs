//! Raw images: regular files and block devices, byte for byte.
//!
//! Holes stay holes: nothing is written that wasn't asked for, and nothing is preallocated.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt as _, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tracing::warn;

use super::Image;
use super::lock::{ImageLock, Locked, wait_while_busy};
use crate::engine::{Direct, Engine, Files, Rings, SyncEngine};

/// How a raw image is read and written.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawOptions {
    /// Nothing is written.
    pub read_only: bool,
    /// What the guest reads and writes goes past the page cache (O_DIRECT), as far as it is aligned.
    pub direct: bool,
    /// What moves the bytes.
    pub engine: EngineKind,
    /// Whether the image is locked against other processes, and how long those may take to give it back.
    pub lock: Option<Duration>,
}

/// How long `serve` and `check` wait for the image. Not for another user, who would keep it for hours: for requests that
/// a process that was killed has left in the kernel.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// What moves the bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineKind {
    /// io_uring, or plain system calls where that isn't allowed
    #[default]
    Auto,
    /// io_uring
    IoUring,
    /// Plain system calls: preadv, pwritev, fdatasync
    Sync,
}

/// A file or block device whose bytes are the disk's.
pub struct RawImage {
    file: Arc<File>,
    engine: EngineKind,
    /// Direct I/O was asked for.
    is_direct: bool,
    rings: Arc<Rings>,
    /// It is done without rings.
    is_plain: AtomicBool,
    len: AtomicU64,
    io_size: u32,
    read_only: bool,
    _lock: Option<ImageLock>,
}

impl RawImage {
    /// Opens the image at `path`. The size is what it is now, until it is looked at anew.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        Self::open_with(path, RawOptions { read_only, ..RawOptions::default() })
    }

    /// The same with options. An image that another process has locked is an error of kind `ResourceBusy`.
    pub fn open_with(path: &Path, options: RawOptions) -> io::Result<Self> {
        let RawOptions { read_only, engine, .. } = options;
        let explain = |error: io::Error, what: &str| {
            io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
        };
        let access = if read_only { "cannot open (read-only)" } else { "cannot open for writing" };
        let file =
            wait_while_busy(options.lock.unwrap_or_default(), "the device is busy", || open(path, read_only))
                .map_err(|error| explain(error, access))?;
        let metadata = file.metadata().map_err(|error| explain(error, "cannot examine"))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let error =
                io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device");
            return Err(explain(error, "cannot use"));
        }
        let len = size_of(&file).map_err(|error| explain(error, "cannot find the size of"))?;
        let direct = options.direct.then(|| open_direct(path, read_only)).transpose();
        let direct = direct.map_err(|error| explain(error, "cannot open for direct I/O"))?;
        if direct.is_some() && engine == EngineKind::Sync {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "the plain engine has no direct I/O");
            return Err(explain(error, "cannot use"));
        }
        let block = if kind.is_block_device() { physical_block(&file) } else { metadata.blksize() };
        let io_size = direct.as_ref().map_or(block, |direct| block.max(direct.offset_align));
        let io_size = u32::try_from(io_size).unwrap_or(0);
        let io_size = if io_size.is_power_of_two() { io_size } else { SAFE_ALIGNMENT };
        let file = Arc::new(file);
        let lock = options.lock.map(|patience| lock(path, &file, read_only, patience)).transpose();
        let lock = lock.map_err(|error| explain(error, "cannot lock"))?.flatten();
        let is_direct = direct.is_some();
        let rings = Rings::new(Files { cached: file.clone(), direct });
        let (is_plain, len) = (AtomicBool::new(engine == EngineKind::Sync), AtomicU64::new(len));
        Ok(Self { file, engine, is_direct, rings, is_plain, len, io_size, read_only, _lock: lock })
    }

    /// There are no rings, for this reason. From now on it is done without them, if that was left to us.
    fn without_rings(&self, error: &io::Error) -> io::Result<()> {
        // Who asked for direct I/O wants no page cache.
        if self.engine != EngineKind::Auto || self.is_direct {
            return Err(io::Error::new(error.kind(), format!("cannot use io_uring: {error}")));
        }
        if !self.is_plain.swap(true, Ordering::AcqRel) {
            warn!(%error, "io_uring can't be used: going on with plain system calls");
        }
        Ok(())
    }

    fn refuse_if_read_only(&self) -> io::Result<()> {
        if self.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

impl Image for RawImage {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn refresh_len(&self) -> io::Result<u64> {
        let len = size_of(&self.file)?;
        self.len.store(len, Ordering::Release);
        Ok(len)
    }

    fn io_size(&self) -> u32 {
        self.io_size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.refuse_if_read_only()?;
        // A file would grow instead of refusing.
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.len() => self.file.write_all_at(buf, offset),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "write past the end of the image")),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn prepare(&self, engines: usize) -> io::Result<()> {
        if self.is_plain.load(Ordering::Acquire) {
            return Ok(());
        }
        self.rings.prepare(engines).or_else(|error| self.without_rings(&error))
    }

    fn engine(&self) -> io::Result<Box<dyn Engine>> {
        if !self.is_plain.load(Ordering::Acquire) {
            match self.rings.engine() {
                Ok(engine) => return Ok(Box::new(engine)),
                Err(error) => self.without_rings(&error)?,
            }
        }
        Ok(Box::new(SyncEngine::new(self.file.clone())))
    }
}

fn open(path: &Path, read_only: bool) -> io::Result<File> {
    // A block device that is mounted, or part of another device, must not be written to behind its user's back.
    let is_device = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
    let exclusive = if is_device && !read_only { libc::O_EXCL } else { 0 };
    OpenOptions::new().read(true).write(!read_only).custom_flags(exclusive).open(path)
}

/// The lock on an image, where that is possible.
fn lock(path: &Path, file: &Arc<File>, read_only: bool, patience: Duration) -> io::Result<Option<ImageLock>> {
    match ImageLock::acquire(file, !read_only, patience)? {
        Locked::Yes(lock) => Ok(Some(lock)),
        Locked::NotPossible(error) => {
            warn!(
                "there are no locks where {} is ({error}): nothing keeps other processes from using it at the \
                 same time",
                path.display()
            );
            Ok(None)
        }
    }
}

/// What is aligned to this is aligned to the blocks of nearly every disk.
const SAFE_ALIGNMENT: u32 = 4096;

/// The size in bytes. Unlike the file's metadata, this is that of block devices as well.
fn size_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Bytes of a physical block of a block device.
fn physical_block(device: &File) -> u64 {
    /// `BLKPBSZGET` of linux/fs.h: `_IO(0x12, 123)`.
    const GET_PHYSICAL_BLOCK_SIZE: libc::Ioctl = 0x127b;
    let mut size: libc::c_uint = 0;
    // SAFETY: the kernel writes an unsigned int to `size`.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), GET_PHYSICAL_BLOCK_SIZE, &raw mut size) } == 0;
    if done { u64::from(size) } else { u64::from(SAFE_ALIGNMENT) }
}

/// A second descriptor of the image, past the page cache.
fn open_direct(path: &Path, read_only: bool) -> io::Result<Direct> {
    let file = OpenOptions::new().read(true).write(!read_only).custom_flags(libc::O_DIRECT).open(path)?;
    let (memory_align, offset_align) = alignment(&file);
    Ok(Direct { file: Arc::new(file), offset_align, memory_align })
}

/// What direct I/O wants addresses in memory, and offsets and lengths, to be multiples of.
fn alignment(file: &File) -> (u64, u64) {
    // SAFETY: all zeros is a valid statx.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the path a terminated string, and `stat` is written to only.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut stat)
    };
    let known = result == 0 && stat.stx_mask & libc::STATX_DIOALIGN != 0;
    let or_safe = |align: u32| match u64::from(align) {
        align if known && align.is_power_of_two() => align,
        _ => u64::from(SAFE_ALIGNMENT),
    };
    (or_safe(stat.stx_dio_mem_align), or_safe(stat.stx_dio_offset_align))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::engine::Buffer;

    fn image_of(len: u64, read_only: bool) -> (RawImage, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        (RawImage::open(file.path(), read_only).unwrap(), file)
    }

    #[test]
    fn stays_sparse() {
        let (image, file) = image_of(1 << 30, false);
        assert_eq!(image.len(), 1 << 30);
        image.write_at(&[1; 4096], 512 << 20).unwrap();
        image.flush().unwrap();
        assert!(file.as_file().metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut bytes = [9; 8];
        image.read_at(&mut bytes, (512 << 20) + 4092).unwrap();
        assert_eq!(bytes, [1, 1, 1, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn past_the_page_cache_and_through_it_at_once() {
        if !crate::engine::tests::uring_allowed() {
            return;
        }
        let (_, file) = image_of(1 << 20, false);
        let options = RawOptions { direct: true, engine: EngineKind::IoUring, ..RawOptions::default() };
        let image = RawImage::open_with(file.path(), options).unwrap();
        let mut engine = image.engine().unwrap();
        let mut done = Vec::new();
        let mut wait = |engine: &mut Box<dyn Engine>, count| {
            engine.submit();
            while done.len() < count {
                engine.completions(&mut done);
            }
            std::mem::take(&mut done)
        };
        // One of them can't be aligned for any file system; they are written one after the other over each other.
        for (offset, len) in [(0, 65536), (4096, 512), (8192 + 512, 1024), (12288, 100)] {
            let fill = (len % 251) as u8;
            engine.write_vectored(offset, Buffer::Owned(vec![fill; len]), 1);
            assert!(wait(&mut engine, 1)[0].result.is_ok());
            for start in [offset & !511, offset] {
                let mut bytes = vec![0; len];
                image.read_at(&mut bytes, start).unwrap();
                assert!(bytes[(offset - start) as usize..].iter().all(|byte| *byte == fill));
            }
            engine.read_vectored(offset, Buffer::Owned(vec![0; len]), 2);
            let Some(Buffer::Owned(bytes)) = wait(&mut engine, 1).remove(0).buffer else { panic!() };
            assert_eq!(bytes, vec![fill; len]);
        }
        engine.read_vectored((1 << 20) - 4096, Buffer::Owned(vec![0; 8192]), 3);
        assert_eq!(wait(&mut engine, 1)[0].result.as_ref().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn never_grows() {
        let (image, file) = image_of(4096, false);
        assert!(image.write_at(&[1; 512], 4000).is_err());
        assert!(image.write_at(&[1; 512], u64::MAX - 10).is_err());
        assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
        let mut bytes = [0; 512];
        assert_eq!(image.read_at(&mut bytes, 4000).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn read_only_refuses_writes() {
        let (image, _file) = image_of(4096, true);
        assert!(image.read_only());
        assert_eq!(image.write_at(&[1], 0).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }

    #[test]
    fn errors_name_the_path() {
        let error = RawImage::open(Path::new("/nonexistent/disk.img"), false).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/disk.img"), "{error}");
        let error = RawImage::open(Path::new("/dev/null"), false).err().unwrap();
        assert!(error.to_string().contains("/dev/null"), "{error}");
    }
}
