//! Names what is wrong with the extents whose sums differ.

use std::collections::BTreeMap;
use std::rc::Rc;

use hashbrown::{HashMap, HashSet};

use crate::audit::walk::Findings;
use crate::delta::extents::Records;
use crate::delta::references::{ExtentId, NetChange, Residuals};
use crate::edges::Edge;
use crate::fold;
use crate::forest::{BlockProblem, Forest};
use crate::ghosts::Ghost;
use crate::owners::Claim;
use crate::paths;
use crate::reconcile::{Finding, Touched, compare};
use crate::record::{ExtentRecord, RefKey, Site};
use crate::violation::Violation;

/// The references to some extents, collected by a second walk.
#[derive(Debug, Default)]
pub struct Collected {
    wanted: HashMap<u64, HashMap<RefKey, (u64, Site)>>,
    pub(super) visited: HashSet<u64>,
}

impl Collected {
    /// Asks for the extents at these addresses.
    pub fn new(bytenrs: impl IntoIterator<Item = u64>) -> Self {
        let wanted = bytenrs.into_iter().map(|bytenr| (bytenr, HashMap::new())).collect();
        Collected { wanted, visited: HashSet::new() }
    }

    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    pub(super) fn add(&mut self, edge: &Edge) {
        if let Some(holders) = self.wanted.get_mut(&edge.bytenr) {
            let (count, site) = holders.entry(edge.key).or_insert((0, edge.site));
            *count += 1;
            *site = edge.site;
        }
    }
}

/// What is wrong, and how it is told from new damage later.
#[derive(Debug, Default)]
pub struct Explained {
    /// One violation for each fault.
    pub violations: Vec<Violation>,
    /// By how much references and backrefs differ, by extent.
    pub residuals: Residuals,
    /// What could not be read.
    pub problems: Vec<BlockProblem>,
}

/// What the scan has found of records by themselves.
#[derive(Debug, Default)]
pub struct OfRecords {
    /// What is wrong with them.
    pub violations: Vec<Violation>,
    /// Backrefs in the name of trees that don't exist.
    pub ghosts: Vec<Ghost>,
    /// All of the extent tree was read.
    pub is_whole: bool,
}

/// Puts together what the scan, the walk and the second walk have found. Where part of the trees (`walk_whole`) or
/// of the extent tree (`records`) could not be read, what seems to be missing on that side may only be unread,
/// and is not reported: the unreadable block is.
#[must_use]
pub fn explain(
    forest: &Forest<'_>,
    of_records: OfRecords,
    findings: Findings,
    collected: Collected,
) -> Explained {
    let OfRecords { violations: record_violations, ghosts, is_whole: scan_whole } = of_records;
    let walk_whole = findings.problems.is_empty();
    let mut records = Records::new(*forest);
    let mut explained = Explained::default();
    let mut differing: Vec<Finding> = Vec::new();
    let mut held: BTreeMap<u64, Vec<(RefKey, u64, Site)>> = BTreeMap::new();
    for (bytenr, holders) in collected.wanted {
        let mut holders: Vec<_> =
            holders.into_iter().map(|(key, (count, site))| (key, count, site)).collect();
        holders.sort_unstable_by_key(|(key, ..)| *key);
        held.insert(bytenr, holders);
    }
    let mut lens: HashMap<u64, u64> = HashMap::new();
    for (bytenr, holders) in findings.unknown {
        lens.insert(bytenr, holders.first().map_or(0, |(.., len)| *len));
        held.insert(bytenr, holders.into_iter().map(|(key, count, site, _)| (key, count, site)).collect());
    }
    for (bytenr, holders) in held {
        let record = match records.get(bytenr) {
            Ok(record) => record,
            Err(problem) => {
                explained.problems.push(problem);
                continue;
            }
        };
        let len = lens.get(&bytenr).copied().unwrap_or(0);
        let finding = compare(touched(bytenr, record, &holders, len));
        explained.residuals.insert(bytenr, finding.residual());
        let keep = |held: u64, recorded: u64| if held > recorded { scan_whole } else { walk_whole };
        differing.extend(finding.retain(keep));
    }
    let disowned = disowned(findings.claims, &explained.residuals, &mut records, forest);
    explained.violations = fold::fold(differing, record_violations, ghosts, disowned, forest);
    explained.violations.extend(findings.violations);
    for violation in &mut explained.violations {
        violation.path = paths::describe(forest, violation);
    }
    explained
}

/// Blocks that their owners don't hold. One that is recorded otherwise than it is held is a finding already, and one
/// whose record can't be read is reported by who reads all of them.
fn disowned(
    mut claims: Vec<Claim>,
    residuals: &Residuals,
    records: &mut Records<'_>,
    forest: &Forest<'_>,
) -> Vec<Violation> {
    claims.sort_unstable_by_key(|claim| claim.bytenr);
    claims.retain(|claim| !residuals.contains_key(&claim.bytenr));
    let refute = |claim: &Claim| claim.refute(&*records.get(claim.bytenr).ok().flatten()?, forest);
    claims.iter().filter_map(refute).collect()
}

fn touched(
    bytenr: u64,
    record: Option<Rc<ExtentRecord>>,
    holders: &[(RefKey, u64, Site)],
    len: u64,
) -> Touched {
    let change = |&(key, count, site): &(RefKey, u64, Site)| {
        let net = i64::try_from(count).unwrap_or(i64::MAX);
        (key, NetChange { net, added: Some(site), len, ..NetChange::default() })
    };
    Touched {
        id: ExtentId { bytenr, reborn: false },
        old: None,
        new: record,
        changes: holders.iter().map(change).collect(),
    }
}
