//! Histories about relocation: balance of every kind, interrupted and resumed, and devices that shrink.

use std::time::Duration;

use anyhow::Result;

use super::{CALM, Kind, any_format, any_options, one_volume};
use crate::fs::files;
use crate::world::World;

/// Commits while something else goes on.
const OFTEN: Option<Duration> = Some(Duration::from_millis(20));

/// Balance.
pub(super) const BALANCE: Kind = Kind {
    name: "balance",
    about: "balance with filters, cancelled, paused over an unmount and resumed, under writes",
    mkfs: any_format,
    mount: any_options,
    setup: shared_volumes,
    step: |world| if world.rng.chance(50) { filtered(world) } else { interrupted(world) },
    cuts_power: false,
};

/// Profiles.
pub(super) const CONVERT: Kind = Kind {
    name: "convert",
    about: "balance that converts between single and dup, data, metadata and system",
    mkfs: any_format,
    mount: any_options,
    setup: shared_volumes,
    step: convert,
    cuts_power: false,
};

/// Device sizes.
pub(super) const RESIZE: Kind = Kind {
    name: "resize",
    about: "the device made smaller and larger under writes",
    mkfs: any_format,
    mount: any_options,
    setup: shared_volumes,
    step: resize,
    cuts_power: false,
};

/// Relocation is about blocks that are shared: a few subvolumes and snapshots of them.
fn shared_volumes(world: &mut World) -> Result<()> {
    one_volume(world)?;
    let Some(first) = world.volumes.first().cloned() else { return Ok(()) };
    let outcome = files::many_small(&first.join("small"), 600);
    world.tried("many small files", outcome);
    world.commit()?;
    for _ in 0..4 {
        world.snapshot(&first, false);
        world.churn(&first, CALM, 15)?;
    }
    world.commit()
}

/// Snapshots come and go between balances.
fn stir(world: &mut World) -> Result<()> {
    let volume = world.some_volume();
    world.churn(&volume, CALM, 15)?;
    if world.volumes.len() < 8 && world.rng.chance(60) {
        world.snapshot(&volume, false);
    }
    if world.volumes.len() > 5 && world.rng.chance(50) {
        world.delete_some_volume();
    }
    Ok(())
}

/// A balance with some filter, while two subvolumes are written to.
pub(super) fn filtered(world: &mut World) -> Result<()> {
    stir(world)?;
    let which = *world.rng.pick(&[
        "-d",
        "-m",
        "-d -m",
        "-f -s",
        "-dusage=60",
        "-musage=80",
        "-dlimit=1",
        "-mlimit=1 -dlimit=1",
        "-f -slimit=1 -mlimit=1",
        "-dvrange=0..200000000",
        "-mdrange=0..300000000",
        "--full-balance",
    ]);
    let dirs = [world.some_volume(), world.some_volume()];
    let backdrop = world.backdrop(&dirs, CALM, OFTEN);
    world.btrfs(&format!("balance start {which} @"));
    if world.rng.chance(30) {
        let volume = world.some_volume();
        world.snapshot(&volume, false);
    }
    drop(backdrop);
    world.commit()
}

/// A balance that is cancelled, or paused and taken up again by the next mount or by hand.
pub(super) fn interrupted(world: &mut World) -> Result<()> {
    stir(world)?;
    let volume = world.some_volume();
    let backdrop = world.backdrop(std::slice::from_ref(&volume), CALM, OFTEN);
    let mut balance = world.start_btrfs("balance start -d -m @")?;
    world.wait(300);
    if world.rng.chance(40) {
        world.snapshot(&volume, false);
    }
    let outcome = match world.rng.below(3) {
        0 => {
            world.btrfs("balance cancel @");
            drop(backdrop);
            world.commit()
        }
        1 => {
            world.btrfs("balance pause @");
            drop(backdrop);
            // Mounting resumes it.
            let _ = balance.wait();
            world.remount().and_then(|()| wait_for_balance(world))
        }
        _ => {
            world.btrfs("balance pause @");
            let _ = balance.wait();
            drop(backdrop);
            let options = std::mem::take(&mut world.options);
            world.options = format!("{options},skip_balance");
            let outcome = world.remount();
            world.options = options;
            outcome.map(|()| {
                world.btrfs("balance resume @");
            })
        }
    };
    let _ = balance.wait();
    outcome?;
    stir(world)?;
    world.commit()
}

/// A resumed balance runs in the kernel's own thread.
fn wait_for_balance(world: &mut World) -> Result<()> {
    let volume = world.some_volume();
    let backdrop = world.backdrop(std::slice::from_ref(&volume), CALM, OFTEN);
    world.wait(500);
    if world.rng.chance(30) {
        world.btrfs("balance cancel @");
    }
    // Status says 0 when there is no balance.
    for _ in 0..300 {
        if world.btrfs("balance status @") {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(backdrop);
    Ok(())
}

fn convert(world: &mut World) -> Result<()> {
    stir(world)?;
    let which = *world.rng.pick(&[
        "-mconvert=single -f",
        "-mconvert=dup",
        "-sconvert=single -f",
        "-f -sconvert=dup",
        "-dconvert=dup",
        "-dconvert=single",
        "-dconvert=dup,soft -mconvert=dup,soft",
        "-dconvert=single,soft -f -mconvert=single,soft",
    ]);
    let volume = world.some_volume();
    let backdrop = world.backdrop(std::slice::from_ref(&volume), CALM, OFTEN);
    world.btrfs(&format!("balance start {which} @"));
    drop(backdrop);
    world.commit()
}

/// Smaller, and at some point as large as it gets again.
pub(super) fn resize(world: &mut World) -> Result<()> {
    stir(world)?;
    let size = world.size();
    let percent = world.rng.between(40, 95);
    let volume = world.some_volume();
    let backdrop = world.backdrop(std::slice::from_ref(&volume), CALM, OFTEN);
    world.btrfs(&format!("filesystem resize {} @", size / 100 * percent / 4096 * 4096));
    drop(backdrop);
    world.commit()?;
    let volume = world.some_volume();
    world.churn(&volume, CALM, 15)?;
    let larger = *world.rng.pick(&["max", "+100M", "+10M"]);
    world.btrfs(&format!("filesystem resize {larger} @"));
    world.commit()
}
