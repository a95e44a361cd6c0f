//! What is done with a commit that violates a rule.

use clap::ValueEnum;

/// What to do with a commit that violates a rule. Warnings, and what could not be verified, are always written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Report it, and write it
    #[default]
    Report,
    /// Fail its super block write: the last good commit stays, and the guest goes read-only
    Reject,
    /// Leave its super block write unanswered until 'ctl resume' or 'ctl reject'
    Pause,
    /// Fail its super block write, stop serving, and exit with 1
    Stop,
}

impl Policy {
    /// Whether a commit may be refused. Only then are the super block's copies held until the verdict, and is the
    /// last good commit something to be protected.
    #[must_use]
    pub const fn may_refuse(self) -> bool {
        !matches!(self, Policy::Report)
    }

    /// As the command line spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Policy::Report => "report",
            Policy::Reject => "reject",
            Policy::Pause => "pause",
            Policy::Stop => "stop",
        }
    }
}
