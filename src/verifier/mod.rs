//! The verifier's thread: takes super block writes in the order they were submitted, gets a verdict on each, and
//! writes them.
//!
//! The write is made here and not by the device, so that verdict, write and what the program takes to be the last
//! commit stay together, also when the frontend is gone by then.

mod audit;
mod filesystem;

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use shadow::Rules;

use crate::capture::{CaptureShared, Message};
use crate::events::Sinks;
use crate::image::Image;

pub use audit::{AuditMode, Audited};
pub use filesystem::{FileSystem, Summary};

/// Starts the verifier's thread. It ends with [`Message::Finish`], and returns what it has seen.
///
/// # Errors
/// When no thread can be started.
pub fn spawn(
    image: Arc<dyn Image>,
    shared: Arc<CaptureShared>,
    (sender, messages): (Sender<Message>, Receiver<Message>),
    sinks: Sinks,
    options: VerifierOptions,
) -> std::io::Result<JoinHandle<Summary>> {
    let mut filesystem = FileSystem::new(image, shared, sinks, options, sender);
    filesystem.open("start");
    std::thread::Builder::new().name("verifier".to_owned()).spawn(move || {
        let mut finishing = false;
        for message in messages {
            match message {
                Message::SuperWrite { offset, bytes, submitted, done } => {
                    done(filesystem.super_write(offset, &bytes, submitted));
                }
                Message::Connected => filesystem.connected(),
                Message::Disconnected => {}
                Message::Audited(audited) => filesystem.audited(audited),
                Message::Finish => finishing = true,
            }
            // An audit that was asked for is part of the verdict.
            if finishing && !filesystem.audit_pending() {
                break;
            }
        }
        filesystem.finish()
    })
}

/// How to verify.
#[derive(Debug, Clone, Default)]
pub struct VerifierOptions {
    /// Bytes of entries that the shadow keeps.
    pub shadow_memory: usize,
    /// When to audit a file system that is attached.
    pub audit: AuditMode,
    /// What each rule counts for.
    pub rules: Arc<Rules>,
}
