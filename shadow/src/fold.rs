//! One bug, one report: puts findings together that have one cause.

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};
use parser::block::Header;

use crate::codes::Code;
use crate::forest::Forest;
use crate::ghosts::{self, Ghost};
use crate::reconcile::Finding;
use crate::record::RefKey;
use crate::violation::Violation;

/// Findings that would each say the same about their extent, from which a common cause is concluded.
const COMMON_CAUSE: usize = 2;

/// Turns findings and the violations of records by themselves into reports.
pub(crate) fn fold(
    findings: Vec<Finding>,
    records: Vec<Violation>,
    ghosts: Vec<Ghost>,
    disowned: Vec<Violation>,
    new: &Forest<'_>,
) -> Vec<Violation> {
    let (mut disowned, findings) = fold_disowned(disowned, findings);
    let (mut flags, findings) = fold_full_backref(findings, new);
    let (owners, findings) = fold_owner(findings, new);
    flags.extend(owners);
    // A wrong sum follows, and explains nothing.
    let told: HashSet<u64> =
        records.iter().filter(|found| found.code != Code::RefCount).map(|found| found.bytenr).collect();
    let (unknown_roots, findings) = ghosts::fold(findings, ghosts, |bytenr| told.contains(&bytenr), new);
    let root = |violation: &Violation| violation.key.map(|key| key.root);
    disowned.retain(|violation| unknown_roots.iter().all(|unknown| root(unknown) != root(violation)));
    flags.extend(unknown_roots.into_iter().chain(disowned));
    let mut by_extent: BTreeMap<u64, Vec<Violation>> = BTreeMap::new();
    for violation in records {
        by_extent.entry(violation.bytenr).or_default().push(violation);
    }
    let mut reports = flags;
    for finding in findings {
        let bytenr = finding.touched.id.bytenr;
        let of_record = by_extent.remove(&bytenr).unwrap_or_default();
        reports.push(merge(finding, of_record));
    }
    // A record that contradicts itself without disagreeing with the trees.
    for mut of_extent in by_extent.into_values() {
        let rest = of_extent.split_off(1);
        let Some(mut first) = of_extent.pop() else { continue };
        for other in rest {
            first.message = format!("{}; {}", first.message, other.message);
        }
        reports.push(first);
    }
    reports.sort_by_key(|violation| violation.bytenr);
    reports
}

/// A record that is malformed explains why it disagrees; a wrong sum follows from the disagreement.
fn merge(finding: Finding, of_record: Vec<Violation>) -> Violation {
    let found = finding.into_violation();
    let (explaining, following): (Vec<_>, Vec<_>) =
        of_record.into_iter().partition(|violation| violation.code != Code::RefCount);
    let mut explaining = explaining.into_iter();
    let mut report = match explaining.next() {
        Some(mut cause) => {
            cause.message = format!("{}; {}", cause.message, found.message);
            cause.history = found.history;
            cause.sides = found.sides;
            cause.key = found.key;
            cause
        }
        None => found,
    };
    for other in explaining.chain(following) {
        report.message = format!("{}; {}", report.message, other.message);
    }
    report
}

/// A block whose header names a wrong owner: every reference that it holds disagrees with its backref. Where the block's
/// own record or its FULL_BACKREF flag is to blame, that is the finding.
fn fold_disowned(mut disowned: Vec<Violation>, findings: Vec<Finding>) -> (Vec<Violation>, Vec<Finding>) {
    disowned.retain(|violation| {
        let block = violation.bytenr;
        let is_flag =
            |finding: &Finding| flag_suspect(finding).is_some_and(|suspect| suspect.holder == block);
        !findings.iter().any(|finding| finding.touched.id.bytenr == block || is_flag(finding))
    });
    let blocks: HashSet<u64> = disowned.iter().map(|violation| violation.bytenr).collect();
    let is_told =
        |finding: &Finding| owner_suspect(finding).is_some_and(|(holder, ..)| blocks.contains(&holder));
    let rest = findings.into_iter().filter(|finding| !is_told(finding)).collect();
    (disowned, rest)
}

