//! Puts the two sources against each other, extent by extent: the references drive ref-verify's state machine, and
//! what comes out must be what the new extent tree records.

use std::rc::Rc;

use crate::codes::Code;
use crate::delta::extents::ExtentChange;
use crate::delta::references::{ExtentId, NetChange, Residuals};
use crate::record::{ExtentRecord, Recorded, RefKey, Site};
use crate::refverify::{Action, ActionKind, BlockEntry, Shadow};
use crate::violation::{Sides, Violation, Worth};

/// One extent's part in a commit.
#[derive(Debug, Clone)]
pub struct Touched {
    /// Which extent.
    pub id: ExtentId,
    /// What the old extent tree records about it.
    pub old: Option<Rc<ExtentRecord>>,
    /// What the new one records.
    pub new: Option<Rc<ExtentRecord>>,
    /// By how much its references changed.
    pub changes: Vec<(RefKey, NetChange)>,
}

impl Touched {
    /// An extent that only the extent tree says has changed.
    #[must_use]
    pub fn by_record(id: ExtentId, change: &ExtentChange) -> Self {
        Touched { id, old: change.old.clone(), new: change.new.clone(), changes: Vec::new() }
    }
}

/// A reference whose count in the shadow and in the extent tree differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Which reference.
    pub key: RefKey,
    /// How many the trees hold.
    pub held: u64,
    /// How many are recorded.
    pub recorded: u64,
    /// Who holds one, or held it last, where this commit changed it.
    pub site: Option<Site>,
    /// Where the backref is recorded.
    pub record_site: Option<Site>,
}

/// What is wrong with one extent.
#[derive(Debug)]
pub struct Finding {
    /// The extent.
    pub touched: Touched,
    /// What the state machine refused.
    pub refused: Vec<Violation>,
    /// What differs afterwards.
    pub differences: Vec<Difference>,
    /// Both sides, for people.
    pub sides: Box<Sides>,
    /// The extent's history.
    pub history: Vec<crate::refverify::Step>,
}

/// Drives the shadow through one extent's changes and compares it with the new record. Leaves the shadow at what
/// the extent tree records, and `residuals` at what is known to differ.
pub fn reconcile(
    shadow: &mut Shadow,
    residuals: &mut Residuals,
    touched: Touched,
    generation: u64,
) -> Option<Finding> {
    let bytenr = touched.id.bytenr;
    shadow.load(bytenr, touched.old.as_deref());
    let known = if touched.id.reborn { Vec::new() } else { residuals.remove(&bytenr).unwrap_or_default() };
    shadow.adjust(bytenr, &known);
    let mut refused = drive(shadow, &touched, &known, generation);
    refused.extend(wrong_length(&touched));
    let differences = differences(shadow.entry(bytenr), &touched);
    // That the extent is recorded as something else than it is has been said, however many references it gets.
    let record = touched.new.as_deref();
    let differs = |key: &RefKey| record.is_some_and(|record| record.metadata() != key.metadata);
    let kind_is_known = known.iter().any(|(key, more)| *more > 0 && differs(key));
    let is_other_kind = |key: &RefKey| kind_is_known && differs(key);
    let news: Vec<Difference> = differences
        .iter()
        .filter(|found| !is_known(found, &known) && !is_other_kind(&found.key))
        .copied()
        .collect();
    let residual = remaining(&touched, &known);
    if !residual.is_empty() {
        residuals.insert(bytenr, residual);
    }
    let finding = if refused.is_empty() && news.is_empty() {
        None
    } else {
        let entry = shadow.entry(bytenr).cloned();
        let history = entry.as_ref().map_or_else(Vec::new, |entry| entry.history().copied().collect());
        let sides = sides(entry, touched.new.as_deref(), &news);
        Some(Finding { touched: touched.clone(), refused, differences: news, sides, history })
    };
    shadow.load(bytenr, touched.new.as_deref());
    shadow.settle(bytenr);
    finding
}

/// Compares everything the trees hold of one extent (`touched.changes`, counted from nothing) with its record.
#[must_use]
pub fn compare(touched: Touched) -> Finding {
    let bytenr = touched.id.bytenr;
    let record = touched.new.as_deref();
    let len = record
        .map_or_else(|| touched.changes.first().map_or(0, |(_, change)| change.len), |record| record.len);
    let metadata = touched
        .changes
        .first()
        .map_or_else(|| record.is_some_and(ExtentRecord::metadata), |(key, _)| key.metadata);
    let mut entry = BlockEntry::new(bytenr, len, metadata);
    let held: Vec<(RefKey, i64)> = touched.changes.iter().map(|(key, change)| (*key, change.net)).collect();
    entry.adjust(&held);
    let differences = differences(Some(&entry), &touched);
    let sides = sides(Some(entry), record, &differences);
    Finding { touched, refused: Vec::new(), differences, sides, history: Vec::new() }
}

