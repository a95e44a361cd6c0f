//! What changed between two commits, according to each of the two sources.

pub mod extents;
pub(crate) mod items;
pub mod masks;
mod pairs;
pub mod references;
