//! Verifies a whole commit at once: every reference the trees hold against every one the extent tree records.
//!
//! The extent tree is read first, into a table of some forty bytes an extent ([`table`]). Then every live tree
//! block is visited once, in any order and by any number of workers, and each reference it holds is added to its
//! extent's sum ([`walk`]). Equal sums are equal sets. Where they differ the trees are walked once more for exactly
//! those extents, and the difference is named ([`explain`]).
//!
//! Work is handed out in pieces; who does them, and on how many threads, is the caller's business.

pub mod explain;
pub mod table;
pub mod walk;

pub use explain::{Collected, Explained, OfRecords, explain};
pub use table::{Scan, Table, partitions, scan};
pub use walk::{Visitor, Walk};
