//! The bytes of a disk: as an image file that the program serves, and in memory to compare with.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Bytes that are compared at a time.
pub const PAGE: usize = 4096;

/// A disk in memory. Holes cost nothing: the pages of a fresh vector of zeros are not there until they are written.
#[derive(Clone)]
pub struct Memory(Vec<u8>);

impl Memory {
    /// A disk of zeros.
    #[must_use]
    pub fn zeros(len: usize) -> Self {
        Memory(vec![0; len])
    }

    /// What an image file holds.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn load(image: &Path) -> Self {
        let file = File::open(image).expect("the image");
        let mut memory = Memory::zeros(file.metadata().expect("the image's size").len() as usize);
        memory.refresh(&file);
        memory
    }

    /// Reads all data ranges of a file again and returns them, as offsets, page-aligned.
    ///
    /// # Panics
    /// When the file cannot be read.
    pub fn refresh(&mut self, file: &File) -> Vec<(usize, usize)> {
        let ranges = data_ranges(file, self.0.len());
        for &(start, end) in &ranges {
            file.read_exact_at(&mut self.0[start..end], start as u64).expect("the image's data");
        }
        ranges
    }

    /// The bytes of a range.
    #[must_use]
    pub fn get(&self, offset: u64, len: usize) -> Option<&[u8]> {
        self.0.get(offset as usize..)?.get(..len)
    }

    /// All its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Changes a range.
    ///
    /// # Panics
    /// When it lies outside.
    pub fn set(&mut self, offset: u64, bytes: &[u8]) {
        self.0[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Fills a buffer, for the oracle.
    ///
    /// # Errors
    /// When the range lies outside.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = self.get(offset, buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// Opens an image for writing.
///
/// # Panics
/// When that fails.
#[must_use]
pub fn open(image: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(image).expect("the image")
}

/// Where a sparse file holds data, in whole pages.
fn data_ranges(file: &File, len: usize) -> Vec<(usize, usize)> {
    let seek = |at: usize, whence| {
        // SAFETY: lseek has no preconditions; the descriptor is open as long as `file` is borrowed.
        let found = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, whence) };
        usize::try_from(found).ok()
    };
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(start) = seek(at, libc::SEEK_DATA).filter(|start| *start < len) {
        let end = seek(start, libc::SEEK_HOLE).unwrap_or(len).next_multiple_of(PAGE).min(len);
        ranges.push((start / PAGE * PAGE, end));
        at = end;
    }
    ranges
}
