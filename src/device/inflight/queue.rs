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
mod tests {
    use std::collections::VecDeque;

    use super::super::lifetime;
    use super::*;

    const SIZE: u16 = 8;

    fn place() -> Place {
        Place { size: SIZE, table: 0x1000, avail: 0x2000, used: 0x3000, memory: (1, 2) }
    }

    /// A guest's side of a ring.
    #[derive(Default)]
    struct Guest {
        used: u16,
        answered: Vec<(u16, u64)>,
        /// All that was offered and is not answered: head, and which request it is.
        waiting: Vec<(u16, u64)>,
        requests: u64,
    }

    impl Guest {
        fn offer(&mut self) {
            let head = (0..SIZE).find(|head| self.waiting.iter().all(|(other, _)| other != head));
            if let Some(head) = head {
                self.requests += 1;
                self.waiting.push((head, self.requests));
            }
        }

        fn answer(&mut self, head: u16) {
            let at = self.waiting.iter().position(|(other, _)| *other == head).expect("answered twice");
            self.answered.push(self.waiting.remove(at));
            self.used = self.used.wrapping_add(1);
        }

        fn fingerprint(&self, head: u16) -> u64 {
            self.waiting.iter().find(|(other, _)| *other == head).map_or(0, |(_, request)| *request)
        }
    }

    /// A guest, the order in which it offered heads that may still be waited for, and a backend that dies after so many
    /// stores.
    struct Trial {
        guest: Guest,
        offered: VecDeque<u16>,
        /// In flight, in the order of taking.
        taken: Vec<u16>,
        record: Arc<Record>,
        random: u64,
    }

    impl Trial {
        fn random(&mut self, below: usize) -> usize {
            self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.random >> 33) as usize % below
        }

        fn ring(&self) -> Ring {
            // What is offered from the used index on begins with as many as are taken and not answered: their places
            // may hold other heads by now, and are never looked at.
            let taken = self.guest.waiting.len() - self.offered.len();
            let offered = std::iter::repeat_n(u16::MAX, taken).chain(self.offered.iter().copied()).collect();
            Ring { place: place(), used_index: self.guest.used, next_avail: self.guest.used, offered }
        }

