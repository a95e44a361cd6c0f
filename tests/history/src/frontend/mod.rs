//! The host kernel's way to the disk: btrfs, a loop device, one FUSE file, the tap, the image.
//!
//! Everything that is mounted or attached is taken down by guards; where the process is killed, by a shell that
//! outlives it.

mod gate;
mod loopdev;
mod reaper;
mod tapped;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use btrfs_shadow::tap::Tap;
use testkit::fuse::Mounted;
use testkit::mounts;

pub use gate::{Cut, Gate};
pub use loopdev::LoopDevice;
use reaper::Reaper;
use tapped::Tapped;

/// A block device of the host kernel whose requests go through a tap.
pub struct Frontend {
    // In the order in which they are to be taken down.
    device: Option<LoopDevice>,
    disk: Mounted,
    _reaper: Reaper,
    mount_point: PathBuf,
    /// The image behind it.
    pub image: Arc<Gate>,
}

impl Frontend {
    /// Sets up the device, in directories made under `dir`. The calling thread moves into a mount namespace of its
    /// own, and is to be the one that mounts the device.
    ///
    /// # Errors
    /// When FUSE or loop devices can't be used here.
    pub fn new(dir: &Path, image: Arc<Gate>, tap: Arc<dyn Tap>) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("no directory {}", dir.display()))?;
        let fuse_dir = dir.join("fuse");
        let mount_point = dir.join("mnt");
        for path in [&fuse_dir, &mount_point] {
            std::fs::create_dir_all(path).with_context(|| format!("can't make {}", path.display()))?;
        }
        mounts::enter_private().context("can't make a mount namespace: this needs root")?;
        let reaper = Reaper::start(&fuse_dir, &mount_point)?;
        let tapped = Tapped { image: Arc::clone(&image), tap };
        let disk = Mounted::new(tapped, "btrfs-shadow-history", &fuse_dir).context("can't mount FUSE")?;
        let mut frontend = Frontend { device: None, disk, _reaper: reaper, mount_point, image };
        frontend.attach()?;
        Ok(frontend)
    }

    /// Gives the loop device up, and with it all that the kernel keeps about the disk.
    pub fn detach(&mut self) {
        self.device = None;
    }

    /// Attaches a loop device again.
    ///
    /// # Errors
    /// When there is none.
    pub fn attach(&mut self) -> Result<()> {
        self.device = Some(LoopDevice::attach(self.disk.file())?);
        Ok(())
    }

    /// Path of the block device.
    ///
    /// # Panics
    /// Between [`Frontend::detach`] and [`Frontend::attach`].
    #[must_use]
    pub fn device(&self) -> &Path {
        self.device.as_ref().expect("attached").path()
    }

    /// A directory to mount the file system at.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }
}
