//! The target `shadow`: a file system, and one more commit of it, both made of what the input says.
//!
//! [`run`] does what the program does with a guest's disk: opens it, verifies the commit, takes it back or goes on, and
//! audits what there is. [`mutate`] changes an input where it may matter: a field of an item rather than a checksum.

mod mutate;

use std::hint::black_box;

use btrfs_shadow::check::{self, NoProgress};
use parser::SuperBlock;
use shadow::{Forest, Snapshot, Verifier, attach, classify, live, space};

use crate::memory::bounded;
use crate::world::{Disk, World};

pub use mutate::mutate;

/// What an input may take.
const MEMORY: usize = 256 << 20;

/// The longest input.
pub const MAX_LEN: usize = 1 << 20;

/// Bytes that the shadow may keep: little, so that it has to throw away.
const SHADOW_LIMIT: usize = 64 << 10;

/// What else is done, by bits of an input's flags.
pub(crate) mod also {
    pub const LOG_COMMIT: u32 = 1;
    pub const REVOCABLE: u32 = 1 << 1;
    pub const REVOKE: u32 = 1 << 2;
    pub const AUDIT_OLD: u32 = 1 << 3;
    pub const INODES: u32 = 1 << 4;
    pub const AGAIN: u32 = 1 << 5;
    pub const LIVE: u32 = 1 << 6;
    pub const DATA: u32 = 1 << 7;
}

/// Opens the input's file system and verifies its commit.
pub fn run(input: &[u8]) {
    bounded(MEMORY, || on_one_thread(|| verify(&World::new(Disk::read(input)))));
}

/// Audits share their work out; what an input does must not depend on how.
fn on_one_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    use std::sync::LazyLock;
    static POOL: LazyLock<rayon::ThreadPool> =
        LazyLock::new(|| rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread"));
    POOL.install(work)
}

fn verify(world: &World) {
    let [old, new] = &world.supers;
    let does = |what: u32| world.flags & what != 0;
    let mut verifier = Verifier::new(SHADOW_LIMIT).revocable(does(also::REVOCABLE));
    if let Err(error) = verifier.attach(old, world) {
        black_box(error.to_string());
        // Most of a file system that can't be opened is looked at by nobody but `check`.
        if let Ok(opened) = attach::open(old, world) {
            examine(&opened.snapshot, world);
        }
        return;
    }
    black_box(verifier.survey(world));
    let last = verifier.snapshot().map(|snapshot| snapshot.superblock.clone()).unwrap_or_default();
    black_box(classify(SuperBlock::parse(&last).ok().as_ref(), new));
    if does(also::AUDIT_OLD)
        && let Some(snapshot) = verifier.snapshot()
    {
        let damage = check::audit(snapshot, world, &NoProgress).residuals;
        verifier.know_damage(damage);
    }
    if does(also::LOG_COMMIT) {
        black_box(verifier.log_commit(new, world).verdict());
    } else {
        black_box(verifier.commit(new, world).verdict());
    }
    black_box(verifier.log_blocks(world));
    if does(also::REVOKE) {
        verifier.revoke();
    }
    if does(also::AGAIN) {
        black_box(verifier.commit(new, world).violation_count());
    }
    if let Some(snapshot) = verifier.snapshot() {
        examine(snapshot, world);
    }
}

/// What is done with a whole file system.
fn examine(snapshot: &Snapshot, world: &World) {
    let report = check::audit(snapshot, world, &NoProgress);
    report.violations.iter().for_each(|violation| drop(black_box(violation.to_string())));
    if world.flags & also::INODES != 0 {
        black_box(check::verify_inodes(snapshot, world, &NoProgress));
    }
    let forest = Forest::new(snapshot, world);
    if world.flags & also::LIVE != 0 {
        for chunk in snapshot.chunks.chunks().iter().take(8) {
            let spans = live::in_range(&forest, chunk.logical, chunk.end(), |span| {
                black_box(span);
            });
            black_box(spans).ok();
        }
    }
    if world.flags & also::DATA != 0 {
        data(forest, world);
    }
}

/// Some of the file data that has checksums.
fn data(forest: Forest<'_>, world: &World) {
    let (stripes, _) = space::data::stripes(&forest.snapshot.chunks);
    for stripe in stripes.iter().take(4) {
        let pieces = space::data::pieces(forest, stripe).unwrap_or_default();
        // Any length can be said of the data; that it takes its time is no fault.
        for piece in pieces.iter().filter(|piece| piece.bytes() <= 1 << 20).take(4) {
            black_box(piece.verify(forest, world)).ok();
        }
    }
}
