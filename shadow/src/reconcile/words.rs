//! Puts into words what is wrong with one extent, those of `btrfs check` where it has some: one extent, one report.
//!
//! Knows nothing of how it was found.

use super::{Difference, Finding, Touched};
use crate::codes::Code;
use crate::record::{ExtentRecord, RefKey, Site};
use crate::violation::{Violation, Worth};

impl Finding {
    /// What is reported: the state machine's words where it refused something, else one violation that tells what
    /// kind of difference it is. One extent, one bug, one report.
    #[must_use]
    pub fn into_violation(self) -> Violation {
        let mut violation = match self.refused.first() {
            // An unknown extent and one that still exists elsewhere are told apart by the record below.
            Some(refused) if refused.code != Code::RefNoExtentItem => refused.clone(),
            _ => describe(&self.touched, &self.differences, &self.refused),
        };
        violation.history = self.history;
        violation.sides = Some(self.sides);
        violation
    }
}

/// Each difference, with where it is held and where it is recorded.
pub(super) fn notes(differences: &[Difference]) -> Vec<String> {
    let place = |site: Option<Site>| match site {
        Some(site) if site.block == 0 => ", in a root item".to_owned(),
        Some(site) => format!(", in block {} slot {}", site.block, site.slot),
        None => String::new(),
    };
    let note = |difference: &Difference| {
        let Difference { key, held, recorded, site, record_site } = difference;
        format!(
            "{key}: the trees hold {held}{}; the extent tree records {recorded}{}",
            place(*site),
            place(*record_site)
        )
    };
    differences.iter().map(note).collect()
}

/// Names the kind of difference, in the words of `btrfs check`.
fn describe(touched: &Touched, differences: &[Difference], refused: &[Violation]) -> Violation {
    let bytenr = touched.id.bytenr;
    let held: u64 = differences.iter().map(|d| d.held).fold(0, u64::saturating_add);
    let Some(record) = touched.new.as_deref() else {
        return no_extent_item(touched, differences, refused);
    };
    let len = record.len;
    let kind = if record.metadata() { "tree" } else { "data" };
    if let Some(wrong_kind) = differences.iter().find(|d| d.held > 0 && d.key.metadata != record.metadata()) {
        let really = if record.metadata() { "data" } else { "a tree block" };
        let message = format!(
            "backpointer mismatch on [{bytenr} {len}]: the extent item says {kind}, but {} refers to {really}{}",
            wrong_kind.key,
            held_by(wrong_kind)
        );
        return Violation::new(Code::RefExtentType, bytenr, len, message).with_key(wrong_kind.key);
    }
    if let [one, other] = differences
        && let Some(violation) = wrong_field(touched, record, one, other)
    {
        return violation;
    }
    let recorded_sum = record.backref_sum();
    let missing = differences.iter().find(|d| d.held > d.recorded);
    let stale = differences.iter().find(|d| d.held < d.recorded);
    let nothing_held = held == 0 && differences.iter().map(|d| d.recorded).sum::<u64>() == recorded_sum;
    match (missing, stale) {
        (None, Some(stale)) if nothing_held => {
            let message = format!(
                "ref mismatch on [{bytenr} {len}] extent item {}, found 0: no tree holds a reference to it \
                 (owner ref check failed [{bytenr} {len}]){}",
                record.refs,
                held_by(stale)
            );
            Violation::new(Code::RefStaleExtent, bytenr, len, message)
                .with_worth(0, record.refs)
                .with_key(stale.key)
        }
        (Some(twice), None) if twice.key.metadata && twice.recorded > 0 => {
            let message = format!(
                "tree block [{bytenr} {len}] is referred to {} times by {}, of which one can only be{}",
                twice.held,
                twice.key,
                held_by(twice)
            );
            Violation::new(Code::RefDuplicateTreeRef, bytenr, len, message)
                .with_worth(twice.recorded, twice.held)
                .with_key(twice.key)
        }
        (Some(different), None) | (None, Some(different)) if different.held > 0 && different.recorded > 0 => {
            let message = format!(
                "data extent[{bytenr}, {len}] referencer count mismatch ({}) wanted {} have {}{}",
                different.key,
                different.recorded,
                different.held,
                held_by(different)
            );
            Violation::new(Code::RefBackrefCount, bytenr, len, message)
                .with_worth(different.held, different.recorded)
                .with_key(different.key)
        }
        (Some(missing), _) => {
            let message = format!(
                "ref mismatch on [{bytenr} {len}] extent item {}, found {}: {kind} extent[{bytenr}, {len}] {} has no \
                 backref item in extent tree{}",
                record.refs,
                record.refs.saturating_add(missing.held - missing.recorded),
                missing.key,
                held_by(missing)
            );
            Violation::new(Code::RefMissingBackref, bytenr, len, message)
                .with_worth(missing.held, missing.recorded)
                .with_key(missing.key)
        }
        (None, stale) => {
            let key = stale.map(|stale| stale.key);
            let (held, recorded) = stale.map_or((0, 0), |stale| (stale.held, stale.recorded));
            let what = key.map_or_else(String::new, |key| key.to_string());
            let message = format!(
                "ref mismatch on [{bytenr} {len}] extent item {}, found {}: backref {what} is not referenced back",
                record.refs,
                record.refs.saturating_sub(recorded.saturating_sub(held)),
            );
            let violation =
                Violation::new(Code::RefStaleBackref, bytenr, len, message).with_worth(held, recorded);
            match key {
                Some(key) => violation.with_key(key),
                None => violation,
            }
        }
    }
}

