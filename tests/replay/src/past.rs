//! Faults that are there before the commit that shows them: a backref of an extent is wrong on the disk, the program
//! attaches to that, and the commit drops the reference. What the commit writes is right.
//!
//! That is how damage by an earlier kernel, or behind the guest's back, comes to light: the checks of ref-verify for a
//! dropped reference that was never recorded, or whose count is used up.

use std::collections::BTreeMap;

use corrupt::Planted;
use parser::{ExtentItem, Key};

use crate::backend::Writes;
use crate::disk::Memory;
use crate::extents::ExtentTree;
use crate::history::{Change, History};
use crate::plan::Target;
use crate::rng::Rng;
use crate::trial::{Seen, Trial};

/// A kind of fault.
pub struct PastKind {
    /// Its name.
    pub name: &'static str,
    /// The corruptor's kind.
    plants: &'static str,
    /// Only an extent with a single reference.
    single: bool,
    /// The code that must be reported.
    pub expected: &'static str,
}

const fn kind(name: &'static str, plants: &'static str, single: bool, expected: &'static str) -> PastKind {
    PastKind { name, plants, single, expected }
}

/// Every kind.
pub const KINDS: &[PastKind] = &[
    kind("past-data-backref-lost", "inline-data-lost", true, "ref/no-references"),
    kind("past-tree-backref-lost", "inline-tree-lost", true, "ref/no-references"),
    kind("past-data-wrong-owner", "inline-data-wrong-owner", true, "ref/drop-unknown"),
    kind("past-tree-wrong-root", "inline-tree-wrong-root", true, "ref/drop-unknown"),
    kind("past-data-count-minus-1", "inline-data-count-minus-1", false, "ref/drop-exhausted"),
];

/// Up to `wanted` faults of each kind, in different histories as far as there are any.
#[must_use]
pub fn trials(
    kinds: &[&PastKind],
    histories: &[(History, Vec<Target>)],
    wanted: usize,
    seed: u64,
) -> Vec<Trial> {
    if kinds.is_empty() {
        return Vec::new();
    }
    let mut found: Vec<Vec<Trial>> = Vec::new();
    for (index, (history, targets)) in histories.iter().enumerate() {
        let own = in_history(kinds, index, (history, targets), wanted, seed.wrapping_add(index as u64));
        found.push(own);
    }
    let mut chosen = Vec::new();
    for kind in kinds {
        let mut own: Vec<Vec<Trial>> = found
            .iter()
            .map(|trials| trials.iter().filter(|trial| trial.planted.kind == kind.name).cloned().collect())
            .collect();
        // One of each history in turn.
        let before = chosen.len();
        while chosen.len() - before < wanted && own.iter().any(|trials| !trials.is_empty()) {
            let turn: Vec<Trial> = own.iter_mut().filter_map(Vec::pop).collect();
            let left = wanted - (chosen.len() - before);
            chosen.extend(turn.into_iter().take(left));
        }
    }
    chosen
}

fn in_history(
    kinds: &[&PastKind],
    index: usize,
    (history, targets): (&History, &[Target]),
    wanted: usize,
    seed: u64,
) -> Vec<Trial> {
    let mut rng = Rng::new(seed);
    let mut memory = Memory::load(history.base.path());
    let mut places = Vec::new();
    for (number, step) in history.steps.iter().enumerate() {
        let is_target = targets.iter().any(|target| target.step == number);
        let before = is_target.then(|| ExtentTree::read(&memory));
        step.apply(&mut memory);
        let Some(before) = before else { continue };
        let after = ExtentTree::read(&memory);
        let freed = |key: &Key| !after.extents.contains(&key.objectid);
        for kind in kinds {
            let planted = plant(kind, &before, &freed, rng.number());
            places.extend(planted.map(|(planted, past)| (number, planted, past)));
        }
    }
    rng.shuffle(&mut places);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    places.retain(|(_, planted, _)| {
        let count = counts.entry(planted.kind.clone()).or_default();
        *count += 1;
        *count <= wanted
    });
    let trial = |(step, planted, past): (usize, Planted, Vec<Change>)| {
        let writes = Writes::from(&history.steps[step]);
        Trial { history: index, step, planted, past, writes, seen_by: Seen::Online, in_parts: false }
    };
    places.into_iter().map(trial).collect()
}

/// The fault in a leaf of the extent tree of the old state, at an extent that is `freed`, and every copy of the leaf.
fn plant(
    kind: &PastKind,
    old: &ExtentTree,
    freed: &dyn Fn(&Key) -> bool,
    seed: u64,
) -> Option<(Planted, Vec<Change>)> {
    let plants = corrupt::find(kind.plants).expect("a kind of the corruptor");
    let wanted = |key: &Key, data: &[u8]| {
        let refs = ExtentItem::parse(key.item_type, data).map_or(0, |extent| extent.refs());
        freed(key) && (!kind.single || refs == 1)
    };
    let mut order: Vec<_> = old.leaves.iter().collect();
    Rng::new(seed).shuffle(&mut order);
    order.into_iter().find_map(|(bytes, copies)| {
        let mut bytes = bytes.clone();
        let mut planted = corrupt::mutate_wanted(&mut bytes, &plants, &wanted, seed)?;
        (planted.kind, planted.expected) = (kind.name.to_owned(), vec![kind.expected]);
        let change = |offset: &u64| Change { offset: *offset, bytes: bytes.clone() };
        Some((planted, copies.iter().map(change).collect()))
    })
}
