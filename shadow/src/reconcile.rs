//! Puts the two sources against each other, extent by extent: the references drive ref-verify's state machine, and
//! what comes out must be what the new extent tree records.
//!
//! How the machine is driven is in `drive`, how a difference is put into words in `words`. Knows nothing of what several extents
//! have in common.

mod drive;
mod words;

use std::rc::Rc;

use crate::delta::extents::ExtentChange;
use crate::delta::references::{ExtentId, NetChange, Residuals};
use crate::reconcile::drive::{drive, wrong_length};
use crate::reconcile::words::notes;
use crate::record::{ExtentRecord, Recorded, RefKey, Site};
use crate::refverify::{BlockEntry, Shadow};
use crate::violation::{Sides, Violation};

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
}
