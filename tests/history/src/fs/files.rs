//! Random work on the files of one directory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fs::ioctl;
use crate::rng::Rng;

/// Bytes that the work takes its data from: half of them random, half compressible.
const POOL: usize = 2 << 20;

/// What may be done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A new file in place of the old one.
    Create,
    /// A new file, small enough to be stored inline.
    Inline,
    /// Part of it written over.
    Overwrite,
    /// Part of it written over with direct I/O.
    Direct,
    /// Made longer.
    Append,
    /// Cut short, or made longer without data.
    Truncate,
    /// A hole punched.
    Punch,
    /// A range zeroed.
    Zero,
    /// Space allocated ahead, and some of it written.
    Prealloc,
    /// Made to share all of another file.
    Clone,
    /// Made to share a part of another file.
    CloneRange,
    /// Written equal to another file, then deduplicated.
    Dedupe,
    /// Renamed over another.
    Rename,
    /// Exchanged with another.
    Exchange,
    /// A hard link more.
    Link,
    /// Deleted.
    Unlink,
    /// An extended attribute set.
    Xattr,
    /// Written and fsynced.
    Fsync,
    /// Written with O_SYNC or O_DSYNC.
    SyncWrite,
    /// Defragmented, with one of the compressions.
    Defragment,
    /// Made over as a compressed file.
    Compressed,
    /// Made over as a NOCOW file, and overwritten.
    NoCow,
    /// A directory made and removed, or filled.
    Directory,
}

/// All of them.
pub const ALL: &[Act] = &[
    Act::Create,
    Act::Inline,
    Act::Overwrite,
    Act::Direct,
    Act::Append,
    Act::Truncate,
    Act::Punch,
    Act::Zero,
    Act::Prealloc,
    Act::Clone,
    Act::CloneRange,
    Act::Dedupe,
    Act::Rename,
    Act::Exchange,
    Act::Link,
    Act::Unlink,
    Act::Xattr,
    Act::Fsync,
    Act::SyncWrite,
    Act::Defragment,
    Act::Compressed,
    Act::NoCow,
    Act::Directory,
];

/// The files of one directory.
pub struct Files {
    dir: PathBuf,
    count: u64,
    largest: u64,
    rng: Rng,
    pool: Arc<Vec<u8>>,
}

/// Makes the bytes that files are filled with.
#[must_use]
pub fn pool(rng: &mut Rng) -> Arc<Vec<u8>> {
    let mut bytes = Vec::with_capacity(POOL);
    while bytes.len() < POOL / 2 {
        bytes.extend_from_slice(&rng.draw().to_le_bytes());
    }
    while bytes.len() < POOL {
        let line = format!("{:04} some text that compresses\n", rng.below(1000));
        bytes.extend_from_slice(line.as_bytes());
    }
    Arc::new(bytes)
}

impl Files {
    /// `count` names in `dir`, files up to `largest` bytes.
    #[must_use]
    pub fn new(dir: &Path, count: u64, largest: u64, pool: &Arc<Vec<u8>>, rng: Rng) -> Self {
        Files {
            dir: dir.to_owned(),
            count,
            largest: largest.min(POOL as u64 / 4),
            rng,
            pool: Arc::clone(pool),
        }
    }

    /// Does one thing of `acts`.
    ///
    /// # Errors
    /// The kernel's; many are part of the work.
    pub fn act(&mut self, acts: &[Act]) -> io::Result<()> {
        let act = *self.rng.pick(acts);
        self.one(act)
    }

