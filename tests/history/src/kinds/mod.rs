//! The kinds of histories.
//!
//! Each is a set-up and a step that is repeated until enough commits were seen. All choices come from the history's
//! random numbers; what the kernel makes of them depends on its threads as well.

mod balance;
mod data;
mod format;
mod log;
mod quotas;
mod snapshots;
mod tools;

use anyhow::Result;

use crate::fs::files::{self, Act};
use crate::rng::Rng;
use crate::world::World;

/// A kind of history.
pub struct Kind {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Chooses arguments of mkfs.btrfs.
    pub mkfs: fn(&mut Rng) -> String,
    /// Chooses mount options.
    pub mount: fn(&mut Rng) -> String,
    /// Before the first step.
    pub setup: fn(&mut World) -> Result<()>,
    /// Repeated.
    pub step: fn(&mut World) -> Result<()>,
    /// Whether unflushed writes must be remembered.
    pub cuts_power: bool,
}

/// Every kind there is.
pub const ALL: &[Kind] = &[
    data::REFLINK,
    data::HOLES,
    data::COMPRESS,
    data::GROUPS,
    snapshots::SNAPSHOTS,
    snapshots::SEND,
    snapshots::WIDE,
    balance::BALANCE,
    balance::CONVERT,
    balance::RESIZE,
    quotas::QUOTA,
    quotas::SIMPLE,
    log::FSYNC,
    log::POWERCUT,
    format::MKFS,
    format::MIXED,
    format::CACHE,
    format::OPTIONS,
    tools::TOOLS,
    tools::EXT4,
    EVERYTHING,
];

/// The kind of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Kind> {
    ALL.iter().find(|kind| kind.name == name)
}

/// Any format that the tools here can make.
pub(crate) fn any_format(rng: &mut Rng) -> String {
    let nodesize = *rng.pick(&[4096, 4096, 8192, 16384, 16384, 16384, 32768, 65536]);
    let csum = *rng.pick(&["crc32c", "crc32c", "xxhash", "sha256", "blake2"]);
    let metadata = *rng.pick(&["dup", "single"]);
    let data = *rng.pick(&["single", "single", "single", "dup"]);
    let mut options = format!("-n {nodesize} --csum {csum} -m {metadata} -d {data}");
    let without: Vec<&str> =
        ["^no-holes", "^skinny-metadata", "^extref"].into_iter().filter(|_| rng.chance(25)).collect();
    if !without.is_empty() {
        options += &format!(" -O {}", without.join(","));
    }
    options
}

/// A format whose trees have many levels.
pub(crate) fn deep_format(rng: &mut Rng) -> String {
    let metadata = *rng.pick(&["dup", "single"]);
    let skinny = if rng.chance(20) { " -O ^skinny-metadata" } else { "" };
    format!("-n 4096 -m {metadata}{skinny}")
}

/// Ordinary mount options. Without flushoncommit: with it, cloning a file that is stored inline and a commit wait for each
/// other for ever where both happen at once (seen in 6.12).
pub(crate) fn any_options(rng: &mut Rng) -> String {
    let more =
        *rng.pick(&["", "", ",compress=zstd:1", ",compress-force=lzo", ",discard=async", ",max_inline=0"]);
    let also = *rng.pick(&["", "", "", ",autodefrag", ",commit=1"]);
    format!("noatime{more}{also}")
}

pub(crate) fn nothing(_: &mut World) -> Result<()> {
    Ok(())
}

/// One subvolume with some files in it.
pub(crate) fn one_volume(world: &mut World) -> Result<()> {
    if let Some(volume) = world.create_volume() {
        world.churn(&volume, files::ALL, 60)?;
    }
    world.commit()
}

/// A bit of everything, in any order.
const EVERYTHING: Kind = Kind {
    name: "everything",
    about: "steps of all kinds on one file system",
    mkfs: any_format,
    mount: any_options,
    setup: one_volume,
    step: |world| {
        const STEPS: &[fn(&mut World) -> Result<()>] = &[
            data::share,
            data::holes,
            data::compress,
            snapshots::grow_or_shrink,
            snapshots::send,
            balance::filtered,
            balance::interrupted,
            balance::resize,
            quotas::toggle,
            log::storm,
            World::remount,
        ];
        let volume = world.some_volume();
        world.churn(&volume, files::ALL, 20)?;
        let step = *world.rng.pick(STEPS);
        step(world)?;
        world.commit()
    },
    cuts_power: false,
};

/// Work in the background of other things: no fsync, which would wait for commits.
pub(crate) const CALM: &[Act] = &[
    Act::Create,
    Act::Inline,
    Act::Inline,
    Act::Overwrite,
    Act::Append,
    Act::Truncate,
    Act::Punch,
    Act::Clone,
    Act::CloneRange,
    Act::Rename,
    Act::Unlink,
    Act::Xattr,
    Act::Directory,
];
