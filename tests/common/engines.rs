//! Which engines can be tested here.

use std::io::{self, ErrorKind, Write as _};
use std::sync::{Arc, LazyLock};

use btrfs_shadow::engine::{Files, Rings};

/// Whether io_uring is allowed here; not with kernel.io_uring_disabled, or in a container that filters it. Said where it is
/// seen whatever becomes of the tests.
pub static IO_URING: LazyLock<bool> = LazyLock::new(|| {
    let file = Arc::new(tempfile::tempfile().expect("a temporary file"));
    match Rings::new(Files { cached: file, direct: None }).engine() {
        Ok(_) => true,
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
            let what = "what needs it is not tested";
            let _ = writeln!(io::stderr(), "io_uring is not allowed here ({error}): {what}");
            false
        }
        Err(error) => panic!("io_uring: {error}"),
    }
});