    fn one(&mut self, act: Act) -> io::Result<()> {
        let path = self.name();
        match act {
            Act::Create => self.create(&path, self.largest),
            Act::Inline => self.create(&path, 2000),
            Act::Compressed | Act::NoCow => self.flagged(&path, act),
            Act::Overwrite | Act::Fsync => {
                let file = self.some(&path)?;
                let times = self.rng.between(1, 3);
                (0..times).try_for_each(|_| self.write_at_random(&file, 64 << 10))?;
                if act == Act::Fsync { file.sync_all() } else { Ok(()) }
            }
            Act::SyncWrite => {
                let flag = if self.rng.chance(50) { libc::O_SYNC } else { libc::O_DSYNC };
                self.some(&path)?;
                let file = OpenOptions::new().write(true).custom_flags(flag).open(&path)?;
                self.write_at_random(&file, 16 << 10)
            }
            Act::Direct => self.direct(&path),
            Act::Append => {
                let file = self.some(&path)?;
                let end = file.metadata()?.len();
                let len = self.rng.between(1, 40 << 10);
                let at = end.min(self.largest);
                file.write_all_at(self.bytes(len), at)
            }
            Act::Truncate => {
                let len = self.rng.below(self.largest);
                self.some(&path)?.set_len(len)
            }
            Act::Punch => self.fallocate(&path, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            Act::Zero => {
                let keep = if self.rng.chance(50) { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
                self.fallocate(&path, libc::FALLOC_FL_ZERO_RANGE | keep)
            }
            Act::Prealloc => {
                let keep = if self.rng.chance(50) { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
                self.fallocate(&path, keep)?;
                let file = self.some(&path)?;
                self.write_at_random(&file, 16 << 10)
            }
            Act::Clone => {
                let from = self.some_other()?;
                let to =
                    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
                ioctl::clone_file(&from, &to)
            }
            Act::CloneRange => {
                let (from, to) = (self.some_other()?, self.some(&path)?);
                let blocks = (from.metadata()?.len() / 4096).max(1);
                let first = self.rng.below(blocks);
                let len = self.rng.between(1, (blocks - first).min(32));
                let at = self.rng.below(self.largest / 4096);
                ioctl::clone_range(&from, first * 4096, len * 4096, &to, at * 4096)
            }
            Act::Dedupe => self.dedupe(&path),
            Act::Rename => {
                let other = self.name();
                fs::rename(&path, other)
            }
            Act::Exchange => self.exchange(&path),
            Act::Link => {
                let other = self.name().with_extension("link");
                let _ = fs::remove_file(&other);
                fs::hard_link(&path, other)
            }
            Act::Unlink => fs::remove_file(&path),
            Act::Xattr => self.xattr(&path),
            Act::Defragment => {
                let (threshold, compression) =
                    (self.rng.between(16, 512) as u32 * 1024, self.rng.below(4) as u32);
                ioctl::defragment(&self.some(&path)?, threshold, compression)
            }
            Act::Directory => self.directory(&path),
        }
    }

    fn name(&mut self) -> PathBuf {
        self.dir.join(format!("f{}", self.rng.below(self.count)))
    }

    /// `len` bytes from anywhere in the pool.
    fn bytes(&mut self, len: u64) -> &[u8] {
        let len = len.min(POOL as u64 / 2);
        let at = self.rng.below(POOL as u64 - len) as usize;
        &self.pool[at..at + len as usize]
    }

    fn create(&mut self, path: &Path, largest: u64) -> io::Result<()> {
        let _ = fs::remove_file(path);
        // Sizes of every order of magnitude are equally likely.
        let order = self.rng.between(6, u64::from(largest.max(128).ilog2()));
        let len = self.rng.between(1, 1 << order);
        fs::write(path, self.bytes(len))
    }

    fn flagged(&mut self, path: &Path, act: Act) -> io::Result<()> {
        let _ = fs::remove_file(path);
        let file = File::create_new(path)?;
        ioctl::set_flag(
            &file,
            if act == Act::NoCow { ioctl::FLAG_NOCOW } else { ioctl::FLAG_COMPRESS },
            true,
        )?;
        let len = self.rng.between(4096, self.largest);
        file.write_all_at(self.bytes(len), 0)?;
        file.sync_data()?;
        self.write_at_random(&file, 16 << 10)
    }

    /// The file at `path`, made if it isn't there.
    fn some(&mut self, path: &Path) -> io::Result<File> {
        if !path.exists() {
            self.create(path, self.largest)?;
        }
        OpenOptions::new().read(true).write(true).open(path)
    }

    fn some_other(&mut self) -> io::Result<File> {
        let path = self.name();
        self.some(&path)
    }

    fn write_at_random(&mut self, file: &File, most: u64) -> io::Result<()> {
        let (len, mut at) = (self.rng.between(1, most), self.rng.below(self.largest));
        if self.rng.chance(60) {
            at = at / 4096 * 4096;
        }
        file.write_all_at(self.bytes(len), at)
    }

    fn direct(&mut self, path: &Path) -> io::Result<()> {
        self.some(path)?;
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
        let (blocks, at) = (self.rng.between(1, 16) as usize, self.rng.below(self.largest / 4096));
        // Direct I/O wants aligned memory.
        let mut memory = vec![0u8; (blocks + 1) * 4096];
        let skip = memory.as_ptr().align_offset(4096);
        let bytes = self.bytes(blocks as u64 * 4096).to_vec();
        memory[skip..skip + bytes.len()].copy_from_slice(&bytes);
        file.write_all_at(&memory[skip..skip + bytes.len()], at * 4096)
    }

    fn fallocate(&mut self, path: &Path, mode: i32) -> io::Result<()> {
        let file = self.some(path)?;
        let (mut at, mut len) = (self.rng.below(self.largest), self.rng.between(1, 128 << 10));
        if self.rng.chance(70) {
            (at, len) = (at / 4096 * 4096, len.next_multiple_of(4096));
        }
        // SAFETY: a system call on a descriptor of our own.
        match unsafe { libc::fallocate(file.as_raw_fd(), mode, at.cast_signed(), len.cast_signed()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn dedupe(&mut self, path: &Path) -> io::Result<()> {
        let from = self.some_other()?;
        let len = from.metadata()?.len().min(256 << 10) / 4096 * 4096;
        let mut bytes = vec![0; len as usize];
        from.read_exact_at(&mut bytes, 0)?;
        let at = self.rng.below(8) * 4096;
        let to = self.some(path)?;
        to.write_all_at(&bytes, at)?;
        ioctl::dedupe(&from, 0, len, &to, at).map(|_| ())
    }

    fn exchange(&mut self, path: &Path) -> io::Result<()> {
        let other = self.name();
        let text = |path: &Path| {
            std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
                .map_err(|_| io::ErrorKind::InvalidInput)
        };
        let (one, other) = (text(path)?, text(&other)?);
        let at = libc::AT_FDCWD;
        // SAFETY: both are strings that end with a zero.
        match unsafe { libc::renameat2(at, one.as_ptr(), at, other.as_ptr(), libc::RENAME_EXCHANGE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn xattr(&mut self, path: &Path) -> io::Result<()> {
        let file = self.some(path)?;
        let name = std::ffi::CString::new(format!("user.{}", self.rng.below(6))).unwrap_or_default();
        let len = self.rng.between(1, 3000);
        let fd = file.as_raw_fd();
        let value = self.bytes(len);
        // SAFETY: name and value live for the call, and the length is the value's.
        match unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        let path = path.with_extension("dir");
        if path.exists() && self.rng.chance(50) {
            return fs::remove_dir_all(path);
        }
        fs::create_dir_all(&path)?;
        let first = self.rng.below(1000);
        (first..first + self.rng.between(1, 30)).try_for_each(|number| {
            fs::write(path.join(format!("a file with a name that takes some room {number}")), b"small")
        })
    }
}

/// Makes `count` small files in `dir`, which fill leaves and with them the levels of a tree.
///
/// # Errors
/// The kernel's.
pub fn many_small(dir: &Path, count: u64) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    (0..count).try_for_each(|number| {
        fs::write(
            dir.join(format!("one of many small files, with a long name, number {number}")),
            b"contents",
        )
    })
}
