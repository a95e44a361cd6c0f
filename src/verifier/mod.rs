//! The verifier's thread: takes super block writes in the order they were submitted, gets a verdict on each, and
//! writes them.
//!
//! The write is made here and not by the device, so that verdict, write and what the program takes to be the last
//! commit stay together, also when the frontend is gone by then.

mod filesystem;

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;

use crate::capture::{CaptureShared, Message};
use crate::events::Sinks;
use crate::image::Image;

pub use filesystem::{FileSystem, Summary};

/// Starts the verifier's thread. It ends when every sender of messages is gone, and returns what it has seen.
///
/// # Errors
/// When no thread can be started.
pub fn spawn(
    image: Arc<dyn Image>,
    shared: Arc<CaptureShared>,
    messages: Receiver<Message>,
    sinks: Sinks,
    options: VerifierOptions,
) -> std::io::Result<JoinHandle<Summary>> {
    let mut filesystem = FileSystem::new(image, shared, sinks, options);
    filesystem.open("start");
    std::thread::Builder::new().name("verifier".to_owned()).spawn(move || {
        for message in messages {
            match message {
                Message::SuperWrite { offset, bytes, submitted, done } => {
                    done(filesystem.super_write(offset, &bytes, submitted));
                }
                Message::Connected => filesystem.connected(),
                Message::Disconnected => {}
            }
        }
        filesystem.finish()
    })
}

/// How to verify.
#[derive(Debug, Clone, Copy)]
pub struct VerifierOptions {
    /// Bytes of entries that the shadow keeps.
    pub shadow_memory: usize,
}
