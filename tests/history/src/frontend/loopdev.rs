//! A loop device, detached when it is dropped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::tool;

/// Attempts to detach a device that is still in use.
const ATTEMPTS: u32 = 250;

/// A loop device.
pub struct LoopDevice {
    path: PathBuf,
    file: PathBuf,
}

impl LoopDevice {
    /// Attaches one to `file`. With direct I/O the driver does not wait for one request before it makes the next:
    /// a super block write that is held would keep all others waiting.
    ///
    /// # Errors
    /// When there is none.
    pub fn attach(file: &Path) -> Result<Self> {
        let path = tool::stdout("losetup", &["--find", "--show", "--direct-io=on", tool::utf8(file)?])?;
        Ok(LoopDevice { path: path.trim().into(), file: file.to_owned() })
    }

    /// Path of the device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the device is still ours: once it is free, somebody else may take it.
    fn is_attached(&self) -> bool {
        let name = self.path.file_name().unwrap_or_default();
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        std::fs::read_to_string(backing).is_ok_and(|file| Path::new(file.trim_end()) == self.file)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        for _ in 0..ATTEMPTS {
            if !self.is_attached() {
                return;
            }
            let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.path).output();
            // Somebody (udev) is looking at it.
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("history: {} can't be detached", self.path.display());
    }
}
