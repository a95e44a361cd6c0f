//! Drives ref-verify's state machine through what the trees say has happened to one extent.
//!
//! Knows nothing of what the extent tree should say afterwards.

use super::Touched;
use crate::codes::Code;
use crate::delta::references::NetChange;
use crate::record::RefKey;
use crate::refverify::{Action, ActionKind, BlockEntry, Shadow};
use crate::violation::Violation;

/// What is refused is held, or gone, all the same: the entry follows the trees.
pub(super) fn drive(
    shadow: &mut Shadow,
    touched: &Touched,
    known: &[(RefKey, i64)],
    generation: u64,
) -> Vec<Violation> {
    let mut refused = Vec::new();
    let changes = without_repairs(shadow, touched, known);
    // The allocator's own word is not seen from outside: an extent that both sides say is new was allocated.
    let is_held = shadow.entry(touched.id.bytenr).is_some_and(|entry| entry.num_refs > 0);
    let mut is_new = !is_held
        && match (&touched.old, &touched.new) {
            (None, Some(_)) => true,
            // In the place of a record that nothing referred to.
            (Some(old), Some(new)) => (old.generation, old.level) != (new.generation, new.level),
            (_, None) => false,
        };
    let len_of = |change: &NetChange| touched.new.as_ref().map_or(change.len, |record| record.len);
    let adds = changes.iter().filter(|(_, change)| change.net > 0);
    let drops = changes.iter().filter(|(_, change)| change.net < 0);
    for (key, change) in adds {
        // Data that is recorded as a tree block, or the other way round, is one finding, by the comparison; no rule of the
        // state machine holds for its references.
        let is_other_kind = |entry: &BlockEntry| entry.num_refs > 0 && entry.metadata != key.metadata;
        if shadow.entry(touched.id.bytenr).is_some_and(is_other_kind) {
            shadow.adjust(touched.id.bytenr, &[(*key, change.net)]);
            continue;
        }
        let kind = if std::mem::take(&mut is_new) { ActionKind::Alloc } else { ActionKind::Add };
        let action = Action {
            kind,
            bytenr: touched.id.bytenr,
            len: len_of(change),
            key: *key,
            count: change.net.unsigned_abs(),
            generation,
            site: change.added.unwrap_or_default(),
        };
        if let Err(violation) = shadow.modify(&action) {
            refused.push(*violation);
            shadow.adjust(touched.id.bytenr, &[(*key, change.net)]);
        }
    }
    for (key, change) in drops {
        let action = Action {
            kind: ActionKind::Drop,
            bytenr: touched.id.bytenr,
            len: len_of(change),
            key: *key,
            count: change.net.unsigned_abs(),
            generation,
            site: change.dropped.unwrap_or_default(),
        };
        if let Err(violation) = shadow.modify(&action) {
            refused.push(*violation);
            shadow.adjust(touched.id.bytenr, &[(*key, change.net)]);
        }
    }
    refused
}

/// The changes without those references that were known to be lost, and are back: these are added at once, as no rule
/// of the state machine holds for them.
fn without_repairs(
    shadow: &mut Shadow,
    touched: &Touched,
    known: &[(RefKey, i64)],
) -> Vec<(RefKey, NetChange)> {
    let mut changes = touched.changes.clone();
    for (key, change) in &mut changes {
        let Some((_, more)) = known.iter().find(|(known, _)| known == key) else { continue };
        if *more < 0 && change.net > 0 {
            let repaired = change.net.min(more.saturating_neg());
            shadow.adjust(touched.id.bytenr, &[(*key, repaired)]);
            change.net -= repaired;
        }
    }
    changes
}

/// A file extent must name the length that the extent item has.
pub(super) fn wrong_length(touched: &Touched) -> Option<Violation> {
    let record = touched.new.as_ref().filter(|record| !record.metadata())?;
    let wrong = |change: &NetChange| {
        let lens = [Some(change.len), change.other_len];
        lens.into_iter().flatten().find(|len| change.added.is_some() && *len != record.len)
    };
    let mut added = touched.changes.iter().filter_map(|(key, change)| Some((key, change, wrong(change)?)));
    let (key, change, len) =
        added.find(|(key, change, _)| !key.metadata && (change.net > 0 || change.len_differs))?;
    let site = change.added.unwrap_or_default();
    let message = format!(
        "data extent[{}, {}] size mismatch, file extent item has {}, {key} (held by block {} slot {})",
        record.bytenr, record.len, len, site.block, site.slot
    );
    let violation = Violation::new(Code::RefExtentLength, record.bytenr, record.len, message);
    Some(violation.with_worth(record.len, len).with_key(*key))
}
