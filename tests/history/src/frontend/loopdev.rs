//! A loop device, detached when it is dropped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::tool;

/// Attempts to detach a device that is still in use.
const ATTEMPTS: u32 = 50;

/// A loop device.
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// Attaches one to `file`, without direct I/O: that corrupted file systems over FUSE.
    ///
    /// # Errors
    /// When there is none.
    pub fn attach(file: &Path) -> Result<Self> {
        let path = tool::stdout("losetup", &["--find", "--show", "--direct-io=on", tool::utf8(file)?])?;
        Ok(LoopDevice(path.trim().into()))
    }

    /// Path of the device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn is_attached(&self) -> bool {
        let name = self.0.file_name().unwrap_or_default();
        Path::new("/sys/block").join(name).join("loop/backing_file").exists()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        for _ in 0..ATTEMPTS {
            let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.0).output();
            if !self.is_attached() {
                return;
            }
            // Somebody (udev) is looking at it.
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("history: {} can't be detached", self.0.display());
    }
}
