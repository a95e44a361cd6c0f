//! The seam between the device, which moves bytes, and everything that reads along.
//!
//! The device asks a [`Tap`] how each write is to be carried out and tells it what became of it. Nothing here
//! knows about btrfs, and nothing behind it knows about rings, descriptors or guest memory.

use std::io;

pub use crate::engine::Erase;

/// How the device carries out a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WritePlan {
    /// File data: guest memory goes straight to the image and is never looked at.
    Direct,
    /// May hold tree blocks: copied out of guest memory once; that copy is written and captured, so that a guest
    /// that changes memory under the request can't have one thing verified and another written.
    Copy,
    /// Touches a super block: copied, then given to [`Tap::hold`], which writes it when its verdict is known.
    Hold,
}

/// What is to be done with a copied write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFate {
    /// Write the copy and capture it.
    Write,
    /// Tell the guest it was written, and do nothing: a planted lost write.
    Lose,
    /// Tell the guest that it failed, and do nothing.
    Refuse,
}

/// Why the device waits for what is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draining {
    /// A ring is stopped: the guest resets the device, or its virtual machine is stopped and may go on.
    Ring,
    /// The session ends.
    Session,
}

/// Called once with the result of a held write, from any thread.
pub type HoldDone = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What reads along with the device. Offsets and lengths are bytes of the image.
///
/// The device calls [`Tap::written`] and [`Tap::flushed`] after the image has completed the operation and before
/// the guest is told: whatever the guest does because of an acknowledgement is therefore seen after it.
pub trait Tap: Send + Sync {
    /// Says how a write of `[offset, offset + len)` is to be carried out. On the data path of every write: takes
    /// no lock.
    fn plan(&self, offset: u64, len: u64) -> WritePlan;

    /// A [`WritePlan::Copy`] or [`WritePlan::Hold`] write has been copied and is about to be carried out. The one
    /// place where a planted fault may change it.
    fn copied(&self, offset: u64, bytes: &mut Vec<u8>) -> CopyFate;

    /// A copied write is complete: the image holds `bytes` at `offset`.
    fn written(&self, offset: u64, bytes: Vec<u8>);

    /// A write, copied or not, failed or was cut short: what the image holds in the range is not known.
    fn write_failed(&self, offset: u64, len: u64);

    /// A flush is about to be carried out. What is returned is given to [`Tap::flushed`].
    fn flush_begins(&self) -> u64;

    /// A flush is complete.
    fn flushed(&self, begun: u64);

    /// A flush failed, and the guest is about to be told.
    fn flush_failed(&self) {}

    /// A range is about to be erased. Says whether it may be.
    fn erases(&self, kind: Erase, offset: u64, len: u64) -> bool;

    /// A range was erased, or that was tried and failed: what the image holds in it is not known.
    fn erased(&self, offset: u64, len: u64);

    /// Takes over a write that touches a super block. `done` is called when it has been written or refused; other
    /// requests go on meanwhile.
    fn hold(&self, offset: u64, bytes: Vec<u8>, done: HoldDone);

    /// The device is about to wait until nothing is in flight any more: what is held must be answered.
    fn draining(&self, why: Draining);

    /// A frontend has connected: the image may have been changed by others since the last one left.
    fn connected(&self);

    /// The image was `before` bytes long and is `now`, and the guest may use all of it from now on, or what is left of it.
    fn resized(&self, _before: u64, _now: u64) {}

    /// A ring was stopped: the guest was paused, or reset in the middle of anything.
    fn interrupted(&self);

    /// The frontend is gone and every request it made is finished.
    fn disconnected(&self);
}
