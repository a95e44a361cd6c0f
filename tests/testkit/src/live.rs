//! Copies of an image taken while it is mounted and busy: what a power cut would leave.
//!
//! The committed trees stay whole on the disk until the next super block write has returned. A copy during which the
//! super block did not change therefore holds one whole commit, plus blocks of the transaction that was running.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Child;

use crate::image::copy_sparse;

/// Place and length of the primary super block on a device.
const SUPER_BLOCK: (u64, usize) = (64 << 10, 4096);

/// The primary super block of an image.
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

/// Copies the image once. `false` when a super block was written meanwhile, so that the copy is of no use.
#[must_use]
pub fn copy(image: &Path, to: &Path) -> bool {
    let before = super_block(image);
    copy_sparse(image, to);
    before == super_block(image) && before == super_block(to)
}

/// Waits for the end of a script started with [`crate::Image::start`].
///
/// # Panics
/// When the script failed.
pub fn finish(child: Child) {
    let output = child.wait_with_output().expect("the script's end");
    assert!(output.status.success(), "script failed: {}", String::from_utf8_lossy(&output.stderr));
}
