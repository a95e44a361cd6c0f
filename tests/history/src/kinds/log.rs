//! Histories about the tree log: fsync storms, and power cuts that leave it to be replayed.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::Result;

use super::{CALM, Kind, any_format, any_options, nothing, one_volume};
use crate::fs::files::Act;
use crate::world::World;

/// Fsync.
pub(super) const FSYNC: Kind = Kind {
    name: "fsync",
    about: "fsync, O_SYNC, renames, links: hundreds of log commits between transactions",
    mkfs: any_format,
    mount: any_options,
    setup: one_volume,
    step: storm,
    cuts_power: false,
};

/// Power cuts.
pub(super) const POWERCUT: Kind = Kind {
    name: "powercut",
    about: "the power is cut at random moments, any unflushed writes are lost, the log is replayed",
    mkfs: any_format,
    mount: any_options,
    setup: nothing,
    step: cut,
    cuts_power: true,
};

const SYNCING: &[Act] = &[
    Act::Fsync,
    Act::Fsync,
    Act::Fsync,
    Act::SyncWrite,
    Act::SyncWrite,
    Act::Create,
    Act::Inline,
    Act::Rename,
    Act::Exchange,
    Act::Link,
    Act::Unlink,
    Act::Xattr,
    Act::Truncate,
    Act::Punch,
    Act::Prealloc,
    Act::Clone,
    Act::Directory,
];

/// Fsyncs from two threads, then a commit.
pub(super) fn storm(world: &mut World) -> Result<()> {
    let (one, other) = (world.some_volume(), world.some_volume());
    let backdrop = world.backdrop(&[one.clone(), other], SYNCING, None);
    world.wait(300);
    if let Ok(dir) = File::open(&one) {
        let outcome = dir.sync_all();
        world.tried("fsync of a directory", outcome);
    }
    drop(backdrop);
    if world.rng.chance(20) {
        world.create_volume();
    }
    if world.volumes.len() > 4 {
        world.delete_some_volume();
    }
    world.commit()
}

/// Some of everything until the power goes.
fn cut(world: &mut World) -> Result<()> {
    while world.volumes.len() < 2 {
        world.create_volume();
    }
    // What a cut took back is not there any more.
    world.volumes.retain(|volume| volume.exists());
    let dirs: Vec<_> = world.volumes.iter().take(3).cloned().collect();
    let interval = Duration::from_millis(world.rng.between(20, 400));
    let acts = if world.rng.chance(70) { SYNCING } else { CALM };
    let backdrop = world.backdrop(&dirs, acts, Some(interval));
    world.wait(300);
    let volume = world.some_volume();
    if world.rng.chance(50) {
        world.snapshot(&volume, false);
    }
    if world.volumes.len() > 5 {
        world.delete_some_volume();
    }
    let balance = match world.rng.below(4) {
        0 => Some(world.start_btrfs("balance start -d -m @")?),
        _ => None,
    };
    world.wait(900);
    let outcome = world.cut_power(Some(backdrop));
    if let Some(mut balance) = balance {
        let _ = balance.wait();
    }
    outcome?;
    world.volumes = fs::read_dir(world.root())?.flatten().map(|entry| entry.path()).collect();
    world.volumes.sort();
    world.commit()
}
