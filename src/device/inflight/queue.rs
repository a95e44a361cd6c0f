//! What is recorded of one queue: which ring, and which of its chains are in flight.
//!
//! A process may end between any two stores. A chain is noted before anything is done about it; an answer is announced
//! (`last`), given in the ring, and only then is the chain forgotten and the ring's used index noted. Whoever comes next
//! compares that index with the ring's: if the ring is one ahead, the chain in `last` was answered.
//! What was taken from the ring is never noted as such: it is what was answered and what is in flight, together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::identity::FileId;
use super::{Record, load, store};

/// Words before the entries; a whole number of cache lines.
pub(super) const HEADER_WORDS: usize = 16;
/// Words of an entry: when it was taken, counted from 1 (0: not in flight), and the chain's fingerprint.
pub(super) const ENTRY_WORDS: usize = 2;

/// Entries of the ring; 0 while there is none.
const SIZE: usize = 0;
/// Where it lies: table, available ring, used ring, device and inode of the memory.
const PLACE: usize = 1;
const MEMORY: usize = 4;
/// The used index, without an answer that is being given.
const USED: usize = 6;
/// Head of the chain that was answered last, or is being answered.
const LAST: usize = 7;
/// Of version 1 only: whether the guest has turned its write cache off.
const WRITE_THROUGH: usize = 8;

/// Which ring this is. Addresses are the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Place {
    pub(in super::super) size: u16,
    pub(in super::super) table: u64,
    pub(in super::super) avail: u64,
    pub(in super::super) used: u64,
    /// Device and inode number of the file that the memory with the table is. A guest's memory has one of its own.
    pub(in super::super) memory: FileId,
}

/// A ring as it is when it starts.
#[derive(Debug, Clone)]
pub(in super::super) struct Ring {
    pub(in super::super) place: Place,
    pub(in super::super) used_index: u16,
    /// Where the frontend says that it is to be gone on with.
    pub(in super::super) next_avail: u16,
    /// The heads in the available ring from the used index on.
    pub(in super::super) offered: Vec<u16>,
}

/// What to do about a ring that starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum TakenUp {
    /// Nothing is known of it. Of another one the record knew `forgotten` chains in flight.
    New { forgotten: usize },
    /// It is gone on with.
    Same,
}

/// The part of one queue.
pub(in super::super) struct QueueRecord {
    record: Arc<Record>,
    number: usize,
    next: u64,
}

impl QueueRecord {
    pub(super) fn new(record: Arc<Record>, number: usize) -> Self {
        Self { record, number, next: 1 }
    }

    /// A ring starts. Chains of it that are in flight go to `heads`, in the order in which they were taken; whether they
    /// are still what they were is asked of `fingerprint`. If anything doesn't fit, nothing of the record does.
    pub(in super::super) fn take_up(
        &mut self,
        ring: &Ring,
        heads: &mut Vec<u16>,
        fingerprint: impl FnMut(u16) -> u64,
    ) -> TakenUp {
        heads.clear();
        if let Some(in_flight) = self.matching(ring, fingerprint) {
            self.next = in_flight.last().map_or(1, |(turn, _)| turn.saturating_add(1));
            heads.extend(in_flight.iter().map(|(_, head)| *head));
            return TakenUp::Same;
        }
        let known = load(self.word(SIZE)) != 0;
        let forgotten = if known { in_flight(self.part()).len() } else { 0 };
        self.begin(ring);
        TakenUp::New { forgotten }
    }

    /// The chains in flight by turn, if this is the ring of the record.
    fn matching(&self, ring: &Ring, mut fingerprint: impl FnMut(u16) -> u64) -> Option<Vec<(u64, u16)>> {
        if self.place() != words_of(&ring.place) {
            return None;
        }
        let noted = load(self.word(USED));
        if noted != u64::from(ring.used_index) {
            let last = usize::try_from(load(self.word(LAST))).ok()?;
            if noted != u64::from(ring.used_index.wrapping_sub(1)) || last >= usize::from(ring.place.size) {
                return None;
            }
            // Answered, but not forgotten any more.
            store(self.entry(last), 0);
            store(self.word(USED), u64::from(ring.used_index));
        }
        let in_flight = in_flight(self.part());
        let waiting = ring.offered.get(in_flight.len()..)?;
        // A frontend that knows of the record may have counted what is in flight as taken.
        let taken = ring.used_index.wrapping_add(in_flight.len() as u16);
        if ring.next_avail != ring.used_index && ring.next_avail != taken && !in_flight.is_empty() {
            return None;
        }
        let sound = in_flight.iter().all(|&(_, head)| {
            head < ring.place.size
                && !waiting.contains(&head)
                && load(self.fingerprint(usize::from(head))) == fingerprint(head)
        });
        sound.then_some(in_flight)
    }

