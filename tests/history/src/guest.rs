//! The same histories inside a guest, on a disk that `history serve` serves outside.

use std::io::{Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::ground::Guest;
use crate::kinds::Kind;
use crate::rng::Rng;
use crate::run;
use crate::tool;
use crate::world::World;

/// Runs a history of `kind` on `device`, on a file system of its own.
///
/// # Errors
/// When the file system doesn't stay well.
pub fn run(kind: &Kind, device: &Path, seed: u64, commits: u64, most: Duration) -> Result<()> {
    let mut rng = Rng::of(seed, kind.name);
    let (mkfs, options) = ((kind.mkfs)(&mut rng), (kind.mount)(&mut rng));
    println!("history: kind {} seed {seed} mkfs [{mkfs}] mount [{options}]", kind.name);
    let mut arguments = vec!["-q", "-f"];
    arguments.extend(mkfs.split_whitespace());
    arguments.push(tool::utf8(device)?);
    tool::stdout("mkfs.btrfs", &arguments)?;
    let size = std::fs::File::open(device)?.seek(SeekFrom::End(0))?;
    let mount_point = PathBuf::from("/mnt");
    std::fs::create_dir_all(&mount_point)?;
    let ground = Guest { device: device.to_owned(), mount_point, size };
    let world = World::new(Path::new("/tmp"), Box::new(ground), rng, options)?;
    run::live(world, kind, commits, most).with_context(|| format!("kind {} seed {seed}", kind.name))
}
