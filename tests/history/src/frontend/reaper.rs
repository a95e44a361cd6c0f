//! Takes down the mounts of a process that was killed.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::tool;

/// Waits for the end of its standard input, which is the end of this process; what is left then has lost its server,
/// so that unmounting lazily is all that can be done.
const SCRIPT: &str = r#"
    cat >/dev/null
    while umount -l "$2"; do :; done
    for device in $(losetup --noheadings --output NAME --associated "$1/disk"); do losetup --detach "$device"; done
    umount -l "$1"
"#;

/// A shell that outlives this process, if need be.
pub(super) struct Reaper(Child);

impl Reaper {
    /// Starts it: it will look after the FUSE file system at `fuse` and what is mounted at `mount_point`.
    pub(super) fn start(fuse: &Path, mount_point: &Path) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh", tool::utf8(fuse)?, tool::utf8(mount_point)?]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Out of reach of the terminal's signals.
        command.process_group(0);
        Ok(Reaper(command.spawn().context("can't start a shell")?))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