    fn begin(&mut self, ring: &Ring) {
        // No ring, until all of it has been stored.
        self.end();
        for (word, value) in self.part()[PLACE..].iter().zip(&words_of(&ring.place)[1..]) {
            store(word, *value);
        }
        store(self.word(USED), u64::from(ring.used_index));
        self.next = 1;
        store(self.word(SIZE), u64::from(ring.place.size));
    }

    /// The ring has stopped, and nothing is in flight.
    pub(in super::super) fn end(&mut self) {
        store(self.word(SIZE), 0);
        for word in self.part()[PLACE..].iter().filter(|word| load(word) != 0) {
            store(word, 0);
        }
    }

    /// A chain was taken, and nothing has been done about it yet.
    pub(in super::super) fn taken(&mut self, head: u16, fingerprint: u64) {
        let head = usize::from(head);
        if head < super::MAX_QUEUE_SIZE {
            store(self.fingerprint(head), fingerprint);
            store(self.entry(head), self.next);
            self.next = self.next.saturating_add(1);
        }
    }

    /// An answer is about to be given in the ring.
    pub(in super::super) fn answering(&self, head: u16) {
        store(self.word(LAST), u64::from(head));
    }

    /// It was given.
    pub(in super::super) fn answered(&self, head: u16) {
        if usize::from(head) < super::MAX_QUEUE_SIZE {
            store(self.entry(usize::from(head)), 0);
        }
        let used = load(self.word(USED)) as u16;
        store(self.word(USED), u64::from(used.wrapping_add(1)));
    }

    fn part(&self) -> &[AtomicU64] {
        self.record.part(self.number)
    }

    fn word(&self, number: usize) -> &AtomicU64 {
        &self.part()[number]
    }

    fn place(&self) -> [u64; 6] {
        std::array::from_fn(|word| load(self.word(word)))
    }

    fn entry(&self, head: usize) -> &AtomicU64 {
        &self.part()[HEADER_WORDS + head * ENTRY_WORDS]
    }

    fn fingerprint(&self, head: usize) -> &AtomicU64 {
        &self.part()[HEADER_WORDS + head * ENTRY_WORDS + 1]
    }
}

fn words_of(place: &Place) -> [u64; 6] {
    [place.size.into(), place.table, place.avail, place.used, place.memory.0, place.memory.1]
}

/// Turn and head of all chains in flight, by turn.
fn in_flight(part: &[AtomicU64]) -> Vec<(u64, u16)> {
    let entries = part[HEADER_WORDS..].iter().step_by(ENTRY_WORDS).zip(0u16..);
    let mut found: Vec<_> =
        entries.map(|(turn, head)| (load(turn), head)).filter(|(turn, _)| *turn != 0).collect();
    found.sort_unstable();
    found
}

/// Of a record of version 1: whether the guest has turned its write cache off.
pub(super) fn was_write_through(part: &[AtomicU64]) -> bool {
    load(&part[WRITE_THROUGH]) != 0
}

/// The file of the memory that the ring is in, if there is one.
pub(super) fn file(part: &[AtomicU64]) -> Option<FileId> {
    let file = (load(&part[MEMORY]), load(&part[MEMORY + 1]));
    (load(&part[SIZE]) != 0 && file != (0, 0)).then_some(file)
}

pub(super) fn is_idle(part: &[AtomicU64]) -> bool {
    part[SIZE].load(Ordering::Acquire) == 0 || in_flight(part).is_empty()
}

#[cfg(test)]
mod tests;
