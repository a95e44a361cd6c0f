//! What is to become of a super block write.

use crate::events::CommitKind;

/// What is to become of a write of the primary super block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is carried out.
    Write,
    /// The guest is told that it failed.
    Refuse,
    /// The guest waits for a decision.
    Pause,
}

impl Fate {
    /// As a commit event spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Fate::Write => "written",
            Fate::Refuse => "rejected",
            Fate::Pause => "paused",
        }
    }
}

/// What is to become of a write of a super block's copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFate {
    /// It is carried out.
    Write,
    /// It belongs to the commit that was refused last, or to the same one made again.
    OfRefused,
    /// It belongs to a commit that is not decided.
    Hold,
}

/// A super block write that was looked at.
#[derive(Debug)]
pub struct Judged {
    /// What is to become of it.
    pub fate: Fate,
    /// What it commits; `None` where it is no commit.
    pub commit: Option<CommitKind>,
    /// The transaction.
    pub generation: u64,
    /// What is wrong, or why it can't be told, in words.
    pub why: Vec<String>,
}

impl Judged {
    /// A write that is no commit.
    #[must_use]
    pub fn no_commit(fate: Fate) -> Self {
        Judged { fate, commit: None, generation: 0, why: Vec::new() }
    }
}
