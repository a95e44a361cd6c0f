//! The verifier's thread: takes super block writes in the order they were submitted, gets a verdict on each, and
//! writes them.
//!
//! The write is made here and not by the device, so that verdict, write and what the program takes to be the last
//! commit stay together, also when the frontend is gone by then.

mod audit;
mod fate;
mod filesystem;
mod gate;
mod ledger;
mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use shadow::Rules;

use crate::capture::{CaptureShared, Message};
use crate::device::StopHandle;
use crate::events::Sinks;
use crate::image::Image;
use crate::monitor::Monitor;

pub use audit::{AuditMode, Audited};
pub use filesystem::FileSystem;
pub use gate::{COPY_PATIENCE, Gate};
pub use ledger::Summary;

/// Starts the verifier's thread. It ends with [`Message::Finish`], and returns what it has seen.
///
/// # Errors
/// When no thread can be started.
pub fn spawn(
    image: Arc<dyn Image>,
    shared: Arc<CaptureShared>,
    (sender, messages): (Sender<Message>, Receiver<Message>),
    sinks: Sinks,
    mut options: VerifierOptions,
) -> std::io::Result<JoinHandle<Summary>> {
    let stop = options.stop.take();
    let monitor = options.monitor.take().map(|path| Monitor::start(path, sender.clone())).transpose()?;
    let policy = shared.policy;
    let mut filesystem = FileSystem::new(image, shared, sinks, options, sender);
    filesystem.open("start");
    let mut gate = Gate::new(filesystem, policy, stop, monitor);
    std::thread::Builder::new().name("verifier".to_owned()).spawn(move || {
        let mut finishing = false;
        loop {
            let message = match gate.deadline() {
                Some(deadline) => messages.recv_deadline(deadline),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(message) => {
                    finishing |= matches!(message, Message::Finish);
                    gate.take(message);
                }
                Err(RecvTimeoutError::Timeout) => gate.expire(Instant::now()),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // An audit that was asked for is part of the verdict.
            if finishing && !gate.audit_pending() {
                break;
            }
        }
        gate.finish()
    })
}

/// How to verify.
#[derive(Clone, Default)]
pub struct VerifierOptions {
    /// Bytes of entries that the shadow keeps.
    pub shadow_memory: usize,
    /// When to audit a file system that is attached.
    pub audit: AuditMode,
    /// Whether file data is compared with its checksums.
    pub verify_data: bool,
    /// What each rule counts for.
    pub rules: Arc<Rules>,
    /// Name of the image, for people.
    pub disk: String,
    /// What ends serving, where a policy or a user says so.
    pub stop: Option<StopHandle>,
    /// QEMU's monitor, to be told of a pause.
    pub monitor: Option<PathBuf>,
}
