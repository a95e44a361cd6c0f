//! Faults of the writes themselves: blocks lost, stale, torn, misdirected, and super blocks that point elsewhere.

use corrupt::Planted;
use parser::{Header, SuperBlock, layout};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::backend::Writes;
use crate::history::{History, Step};
use crate::plan::{Newborn, Target};
use crate::rng::Rng;
use crate::trial::{Seen, Trial};

const TREE: &[&str] = &["tree/"];

/// A step, what it makes reachable, and what the step before made reachable.
struct Scene<'a> {
    step: &'a Step,
    newborn: &'a [Newborn],
    earlier: Option<(&'a Step, &'a [Newborn])>,
}

/// Breaks the writes of a step at one of its new blocks; says what it did.
type Break = fn(&Scene<'_>, &Newborn, &mut Writes) -> Option<String>;

/// A kind of write fault.
pub struct WriteKind {
    /// Its name.
    pub name: &'static str,
    /// The codes (or families, ending in a slash) of which one must be reported.
    pub expected: &'static [&'static str],
    breaks: Break,
}

const fn kind(name: &'static str, expected: &'static [&'static str], breaks: Break) -> WriteKind {
    WriteKind { name, expected, breaks }
}

/// Every kind of write fault.
pub const KINDS: &[WriteKind] = &[
    kind("write-lost", TREE, lost),
    kind("write-lost-first-copy", TREE, |scene, block, writes| one_copy_lost(scene, block, writes, 0)),
    kind("write-lost-second-copy", TREE, |scene, block, writes| one_copy_lost(scene, block, writes, 1)),
    kind("write-all-lost", TREE, all_lost),
    kind("write-previous-version", TREE, previous_version),
    kind("write-torn-end-missing", TREE, |_, block, writes| torn(block, writes, true)),
    kind("write-torn-begin-missing", TREE, |_, block, writes| torn(block, writes, false)),
    kind("write-swapped", TREE, swapped),
    kind("write-misdirected", TREE, |scene, block, writes| misdirected(scene, block, writes, true)),
    kind("write-also-elsewhere", TREE, |scene, block, writes| misdirected(scene, block, writes, false)),
    kind("write-zeros", TREE, |_, block, writes| bytes(block, writes, "zeros", |bytes| bytes.fill(0))),
    kind("write-bit-flip", &["tree/checksum"], |_, block, writes| {
        bytes(block, writes, "one bit", |bytes| bytes[1000] ^= 4)
    }),
    kind("write-sector-late", TREE, |_, block, writes| {
        bytes(block, writes, "shifted by 512 bytes", |bytes| bytes.rotate_right(512))
    }),
    kind("write-foreign", &["tree/fsid"], foreign),
    kind("super-root-beside", TREE, |_, _, writes| {
        superblock(writes, |sb| sb.root = (sb.root.get() + u64::from(sb.nodesize.get())).into())
    }),
    kind("super-root-unmapped", &["tree/unmapped"], |_, _, writes| {
        superblock(writes, |sb| sb.root = (1 << 50).into())
    }),
    kind("super-root-level", &["tree/level"], |_, _, writes| superblock(writes, |sb| sb.root_level += 1)),
    kind("super-root-of-last-commit", TREE, old_root),
    kind("super-root-is-chunk-root", TREE, |_, _, writes| {
        superblock(writes, |sb| {
            sb.root = sb.chunk_root;
            sb.root_level = sb.chunk_root_level;
        })
    }),
    kind("super-chunk-root-beside", TREE, |_, _, writes| {
        superblock(writes, |sb| {
            sb.chunk_root = (sb.chunk_root.get() + u64::from(sb.nodesize.get())).into();
        })
    }),
    kind("super-chunk-root-generation", &["tree/generation"], |_, _, writes| {
        superblock(writes, |sb| sb.chunk_root_generation = (sb.chunk_root_generation.get() + 1).into())
    }),
    kind("super-bytes-used-plus-1-sector", &["space/bytes-used"], |_, _, writes| {
        superblock(writes, |sb| sb.bytes_used = (sb.bytes_used.get() + 4096).into())
    }),
    kind("super-bytes-used-0", &["space/bytes-used"], |_, _, writes| {
        superblock(writes, |sb| sb.bytes_used = 0.into())
    }),
    kind("super-total-bytes-minus-1-sector", &["space/total-bytes"], |_, _, writes| {
        superblock(writes, |sb| sb.total_bytes = (sb.total_bytes.get() - 4096).into())
    }),
    kind("super-num-devices-plus-1", &["space/num-devices"], |_, _, writes| {
        superblock(writes, |sb| sb.num_devices = (sb.num_devices.get() + 1).into())
    }),
    kind("super-system-chunk-shorter", &["space/system-chunk-array"], |_, _, writes| {
        superblock(writes, |sb| {
            // The first chunk's length stands behind its key.
            let at = size_of::<layout::DiskKey>();
            let length =
                sb.sys_chunk_array.get_mut(at..).and_then(|chunk| layout::Chunk::mut_from_prefix(chunk).ok());
            if let Some((chunk, _)) = length {
                chunk.length = (chunk.length.get() - 65536).into();
            }
        })
    }),
];

/// Chooses up to `wanted` places for a kind, in different histories as far as there are any.
#[must_use]
pub fn choose(
    kind: &WriteKind,
    histories: &[(History, Vec<Target>)],
    wanted: usize,
    seed: u64,
) -> Vec<Trial> {
    let mut rng = Rng::new(seed);
    let mut places: Vec<(usize, usize)> = Vec::new();
    for (history, (_, targets)) in histories.iter().enumerate() {
        let mut own: Vec<(usize, usize)> = (0..targets.len()).map(|target| (history, target)).collect();
        rng.shuffle(&mut own);
        places.extend(own.into_iter().take(wanted.max(4)));
    }
    rng.shuffle(&mut places);
    let trial = |(history, target): (usize, usize)| {
        let (recorded, targets) = &histories[history];
        let before = target.checked_sub(1).map(|before| &targets[before]);
        let target = &targets[target];
        let scene = Scene {
            step: &recorded.steps[target.step],
            newborn: &target.newborn,
            earlier: before.map(|before| (&recorded.steps[before.step], before.newborn.as_slice())),
        };
        let (planted, writes) = plant(kind, &scene, &mut rng)?;
        // `check` is content with one good copy.
        let seen_by = match kind.name {
            "write-lost-second-copy" => Seen::Online,
            // Kernels before 5.19 change it in a transaction of its own.
            "super-num-devices-plus-1" => Seen::Offline,
            _ => Seen::Anywhere,
        };
        Some(Trial {
            history,
            step: target.step,
            planted,
            past: Vec::new(),
            writes,
            seen_by,
            in_parts: false,
        })
    };
    places.into_iter().filter_map(trial).take(wanted).collect()
}

fn plant(kind: &WriteKind, scene: &Scene<'_>, rng: &mut Rng) -> Option<(Planted, Writes)> {
    let mut order: Vec<&Newborn> = scene.newborn.iter().collect();
    rng.shuffle(&mut order);
    order.into_iter().find_map(|block| {
        let mut writes = Writes::from(scene.step);
        let change = (kind.breaks)(scene, block, &mut writes)?;
        // What is lost is marked by having no bytes.
        writes.blocks.retain(|change| !change.bytes.is_empty());
        let (name, expected) = (kind.name.to_owned(), kind.expected.to_vec());
        Some((Planted { kind: name, block: block.bytenr, change, expected }, writes))
    })
}

fn lost(_: &Scene<'_>, block: &Newborn, writes: &mut Writes) -> Option<String> {
    block.copies.iter().for_each(|index| writes.blocks[*index].bytes.clear());
    Some(format!("block {}: never written", block.bytenr))
}

fn one_copy_lost(_: &Scene<'_>, block: &Newborn, writes: &mut Writes, copy: usize) -> Option<String> {
    let index = *block.copies.get(copy).filter(|_| block.copies.len() > 1)?;
    writes.blocks[index].bytes.clear();
    Some(format!("block {}: copy {copy} never written", block.bytenr))
}

fn all_lost(_: &Scene<'_>, _: &Newborn, writes: &mut Writes) -> Option<String> {
    writes.blocks.clear();
    Some("nothing but the super block was written".to_owned())
}

/// The same node of the same tree as the commit before wrote it.
fn previous_version(scene: &Scene<'_>, block: &Newborn, writes: &mut Writes) -> Option<String> {
    let identity = |bytes: &[u8]| {
        let view = parser::Block::parse(bytes).ok()?;
        let header = view.header();
        Some((header.owner(), header.level(), view.first_key()))
    };
    let wanted = identity(&scene.step.blocks[block.copies[0]].bytes)?;
    let (step, newborn) = scene.earlier?;
    let contents = newborn.iter().map(|block| &step.blocks[block.copies[0]].bytes);
    let old = contents.into_iter().find(|bytes| identity(bytes) == Some(wanted))?;
    block.copies.iter().for_each(|index| writes.blocks[*index].bytes.clone_from(old));
    Some(format!("block {}: written as it was in the commit before", block.bytenr))
}

fn torn(block: &Newborn, writes: &mut Writes, begin: bool) -> Option<String> {
    for (index, before) in block.copies.iter().zip(&block.before) {
        let bytes = &mut writes.blocks[*index].bytes;
        let half = bytes.len() / 2;
        let stale = if begin { half..bytes.len() } else { 0..half };
        if bytes[stale.clone()] == before[stale.clone()] {
            return None;
        }
        bytes[stale.clone()].copy_from_slice(&before[stale]);
    }
    Some(format!("block {}: {} half written", block.bytenr, if begin { "first" } else { "second" }))
}

/// Another new block with as many copies.
fn other<'a>(scene: &Scene<'a>, block: &Newborn) -> Option<&'a Newborn> {
    scene
        .newborn
        .iter()
        .find(|other| other.bytenr != block.bytenr && other.copies.len() == block.copies.len())
}

