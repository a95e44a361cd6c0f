//! What a driver has asked for and what it was answered: nothing twice, and in the end everything. Knows rings as a driver
//! sees them, not what the requests are.

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use btrfs_shadow::device::bare::RingPlace;

/// What can be said of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// Nothing: the rings were used as something else.
    Nothing,
    /// How many there are at most: what was on record was tampered with, or a chain that is on record.
    Number,
    /// One for each request.
    Each,
}

/// A request that was made and not answered yet.
struct Open {
    head: u16,
    descriptors: Vec<u16>,
}

/// See above.
pub struct Account {
    trust: Trust,
    /// Whether chains stay as they are while they are in flight, so that they are known again.
    tidy: bool,
    /// The process was killed, and the ring not taken up again yet.
    killed: bool,
    open: Vec<Open>,
    /// The used index up to which answers were looked at.
    seen: u16,
}

impl Account {
    /// Nothing was asked for yet, in rings that are zeros.
    pub fn new() -> Self {
        Account { trust: Trust::Each, tidy: true, killed: false, open: Vec::new(), seen: 0 }
    }

    /// What can be said.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// From now on no more than this can be said.
    pub fn at_most(&mut self, trust: Trust) {
        self.trust = self.trust.min(trust);
    }

    /// Nothing more can be said unless this is so.
    pub fn only_if(&mut self, condition: bool) {
        if !condition {
            self.trust = Trust::Nothing;
        }
    }

    /// Memory is changed without regard for requests in flight.
    pub fn untidy(&mut self) {
        self.tidy = false;
        if self.killed {
            self.at_most(Trust::Number);
        }
    }

    /// Whether a driver that is tidy has to wait until it can use one of these descriptors.
    pub fn must_wait(&self, descriptors: &[u16]) -> bool {
        let is_used = |descriptor| self.open.iter().any(|open| open.descriptors.contains(descriptor));
        self.tidy && descriptors.iter().any(is_used)
    }

    /// A chain was made available.
    pub fn offered(&mut self, head: u16, descriptors: Vec<u16>) {
        if self.trust == Trust::Each {
            self.open.push(Open { head, descriptors });
        }
    }

    /// The process was killed.
    pub fn killed(&mut self) {
        self.killed = true;
        if !self.tidy {
            self.at_most(Trust::Number);
        }
    }

    /// The ring was taken up, if it had to be.
    pub fn resumed(&mut self) {
        self.killed = false;
    }

    /// Looks at new answers, when `available` is what comes next in the available ring.
    ///
    /// # Panics
    /// When there is one too many.
    pub fn look(&mut self, memory: &GuestMemoryMmap<()>, ring: RingPlace, available: u16) {
        if self.trust == Trust::Nothing {
            return;
        }
        let used = used(memory, ring);
        assert!(available.wrapping_sub(used) <= ring.size, "more answers than requests");
        while self.seen != used {
            if self.trust == Trust::Each {
                self.answered(memory, ring);
            }
            self.seen = self.seen.wrapping_add(1);
        }
    }

    fn answered(&mut self, memory: &GuestMemoryMmap<()>, ring: RingPlace) {
        let at = ring.used + 4 + u64::from(self.seen % ring.size) * 8;
        let head: u32 = memory.read_obj(GuestAddress(at)).expect("the used ring");
        let place = self.open.iter().position(|open| u32::from(open.head) == head);
        self.open.remove(place.expect("an answer to no request, or another one"));
    }

    /// The queue has stopped, and `next` is where it would go on.
    ///
    /// # Panics
    /// When something is left.
    pub fn close(&self, available: u16, next: u16) {
        if self.trust != Trust::Nothing {
            assert_eq!(next, available, "requests were left in the ring");
        }
        if self.trust == Trust::Each {
            assert!(self.open.is_empty(), "requests were taken and not answered");
            assert_eq!(self.seen, next, "requests were taken and not answered");
        }
    }
}

/// The used index.
pub fn used(memory: &GuestMemoryMmap<()>, ring: RingPlace) -> u16 {
    memory.read_obj(GuestAddress(ring.used + 2)).unwrap_or(0)
}
