//! Chooses where faults are planted: in tree blocks that a recorded commit makes reachable.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use corrupt::sets::{self, Around, SetKind};
use corrupt::{Kind, Planted};
use oracle::Volume;
use parser::{Block, ChunkMap, Key, ids};

use crate::disk::Memory;
use crate::extents::ExtentTree;
use crate::history::{Change, History, Step};
use crate::rng::Rng;

/// A tree block that a step makes reachable.
#[derive(Debug, Clone)]
pub struct Newborn {
    /// Whether it is the root of a tree.
    pub is_root: bool,
    /// Logical address.
    pub bytenr: u64,
    /// Where in the step's changes its copies are.
    pub copies: Vec<usize>,
    /// What stood in these places before.
    pub before: Vec<Vec<u8>>,
}

/// What of a step can be broken.
pub struct Target {
    /// Which step of the history.
    pub step: usize,
    /// New blocks.
    pub newborn: Vec<Newborn>,
    /// The chunk map after the step.
    pub map: ChunkMap,
    /// The chunk map before it.
    pub old_map: ChunkMap,
    /// Addresses of all extents before the step.
    pub old_extents: BTreeSet<u64>,
    /// Items of the checksum tree before the step.
    pub old_sums: HashSet<(Key, Vec<u8>)>,
}

/// A fault to be planted in a step.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Which history.
    pub history: usize,
    /// Which of its steps.
    pub step: usize,
    /// What it is, and which codes must be reported.
    pub planted: Planted,
    /// What is written instead: replaces the changes with these indices.
    pub instead: Vec<(usize, Vec<u8>)>,
}

/// Finds, for every step that can be broken, the blocks it makes reachable. A step can be broken if the next commit
/// is known too.
///
/// # Panics
/// When a recorded state is not sound.
#[must_use]
pub fn targets(history: &History) -> Vec<Target> {
    let mut memory = Memory::load(history.base.path());
    let mut targets = Vec::new();
    for (index, step) in history.steps.iter().enumerate() {
        let followed = history.steps.get(index + 1).is_some_and(Step::is_single);
        let is_target = step.is_single() && followed;
        let old_extents = if is_target { ExtentTree::read(&memory).extents } else { BTreeSet::new() };
        let old_map = if is_target { chunk_map(&memory) } else { Ok(ChunkMap::default()) };
        let old_sums = if is_target { sums(&memory) } else { Ok(HashSet::new()) };
        let before: Vec<Vec<u8>> = step
            .blocks
            .iter()
            .map(|change| memory.get(change.offset, change.bytes.len()).unwrap_or_default().to_vec())
            .collect();
        step.apply(&mut memory);
        if is_target {
            let unsound = |error: String| -> ! { panic!("{}, {}: {error}", history.name, step.doing) };
            let (newborn, map) = newborn(&memory, step, &before).unwrap_or_else(|error| unsound(error));
            let old_sums = old_sums.unwrap_or_else(|error| unsound(error));
            let old_map = old_map.unwrap_or_else(|error| unsound(error));
            targets.push(Target { step: index, newborn, map, old_map, old_extents, old_sums });
        }
    }
    targets
}

fn newborn(memory: &Memory, step: &Step, before: &[Vec<u8>]) -> Result<(Vec<Newborn>, ChunkMap), String> {
    let places: BTreeMap<u64, usize> =
        step.blocks.iter().enumerate().map(|(index, change)| (change.offset, index)).collect();
    let mut read = |offset: u64, buffer: &mut [u8]| memory.read_at(offset, buffer);
    let mut volume = Volume::open(&mut read)?;
    let mut newborn = Vec::new();
    for (bytenr, block) in corrupt::live_blocks(&mut volume)? {
        if block.generation != step.to {
            continue;
        }
        let copies: Option<Vec<usize>> =
            volume.copies(bytenr)?.iter().map(|place| places.get(place).copied()).collect();
        let copies = copies.ok_or_else(|| format!("block {bytenr} is new, but not among the writes"))?;
        let before = copies.iter().map(|index| before[*index].clone()).collect();
        newborn.push(Newborn { is_root: block.is_root, bytenr, copies, before });
    }
    Ok((newborn, volume.map().clone()))
}

fn chunk_map(memory: &Memory) -> Result<ChunkMap, String> {
    let mut read = |offset: u64, buffer: &mut [u8]| memory.read_at(offset, buffer);
    Ok(Volume::open(&mut read)?.map().clone())
}

