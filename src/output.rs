//! What a command prints that is only asked for an answer.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};

/// Writes `text` to standard output. A reader that has read enough and is gone (`| head`) is no error: it has what it wanted,
/// and nothing is said.
///
/// # Errors
/// When standard output can't be written for another reason.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("can't write to standard output"),
    }
}
