//! Random histories: clean as they are, and never clean with one thing changed that changes what is referred to.

use proptest::prelude::*;
use proptest::sample::Index;
use shadow::forest::RootId;
use shadow::{Code, Verdict};

use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };

/// One thing a user does.
#[derive(Debug, Clone)]
enum Step {
    Write { tree: Index, inode: u64, len: u64 },
    Reflink { tree: Index, inode: u64, from: Index },
    Unlink { tree: Index, inode: u64 },
    Snapshot { tree: Index },
    Delete { tree: Index },
    Drop { tree: Index, key: u64, level: u8 },
    Flag { block: Index },
    Reshape { salt: u64, leaf: usize, node: usize },
    Keyed { extent: Index },
}

fn step() -> impl Strategy<Value = Step> {
    let tree = any::<Index>;
    let inode = || 300u64..340;
    prop_oneof![
        6 => (tree(), inode(), 1u64..5).prop_map(|(tree, inode, len)| Step::Write { tree, inode, len: len * 4096 }),
        3 => (tree(), inode(), any::<Index>()).prop_map(|(tree, inode, from)| Step::Reflink { tree, inode, from }),
        3 => (tree(), inode()).prop_map(|(tree, inode)| Step::Unlink { tree, inode }),
        2 => tree().prop_map(|tree| Step::Snapshot { tree }),
        1 => tree().prop_map(|tree| Step::Delete { tree }),
        2 => (tree(), inode(), 1u8..3).prop_map(|(tree, key, level)| Step::Drop { tree, key, level }),
        1 => any::<Index>().prop_map(|block| Step::Flag { block }),
        1 => (any::<u64>(), 3usize..12, 2usize..7)
            .prop_map(|(salt, leaf, node)| Step::Reshape { salt, leaf, node }),
        1 => any::<Index>().prop_map(|extent| Step::Keyed { extent }),
    ]
}

/// Subvolumes that are not being deleted.
fn subvolumes(world: &World) -> Vec<RootId> {
    world.roots.iter().filter(|(_, root)| root.refs > 0).map(|(id, _)| *id).collect()
}

fn apply(world: &mut World, step: &Step, next_tree: &mut u64) {
    let subvolumes = subvolumes(world);
    let pick = |tree: &Index| *tree.get(&subvolumes);
    match step {
        Step::Write { tree, inode, len } => {
            world.write_file(pick(tree), *inode, 0, *len);
        }
        Step::Reflink { tree, inode, from } => {
            let id = pick(tree);
            let items = world.items(id);
            let extents: Vec<_> = items
                .values()
                .filter_map(|data| {
                    let extent = (data.len() == 53).then(|| parser::FileExtent::parse(data).ok())??;
                    extent.extent()
                })
                .collect();
            if !extents.is_empty() {
                let extent = from.get(&extents);
                world.link(id, *inode, 1 << 20, extent.disk_bytenr, extent.disk_num_bytes);
            }
        }
        Step::Unlink { tree, inode } => world.unlink(pick(tree), *inode),
        Step::Snapshot { tree } => {
            *next_tree += 1;
            world.snapshot(pick(tree), *next_tree);
        }
        Step::Delete { tree } => {
            let id = pick(tree);
            if id != TOP {
                world.roots.remove(&id);
            }
        }
        Step::Drop { tree, key, level } => drop_some(world, pick(tree), *key, *level),
        Step::Flag { block } => {
            let shared: Vec<u64> = world
                .committed
                .iter()
                .filter(|(bytenr, extent)| extent.total() > 1 && world.blocks.contains_key(bytenr))
                .map(|(bytenr, _)| *bytenr)
                .collect();
            if !shared.is_empty() {
                world.full.insert(*block.get(&shared));
            }
        }
        Step::Reshape { salt, leaf, node } => {
            (world.shape.salt, world.shape.leaf, world.shape.node) = (*salt, *leaf, *node);
        }
        Step::Keyed { extent } => {
            let extents: Vec<u64> = world.committed.keys().copied().collect();
            world.keyed.insert(*extent.get(&extents));
        }
    }
}

