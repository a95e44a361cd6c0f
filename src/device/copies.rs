//! How much is copied out of guest memory for requests in flight. A guest can make much of little by naming the same memory
//! again and again, on all of its queues. Knows nothing of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::limits::MAX_COPIED;

/// What one queue has copied, beside what all of them have.
#[derive(Debug, Default)]
pub(super) struct Copies {
    own: usize,
    all: Arc<AtomicUsize>,
}

impl Copies {
    /// Nothing yet, of a device whose queues have copied `all` together.
    pub(super) fn new(all: Arc<AtomicUsize>) -> Self {
        Self { own: 0, all }
    }

    /// Whether the queue has to wait. One that has copied nothing never does: nobody would wake it.
    pub(super) fn are_many(&self) -> bool {
        self.own > 0 && self.all.load(Ordering::Relaxed) >= MAX_COPIED
    }

    /// `bytes` were copied.
    pub(super) fn add(&mut self, bytes: usize) {
        self.own += bytes;
        self.all.fetch_add(bytes, Ordering::Relaxed);
    }

    /// `bytes` aren't needed any more.
    pub(super) fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.own);
        self.own -= bytes;
        self.all.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.give_back(self.own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_waits_for_all_but_only_if_it_will_be_woken() {
        let all = Arc::new(AtomicUsize::new(0));
        let [mut one, mut other] = [Copies::new(all.clone()), Copies::new(all.clone())];
        one.add(MAX_COPIED - 1);
        assert!(!one.are_many() && !other.are_many());
        other.add(1);
        assert!(one.are_many() && other.are_many());
        other.give_back(1);
        assert!(!one.are_many(), "there is room again");
        one.add(1);
        assert!(one.are_many() && !other.are_many(), "the other one has nothing that could wake it");
        drop(one);
        assert_eq!(all.load(Ordering::Relaxed), 0);
        other.add(2);
        other.give_back(5);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }
}
