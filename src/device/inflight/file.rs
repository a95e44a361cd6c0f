//! The file of a record: made, recognised, kept from others. Knows the header, not what is recorded.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::{BYTES, MAX_QUEUE_SIZE, MAX_QUEUES};

/// How long a process that was killed may take until it is gone: what it was doing in the kernel is finished first.
const PATIENCE: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(10);

/// "bshadowI", first in the file.
const MAGIC: u64 = u64::from_be_bytes(*b"bshadowI");
pub(super) const VERSION: u64 = 2;
/// The one before, whose records are taken over.
pub(super) const VERSION_BEFORE: u64 = 1;
/// Which word of the header it is.
pub(super) const VERSION_WORD: usize = 1;

/// The header's words: magic, version, queues, entries of a queue, and which boot of this machine the record is of: memory
/// of a guest doesn't outlive that.
type Header = [u64; 6];

/// A record's file, open and ours.
pub(super) struct RecordFile {
    path: PathBuf,
    file: File,
}

impl RecordFile {
    /// Opens the file at `path` and makes it a record if it isn't a usable one.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::open_quietly(path).map_err(|error| {
            let what = format!("cannot use {} as record of requests in flight: {error}", path.display());
            io::Error::new(error.kind(), what)
        })
    }

    fn open_quietly(path: &Path) -> io::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let file = loop {
            if let Some(file) = try_open(path)? {
                break file;
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process uses it"));
            }
            std::thread::sleep(RETRY);
        };
        let this = Self { path: path.to_owned(), file };
        let wanted = header()?;
        match this.found()? {
            Found::Header(found) if found == wanted || found == before(wanted) => {}
            Found::Nothing => this.make(&wanted)?,
            Found::Header(found) => {
                if [wanted, before(wanted)].iter().any(|ours| ours[..4] == found[..4]) {
                    info!(path = %path.display(), "the record of requests in flight is of an earlier boot");
                } else {
                    warn!(path = %path.display(), "the record of requests in flight is of another version");
                }
                this.make(&wanted)?;
            }
            Found::Damaged => {
                warn!(path = %path.display(), "the record of requests in flight is damaged, and made anew");
                this.make(&wanted)?;
            }
        }
        Ok(this)
    }

    /// What is there. A file that was never a record is somebody else's, and is left alone.
    fn found(&self) -> io::Result<Found> {
        let len = self.file.metadata()?.len();
        let mut bytes = Vec::new();
        (&self.file).take(size_of::<Header>() as u64).read_to_end(&mut bytes)?;
        let whole = len == BYTES as u64;
        if bytes.iter().all(|byte| *byte == 0) && (whole || bytes.len() as u64 == len) {
            return Ok(Found::Nothing);
        }
        let mut words =
            bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
        if words.next() != Some(MAGIC) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that isn't one"));
        }
        let mut header = [MAGIC; 6];
        for (to, word) in header[1..].iter_mut().zip(&mut words) {
            *to = word;
        }
        Ok(if whole { Found::Header(header) } else { Found::Damaged })
    }

    /// Zeros first, so that there is room for all of it and the file can't grow into a full disk while it is mapped.
    fn make(&self, header: &Header) -> io::Result<()> {
        self.file.set_len(0)?;
        let mut zeros = io::repeat(0).take(BYTES as u64);
        let mut at = io::BufWriter::with_capacity(1 << 16, Appender { file: &self.file, at: 0 });
        io::copy(&mut zeros, &mut at)?;
        at.flush()?;
        let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.file.write_all_at(&bytes, 0)
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Removes the file, unless somebody has put another in its place.
    pub(super) fn remove(&self) {
        if same_file(&self.path, &self.file).unwrap_or(false)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(path = %self.path.display(), %error, "cannot remove the record of requests in flight");
        }
    }
}

/// The header that a record of the version before would have.
fn before(mut header: Header) -> Header {
    header[VERSION_WORD] = VERSION_BEFORE;
    header
}

/// What a file holds.
enum Found {
    Nothing,
    Header(Header),
    Damaged,
}

struct Appender<'a> {
    file: &'a File,
    at: u64,
}

impl io::Write for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.file.write_at(bytes, self.at)?;
        self.at += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens and locks the file; none if it is locked by another process, or was replaced just now.
fn try_open(path: &Path) -> io::Result<Option<File>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that isn't a file"));
    }
    // SAFETY: locks an open file.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    Ok(same_file(path, &file)?.then_some(file))
}

fn same_file(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The header of a record that is made now.
fn header() -> io::Result<Header> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the kernel's boot_id is none"))?;
    Ok([MAGIC, VERSION, MAX_QUEUES as u64, MAX_QUEUE_SIZE as u64, (number >> 64) as u64, number as u64])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(path: &Path) -> Vec<u8> {
        fs::read(path).unwrap()
    }

    #[test]
    fn made_once_and_kept_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        drop(RecordFile::open(&path).unwrap());
        let mut made = bytes(&path);
        assert_eq!(made.len(), BYTES);
        made[5000] = 7;
        fs::write(&path, &made).unwrap();
        drop(RecordFile::open(&path).unwrap());
        assert!(bytes(&path) == made);
    }

    #[test]
    fn another_boot_another_version_and_a_cut_file_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        drop(RecordFile::open(&path).unwrap());
        let made = bytes(&path);
        for at in [8, 16, 24, 32, 40] {
            let mut other = made.clone();
            other[at] ^= 1;
            other[5000] = 7;
            fs::write(&path, &other).unwrap();
            drop(RecordFile::open(&path).unwrap());
            assert!(bytes(&path) == made, "word at {at}");
        }
        for len in [8, 47, 48, 4096, BYTES - 1, BYTES + 1] {
            let mut other = made.clone();
            other.resize(len, 7);
            fs::write(&path, &other).unwrap();
            drop(RecordFile::open(&path).unwrap());
            assert!(bytes(&path) == made, "{len} bytes");
        }
        for empty in [vec![], vec![0; BYTES]] {
            fs::write(&path, &empty).unwrap();
            drop(RecordFile::open(&path).unwrap());
            assert!(bytes(&path) == made);
        }
    }

    #[test]
    fn what_is_no_record_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        for precious in
            [&b"x"[..], b"a file that somebody wants to keep, long enough for a header", &[0; 4096]]
        {
            fs::write(&path, precious).unwrap();
            let error = RecordFile::open(&path).err().unwrap().to_string();
            assert!(error.contains("precious") && error.contains("isn't one"), "{error}");
            assert_eq!(bytes(&path), precious);
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(RecordFile::open(&link).is_err());
        assert!(RecordFile::open(dir.path()).is_err());
    }

    #[test]
    fn removed_only_if_it_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let ours = RecordFile::open(&path).unwrap();
        fs::rename(&path, dir.path().join("old")).unwrap();
        let other = RecordFile::open(&path).unwrap();
        ours.remove();
        assert!(path.exists());
        other.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_lock_that_is_released_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let first = RecordFile::open(&path).unwrap();
        assert!(try_open(&path).unwrap().is_none());
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || RecordFile::open(&path).map(|_| ())
        });
        drop(first);
        waiting.join().unwrap().unwrap();
    }
}
