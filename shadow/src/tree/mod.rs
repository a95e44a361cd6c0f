//! Moving through the trees of a forest: a cursor, searches, and the comparison of two versions of a tree.
//!
//! Knows keys and pointers, not what items mean.

mod cursor;
mod diff;
mod search;

pub use cursor::{Cursor, ItemRef, Position};
pub use diff::{Change, diff};
pub use search::Searcher;