fn no_extent_item(touched: &Touched, differences: &[Difference], refused: &[Violation]) -> Violation {
    let bytenr = touched.id.bytenr;
    let was = touched.old.as_deref();
    let len = was.map_or_else(
        || touched.changes.iter().map(|(_, change)| change.len).max().unwrap_or(0),
        |record| record.len,
    );
    let first = differences.first();
    let key = first.map(|d| d.key).or_else(|| refused.first().and_then(|violation| violation.key));
    let held: u64 = differences.iter().map(|d| d.held).fold(0, u64::saturating_add).max(1);
    let what = key.map_or_else(String::new, |key| {
        format!("{} extent[{bytenr}, {len}] {key}", if key.metadata { "tree" } else { "data" })
    });
    let freed =
        if was.is_some() { "its extent item was removed in this commit" } else { "it has no extent item" };
    let site = first.map_or_else(String::new, held_by);
    let message = format!(
        "ref mismatch on [{bytenr} {len}] extent item 0, found {held}: {what} has no backref item in extent tree: \
         {freed} while the trees refer to it{site}"
    );
    let violation = Violation::new(Code::RefNoExtentItem, bytenr, len, message).with_worth(held, 0);
    match key {
        Some(key) => violation.with_key(key),
        None => violation,
    }
}

fn held_by(difference: &Difference) -> String {
    match (difference.site, difference.record_site) {
        (Some(site), _) if site.block != 0 => format!(" (held by block {} slot {})", site.block, site.slot),
        (None, Some(site)) => format!(" (recorded in leaf {} slot {})", site.block, site.slot),
        _ => String::new(),
    }
}

/// One reference missing and one too many that differ in a single field: that field is wrong.
fn wrong_field(
    touched: &Touched,
    record: &ExtentRecord,
    one: &Difference,
    other: &Difference,
) -> Option<Violation> {
    let (missing, stale) = match (one.held > one.recorded, other.held > other.recorded) {
        (true, false) => (one, other),
        (false, true) => (other, one),
        _ => return None,
    };
    if missing.held - missing.recorded != stale.recorded - stale.held {
        return None;
    }
    let (have, want) = (stale.key, missing.key);
    let (code, field, expected, found) =
        if have.parent != 0 && (RefKey { parent: want.parent, ..have }) == want {
            (Code::RefWrongParent, "parent", want.parent, have.parent)
        } else if have.parent != 0 || want.parent != 0 {
            return None;
        } else if (RefKey { root: want.root, ..have }) == want {
            (Code::RefWrongRoot, "root", want.root, have.root)
        } else if (RefKey { owner: want.owner, ..have }) == want {
            (Code::RefWrongOwner, if want.metadata { "level" } else { "owner" }, want.owner, have.owner)
        } else if (RefKey { offset: want.offset, ..have }) == want {
            (Code::RefWrongOffset, "offset", want.offset, have.offset)
        } else {
            return None;
        };
    let (bytenr, len) = (touched.id.bytenr, record.len);
    let message = format!(
        "backpointer mismatch on [{bytenr} {len}]: the extent tree records a reference of {have}{}, the trees hold \
         one of {want}{}: wrong {field}",
        stale
            .record_site
            .map_or_else(String::new, |site| format!(" (leaf {} slot {})", site.block, site.slot)),
        held_by(&Difference { record_site: None, ..*missing })
    );
    Some(
        Violation::new(code, bytenr, len, message)
            .with_worth(Worth::Number(expected), Worth::Number(found))
            .with_key(want),
    )
}
