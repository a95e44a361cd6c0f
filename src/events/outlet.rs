//! Where the lines of a sink go: a file, a pipe, a terminal. What finds no room waits, up to a limit, and is tried again.
//!
//! Knows bytes and descriptors, nothing of events. Entries are kept whole and in order: one that was cut short by a full
//! disk is finished before the next begins.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};

/// Bytes that wait for room. What comes when as much is waiting has to be left out.
pub const BACKLOG_LIMIT: usize = 1 << 20;

/// As much can be written without waiting to what says that it can be written to (PIPE_BUF of Linux).
const PIECE: usize = 4096;

/// Who is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Nobody: there is a guest that would have to wait as well.
    None,
    /// A reader, however long it takes.
    Readers,
}

/// A descriptor and what waits to be written to it.
#[derive(Debug)]
pub struct Outlet {
    file: File,
    /// Whether to ask before each piece if it can be written without waiting.
    asks: bool,
    waiting: VecDeque<Entry>,
    /// Bytes of the first entry that are written already.
    begun: usize,
    /// Bytes of all entries.
    size: usize,
}

#[derive(Debug)]
struct Entry {
    bytes: Vec<u8>,
    /// Whether it counts when it is lost.
    counts: bool,
}

impl Outlet {
    /// An outlet that is a file, or whatever else was opened.
    #[must_use]
    pub fn new(file: File, patience: Patience) -> Self {
        // On a disk nothing is ever waited for but the disk.
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let asks = patience == Patience::None && !is_file;
        Outlet { file, asks, waiting: VecDeque::new(), begun: 0, size: 0 }
    }

    /// The process's standard output or error.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn standard(stream: impl AsFd, patience: Patience) -> io::Result<Self> {
        Ok(Self::new(File::from(stream.as_fd().try_clone_to_owned()?), patience))
    }

    /// Whether an entry of `len` bytes may wait. The only one always may.
    #[must_use]
    pub fn has_room(&self, len: usize) -> bool {
        self.waiting.is_empty() || self.size.saturating_add(len) <= BACKLOG_LIMIT
    }

    /// Adds an entry behind those that wait.
    pub fn push(&mut self, bytes: Vec<u8>, counts: bool) {
        if !bytes.is_empty() {
            self.size += bytes.len();
            self.waiting.push_back(Entry { bytes, counts });
        }
    }

    /// Entries that wait, and count.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting.iter().filter(|entry| entry.counts).count() as u64
    }

    /// Writes all that waits.
    ///
    /// # Errors
    /// When not all of it could be written; `WouldBlock` where a reader would have to be waited for. The rest waits on.
    pub fn drain(&mut self) -> io::Result<()> {
        while let Some(entry) = self.waiting.front() {
            let rest = entry.bytes.get(self.begun..).unwrap_or_default();
            if rest.is_empty() {
                self.size -= entry.bytes.len();
                self.begun = 0;
                self.waiting.pop_front();
                continue;
            }
            let piece = if self.asks { &rest[..rest.len().min(PIECE)] } else { rest };
            if self.asks && !is_ready(&self.file) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            match self.file.write(piece) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.begun += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whether a piece can be written without waiting, or an error be had.
fn is_ready(file: &File) -> bool {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn pipe() -> (io::PipeReader, Outlet) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, Outlet::standard(writer, Patience::None).unwrap())
    }

    #[test]
    fn a_reader_that_does_not_read_is_not_waited_for_and_gets_everything_later() {
        let (mut reader, mut outlet) = pipe();
        let mut expected = Vec::new();
        for number in 0..30u8 {
            let entry = vec![number; 10_000 + usize::from(number)];
            expected.extend_from_slice(&entry);
            assert!(outlet.has_room(entry.len()));
            outlet.push(entry, true);
            let drained = outlet.drain();
            assert!(drained.is_ok() || drained.unwrap_err().kind() == io::ErrorKind::WouldBlock);
        }
        assert!(outlet.waiting() > 20);
        let read = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        });
        while outlet.drain().is_err() {
            std::thread::yield_now();
        }
        assert_eq!(outlet.waiting(), 0);
        drop(outlet);
        assert!(read.join().unwrap().unwrap() == expected);
    }

    #[test]
    fn what_waits_is_bounded() {
        let (reader, mut outlet) = pipe();
        drop(reader);
        let entry = vec![1; 100_000];
        while outlet.has_room(entry.len()) {
            outlet.push(entry.clone(), true);
            assert_eq!(outlet.drain().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
        assert_eq!(outlet.waiting(), (BACKLOG_LIMIT / entry.len()) as u64);
    }

    #[test]
    fn a_single_entry_may_be_larger_than_the_limit() {
        let mut file = tempfile::tempfile().unwrap();
        let mut outlet = Outlet::new(file.try_clone().unwrap(), Patience::None);
        let entry = vec![1; BACKLOG_LIMIT + 1];
        assert!(outlet.has_room(entry.len()));
        outlet.push(entry, true);
        assert!(!outlet.has_room(1));
        outlet.drain().unwrap();
        use std::io::Seek as _;
        assert_eq!(file.seek(io::SeekFrom::End(0)).unwrap(), BACKLOG_LIMIT as u64 + 1);
    }
}
