//! The extents that a commit is about: those that either source says have changed, and those that stay and are not the
//! same. Compares no references.

use std::collections::BTreeMap;

use crate::codes::Code;
use crate::delta::extents::{ExtentChange, ExtentDelta, Records};
use crate::delta::references::{ExtentId, NetChange, ReplacedRanges};
use crate::forest::BlockProblem;
use crate::reconcile::Touched;
use crate::record::{ExtentRecord, RefKey};
use crate::violation::Violation;

/// Every extent that either source says has changed, with both records.
pub(super) fn touched<'a>(
    extents: &ExtentDelta,
    mut changes: BTreeMap<ExtentId, Vec<(RefKey, NetChange)>>,
    replaced: &ReplacedRanges,
    old_records: &mut Records<'a>,
    new_records: &mut Records<'a>,
    problems: &mut Vec<BlockProblem>,
) -> Vec<Touched> {
    let mut all: BTreeMap<ExtentId, Touched> = BTreeMap::new();
    for (&bytenr, change) in &extents.changes {
        let id = ExtentId { bytenr, reborn: false };
        if !replaced.contains(bytenr) {
            all.insert(id, Touched::by_record(id, change));
            continue;
        }
        if change.old.is_some() {
            let gone = ExtentChange { old: change.old.clone(), new: None };
            all.insert(id, Touched::by_record(id, &gone));
        }
        if change.new.is_some() {
            let id = ExtentId { bytenr, reborn: true };
            let made = ExtentChange { old: None, new: change.new.clone() };
            all.insert(id, Touched::by_record(id, &made));
        }
    }
    for (&id, keys) in &mut changes {
        let keys = std::mem::take(keys);
        if let Some(touched) = all.get_mut(&id) {
            touched.changes = keys;
            continue;
        }
        let is_replaced = replaced.contains(id.bytenr);
        let mut look_up = |records: &mut Records<'a>| match records.get(id.bytenr) {
            Ok(record) => record,
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        let old = if id.reborn { None } else { look_up(old_records) };
        let new = if is_replaced && !id.reborn { None } else { look_up(new_records) };
        all.insert(id, Touched { id, old, new, changes: keys });
    }
    all.into_values().collect()
}

/// Extents that are in both commits, at the same address, and yet are not the same: freed and allocated again in one
/// transaction, which pins what it frees, or an item that was overwritten. One whose generation no transaction had come to
/// by `last` was wrong before, and is mended.
pub(super) fn unlike_before(
    extents: &ExtentDelta,
    replaced: &ReplacedRanges,
    last: u64,
) -> impl Iterator<Item = Violation> {
    let both = extents.changes.values().filter_map(|change| change.old.as_deref().zip(change.new.as_deref()));
    let is_sound = move |old: &ExtentRecord| old.generation <= last && !replaced.contains(old.bytenr);
    both.filter(move |(old, _)| is_sound(old)).filter_map(|(old, new)| {
        let (bytenr, len) = (new.bytenr, new.len);
        if old.generation != new.generation {
            let (code, what) = if old.metadata() && new.metadata() {
                (Code::RefExtentGeneration, "invalid generation for extent")
            } else {
                (Code::RefReallocated, "re-allocated a block that still has references to it!")
            };
            let message = format!(
                "{what} [{bytenr} {len}]: its item names generation {}, before this commit it was {} (leaf {} slot {})",
                new.generation, old.generation, new.site.block, new.site.slot
            );
            Some(Violation::new(code, bytenr, len, message).with_worth(old.generation, new.generation))
        } else if old.len != new.len && !old.metadata() && !new.metadata() {
            let message = format!(
                "data extent[{bytenr}, {len}] size mismatch: before this commit it was {} (leaf {} slot {})",
                old.len, new.site.block, new.site.slot
            );
            Some(Violation::new(Code::RefExtentLength, bytenr, len, message).with_worth(old.len, len))
        } else {
            None
        }
    })
}