/// A wrong FULL_BACKREF flag makes every reference of the block disagree: as recorded by its owner where the flag
/// says by its address, or the other way round.
fn fold_full_backref(findings: Vec<Finding>, new: &Forest<'_>) -> (Vec<Violation>, Vec<Finding>) {
    let mut suspects: HashMap<u64, Vec<usize>> = HashMap::new();
    for (index, finding) in findings.iter().enumerate() {
        if let Some(suspect) = flag_suspect(finding) {
            suspects.entry(suspect.holder).or_default().push(index);
        }
    }
    suspects.retain(|_, indices| indices.len() >= COMMON_CAUSE);
    let mut flags = Vec::new();
    let mut explained = vec![false; findings.len()];
    let mut holders: Vec<_> = suspects.into_iter().collect();
    holders.sort_unstable();
    for (holder, indices) in holders {
        let indices: Vec<usize> = indices.into_iter().filter(|&index| !explained[index]).collect();
        let Some((first, suspect)) = indices.first().and_then(|&index| {
            let finding = &findings[index];
            flag_suspect(finding).map(|suspect| (finding, suspect))
        }) else {
            continue;
        };
        if owner(holder, new) != Some(suspect.root) {
            continue;
        }
        let set = suspect.set;
        let (says, should) = if set { ("is set", "clear") } else { ("is clear", "set") };
        let message = format!(
            "bad full backref, on [{holder}]: FULL_BACKREF {says}, but the backrefs of {} extents that block \
             {holder} refers to are recorded as if it were {should}",
            indices.len()
        );
        let mut violation = Violation::new(Code::RefFullBackref, holder, new.nodesize(), message)
            .with_worth(should, if set { "set" } else { "clear" });
        violation.history.clone_from(&first.history);
        flags.push(violation);
        indices.into_iter().for_each(|index| explained[index] = true);
    }
    let mut keep = explained.iter().map(|explained| !explained);
    let rest = findings.into_iter().filter(|_| keep.next().unwrap_or(true)).collect();
    (flags, rest)
}

/// A block with a wrong owner, or one whose backrefs were all recorded for a wrong one: every reference it holds
/// disagrees in the same way.
fn fold_owner(findings: Vec<Finding>, new: &Forest<'_>) -> (Vec<Violation>, Vec<Finding>) {
    let mut by_holder: BTreeMap<(u64, u64, u64), Vec<Finding>> = BTreeMap::new();
    let mut rest = Vec::new();
    let mut folded = Vec::new();
    for finding in findings {
        match owner_suspect(&finding) {
            Some(suspect) => by_holder.entry(suspect).or_default().push(finding),
            None => rest.push(finding),
        }
    }
    for ((holder, held, recorded), findings) in by_holder {
        if findings.len() < COMMON_CAUSE {
            rest.extend(findings);
            continue;
        }
        let message = format!(
            "backpointer mismatch on {} extents that block {holder} refers to: block {holder} is owned by root {}, the \
             extent tree records its references for root {}: wrong root",
            findings.len(),
            held as i64,
            recorded as i64
        );
        let violation = Violation::new(Code::RefWrongRoot, holder, new.nodesize(), message);
        folded.push(violation.with_worth(held, recorded));
    }
    (folded, rest)
}

/// The block that holds the reference, its root, and the root that is recorded instead.
fn owner_suspect(finding: &Finding) -> Option<(u64, u64, u64)> {
    let [one, other] = finding.differences.as_slice() else { return None };
    let (missing, stale) = if one.held > one.recorded { (one, other) } else { (other, one) };
    let same_but_root = RefKey { root: missing.key.root, ..stale.key } == missing.key;
    let balanced = missing.held == missing.recorded + 1 && stale.recorded == stale.held + 1;
    let site = missing.site.filter(|site| site.block != 0)?;
    (finding.refused.is_empty() && same_but_root && balanced && missing.key.parent == 0).then_some((
        site.block,
        missing.key.root,
        stale.key.root,
    ))
}

/// A block whose flag would explain a finding.
struct FlagSuspect {
    holder: u64,
    /// Whether its flag is set.
    set: bool,
    /// The root that the other backref names: the block's owner, if it is to blame.
    root: u64,
}

fn flag_suspect(finding: &Finding) -> Option<FlagSuspect> {
    // With the flag clear the block's pointer looks like the one that its owner's copy of it holds rightly.
    if finding.refused.iter().any(|refused| refused.code != Code::RefDuplicateTreeRef) {
        return None;
    }
    let (missing, stale) = match finding.differences.as_slice() {
        [one, other] if one.held > one.recorded && other.held < other.recorded => (one.key, other.key),
        [one, other] if one.held < one.recorded && other.held > other.recorded => (other.key, one.key),
        _ => return None,
    };
    match (missing.parent, stale.parent) {
        (holder, 0) if holder != 0 => Some(FlagSuspect { holder, set: true, root: stale.root }),
        (0, holder) if holder != 0 => Some(FlagSuspect { holder, set: false, root: missing.root }),
        _ => None,
    }
}

/// Owner of a tree block of the new forest.
fn owner(bytenr: u64, new: &Forest<'_>) -> Option<u64> {
    let mut places = new.snapshot.chunks.copies(bytenr, new.nodesize()).ok()?;
    places.find_map(|place| {
        let block = new.source.read(place).ok()?;
        Header::parse(block.bytes()).ok().map(|header| header.owner())
    })
}
