//! Rings that are made in advance, lent to one engine after the other, and given back.
//!
//! So that none has to be made once the guest is served, and the sandbox can do without the system calls for it. A ring
//! that is given back has nothing in it: no operation in flight, no completion that nobody took.

use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use io_uring::IoUring;

use super::{Files, UringEngine, ring};

/// Rings on the files of one image.
pub struct Rings {
    files: Files,
    idle: Mutex<Vec<IoUring>>,
}

impl Rings {
    /// None so far.
    #[must_use]
    pub fn new(files: Files) -> Arc<Self> {
        Arc::new(Self { files, idle: Mutex::default() })
    }

    /// Makes rings until `count` engines can have one at the same time, besides those that are lent.
    ///
    /// # Errors
    /// Where io_uring isn't there, or isn't allowed.
    pub fn prepare(&self, count: usize) -> io::Result<()> {
        while self.idle().len() < count {
            let ring = self.make()?;
            self.idle().push(ring);
        }
        Ok(())
    }

    /// An engine on a ring that is idle, or on a new one.
    ///
    /// # Errors
    /// Where there is none, and io_uring isn't there, or isn't allowed (any more).
    pub fn engine(self: &Arc<Self>) -> io::Result<UringEngine> {
        let idle = self.idle().pop();
        let ring = idle.map_or_else(|| self.make(), Ok)?;
        let lent = Lent { ring: ManuallyDrop::new(ring), rings: self.clone(), is_clean: true };
        Ok(UringEngine::with_ring(lent, self.files.clone()))
    }

    fn make(&self) -> io::Result<IoUring> {
        let direct = self.files.direct.as_ref().map(|direct| direct.file.as_raw_fd());
        // In the order of the operations' numbers for them.
        let files: Vec<RawFd> = std::iter::once(self.files.cached.as_raw_fd()).chain(direct).collect();
        ring::on(&files)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<IoUring>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A ring that is lent.
pub(super) struct Lent {
    ring: ManuallyDrop<IoUring>,
    rings: Arc<Rings>,
    is_clean: bool,
}

impl Lent {
    /// Something was left in it: nobody else is to have it.
    pub(super) fn spoil(&mut self) {
        self.is_clean = false;
    }
}

impl Deref for Lent {
    type Target = IoUring;

    fn deref(&self) -> &IoUring {
        &self.ring
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut IoUring {
        &mut self.ring
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not used afterwards.
        let mut ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        if self.is_clean && ring.submission().is_empty() && ring.completion().is_empty() {
            self.rings.idle().push(ring);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::engine::tests::uring_allowed;
    use crate::engine::{Buffer, Engine as _};

    #[test]
    fn rings_go_from_engine_to_engine() {
        if !uring_allowed() {
            return;
        }
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(1 << 20).unwrap();
        let rings = Rings::new(Files { cached: file.clone(), direct: None });
        rings.prepare(2).unwrap();
        let fds = |engines: &[UringEngine]| {
            let mut fds: Vec<RawFd> = engines
                .iter()
                .map(|engine| std::os::fd::AsRawFd::as_raw_fd(&engine.notifier().unwrap()))
                .collect();
            fds.sort_unstable();
            fds
        };
        let two = || [rings.engine().unwrap(), rings.engine().unwrap()];
        let first = two();
        let known = fds(&first);
        assert!(rings.idle().is_empty());
        drop(first);
        for round in 1..20 {
            let mut engines = two();
            assert_eq!(fds(&engines), known, "other rings");
            for engine in &mut engines {
                // Left in flight: they are waited for.
                for token in 0..64 {
                    engine.flush(token);
                    let bytes = Buffer::Owned(vec![round; 4096]);
                    engine.write_vectored(token * 4096, bytes, 100 + token);
                }
                engine.submit();
            }
        }
        let mut byte = [0];
        file.read_exact_at(&mut byte, 63 * 4096).unwrap();
        assert_eq!(byte, [19]);
        let mut engines = two();
        let mut done = Vec::new();
        engines[0].completions(&mut done);
        assert!(done.is_empty(), "completions of another engine: {done:?}");
        engines[0].ring.spoil();
        drop(engines);
        assert_eq!(rings.idle().len(), 1);
        rings.prepare(2).unwrap();
        assert_eq!(rings.idle().len(), 2);
    }
}