        /// A process, from its start to its end after `stores` stores.
        fn live(&mut self, stores: u64) {
            let mut queue = self.record.queue(3);
            let ring = self.ring();
            lifetime::set(stores);
            let mut flying = Vec::new();
            let guest = &self.guest;
            let known = queue.take_up(&ring, &mut flying, |head| guest.fingerprint(head));
            // One that ends meanwhile doesn't act on it.
            if lifetime::all_made() {
                assert_eq!(flying, self.taken, "{known:?}");
            }
            while lifetime::alive() {
                match self.random(3) {
                    0 => {
                        self.guest.offer();
                        if let Some((head, _)) = self.guest.waiting.last()
                            && !self.taken.contains(head)
                            && !self.offered.contains(head)
                        {
                            self.offered.push_back(*head);
                        }
                    }
                    1 => {
                        let Some(head) = self.offered.front().copied() else { continue };
                        queue.taken(head, self.guest.fingerprint(head));
                        // Where the last store of taking it was not made, it was not taken.
                        if lifetime::all_made() {
                            self.offered.pop_front();
                            self.taken.push(head);
                        }
                    }
                    _ if !self.taken.is_empty() => {
                        let at = self.random(self.taken.len());
                        let head = self.taken[at];
                        queue.answering(head);
                        if lifetime::spend() {
                            self.guest.answer(head);
                            self.taken.remove(at);
                        }
                        queue.answered(head);
                    }
                    _ => {}
                }
            }
            lifetime::set(u64::MAX);
        }
    }

    #[test]
    fn a_process_may_end_after_any_store() {
        for seed in 0..300 {
            let record = Record::open(None).unwrap();
            let mut trial = Trial {
                guest: Guest::default(),
                offered: VecDeque::new(),
                taken: vec![],
                record,
                random: seed * 977 + 1,
            };
            for _ in 0..30 {
                let stores = trial.random(60) as u64;
                trial.live(stores);
            }
            assert!(trial.guest.answered.windows(2).all(|pair| pair[0] != pair[1]));
            let mut answered: Vec<u64> = trial.guest.answered.iter().map(|(_, request)| *request).collect();
            answered.sort_unstable();
            let all = answered.len();
            answered.dedup();
            assert_eq!(answered.len(), all, "answered twice");
            assert!(all > 50, "{all}");
        }
    }

    /// Three chains taken, in this order, of which the first was answered.
    fn left_behind() -> Arc<Record> {
        let record = Record::open(None).unwrap();
        let mut queue = record.queue(0);
        let start = Ring { place: place(), used_index: 65535, next_avail: 65535, offered: vec![5, 2, 7] };
        assert_eq!(queue.take_up(&start, &mut Vec::new(), |_| 0), TakenUp::New { forgotten: 0 });
        for head in [5, 7, 2] {
            queue.taken(head, 100 + u64::from(head));
        }
        queue.answering(5);
        queue.answered(5);
        record
    }

    fn now() -> Ring {
        Ring { place: place(), used_index: 0, next_avail: 0, offered: vec![9, 9, 1] }
    }

    fn heads(record: &Arc<Record>, ring: &Ring) -> (TakenUp, Vec<u16>) {
        let mut heads = vec![1];
        let outcome = record.queue(0).take_up(ring, &mut heads, |head| 100 + u64::from(head));
        (outcome, heads)
    }

    #[test]
    fn goes_on_in_the_order_of_taking() {
        let same = (TakenUp::Same, vec![7, 2]);
        assert_eq!(heads(&left_behind(), &now()), same);
        assert_eq!(heads(&left_behind(), &Ring { next_avail: 2, ..now() }), same);
        let record = left_behind();
        assert_eq!(heads(&record, &now()), same);
        assert_eq!(heads(&record, &now()).1, [7, 2], "once more, if the next one dies at once");
    }

    #[test]
    fn another_ring_has_nothing_in_flight() {
        let other = |change: fn(&mut Ring)| {
            let mut ring = now();
            change(&mut ring);
            let record = left_behind();
            assert_eq!(heads(&record, &ring), (TakenUp::New { forgotten: 2 }, vec![]), "{ring:?}");
            assert_eq!(heads(&record, &ring), (TakenUp::Same, vec![]), "{ring:?}");
        };
        other(|ring| ring.place.size = 16);
        other(|ring| ring.place.table += 16);
        other(|ring| ring.place.avail += 16);
        other(|ring| ring.place.used += 16);
        other(|ring| ring.place.memory.0 += 1);
        other(|ring| ring.place.memory.1 += 1);
        // Behind, ahead, and ahead by one with another answer than the announced one can't be told apart from it.
        other(|ring| ring.used_index = 65535);
        other(|ring| ring.used_index = 2);
        other(|ring| ring.next_avail = 1);
        // Fewer offered than are in flight; one of them offered again.
        other(|ring| ring.offered.truncate(1));
        other(|ring| ring.offered[2] = 7);
        let record = left_behind();
        let mut heads = Vec::new();
        let outcome = record.queue(0).take_up(&now(), &mut heads, |head| if head == 2 { 0 } else { 107 });
        assert_eq!((outcome, heads), (TakenUp::New { forgotten: 2 }, vec![]));
    }

    #[test]
    fn random_words_are_no_chains_in_flight() {
        let mut random = 1u64;
        for _ in 0..2000 {
            let record = left_behind();
            for _ in 0..4 {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let part = record.part(0);
                let at = [random as usize >> 40 & 15, random as usize >> 40 & 63][random as usize >> 20 & 1];
                store(&part[at], [random, u64::MAX, 0, random >> 48][random as usize >> 30 & 3]);
            }
            let (_, heads) = heads(&record, &now());
            // Whatever is found, it is offered by the ring.
            assert!(heads.len() <= 3 && heads.iter().all(|head| *head < SIZE));
            record.queue(0).taken(3, 1);
        }
    }

    #[test]
    fn other_queues_are_others() {
        let record = left_behind();
        let outcome = record.queue(1).take_up(&now(), &mut Vec::new(), |head| 100 + u64::from(head));
        assert_eq!(outcome, TakenUp::New { forgotten: 0 });
        assert_eq!(heads(&record, &now()).1, [7, 2]);
        assert!(!record.is_idle());
        record.queue(0).end();
        assert!(record.is_idle());
    }
}