/// All items of the checksum tree.
fn sums(memory: &Memory) -> Result<HashSet<(Key, Vec<u8>)>, String> {
    let mut read = |offset: u64, buffer: &mut [u8]| memory.read_at(offset, buffer);
    let mut volume = Volume::open(&mut read)?;
    let mut sums = HashSet::new();
    let roots = oracle::roots(&mut volume)?;
    for root in roots.iter().filter(|root| root.key.objectid == ids::CSUM_TREE) {
        volume.walk(root.bytenr, root.level, &mut |_, block: &Block<'_>| {
            if let Block::Leaf(leaf) = block {
                sums.extend(leaf.items().map(|(key, data)| (key, data.to_vec())));
            }
        })?;
    }
    Ok(sums)
}

/// Chooses up to `wanted` places for a kind of fault, in different histories and steps as far as there are any.
#[must_use]
pub fn choose(kind: &Kind, histories: &[(History, Vec<Target>)], wanted: usize, seed: u64) -> Vec<Fault> {
    choose_by(&|step, target, seed| plant(kind, step, target, seed), histories, wanted, seed)
}

/// The same for a kind of fault in several blocks.
#[must_use]
pub fn choose_set(
    kind: &SetKind,
    histories: &[(History, Vec<Target>)],
    wanted: usize,
    seed: u64,
) -> Vec<Fault> {
    choose_by(&|step, target, seed| plant_set(kind, step, target, seed), histories, wanted, seed)
}

fn choose_by(plant: Plant<'_>, histories: &[(History, Vec<Target>)], wanted: usize, seed: u64) -> Vec<Fault> {
    let mut rng = Rng::new(seed);
    let mut chosen = Vec::new();
    let mut order: Vec<Vec<usize>> = histories
        .iter()
        .map(|(_, targets)| {
            let mut order: Vec<usize> = (0..targets.len()).collect();
            rng.shuffle(&mut order);
            order
        })
        .collect();
    let first = rng.below(histories.len().max(1));
    // One step of each history in turn.
    while chosen.len() < wanted && order.iter().any(|order| !order.is_empty()) {
        for turn in 0..histories.len() {
            let history = (first + turn) % histories.len();
            let Some(target) = order[history].pop() else { continue };
            if chosen.len() < wanted {
                let (recorded, targets) = &histories[history];
                let target = &targets[target];
                let fault = plant(&recorded.steps[target.step], target, rng.number());
                chosen.extend(fault.map(|(planted, instead)| Fault {
                    history,
                    step: target.step,
                    planted,
                    instead,
                }));
            }
        }
    }
    chosen
}

type Instead = Vec<(usize, Vec<u8>)>;

/// Plants a fault in a step, by a seed.
type Plant<'a> = &'a dyn Fn(&Step, &Target, u64) -> Option<(Planted, Instead)>;

/// Plants a fault of the kind in one of the step's new blocks.
fn plant(kind: &Kind, step: &Step, target: &Target, seed: u64) -> Option<(Planted, Instead)> {
    let mut order: Vec<&Newborn> =
        target.newborn.iter().filter(|block| !(kind.needs_parent && block.is_root)).collect();
    Rng::new(seed).shuffle(&mut order);
    order.into_iter().find_map(|block| {
        let mut bytes = step.blocks.get(*block.copies.first()?)?.bytes.clone();
        let is_old =
            |key: &Key, data: &[u8]| !kind.needs_old_item || target.old_sums.contains(&(*key, data.to_vec()));
        let planted = corrupt::mutate_wanted(&mut bytes, kind, &is_old, seed)?;
        Some((planted, block.copies.iter().map(|index| (*index, bytes.clone())).collect()))
    })
}

/// Plants a fault among all of the step's new blocks.
fn plant_set(kind: &SetKind, step: &Step, target: &Target, seed: u64) -> Option<(Planted, Instead)> {
    let bytes = |block: &Newborn| step.blocks[block.copies[0]].bytes.as_slice();
    let blocks = target.newborn.iter().map(|block| (block.bytenr, bytes(block)));
    let Target { map, old_map, old_extents, .. } = target;
    let around = Around { map, old_map, old_extents };
    let (planted, changed) = sets::mutate_set(blocks, &around, kind, seed)?;
    let mut instead = Instead::new();
    for block in &target.newborn {
        if let Some(bytes) = changed.get(&block.bytenr) {
            instead.extend(block.copies.iter().map(|index| (*index, bytes.clone())));
        }
    }
    Some((planted, instead))
}

impl Fault {
    /// The step's changes with the fault among them.
    #[must_use]
    pub fn blocks(&self, step: &Step) -> Vec<Change> {
        let mut blocks = step.blocks.clone();
        for (index, bytes) in &self.instead {
            blocks[*index].bytes.clone_from(bytes);
        }
        blocks
    }
}
