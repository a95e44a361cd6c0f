//! What either source says has happened, counted.

use std::rc::Rc;

use crate::commit::{ActionCounts, ReferenceCounts};
use crate::delta::extents::ExtentDelta;
use crate::delta::references::ReferenceDelta;
use crate::record::{ExtentRecord, RefKey};

/// By the extent tree.
pub(super) fn actions(extents: &ExtentDelta) -> ActionCounts {
    let mut counts = ActionCounts::default();
    for change in extents.changes.values() {
        let side = |record: &Option<Rc<ExtentRecord>>, sign: i64| {
            let backrefs = record.iter().flat_map(|record| &record.backrefs);
            let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(sign);
            backrefs.map(|backref| (backref.key, signed(backref.count))).collect::<Vec<(RefKey, i64)>>()
        };
        let mut all = side(&change.old, -1);
        all.append(&mut side(&change.new, 1));
        all.sort_by_key(|(key, _)| *key);
        let sums = all.chunk_by(|(one, _), (other, _)| one == other);
        let sums: Vec<i64> =
            sums.map(|of_key| of_key.iter().fold(0i64, |sum, (_, more)| sum.saturating_add(*more))).collect();
        let sum = |sign: i64| {
            let these = sums.iter().filter(|more| more.signum() == sign);
            these.map(|more| more.unsigned_abs()).fold(0, u64::saturating_add)
        };
        let allocated = change.old.is_none() && change.new.is_some();
        counts.alloc += u64::from(allocated);
        counts.add += sum(1).saturating_sub(u64::from(allocated));
        counts.drop += sum(-1);
        counts.free += u64::from(change.old.is_some() && change.new.is_none());
    }
    counts
}

/// By the trees that hold references.
pub(super) fn references(references: &ReferenceDelta) -> ReferenceCounts {
    let mut counts = ReferenceCounts::default();
    for (_, change) in references.changes.values().flatten() {
        if change.net > 0 {
            counts.add += change.net.unsigned_abs();
        } else {
            counts.drop += change.net.unsigned_abs();
        }
    }
    counts
}
