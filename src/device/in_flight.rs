//! The requests of one queue that are in flight, by token. Knows nothing of what becomes of them.

use std::sync::Arc;

use vm_memory::GuestAddress;

use super::Memory;

/// A request in flight.
pub(super) struct Pending {
    pub(super) head: u16,
    pub(super) memory: Arc<Memory>,
    pub(super) status: Option<GuestAddress>,
    pub(super) stage: Stage,
    /// Bytes copied for it.
    pub(super) copied: usize,
    /// What is being erased: offsets and lengths.
    pub(super) erasing: Vec<(u64, u64)>,
}

/// What a request in flight is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not handed over to anything yet.
    New,
    Read {
        len: u32,
    },
    Write {
        offset: u64,
        len: u64,
    },
    /// The tap's answer.
    Held {
        len: usize,
    },
    Flush {
        begun: u64,
    },
    Erase {
        /// Ranges that aren't completed yet.
        left: usize,
        failed: bool,
    },
}

/// Bits of a token that say where its request is; those above say which of the requests that were there.
const PLACE_BITS: u32 = 16;

/// Requests in flight. A token is never used again, so that what comes late for a request that is gone finds nothing.
#[derive(Default)]
pub(super) struct InFlight {
    places: Vec<(u64, Option<Pending>)>,
    free: Vec<usize>,
    turn: u64,
}

impl InFlight {
    /// Takes in a request; its token.
    pub(super) fn insert(&mut self, pending: Pending) -> u64 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            self.places.len() - 1
        });
        self.turn += 1;
        let token = self.turn << PLACE_BITS | place as u64;
        self.places[place] = (token, Some(pending));
        token
    }

    pub(super) fn get(&self, token: u64) -> Option<&Pending> {
        self.places.get(place(token)).filter(|(owner, _)| *owner == token)?.1.as_ref()
    }

    pub(super) fn get_mut(&mut self, token: u64) -> Option<&mut Pending> {
        self.places.get_mut(place(token)).filter(|(owner, _)| *owner == token)?.1.as_mut()
    }

    /// Takes out a request.
    pub(super) fn remove(&mut self, token: u64) -> Option<Pending> {
        let pending = self.places.get_mut(place(token)).filter(|(owner, _)| *owner == token)?.1.take()?;
        self.free.push(place(token));
        Some(pending)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn place(token: u64) -> usize {
    (token & ((1 << PLACE_BITS) - 1)) as usize
}

// As many requests as a ring has descriptors may be in flight.
const _: () = assert!(super::limits::MAX_QUEUE_SIZE <= 1 << PLACE_BITS);

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: u16) -> Pending {
        let memory = Arc::new(Memory::new());
        Pending { head, memory, status: None, stage: Stage::New, copied: 0, erasing: Vec::new() }
    }

    #[test]
    fn a_token_is_for_one_request() {
        let mut requests = InFlight::default();
        let first = requests.insert(request(1));
        let second = requests.insert(request(2));
        assert_eq!(requests.len(), 2);
        assert_eq!(requests.remove(first).map(|pending| pending.head), Some(1));
        let third = requests.insert(request(3));
        assert!(requests.get(first).is_none() && requests.remove(first).is_none());
        assert_eq!(requests.get(second).map(|pending| pending.head), Some(2));
        assert_eq!(requests.get_mut(third).map(|pending| pending.head), Some(3));
        assert_eq!(requests.places.len(), 2);
        requests.remove(second);
        requests.remove(third);
        assert!(requests.is_empty());
    }
}
