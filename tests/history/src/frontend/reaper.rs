//! Takes down the mounts of a process that was killed.
//!
//! A process that is killed while one of its threads waits for a file system that it serves itself never ends: the
//! FUSE device stays open as long as that thread is there, and the thread waits for an answer as long as the device
//! is open. So the reaper doesn't wait for the process's end, but for it to give no sign of life.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::tool;

/// What is left has lost its server: the forced unmount fails every request that waits for it, and all the rest
/// follows. The first two arguments are the FUSE file system and what is mounted on top of it.
const SCRIPT: &str = r#"
    while read -r -t 20; do :; done
    umount --force "$1"
    while umount --lazy "$2"; do :; done
    for device in $(losetup --noheadings --output NAME --associated "$1/disk"); do losetup --detach "$device"; done
    umount --lazy "$1"
"#;

/// How often the process says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A shell that outlives this process, if need be.
pub(super) struct Reaper {
    shell: Child,
    stop: Option<Sender<()>>,
    heart: Option<JoinHandle<()>>,
}

impl Reaper {
    /// Starts it: it will look after the FUSE file system at `fuse` and what is mounted at `mount_point`.
    pub(super) fn start(fuse: &Path, mount_point: &Path) -> Result<Self> {
        let mut command = Command::new("bash");
        command.args(["-c", SCRIPT, "bash", tool::utf8(fuse)?, tool::utf8(mount_point)?]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Out of reach of the terminal's signals.
        command.process_group(0);
        let mut shell = command.spawn().context("can't start bash")?;
        let mut pipe = shell.stdin.take().context("bash has no standard input")?;
        let (stop, stopped) = channel();
        let beat = move || {
            while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                let _ = pipe.write_all(b"\n");
            }
        };
        let heart = std::thread::Builder::new().name("heart".to_owned()).spawn(beat)?;
        Ok(Reaper { shell, stop: Some(stop), heart: Some(heart) })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(heart) = self.heart.take() {
            let _ = heart.join();
        }
        let _ = self.shell.wait();
    }
}
