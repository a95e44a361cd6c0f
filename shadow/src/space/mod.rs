//! Space: extents, block groups, chunks, device extents, free space and checksums against each other.
//!
//! These say again in another place what the extent tree or the chunk tree says; the family `space/` is about the two
//! not agreeing. A commit is judged by its changes ([`commit`]), in time that follows them; [`audit`] takes a whole
//! file system. Knows nothing of references: what the rules about them have found is passed in, so that one bug is one
//! report ([`explained`]).
//!
//! Not compared on purpose: the super block's copy of its device item but for its UUIDs, which may lag, and its backup roots, which the
//! kernel takes from the running transaction's trees.

pub mod audit;
pub mod checksums;
pub mod commit;
pub mod data;
pub mod device_ids;
pub mod devices;
pub mod explained;
pub mod extents;
pub mod free_space;
pub mod group;
pub mod groups;
pub mod lost;
mod places;
pub mod ranges;

pub use commit::{Inputs, Memory, Verified, verify};
pub use lost::{LostChunk, lost_chunks};
