//! The image as a disk every request of which goes through a tap as the device's requests do.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use btrfs_shadow::image::Image as _;
use btrfs_shadow::tap::{CopyFate, Erase, Tap, WritePlan};
use testkit::fuse::{Disk, WriteReply};

use crate::frontend::gate::Gate;

/// An image behind a tap.
pub(super) struct Tapped {
    pub(super) image: Arc<Gate>,
    pub(super) tap: Arc<dyn Tap>,
}

impl Disk for Tapped {
    const ASYNCHRONOUS: bool = true;

    fn size(&self) -> u64 {
        self.image.len()
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if self.image.is_dead() {
            return Err(io::Error::other("the power is cut"));
        }
        let delay = self.image.read_delay.load(Ordering::Relaxed);
        if delay > 0 {
            std::thread::sleep(Duration::from_millis(delay));
        }
        let len = (len as u64).min(self.image.len().saturating_sub(offset));
        let mut bytes = vec![0; len as usize];
        self.image.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// As `device::worker` does it: plan, copy, carry out, tell the tap, answer.
    fn write(&self, offset: u64, data: &[u8], reply: WriteReply) {
        let len = data.len();
        let answer = move |result: io::Result<()>| reply.send(result.map(|()| len));
        let plan = self.tap.plan(offset, len as u64);
        if plan == WritePlan::Direct {
            return answer(self.image.write_at(data, offset));
        }
        let mut bytes = data.to_vec();
        match (self.tap.copied(offset, &mut bytes), plan) {
            (CopyFate::Lose, _) => answer(Ok(())),
            (CopyFate::Refuse, _) => answer(Err(io::ErrorKind::PermissionDenied.into())),
            (CopyFate::Write, WritePlan::Hold) if self.image.is_dead() => {
                answer(Err(io::ErrorKind::Other.into()));
            }
            (CopyFate::Write, WritePlan::Hold) => self.tap.hold(offset, bytes, Box::new(answer)),
            (CopyFate::Write, _) => {
                let result = self.image.write_at(&bytes, offset);
                match &result {
                    Ok(()) => self.tap.written(offset, bytes),
                    Err(_) => self.tap.write_failed(offset, bytes.len() as u64),
                }
                answer(result);
            }
        }
    }

    fn flush(&self) -> io::Result<()> {
        let begun = self.tap.flush_begins();
        self.image.flush()?;
        self.tap.flushed(begun);
        Ok(())
    }

    /// What the loop driver makes of a discard.
    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        if mode != libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        if !self.tap.erases(Erase::Discard, offset, len) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let result = self.image.punch(offset, len);
        self.tap.erased(offset, len);
        result
    }
}
