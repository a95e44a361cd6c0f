//! What tells one guest's memory from another's: the files that it is. Knows nothing of what lies in them.
//!
//! A frontend keeps these files as long as its guest is there, and makes others for the next one, unless it was told to use
//! a named one again.

use std::os::unix::fs::MetadataExt as _;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::Memory;

/// Device and inode number.
pub(super) type FileId = (u64, u64);

fn file_of(region: &impl GuestMemoryRegion) -> Option<FileId> {
    let file = region.file_offset()?.file().metadata().ok()?;
    Some((file.dev(), file.ino()))
}

/// The file that the memory at `addr` is in; zeros where it is in none.
pub(super) fn file_at(memory: &Memory, addr: u64) -> FileId {
    memory.find_region(GuestAddress(addr)).and_then(file_of).unwrap_or((0, 0))
}

/// All files of `memory`, each once, by guest address.
pub(super) fn files(memory: &Memory) -> Vec<FileId> {
    let mut files = Vec::new();
    for file in memory.iter().filter_map(file_of) {
        if !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::File;

    use vm_memory::FileOffset;

    use super::*;

    pub(in crate::device) const REGION: u64 = 4096;

    pub(in crate::device) fn file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(REGION).unwrap();
        file
    }

    /// Memory with one region for each of `files`.
    pub(in crate::device) fn memory(files: &[&File]) -> Memory {
        let ranges = files.iter().zip(0u64..).map(|(file, n)| {
            let file = FileOffset::new(file.try_clone().unwrap(), 0);
            (GuestAddress(n * 2 * REGION), REGION as usize, Some(file))
        });
        if files.is_empty() { Memory::new() } else { Memory::from_ranges_with_files(ranges).unwrap() }
    }

    #[test]
    fn files_are_told_apart_and_named_once() {
        let [a, b] = [file(), file()];
        let shared = memory(&[&a, &b, &a]);
        assert_eq!(files(&shared), [file_at(&shared, 0), file_at(&shared, 2 * REGION)]);
        assert_eq!(file_at(&shared, 0), file_at(&memory(&[&b, &a]), 2 * REGION));
        assert_ne!(file_at(&shared, 0), file_at(&shared, 2 * REGION));
        // A hole, and memory that is no file.
        assert_eq!(file_at(&shared, REGION), (0, 0));
        let private = Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        assert_eq!((files(&private), file_at(&private, 0)), (vec![], (0, 0)));
    }
}
