//! What is reported about the guest's file system.

use std::fmt;

use crate::cause::Cause;
use crate::codes::{Code, Severity};
use crate::record::RefKey;
use crate::refverify::{BlockEntry, Step};
use crate::unreadable::Obstacle;

/// A finding: a value that is reported, never an `Err`.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The rule.
    pub code: Code,
    /// How bad it is: what the table says, or what the rule was switched to.
    pub severity: Severity,
    /// Logical address of the extent or tree block concerned; 0 where there is none.
    pub bytenr: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The reference concerned, where there is one.
    pub key: Option<RefKey>,
    /// What should be there.
    pub expected: Worth,
    /// What is there.
    pub found: Worth,
    /// One sentence with everything needed to find the place, in the words of `btrfs check` and the kernel.
    pub message: String,
    /// What happened to the extent, as far as it is remembered, oldest first.
    pub history: Vec<Step>,
    /// The file or subvolume concerned, where it is known.
    pub path: Option<String>,
    /// What kind of fault it was, where that can be told.
    pub cause: Option<Cause>,
    /// What keeps this tree block, and others with it, from being read.
    pub obstacle: Option<Obstacle>,
    /// Both sides of the disagreement, for people: what the shadow holds and what the extent tree records.
    pub sides: Option<Box<Sides>>,
}

/// The two sides of a disagreement about one extent.
#[derive(Debug, Clone)]
pub struct Sides {
    /// What the references of the trees add up to.
    pub shadow: Option<BlockEntry>,
    /// What the extent tree records: backrefs with their counts, and the refs field.
    pub recorded: Vec<(RefKey, u64)>,
    /// The refs field of the extent item, where there is one.
    pub recorded_refs: Option<u64>,
    /// More about single references: which block holds them, where.
    pub notes: Vec<String>,
}

/// The worth of a field: a number where it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Worth {
    /// Nothing to be said.
    None,
    /// A count, an address, a generation.
    Number(u64),
    /// Anything else.
    Text(String),
}

impl fmt::Display for Worth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Worth::None => f.write_str("-"),
            Worth::Number(number) => write!(f, "{number}"),
            Worth::Text(text) => f.write_str(text),
        }
    }
}

impl From<u64> for Worth {
    fn from(number: u64) -> Self {
        Worth::Number(number)
    }
}

impl From<String> for Worth {
    fn from(text: String) -> Self {
        Worth::Text(text)
    }
}

impl From<&str> for Worth {
    fn from(text: &str) -> Self {
        Worth::Text(text.to_owned())
    }
}

impl Violation {
    /// A violation about the range `[bytenr, bytenr + len)` that says `message`.
    #[must_use]
    pub fn new(code: Code, bytenr: u64, len: u64, message: impl Into<String>) -> Self {
        Violation {
            code,
            severity: code.severity(),
            bytenr,
            len,
            key: None,
            expected: Worth::None,
            found: Worth::None,
            message: message.into(),
            history: Vec::new(),
            path: None,
            cause: None,
            obstacle: None,
            sides: None,
        }
    }

    /// Adds what was expected and what was found.
    #[must_use]
    pub fn with_worth(mut self, expected: impl Into<Worth>, found: impl Into<Worth>) -> Self {
        self.expected = expected.into();
        self.found = found.into();
        self
    }

    /// Adds the reference concerned.
    #[must_use]
    pub fn with_key(mut self, key: RefKey) -> Self {
        self.key = Some(key);
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}
