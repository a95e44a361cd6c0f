//! Histories about trees that are shared: snapshots of snapshots, deletions over many commits, send and receive.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::{CALM, Kind, any_format, any_options, deep_format, one_volume};
use crate::fs::files::{self, Act};
use crate::fs::ioctl;
use crate::world::World;

/// Small files of the large subvolume: with nodes of 4 KiB its tree has three levels.
const SMALL_FILES: u64 = 4_000;
/// File extents of the large subvolume's fragmented file.
const FRAGMENTS: u64 = 15_000;
/// Subvolumes beyond which deletions prevail.
const MANY: usize = 8;

/// Large trees.
pub(super) const SNAPSHOTS: Kind = Kind {
    name: "snapshots",
    about: "snapshots of snapshots of large trees, deleted in random order with commits and remounts in between",
    mkfs: deep_format,
    mount: |_| "noatime".to_owned(),
    setup: large_volume,
    step: deletions,
    cuts_power: false,
};

/// Many snapshots of a small tree.
pub(super) const WIDE: Kind = Kind {
    name: "wide",
    about: "very many snapshots of one subvolume: more references to a tree block than fit inline",
    mkfs: any_format,
    mount: any_options,
    setup: one_volume,
    step: wide,
    cuts_power: false,
};

/// Send and receive.
pub(super) const SEND: Kind = Kind {
    name: "send",
    about: "send and receive, full and incremental",
    mkfs: any_format,
    mount: any_options,
    setup: one_volume,
    step: |world| {
        let volume = world.some_volume();
        world.churn(&volume, files::ALL, 30)?;
        send(world)
    },
    cuts_power: false,
};

fn large_volume(world: &mut World) -> Result<()> {
    let Some(volume) = world.create_volume() else { return Ok(()) };
    for part in 0..4 {
        let outcome = files::many_small(&volume.join(format!("part{part}")), SMALL_FILES / 4);
        world.tried("many small files", outcome);
    }
    let outcome = fragmented(&volume);
    world.tried("a fragmented file", outcome);
    world.commit()
}

/// A file of many extents, all of them shared: deleting a tree that holds it takes long.
fn fragmented(volume: &Path) -> std::io::Result<()> {
    let source = volume.join("source");
    fs::write(&source, vec![7; 64 * 4096])?;
    let from = fs::File::open(&source)?;
    from.sync_all()?;
    let to = fs::File::create_new(volume.join("fragmented"))?;
    (0..FRAGMENTS)
        .try_for_each(|number| ioctl::clone_range(&from, number * 7 % 64 * 4096, 4096, &to, number * 4096))
}

/// Touches files all over the large tree, so that some of its leaves are no longer shared.
fn touch(world: &mut World, volume: &Path) {
    let times = world.rng.between(1, 60);
    for _ in 0..times {
        let (part, number) = (world.rng.below(4), world.rng.below(SMALL_FILES / 4));
        let path =
            volume.join(format!("part{part}/one of many small files, with a long name, number {number}"));
        let _ = match world.rng.below(4) {
            0 => fs::remove_file(path),
            1 => fs::rename(&path, path.with_extension("renamed")),
            _ => fs::write(path, format!("changed {times}")),
        };
    }
    world.note(&format!("touched {times} files of {}", volume.display()));
}

/// Changes every leaf of a large tree, so that it shares nothing any more: deleting it then takes long.
fn rewrite(world: &mut World, volume: &Path) {
    let mut number = world.rng.below(8);
    let mut changed = 0;
    while number < SMALL_FILES {
        let (part, name) = (number % 4, number / 4);
        let path =
            volume.join(format!("part{part}/one of many small files, with a long name, number {name}"));
        changed += u64::from(path.exists() && fs::write(path, b"written again").is_ok());
        number += world.rng.between(1, 12);
    }
    if let Ok(file) = fs::File::options().write(true).open(volume.join("fragmented")) {
        let mut fragment = world.rng.below(20);
        while fragment < FRAGMENTS && file.write_all_at(&[1; 4096], fragment * 4096).is_ok() {
            fragment += world.rng.between(1, 60);
        }
    }
    world.note(&format!("rewrote {changed} files of {}", volume.display()));
}

