//! Why bytes could not be read as the structure they should be.

use thiserror::Error;

/// The bytes do not have the form of the structure asked for. Says nothing about how to report it: a parse error
/// in a guest's tree becomes a violation, one in an image's super block a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Fewer bytes than the structure needs.
    #[error("{what}: {have} bytes where {need} are needed")]
    Truncated {
        /// Kernel name of the structure.
        what: &'static str,
        /// Bytes needed.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// More bytes than the structure takes.
    #[error("{what}: {have} bytes where {need} are expected")]
    Oversized {
        /// Kernel name of the structure.
        what: &'static str,
        /// Bytes expected.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// A field holds a value that its type does not allow.
    #[error("{what}: invalid {field} {value}")]
    Invalid {
        /// Kernel name of the structure.
        what: &'static str,
        /// Kernel name of the field.
        field: &'static str,
        /// The value found.
        value: u64,
    },
}