/// Begins the deletion of a subvolume, or takes it further: its cursor never goes back. As the kernel does, only
/// where the path is the subvolume's own.
fn drop_some(world: &mut World, id: RootId, key: u64, level: u8) {
    let dropping = world.roots.iter().find(|(_, root)| root.refs == 0).map(|(id, _)| *id);
    let id = dropping.unwrap_or(id);
    let root = world.roots[&id];
    let cursor = parser::Key::new(key, 0, 0);
    let forward = root.cursor.is_none_or(|(before, _)| before <= cursor);
    let level = root.cursor.map_or(level, |(_, level)| level);
    if !forward {
        return;
    }
    let mut bytenr = root.bytenr;
    loop {
        let Some(block) = world.blocks.get(&bytenr) else { return };
        // Shared, or made before a snapshot: the kernel would give back its pointers first.
        let holders = world.blocks.values().flat_map(|b| b.ptrs()).filter(|ptr| ptr.bytenr == bytenr).count();
        if holders > 1 || world.full.contains(&bytenr) {
            return;
        }
        if block.level <= level {
            break;
        }
        let at = block.ptrs().iter().rposition(|ptr| ptr.key <= cursor).unwrap_or(0);
        bytenr = block.ptrs()[at].bytenr;
    }
    if id != TOP && root.level >= level {
        let root = world.roots.get_mut(&id).unwrap();
        (root.refs, root.cursor) = (0, Some((cursor, level)));
    }
}

fn history() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(step(), 0..5), 1..8)
}

/// A file system that has gone through this history, every commit clean and agreed to by the oracle.
fn play(history: &[Vec<Step>]) -> Result<(Rig, u64), TestCaseError> {
    let mut world = World::new(Config { dup: false, ..Config::default() });
    world.fill(TOP, 300, 30);
    let mut rig = Rig::attach(world);
    let mut next_tree = 400;
    for steps in history {
        steps.iter().for_each(|step| apply(&mut rig.world, step, &mut next_tree));
        let superblock = rig.world.commit();
        prop_assert_eq!(oracle::examine(&rig.world, &superblock), Ok(()));
        let report = rig.verifier.commit(&superblock, &rig.world.image);
        prop_assert_eq!(report.verdict(), Verdict::Clean, "{:#?}", rig::messages(&report));
    }
    Ok((rig, next_tree))
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn every_commit_of_a_random_history_is_clean(history in history()) {
        play(&history)?;
    }

    /// Some bytes of one item, key or pointer of a new block are changed, its checksum mended. Found, if the oracle
    /// finds anything; and whatever comes of it, the next commits are verified without a panic.
    #[test]
    fn no_change_goes_unnoticed(
        history in history(),
        last in prop::collection::vec(step(), 1..5),
        block in any::<Index>(),
        at in any::<Index>(),
        flip in 1u8..,
        more in history(),
    ) {
        let (mut rig, mut next_tree) = play(&history)?;
        last.iter().for_each(|step| apply(&mut rig.world, step, &mut next_tree));
        let superblock = rig.world.commit();
        let generation = rig.world.generation;
        let new: Vec<u64> = rig.world.committed.iter()
            .filter(|(_, extent)| extent.level.is_some() && extent.generation == generation)
            .map(|(bytenr, _)| *bytenr)
            .collect();
        let bytenr = *block.get(&new);
        let place = rig.world.places(bytenr)[0];
        let mut bytes = rig.world.image.bytes(place).unwrap().to_vec();
        let used: Vec<usize> = (101..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        bytes[*at.get(&used)] ^= flip;
        parser::ChecksumType::Crc32c.seal(&mut bytes);
        rig.world.write(bytenr, &bytes);
        let oracle = oracle::examine(&rig.world, &superblock);
        let report = rig.verifier.commit(&superblock, &rig.world.image);
        if let Err(wrong) = oracle {
            prop_assert_eq!(report.verdict(), Verdict::Violations, "unnoticed: {}", wrong);
        } else {
            // What is no reference may be malformed all the same.
            let harmless = [Code::RefExtentGeneration, Code::RefReallocated];
            let malformed = |code: Code| ["tree", "root", "space"].contains(&code.family()) || harmless.contains(&code);
            prop_assert!(report.violations.iter().all(|found| malformed(found.code)),
                "{:#?}", rig::messages(&report));
        }
        for steps in more {
            steps.iter().for_each(|step| apply(&mut rig.world, step, &mut next_tree));
            rig.commit(&Fault::none());
        }
    }
}
