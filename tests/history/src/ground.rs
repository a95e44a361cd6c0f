//! What a history stands on: the frontend of this process, or the disk of a guest in which this program runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Result, bail};
use btrfs_shadow::image::Image as _;
use btrfs_shadow::tap::Tap;

use crate::frontend::{Cut, Frontend};
use crate::rng::Rng;
use crate::witness::Witness;

/// A disk, where to mount it, and who watches.
pub trait Ground {
    /// Path of the block device.
    fn device(&self) -> &Path;

    /// A directory to mount the file system at.
    fn mount_point(&self) -> &Path;

    /// Size of the disk in bytes.
    fn size(&self) -> u64;

    /// Commits that the witness has seen; `None` where it is out of sight.
    fn commits(&self) -> Option<u64>;

    /// What the witness objects to.
    fn failure(&self) -> Option<String>;

    /// Makes every read from the disk take some milliseconds, where that can be done.
    fn slow_down(&self, milliseconds: u64);

    /// Cuts the power: every request fails from now on.
    ///
    /// # Errors
    /// Where it can't be cut.
    fn cut(&mut self, rng: &mut Rng) -> Result<Cut>;

    /// Switches the power on again; nothing is mounted now.
    ///
    /// # Errors
    /// When the disk doesn't come back.
    fn power_on(&mut self) -> Result<()>;
}

/// The frontend of this process.
pub struct Host {
    /// The device and what is below it.
    pub frontend: Frontend,
    /// The tap, which is told when the disk is connected.
    pub tap: Arc<dyn Tap>,
    /// Who watches.
    pub witness: Arc<Witness>,
}

impl Ground for Host {
    fn device(&self) -> &Path {
        self.frontend.device()
    }

    fn mount_point(&self) -> &Path {
        self.frontend.mount_point()
    }

    fn size(&self) -> u64 {
        self.frontend.image.len()
    }

    fn commits(&self) -> Option<u64> {
        Some(self.witness.totals().commits)
    }

    fn failure(&self) -> Option<String> {
        self.witness.failure()
    }

    fn slow_down(&self, milliseconds: u64) {
        self.frontend.image.read_delay.store(milliseconds, Ordering::Relaxed);
    }

    fn cut(&mut self, rng: &mut Rng) -> Result<Cut> {
        Ok(self.frontend.image.cut(rng)?)
    }

    fn power_on(&mut self) -> Result<()> {
        self.frontend.detach();
        self.tap.disconnected();
        self.frontend.image.power_on();
        self.tap.connected();
        self.frontend.attach()
    }
}

/// A disk of the machine this runs on. The witness is outside.
pub struct Guest {
    /// Path of the block device.
    pub device: PathBuf,
    /// A directory to mount the file system at.
    pub mount_point: PathBuf,
    /// Size of the disk in bytes.
    pub size: u64,
}

impl Ground for Guest {
    fn device(&self) -> &Path {
        &self.device
    }

    fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn commits(&self) -> Option<u64> {
        None
    }

    fn failure(&self) -> Option<String> {
        None
    }

    fn slow_down(&self, _: u64) {}

    fn cut(&mut self, _: &mut Rng) -> Result<Cut> {
        bail!("a guest can't cut its own power")
    }

    fn power_on(&mut self) -> Result<()> {
        bail!("a guest can't switch its own power on")
    }
}
