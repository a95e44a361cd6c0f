//! Writes whose answer comes later and from elsewhere: how it gets back to the worker that owns the queue.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::tap::HoldDone;

/// Answers to the held writes of one worker.
pub(super) struct Answers {
    list: Mutex<Vec<(u64, io::Result<()>)>>,
    /// There may be something in the list. Set after the event, so that who sees it can reset that; who is woken before
    /// is woken again.
    posted: AtomicBool,
    event: EventFd,
}

impl Answers {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Arc::new(Self { list: Mutex::default(), posted: AtomicBool::new(false), event }))
    }

    /// Readable when there are answers.
    pub(super) fn notifier(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// What to call with the answer to `token`. If it is dropped uncalled, the answer is an error: a request must
    /// not stay in flight for ever because somebody lost it.
    pub(super) fn callback(self: &Arc<Self>, token: u64) -> HoldDone {
        let mut answer = Answer { answers: self.clone(), token, given: false };
        Box::new(move |result| answer.give(result))
    }

    /// Whether there are answers; costs next to nothing.
    pub(super) fn any(&self) -> bool {
        self.posted.load(Ordering::Acquire)
    }

    /// Wakes the worker without an answer: it has something left to do.
    pub(super) fn call_back(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.event.write(1);
        self.posted.store(true, Ordering::Release);
    }

    /// Moves the answers to the end of `into`, and resets the notifier.
    pub(super) fn take(&self, into: &mut Vec<(u64, io::Result<()>)>) {
        // Before the list is read, so that an answer that comes in between is announced again.
        if !self.posted.swap(false, Ordering::AcqRel) {
            return;
        }
        let _ = self.event.read();
        into.append(&mut self.list.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn post(&self, token: u64, result: io::Result<()>) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push((token, result));
        self.call_back();
    }
}

struct Answer {
    answers: Arc<Answers>,
    token: u64,
    given: bool,
}

impl Answer {
    fn give(&mut self, result: io::Result<()>) {
        self.given = true;
        self.answers.post(self.token, result);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.given {
            self.give(Err(io::Error::other("a held write was dropped without an answer")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_that_is_dropped_is_an_error() {
        let answers = Answers::new().unwrap();
        answers.callback(1)(Ok(()));
        drop(answers.callback(2));
        let mut got = Vec::new();
        answers.take(&mut got);
        assert_eq!(
            got.iter().map(|(token, result)| (*token, result.is_ok())).collect::<Vec<_>>(),
            [(1, true), (2, false)]
        );
        got.clear();
        answers.take(&mut got);
        assert!(got.is_empty());
    }
}
