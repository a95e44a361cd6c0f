//! Histories about formats and mount options: new file systems over old ones, mixed block groups, space caches.

use anyhow::Result;

use super::{CALM, Kind, any_format, nothing, one_volume};
use crate::fs::files;
use crate::tool;
use crate::world::World;

/// New file systems on the disk.
pub(super) const MKFS: Kind = Kind {
    name: "mkfs",
    about: "mkfs on the disk again and again, each time with other options",
    mkfs: any_format,
    mount: |_| "noatime".to_owned(),
    setup: nothing,
    step: mkfs,
    cuts_power: false,
};

/// Mixed block groups.
pub(super) const MIXED: Kind = Kind {
    name: "mixed",
    about: "data and tree blocks in the same block groups",
    mkfs: |rng| format!("-M -n 4096 -m {0} -d {0}", rng.pick(&["single", "dup"])),
    mount: super::any_options,
    setup: one_volume,
    step: |world| {
        let volume = world.some_volume();
        world.churn(&volume, files::ALL, 25)?;
        if world.rng.chance(25) {
            world.snapshot(&volume, false);
        }
        if world.volumes.len() > 4 {
            world.delete_some_volume();
        }
        if world.rng.chance(10) {
            world.btrfs("balance start -dusage=80 -musage=80 @");
        }
        world.commit()
    },
    cuts_power: false,
};

/// Space caches.
pub(super) const CACHE: Kind = Kind {
    name: "cache",
    about: "version 1 space cache, and conversions between it and the free space tree",
    mkfs: |rng| any_format(rng) + " -R ^free-space-tree",
    mount: |_| "noatime,space_cache=v1".to_owned(),
    setup: one_volume,
    step: cache,
    cuts_power: false,
};

/// Mount options.
pub(super) const OPTIONS: Kind = Kind {
    name: "options",
    about: "mounted again and again with other options",
    mkfs: any_format,
    mount: |_| "noatime".to_owned(),
    setup: one_volume,
    step: options,
    cuts_power: false,
};

fn mkfs(world: &mut World) -> Result<()> {
    if world.steps > 1 {
        world.unmount()?;
        let arguments = super::any_format(&mut world.rng);
        world.note(&format!("mkfs.btrfs {arguments}"));
        let mut words = vec!["-q", "-f"];
        words.extend(arguments.split_whitespace());
        let device = world.device().to_owned();
        words.push(tool::utf8(&device)?);
        tool::stdout("mkfs.btrfs", &words)?;
        world.volumes.clear();
        world.mount()?;
    }
    for _ in 0..4 {
        if world.volumes.len() < 2 {
            world.create_volume();
        }
        let volume = world.some_volume();
        world.churn(&volume, files::ALL, 20)?;
        world.commit()?;
        world.snapshot(&volume, false);
        world.churn(&volume, CALM, 20)?;
        world.commit()?;
    }
    Ok(())
}

fn cache(world: &mut World) -> Result<()> {
    let volume = world.some_volume();
    world.churn(&volume, files::ALL, 25)?;
    world.commit()?;
    world.churn(&volume, CALM, 10)?;
    if world.rng.chance(20) {
        world.snapshot(&volume, false);
    }
    if world.volumes.len() > 4 {
        world.delete_some_volume();
    }
    world.commit()?;
    if world.rng.chance(25) {
        let how = *world.rng.pick(&[
            "space_cache=v1",
            "clear_cache,space_cache=v1",
            "clear_cache,space_cache=v2",
            "space_cache=v2",
            "clear_cache,nospace_cache",
        ]);
        world.options = format!("noatime,{how}");
        world.unmount()?;
        // Some of these can't follow each other.
        if let Err(error) = world.mount() {
            world.note(&format!("{error:#}"));
            world.options = "noatime".to_owned();
            world.mount()?;
        }
    }
    world.commit()
}

fn options(world: &mut World) -> Result<()> {
    let how = *world.rng.pick(&[
        "noatime",
        "nodatacow",
        "nodatasum",
        "autodefrag",
        "flushoncommit",
        "commit=1",
        "notreelog",
        "compress-force=zstd",
        "max_inline=0",
        "max_inline=4096",
        "ssd_spread",
        "thread_pool=1",
        "discard=sync",
        "clear_cache",
    ]);
    world.options = how.to_owned();
    world.remount()?;
    for _ in 0..4 {
        let volume = world.some_volume();
        world.churn(&volume, files::ALL, 25)?;
        if world.rng.chance(20) {
            world.snapshot(&volume, false);
        }
        if world.volumes.len() > 4 {
            world.delete_some_volume();
        }
        world.commit()?;
    }
    Ok(())
}