fn swapped(scene: &Scene<'_>, block: &Newborn, writes: &mut Writes) -> Option<String> {
    let other = other(scene, block)?;
    for (one, two) in block.copies.iter().zip(&other.copies) {
        let bytes = std::mem::take(&mut writes.blocks[*one].bytes);
        writes.blocks[*one].bytes = std::mem::replace(&mut writes.blocks[*two].bytes, bytes);
    }
    Some(format!("blocks {} and {} written in each other's place", block.bytenr, other.bytenr))
}

/// A block is written in another's place, instead of or as well as in its own.
fn misdirected(scene: &Scene<'_>, block: &Newborn, writes: &mut Writes, instead: bool) -> Option<String> {
    let other = other(scene, block)?;
    for (own, foreign) in block.copies.iter().zip(&other.copies) {
        let bytes = writes.blocks[*own].bytes.clone();
        writes.blocks[*foreign].bytes = bytes;
        if instead {
            writes.blocks[*own].bytes.clear();
        }
    }
    Some(format!("block {} written in the place of {}", block.bytenr, other.bytenr))
}

fn bytes(block: &Newborn, writes: &mut Writes, what: &str, edit: impl Fn(&mut Vec<u8>)) -> Option<String> {
    block.copies.iter().for_each(|index| edit(&mut writes.blocks[*index].bytes));
    Some(format!("block {}: {what}", block.bytenr))
}