fn sides(
    shadow: Option<BlockEntry>,
    record: Option<&ExtentRecord>,
    differences: &[Difference],
) -> Box<Sides> {
    let recorded =
        record.map_or_else(Vec::new, |record| record.backrefs.iter().map(|b| (b.key, b.count)).collect());
    Box::new(Sides {
        shadow,
        recorded,
        recorded_refs: record.map(|record| record.refs),
        notes: notes(differences),
    })
}

/// What is refused is held, or gone, all the same: the entry follows the trees.
fn drive(shadow: &mut Shadow, touched: &Touched, known: &[(RefKey, i64)], generation: u64) -> Vec<Violation> {
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
fn wrong_length(touched: &Touched) -> Option<Violation> {
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

/// Every reference on which shadow and record disagree.
fn differences(entry: Option<&BlockEntry>, touched: &Touched) -> Vec<Difference> {
    let held = entry.map_or(&[][..], BlockEntry::refs);
    let recorded = touched.new.as_ref().map_or(&[][..], |record| record.backrefs.as_slice());
    let site_of = |key: &RefKey| {
        let change = touched.changes.iter().find(|(changed, _)| changed == key).map(|(_, change)| change);
        change.and_then(|change| if change.net > 0 { change.added } else { change.dropped })
    };
    let mut by_key: Vec<&Recorded> = recorded.iter().collect();
    by_key.sort_unstable_by_key(|backref| backref.key);
    let mut differences = Vec::new();
    for &(key, held) in held {
        let found = by_key.binary_search_by_key(&key, |backref| backref.key);
        let backref = found.ok().and_then(|at| by_key.get(at));
        let count = backref.map_or(0, |backref| backref.count);
        if count != held {
            let record_site = backref.map(|backref| backref.site);
            differences.push(Difference { key, held, recorded: count, site: site_of(&key), record_site });
        }
    }
    for backref in recorded {
        let is_held = held.binary_search_by_key(&&backref.key, |(key, _)| key).is_ok();
        if backref.count != 0 && !is_held {
            let (key, site) = (backref.key, site_of(&backref.key));
            let record_site = Some(backref.site);
            differences.push(Difference { key, held: 0, recorded: backref.count, site, record_site });
        }
    }
    differences
}

/// Whether this much was wrong before, and has not become worse.
fn is_known(difference: &Difference, known: &[(RefKey, i64)]) -> bool {
    let now = signed(difference.held) - signed(difference.recorded);
    known
        .iter()
        .any(|(key, more)| *key == difference.key && more.signum() == now.signum() && more.abs() >= now.abs())
}

/// By how much references and record differ after the commit. Reckoned without the state machine: what it refuses to
/// do, the trees have done all the same.
fn remaining(touched: &Touched, known: &[(RefKey, i64)]) -> Vec<(RefKey, i64)> {
    fn recorded(record: &Option<Rc<ExtentRecord>>) -> impl Iterator<Item = (RefKey, i64)> {
        let backrefs = record.iter().flat_map(|record| &record.backrefs);
        backrefs.map(|backref| (backref.key, signed(backref.count)))
    }
    // Of each reference: by how much it is held more, and recorded.
    let held = recorded(&touched.old).chain(known.iter().copied());
    let held = held.chain(touched.changes.iter().map(|(key, change)| (*key, change.net)));
    let mut all: Vec<(RefKey, i64, i64)> = held.map(|(key, more)| (key, more, 0)).collect();
    all.extend(recorded(&touched.new).map(|(key, count)| (key, 0, count)));
    // A stable sort: the sums are saturating ones, and the order counts.
    all.sort_by_key(|(key, ..)| *key);
    let same_key = |(one, ..): &(RefKey, i64, i64), (other, ..): &(RefKey, i64, i64)| one == other;
    let sums = all.chunk_by(same_key).filter_map(|of_key| {
        let key = of_key.first()?.0;
        let held = of_key.iter().fold(0i64, |sum, (_, more, _)| sum.saturating_add(*more)).max(0);
        let more = of_key.iter().fold(held, |sum, (_, _, count)| sum.saturating_sub(*count));
        (more != 0).then_some((key, more))
    });
    sums.collect()
}

fn residual(differences: &[Difference]) -> Vec<(RefKey, i64)> {
    differences.iter().map(|found| (found.key, signed(found.held) - signed(found.recorded))).collect()
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn notes(differences: &[Difference]) -> Vec<String> {
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

impl Finding {
    /// By how much each reference differs: held less recorded.
    #[must_use]
    pub fn residual(&self) -> Vec<(RefKey, i64)> {
        residual(&self.differences)
    }

    /// Keeps only the differences that `keep` (held, recorded) lets through; `None` when none is left.
    #[must_use]
    pub fn retain(mut self, keep: impl Fn(u64, u64) -> bool) -> Option<Self> {
        self.differences.retain(|difference| keep(difference.held, difference.recorded));
        (!self.differences.is_empty()).then_some(self)
    }

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
