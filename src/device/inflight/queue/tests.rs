//! A queue's record: processes that end after any store, rings that are not the one on record.

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
