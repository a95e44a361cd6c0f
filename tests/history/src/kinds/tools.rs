//! Histories about programs that write to an unmounted file system, not by way of the kernel: what tunes and repairs it,
//! and what makes a btrfs of an ext4.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};

use super::{CALM, Kind, any_format, any_options, nothing, one_volume};
use crate::fs::files;
use crate::tool;
use crate::world::World;

/// Tools between mounts.
pub(super) const TOOLS: Kind = Kind {
    name: "tools",
    about: "programs of btrfs-progs that change an unmounted file system, between mounts",
    mkfs: any_format,
    mount: any_options,
    setup: one_volume,
    step: tools,
    cuts_power: false,
};

/// A btrfs made of an ext4.
pub(super) const EXT4: Kind = Kind {
    name: "ext4",
    about: "ext4 with files converted to btrfs, its image deleted or rolled back to, balanced",
    mkfs: |_| String::new(),
    mount: any_options,
    setup: nothing,
    step: convert,
    cuts_power: false,
};

/// What may be run; what a file system isn't right for fails and changes nothing.
const COMMANDS: &[&[&str]] = &[
    &["btrfstune -r @"],
    &["btrfstune -x @"],
    &["btrfstune -n @"],
    &["btrfstune -f -m @"],
    &["btrfstune -f -u @"],
    &["btrfstune -S 1 @", "btrfstune -f -S 0 @"],
    &["btrfs filesystem label @ shadow"],
    &["btrfs rescue zero-log @"],
    &["btrfs rescue fix-device-size @"],
    &["btrfs rescue clear-uuid-tree @"],
    &["btrfs check --force --clear-space-cache v1 @"],
    &["btrfs check --force --clear-space-cache v2 @"],
    &["btrfs check --force --repair @"],
];

fn tools(world: &mut World) -> Result<()> {
    let volume = world.some_volume();
    world.churn(&volume, files::ALL, 25)?;
    world.commit()?;
    if world.rng.chance(30) {
        world.snapshot(&volume, false);
    }
    if world.volumes.len() > 4 {
        world.delete_some_volume();
    }
    world.churn(&volume, CALM, 15)?;
    world.unmount()?;
    for command in *world.rng.pick(COMMANDS) {
        offline(world, command)?;
    }
    world.mount()?;
    if world.rng.chance(20) {
        world.btrfs("scrub start -B @");
    }
    world.commit()
}

/// Runs a command line, `@` standing for the device; it may fail.
fn offline(world: &mut World, line: &str) -> Result<bool> {
    let device = tool::utf8(world.device())?.to_owned();
    let words: Vec<&str> =
        line.split_whitespace().map(|word| if word == "@" { &device } else { word }).collect();
    let [program, arguments @ ..] = words.as_slice() else { return Ok(false) };
    let output = tool::output(program, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    world.note(&format!("{line}: {} {said}", output.status));
    Ok(output.status.success())
}

fn convert(world: &mut World) -> Result<()> {
    world.unmount()?;
    world.volumes.clear();
    make_ext4(world)?;
    let checksum = *world.rng.pick(&["crc32c", "xxhash", "sha256", "blake2"]);
    let more = *world.rng.pick(&["", "", "--no-inline", "--no-datasum"]);
    let nodesize = *world.rng.pick(&[4096, 16384, 65536]);
    let line = format!("btrfs-convert -N {nodesize} --csum {checksum} {more} @");
    anyhow::ensure!(offline(world, &line)?, "btrfs-convert fails: see operations.log");
    if world.rng.chance(20) {
        anyhow::ensure!(offline(world, "btrfs-convert -r @")?, "it can't be taken back: see operations.log");
        anyhow::ensure!(offline(world, &line)?, "btrfs-convert fails: see operations.log");
    }
    world.mount()?;
    for round in 0..5 {
        // What ext4 had is in the root.
        let old = world.root().to_owned();
        world.churn(&old, files::ALL, 20)?;
        world.commit()?;
        match round {
            1 => {
                world.create_volume();
            }
            // While it is there, all that ext4 had is shared with its image.
            2 if world.rng.chance(80) => {
                world.btrfs("subvolume delete @/ext2_saved");
            }
            3 => {
                world.btrfs("balance start --full-balance @");
            }
            _ => {}
        }
        let volume = world.some_volume();
        world.churn(&volume, CALM, 20)?;
        world.commit()?;
    }
    Ok(())
}

/// An ext4 with files in it on the device, in place of the btrfs.
fn make_ext4(world: &mut World) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("history-ext4-{}", std::process::id()));
    fs::create_dir_all(&dir).context("can't make a directory of files")?;
    let mut files = world.files(&dir, 30, 4 << 20);
    // ext4 can't do all of it.
    let failed = (0..80).filter(|_| files.act(files::ALL).is_err()).count();
    world.note(&format!("80 acts, {failed} failed"));
    // mkfs.ext4 leaves the super block of a btrfs where it is, and would write over all that it names.
    let device = File::options().write(true).open(world.device())?;
    device.write_all_at(&[0; parser::superblock::SIZE], parser::superblock::OFFSETS[0])?;
    device.sync_all()?;
    let made = offline(world, &format!("mkfs.ext4 -q -F -b 4096 -d {} @", tool::utf8(&dir)?))?;
    fs::remove_dir_all(&dir)?;
    anyhow::ensure!(made, "mkfs.ext4 fails: see operations.log");
    Ok(())
}
