//! How far a check has come.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Told about the work as it is done, from any thread.
pub trait Progress: Sync {
    /// A stage of `total` steps begins.
    fn begin(&self, stage: &'static str, total: u64);

    /// Steps were done.
    fn advance(&self, steps: u64);

    /// All is done.
    fn end(&self);
}

/// Says nothing.
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&self, _: &'static str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
}

/// A bar with rate and remaining time, on a terminal; nothing elsewhere.
pub struct TerminalProgress(Option<ProgressBar>);

impl TerminalProgress {
    /// A bar on standard error, if that is a terminal.
    #[must_use]
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let template = "{msg:>20} [{bar:40}] {pos}/{len} ({per_sec}, {eta} left)";
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        TerminalProgress(bar)
    }
}

impl Default for TerminalProgress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for TerminalProgress {
    fn begin(&self, stage: &'static str, total: u64) {
        if let Some(bar) = &self.0 {
            bar.reset();
            bar.set_length(total);
            bar.set_message(stage);
        }
    }

    fn advance(&self, steps: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(steps);
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