/// A sound block of another file system.
fn foreign(scene: &Scene<'_>, block: &Newborn, writes: &mut Writes) -> Option<String> {
    let csum = SuperBlock::parse(&scene.step.supers[0].bytes).ok()?.csum().ok()?;
    for index in &block.copies {
        let bytes = &mut writes.blocks[*index].bytes;
        let (mut header, _) = layout::Header::read_from_prefix(bytes).ok()?;
        header.fsid[3] ^= 0x5a;
        header.write_to_prefix(bytes).ok()?;
        csum.seal(bytes);
    }
    Some(format!("block {}: the UUID of another file system", block.bytenr))
}

/// Changes the super block and its copies, as a kernel does that has it wrong.
fn superblock(writes: &mut Writes, edit: impl Fn(&mut layout::SuperBlock)) -> Option<String> {
    for change in &mut writes.supers {
        let bytes = &mut change.bytes;
        let csum = SuperBlock::parse(bytes).ok()?.csum().ok()?;
        let (mut view, _) = layout::SuperBlock::read_from_prefix(bytes).ok()?;
        edit(&mut view);
        view.write_to_prefix(bytes).ok()?;
        csum.seal(bytes);
    }
    Some("a field of the super block was changed".to_owned())
}

/// The super block still points to the root tree of the commit before.
fn old_root(scene: &Scene<'_>, _: &Newborn, writes: &mut Writes) -> Option<String> {
    let (step, newborn) = scene.earlier.filter(|(step, _)| step.to == scene.step.from)?;
    let root = newborn.iter().find_map(|block| {
        let bytes = &step.blocks[block.copies[0]].bytes;
        let header = Header::parse(bytes).ok()?;
        (block.is_root && header.owner() == parser::ids::ROOT_TREE).then(|| (block.bytenr, header.level()))
    })?;
    superblock(writes, |sb| (sb.root, sb.root_level) = (root.0.into(), root.1))
}
