//! The program's own vhost-user device with the witness around its tap, for guests under QEMU.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use btrfs_shadow::device::{DeviceOptions, Server, SessionEnd, Socket, StopHandle};
use btrfs_shadow::image::{Image, RawImage};
use btrfs_shadow::signals::Signals;

use crate::run::Stack;
use crate::witness::Totals;

/// Serves the image at `path` on `socket` until the guest disconnects (`once`) or a signal comes; returns what was
/// seen of each file system, and why it was stopped.
///
/// # Errors
/// When it can't be served.
pub fn serve(path: &Path, socket: PathBuf, dir: &Path, once: bool) -> Result<(Vec<Totals>, Option<String>)> {
    std::fs::create_dir_all(dir)?;
    let stop = StopHandle::new()?;
    Signals::block()?.trigger(&stop)?;
    let image: Arc<dyn Image> = Arc::new(RawImage::open(path, false)?);
    let about = format!("guest on {}", path.display());
    let stack = Stack::start(&image, path, dir, about, None)?;
    let mut server = Server::bind(
        Socket::Path(socket),
        Arc::clone(&image),
        Arc::clone(&stack.tap),
        DeviceOptions::default(),
    )?;
    loop {
        match server.serve_one(&stop)? {
            SessionEnd::Disconnected if !once => {}
            SessionEnd::Disconnected | SessionEnd::Stopped | SessionEnd::Exhausted => break,
        }
    }
    drop(server);
    let (_, witness) = stack.finish()?;
    Ok((witness.totals_by_file_system(), witness.failure()))
}
