//! Images that are mounted and busy, seen as a power cut would leave them.
//!
//! The committed trees stay whole on the disk until the next super block write has returned. Whatever is read while
//! the super block stays the same therefore belongs to one whole commit, plus blocks of the transaction that is running.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Child;

/// Place and length of the primary super block on a device.
const SUPER_BLOCK: (u64, usize) = (64 << 10, 4096);

/// The primary super block of an image, to be compared before and after.
///
/// # Panics
/// When the image cannot be read.
#[must_use]
pub fn super_block(image: &Path) -> Vec<u8> {
    let mut bytes = vec![0; SUPER_BLOCK.1];
    let file = File::open(image).expect("the image");
    file.read_exact_at(&mut bytes, SUPER_BLOCK.0).expect("a super block");
    bytes
}

/// Waits for the end of a script started with [`crate::Image::start`].
///
/// # Panics
/// When the script failed.
pub fn finish(child: Child) {
    let output = child.wait_with_output().expect("the script's end");
    assert!(output.status.success(), "script failed: {}", String::from_utf8_lossy(&output.stderr));
}