/// A few snapshots, changes, deletions, in any order.
pub(super) fn grow_or_shrink(world: &mut World) -> Result<()> {
    for _ in 0..world.rng.between(1, 4) {
        let volume = world.some_volume();
        match world.rng.below(5) {
            0 | 1 if world.volumes.len() < MANY => {
                world.snapshot(&volume, false);
            }
            2 => touch(world, &volume),
            3 => world.churn(&volume, CALM, 10)?,
            _ => world.delete_some_volume(),
        }
        if world.rng.chance(40) {
            world.commit()?;
        }
    }
    Ok(())
}

fn deletions(world: &mut World) -> Result<()> {
    grow_or_shrink(world)?;
    if world.rng.chance(80)
        && let Some(first) = world.volumes.first().cloned()
        && let Some(snapshot) = world.snapshot(&first, false)
    {
        rewrite(world, &snapshot);
        world.commit()?;
    }
    if world.volumes.len() > 4 {
        for _ in 0..world.rng.between(1, 4) {
            world.delete_some_volume();
        }
    }
    commit_often(world, 600);
    match world.rng.below(4) {
        // The next mount goes on with what is half dropped, and finds none of it in memory.
        0..=2 => {
            world.delete_some_volume();
            world.commit()?;
            world.remount()?;
            let milliseconds = world.rng.below(4);
            world.slow_down(milliseconds);
            commit_often(world, 2500);
            // Half of the time the file system is unmounted once more before the deletion is done.
            let outcome = if world.rng.chance(50) { world.remount() } else { Ok(()) };
            world.slow_down(0);
            outcome?;
            commit_often(world, 600);
        }
        _ => {
            // The first wakes the cleaner.
            world.btrfs("filesystem sync @");
            world.btrfs("subvolume sync @");
        }
    }
    world.commit()
}

/// A deletion stops at each commit that somebody asks for, and leaves its cursor on the disk.
fn commit_often(world: &mut World, milliseconds: u64) {
    let volume = world.some_volume();
    let backdrop = world.backdrop(&[volume], CALM, Some(Duration::from_millis(1)));
    world.wait(milliseconds);
    drop(backdrop);
}

fn wide(world: &mut World) -> Result<()> {
    let home = world.volumes.first().cloned().unwrap_or_else(|| world.root().to_owned());
    for _ in 0..world.rng.between(3, 30) {
        if world.volumes.len() < 250 {
            let of = if world.rng.chance(80) { home.clone() } else { world.some_volume() };
            world.snapshot(&of, false);
        }
        if world.rng.chance(20) {
            world.churn(&home, CALM, 4)?;
        }
    }
    world.commit()?;
    world.churn(&home, CALM, 10)?;
    let other = world.some_volume();
    world.churn(&other, CALM, 5)?;
    world.commit()?;
    if world.volumes.len() > 150 || world.rng.chance(20) {
        for _ in 0..world.rng.between(10, 120) {
            world.delete_some_volume();
            if world.rng.chance(5) {
                world.commit()?;
            }
        }
    }
    world.commit()
}

/// Sends a snapshot, from the last one that was sent or in full, and receives it beside.
pub(super) fn send(world: &mut World) -> Result<()> {
    let volume = world.some_volume();
    let received = world.root().join("received");
    let _ = fs::create_dir(&received);
    let Some(base) = world.snapshot(&volume, true) else { return Ok(()) };
    world.commit()?;
    let stream = world.root().with_file_name("stream");
    let (file, into) = (stream.display().to_string(), received.display().to_string());
    world.btrfs(&format!("send -q -f {file} {}", base.display()));
    world.btrfs(&format!("receive -f {file} {into}"));
    world.commit()?;
    const CHANGES: &[Act] =
        &[Act::Overwrite, Act::Clone, Act::Rename, Act::Unlink, Act::Create, Act::Punch, Act::Xattr];
    world.churn(&volume, CHANGES, 15)?;
    if let Some(next) = world.snapshot(&volume, true) {
        world.commit()?;
        world.btrfs(&format!("send -q -p {} -f {file} {}", base.display(), next.display()));
        world.btrfs(&format!("receive -f {file} {into}"));
        world.commit()?;
        world.btrfs(&format!("subvolume delete {}", next.display()));
    }
    let _ = fs::remove_file(&stream);
    world.btrfs(&format!("subvolume delete {}", base.display()));
    let old: Vec<_> = fs::read_dir(&received)?.flatten().map(|entry| entry.path()).collect();
    for path in old {
        if world.rng.chance(60) {
            world.btrfs(&format!("subvolume delete {}", path.display()));
        }
    }
    world.commit()
}
