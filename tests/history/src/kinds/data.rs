//! Histories about file data: extents that are shared, split, punched, compressed, and whole block groups that go.

use std::fs::{self, File};

use anyhow::Result;

use super::{Kind, any_format, any_options, one_volume};
use crate::fs::files::Act;
use crate::fs::ioctl;
use crate::world::World;

/// Reflink and dedupe storms.
pub(super) const REFLINK: Kind = Kind {
    name: "reflink",
    about: "reflink and dedupe storms: more references to an extent than fit inline, overwritten and dropped again",
    mkfs: any_format,
    mount: |rng| if rng.chance(50) { "noatime".to_owned() } else { any_options(rng) },
    setup: one_volume,
    step: share,
    cuts_power: false,
};

/// Holes and preallocation.
pub(super) const HOLES: Kind = Kind {
    name: "holes",
    about: "punch hole, zero range, preallocation, truncation",
    mkfs: any_format,
    mount: any_options,
    setup: one_volume,
    step: holes,
    cuts_power: false,
};

/// Compression and defragmentation.
pub(super) const COMPRESS: Kind = Kind {
    name: "compress",
    about: "compressed files and defragmentation with every algorithm",
    mkfs: any_format,
    mount: |rng| {
        let how = *rng.pick(&["compress=zstd:3", "compress-force=zlib", "compress-force=lzo", "autodefrag"]);
        format!("noatime,{how}")
    },
    setup: one_volume,
    step: compress,
    cuts_power: false,
};

/// Block groups that come and go.
pub(super) const GROUPS: Kind = Kind {
    name: "groups",
    about: "block groups filled, emptied, balanced away, discarded",
    mkfs: any_format,
    mount: |rng| rng.pick(&["noatime", "noatime,discard=sync", "noatime,discard=async"]).to_string(),
    setup: one_volume,
    step: groups,
    cuts_power: false,
};

const SHARING: &[Act] = &[
    Act::Clone,
    Act::Clone,
    Act::CloneRange,
    Act::CloneRange,
    Act::CloneRange,
    Act::Dedupe,
    Act::Overwrite,
    Act::Punch,
    Act::Truncate,
    Act::Unlink,
    Act::Create,
];

/// Some sharing between the files of one subvolume; now and then one extent that everything shares.
pub(super) fn share(world: &mut World) -> Result<()> {
    let volume = world.some_volume();
    world.churn(&volume, SHARING, 40)?;
    if world.rng.chance(30) {
        storm(world)?;
    }
    if world.rng.chance(15) {
        world.snapshot(&volume, false);
    }
    if world.volumes.len() > 4 {
        world.delete_some_volume();
    }
    world.commit()
}

/// Hundreds of references to a few extents, from several subvolumes; then a part of them overwritten or dropped.
fn storm(world: &mut World) -> Result<()> {
    let home = world.some_volume();
    let source = home.join("storm");
    if !source.exists() || world.rng.chance(20) {
        let bytes: Vec<u8> = (0..200_000u32).map(|i| (i / 7) as u8).collect();
        let outcome = fs::write(&source, bytes);
        world.tried("storm: source", outcome);
    }
    let copies = world.rng.between(20, 300);
    let target = world.some_volume();
    let outcome = (0..copies).try_for_each(|number| {
        let path = target.join(format!("storm copy {number}"));
        let to = File::options().write(true).create(true).truncate(false).open(path)?;
        ioctl::clone_range(&File::open(&source)?, (number % 20) * 4096, 65536, &to, (number % 5) * 65536)
    });
    world.tried(&format!("storm: {copies} copies"), outcome);
    if world.rng.chance(60) {
        world.commit()?;
    }
    let (first, step) = (world.rng.below(5), world.rng.between(1, 4) as usize);
    for number in (first..copies).step_by(step) {
        let path = target.join(format!("storm copy {number}"));
        let _ = if number % 3 == 0 { fs::remove_file(path) } else { fs::write(path, b"no longer shared") };
    }
    world.note(&format!("storm: every {step} from {first} dropped"));
    Ok(())
}

const HOLLOW: &[Act] = &[
    Act::Punch,
    Act::Punch,
    Act::Zero,
    Act::Zero,
    Act::Prealloc,
    Act::Prealloc,
    Act::Truncate,
    Act::Overwrite,
    Act::Direct,
    Act::Append,
    Act::Create,
    Act::NoCow,
];

/// Holes, and space allocated ahead.
pub(super) fn holes(world: &mut World) -> Result<()> {
    let volume = world.some_volume();
    world.churn(&volume, HOLLOW, 30)?;
    if world.rng.chance(10) {
        world.snapshot(&volume, false);
    }
    if world.volumes.len() > 3 {
        world.delete_some_volume();
    }
    world.commit()
}

const PACKING: &[Act] = &[
    Act::Compressed,
    Act::Compressed,
    Act::Defragment,
    Act::Defragment,
    Act::Overwrite,
    Act::Overwrite,
    Act::Append,
    Act::Truncate,
    Act::Clone,
    Act::CloneRange,
];

/// Compression and defragmentation, of files that are shared with snapshots as well.
pub(super) fn compress(world: &mut World) -> Result<()> {
    let volume = world.some_volume();
    world.churn(&volume, PACKING, 25)?;
    if world.rng.chance(20) {
        world.snapshot(&volume, false);
    }
    if world.volumes.len() > 3 {
        world.delete_some_volume();
    }
    if world.rng.chance(15) {
        let how = *world.rng.pick(&["", "-czstd ", "-clzo ", "-czlib "]);
        world.btrfs(&format!("filesystem defragment -r {how}-t 128K {}", volume.display()));
    }
    world.commit()
}

fn groups(world: &mut World) -> Result<()> {
    let volume = world.some_volume();
    let files = world.rng.between(2, 12);
    let pool = std::sync::Arc::clone(&world.pool);
    for number in 0..files {
        let bytes: Vec<&[u8]> =
            std::iter::repeat_n(pool.as_slice(), world.rng.between(2, 12) as usize).collect();
        let outcome = fs::write(volume.join(format!("large {number}")), bytes.concat());
        world.tried(&format!("large {number}"), outcome);
        if number % 4 == 3 {
            world.commit()?;
        }
    }
    world.churn(&volume, SHARING, 10)?;
    world.commit()?;
    for number in 0..files {
        if world.rng.chance(80) {
            let _ = fs::remove_file(volume.join(format!("large {number}")));
        }
    }
    world.commit()?;
    match world.rng.below(5) {
        0 => world.btrfs("balance start -dusage=0 -musage=0 @"),
        1 => world.btrfs("balance start -dusage=70 @"),
        2 => world.btrfs("balance start -dlimit=2 -mlimit=1 @"),
        3 => world.btrfs("balance start -dusage=100 -f -susage=100 @"),
        _ => true,
    };
    if world.rng.chance(50) {
        let root = world.root().to_owned();
        let trimmed = crate::tool::stdout("fstrim", &[&root]).map_err(std::io::Error::other);
        world.tried("fstrim", trimmed);
    }
    world.commit()
}
