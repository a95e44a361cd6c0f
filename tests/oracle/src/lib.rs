//! A slow, obvious model of what a btrfs' trees refer to, to compare the verifier with.
//!
//! It recomputes everything from the image, every time, with maps and recursion. It shares the `parser` crate with the
//! verifier and nothing else: what is wrong in one must not be wrong in both.
//!
//! [`examine`] computes two multisets over (bytenr, reference key): the references that the live trees hold, and those
//! that the extent tree records. In a sound file system they are equal.

pub mod accounting;
mod recorded;
mod references;
mod report;
pub mod volume;

pub use recorded::{Extent, Recorded, Root, roots};
pub use report::{RefKey, Report, examine, examine_volume};
pub use volume::Volume;

/// Examines an image file.
///
/// # Errors
/// When no file system can be opened.
pub fn examine_file(path: &std::path::Path) -> Result<Report, String> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    examine(&mut |physical, bytes| file.read_exact_at(bytes, physical))
}
