//! Histories about quotas.

use std::fs::File;

use anyhow::Result;

use super::{CALM, Kind, any_format, any_options, one_volume};
use crate::fs::files;
use crate::fs::ioctl;
use crate::world::World;

/// Qgroups.
pub(super) const QUOTA: Kind = Kind {
    name: "quota",
    about: "quotas switched on and off and rescanned while snapshots come and go",
    mkfs: |rng| any_format(rng) + if rng.chance(30) { " -R quota" } else { "" },
    mount: any_options,
    setup: one_volume,
    step: toggle,
    cuts_power: false,
};

/// Simple quotas, which add owner refs to extent items.
pub(super) const SIMPLE: Kind = Kind {
    name: "squota",
    about: "simple quotas: owner refs, on and off again",
    mkfs: any_format,
    mount: any_options,
    setup: one_volume,
    step: simple,
    cuts_power: false,
};

/// Snapshots and work, with quotas on or off.
pub(super) fn toggle(world: &mut World) -> Result<()> {
    match world.rng.below(8) {
        0 | 1 => world.btrfs("quota enable @"),
        2 => world.btrfs("quota disable @"),
        3 => world.btrfs("quota rescan @"),
        4 => world.btrfs("quota rescan -w @"),
        5 => world.btrfs("qgroup create 1/1 @"),
        _ => true,
    };
    work(world)
}

fn simple(world: &mut World) -> Result<()> {
    match world.rng.below(8) {
        0..=2 => {
            let root = File::open(world.root())?;
            let outcome = ioctl::enable_simple_quotas(&root);
            world.tried("simple quotas", outcome);
        }
        3 => {
            world.btrfs("quota disable @");
        }
        4 => world.remount()?,
        _ => {}
    }
    work(world)
}

fn work(world: &mut World) -> Result<()> {
    let volume = world.some_volume();
    world.churn(&volume, files::ALL, 20)?;
    if world.rng.chance(40) {
        world.snapshot(&volume, false);
    }
    if world.rng.chance(20) {
        world.create_volume();
    }
    if world.volumes.len() > 5 {
        world.delete_some_volume();
    }
    world.commit()?;
    let volume = world.some_volume();
    world.churn(&volume, CALM, 15)?;
    world.commit()
}
