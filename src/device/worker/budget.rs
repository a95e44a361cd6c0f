//! How many log lines a queue may still write: neither a guest nor a broken disk fills the log. Knows nothing of what they say.

use std::fmt;

use tracing::warn;

use crate::device::limits::MAX_COMPLAINTS;

/// Log lines that may still be written.
pub(super) struct Budget(u32);

impl Default for Budget {
    fn default() -> Self {
        Self(MAX_COMPLAINTS)
    }
}

impl Budget {
    pub(super) fn warn(&mut self, queue: usize, what: fmt::Arguments<'_>) {
        if self.0 > 0 {
            self.0 -= 1;
            let last = if self.0 == 0 { " (no more of these will be logged)" } else { "" };
            warn!(queue, "{what}{last}");
        }
    }
}
