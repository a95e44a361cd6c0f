//! An engine that carries out nothing before it is told to, in any order, and as badly as it is told to: requests are in
//! flight for as long as the input wants them to be. Knows files, as the plain engine does, which does the work.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use btrfs_shadow::engine::{Buffer, Completion, Engine, Erase, SyncEngine};

enum Work {
    Read(u64, Buffer),
    Write(u64, Buffer),
    Erase(Erase, u64, u64),
    Flush,
}

struct State {
    waiting: Vec<(Work, u64)>,
    done: Vec<Completion>,
    inner: SyncEngine,
    /// Nothing waits any more.
    hasty: bool,
}

impl State {
    /// Carries out one of those that wait.
    fn complete(&mut self, number: usize, fails: bool) {
        if self.waiting.is_empty() {
            return;
        }
        let (work, token) = self.waiting.remove(number % self.waiting.len());
        if fails {
            let buffer = match work {
                Work::Read(_, buffer) | Work::Write(_, buffer) => Some(buffer),
                Work::Erase(..) | Work::Flush => None,
            };
            let result = Err(io::Error::from_raw_os_error(libc::EIO));
            return self.done.push(Completion { token, result, buffer });
        }
        match work {
            Work::Read(offset, buffer) => self.inner.read_vectored(offset, buffer, token),
            Work::Write(offset, buffer) => self.inner.write_vectored(offset, buffer, token),
            Work::Erase(kind, offset, len) => self.inner.erase(kind, offset, len, token),
            Work::Flush => self.inner.flush(token),
        }
        self.inner.completions(&mut self.done);
    }

    fn complete_all(&mut self) {
        while !self.waiting.is_empty() {
            self.complete(0, false);
        }
    }
}

/// What the input does to an engine.
#[derive(Clone)]
pub struct Conductor(Arc<Mutex<State>>);

impl Conductor {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has one operation carried out, or fail.
    pub fn complete(&self, number: usize, fails: bool) {
        self.state().complete(number, fails);
    }

    /// Whether operations are carried out at once from now on, and those that wait: somebody waits for them.
    pub fn hurry(&self, hasty: bool) {
        self.state().hasty = hasty;
    }

    /// Has everything carried out that waits, though nobody will ask for it: a process that was killed.
    pub fn complete_unseen(&self) {
        self.state().complete_all();
    }
}

/// See above.
pub struct Late(Conductor);

impl Late {
    /// An engine on `file`, and what conducts it.
    pub fn new(file: Arc<File>) -> (Self, Conductor) {
        let inner = SyncEngine::new(file);
        let state = State { waiting: Vec::new(), done: Vec::new(), inner, hasty: false };
        let conductor = Conductor(Arc::new(Mutex::new(state)));
        (Late(conductor.clone()), conductor)
    }

    fn wait(&self, work: Work, token: u64) {
        self.0.state().waiting.push((work, token));
    }
}

impl Engine for Late {
    fn read_vectored(&mut self, offset: u64, buffer: Buffer, token: u64) {
        self.wait(Work::Read(offset, buffer), token);
    }

    fn write_vectored(&mut self, offset: u64, buffer: Buffer, token: u64) {
        self.wait(Work::Write(offset, buffer), token);
    }

    fn erase(&mut self, kind: Erase, offset: u64, len: u64, token: u64) {
        self.wait(Work::Erase(kind, offset, len), token);
    }

    fn flush(&mut self, token: u64) {
        self.wait(Work::Flush, token);
    }

    fn submit(&mut self) {}

    fn completions(&mut self, into: &mut Vec<Completion>) {
        let mut state = self.0.state();
        if state.hasty {
            state.complete_all();
        }
        into.append(&mut state.done);
    }

    fn has_completions(&mut self) -> bool {
        let state = self.0.state();
        !state.done.is_empty() || state.hasty && !state.waiting.is_empty()
    }

    /// Always readable: whoever waits for it is in a hurry.
    fn notifier(&self) -> Option<BorrowedFd<'_>> {
        static READABLE: LazyLock<OwnedFd> = LazyLock::new(|| {
            // SAFETY: no memory is passed.
            let fd = unsafe { libc::eventfd(1, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
            assert!(fd >= 0, "no event descriptor");
            // SAFETY: just made, and nobody else's.
            unsafe { OwnedFd::from_raw_fd(fd) }
        });
        Some(READABLE.as_fd())
    }
}
