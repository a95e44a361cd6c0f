//! What is recorded of the guest's write cache: that the guest has turned it off, and which guest has.
//!
//! A process may end between any two stores: while the guest's memory is being noted, the record is of any guest. Knows
//! nothing of what comes of the setting.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::super::identity::FileId;
use super::{Record, load, store};

/// Words of the header page; those before say what kind of record it is.
const OFF: usize = 8;
/// How many files of the guest's memory follow.
const COUNT: usize = 9;
const FILES: usize = 10;
/// Files that are noted. The first ones are where a guest's memory begins, and stay as long as the guest.
const MAX_FILES: usize = 64;

/// The setting, as it is on record. One at a time may change it.
pub(in super::super) struct CacheRecord(Arc<Record>);

impl CacheRecord {
    pub(super) fn new(record: Arc<Record>) -> Self {
        Self(record)
    }

    /// Whether a guest has turned its write cache off.
    pub(in super::super) fn is_off(&self) -> bool {
        is_off(self.0.words())
    }

    /// Whether that was the guest whose memory is in `files`, as far as can be told: no file in common says that it
    /// was not.
    pub(in super::super) fn is_of(&self, files: &[FileId]) -> bool {
        let noted = noted(self.0.words());
        noted.is_empty() || files.is_empty() || noted.iter().any(|file| files.contains(file))
    }

    /// The guest whose memory is in `files` has turned it off; none if its memory isn't known yet.
    pub(in super::super) fn turn_off(&self, files: &[FileId]) {
        turn_off(self.0.words(), files);
    }

    /// It is on.
    pub(in super::super) fn turn_on(&self) {
        let words = self.0.words();
        store(&words[OFF], 0);
        store(&words[COUNT], 0);
    }
}

pub(super) fn is_off(words: &[AtomicU64]) -> bool {
    load(&words[OFF]) != 0
}

/// Off at every moment from the first store on, if it wasn't before; and of any guest but those of before and now only
/// in between.
pub(super) fn turn_off(words: &[AtomicU64], files: &[FileId]) {
    let files = &files[..files.len().min(MAX_FILES)];
    if is_off(words) && noted(words) == files {
        return;
    }
    store(&words[COUNT], 0);
    store(&words[OFF], 1);
    for (at, (device, inode)) in words[FILES..].chunks_exact(2).zip(files) {
        store(&at[0], *device);
        store(&at[1], *inode);
    }
    store(&words[COUNT], files.len() as u64);
}

/// The files of the guest's memory; none if it isn't known whose the setting is.
fn noted(words: &[AtomicU64]) -> Vec<FileId> {
    let count = usize::try_from(load(&words[COUNT])).ok().filter(|count| *count <= MAX_FILES).unwrap_or(0);
    words[FILES..].chunks_exact(2).take(count).map(|file| (load(&file[0]), load(&file[1]))).collect()
}

const _: () = assert!(FILES + 2 * MAX_FILES <= super::HEADER_WORDS);

#[cfg(test)]
mod tests {
    use super::super::lifetime;
    use super::*;

    fn record() -> CacheRecord {
        Record::open(None).unwrap().write_cache()
    }

    #[test]
    fn it_is_of_the_guest_with_a_file_in_common() {
        let record = record();
        assert!(!record.is_off());
        record.turn_off(&[(1, 2), (1, 3)]);
        assert!(record.is_off() && record.is_of(&[(1, 9), (1, 3)]));
        assert!(!record.is_of(&[(1, 1), (2, 2), (3, 3)]));
        record.turn_off(&[(1, 4)]);
        assert!(record.is_of(&[(1, 4)]) && !record.is_of(&[(1, 3)]));
        record.turn_on();
        assert!(!record.is_off());
    }

    #[test]
    fn where_nothing_is_known_it_is_of_any_guest() {
        let record = record();
        record.turn_off(&[]);
        assert!(record.is_of(&[(1, 1)]));
        record.turn_off(&[(1, 2)]);
        assert!(record.is_of(&[]) && !record.is_of(&[(1, 1)]));
        // Nonsense is nothing that is known.
        store(&record.0.words()[COUNT], u64::MAX);
        assert!(record.is_off() && record.is_of(&[(1, 1)]));
    }

    #[test]
    fn more_files_than_there_is_room_for() {
        let record = record();
        let files: Vec<FileId> = (0..1000).map(|n| (7, n)).collect();
        record.turn_off(&files);
        assert!(record.is_of(&files[..1]) && record.is_of(&files[MAX_FILES - 1..]));
        assert!(!record.is_of(&files[MAX_FILES..]));
    }

    /// Wherever the process ends, a setting that was made before is still there, and still of its guest.
    #[test]
    fn a_process_may_end_after_any_store() {
        let guest = [(1, 2), (1, 3)];
        for stores in 0..=7 {
            let record = record();
            record.turn_off(&guest[..1]);
            lifetime::set(stores);
            record.turn_off(&guest);
            lifetime::set(u64::MAX);
            assert!(record.is_off() && record.is_of(&guest), "after {stores} stores");
            // For the first time: it is on, or of this guest.
            let record = self::record();
            lifetime::set(stores);
            record.turn_off(&guest);
            lifetime::set(u64::MAX);
            assert!(record.is_off() == (stores > 1), "after {stores} stores");
            assert!(record.is_of(&guest), "after {stores} stores");
        }
    }
}
