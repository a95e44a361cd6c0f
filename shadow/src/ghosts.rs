//! References in the name of a tree that does not exist: without a root item nothing can hold them rightly, and nobody
//! will ever drop them. A subvolume that was deleted leaves them behind where its deletion has gone wrong.
//!
//! A tree that is being deleted has its root item to the end, one that a transaction makes or unmakes gets or loses it
//! in the same commit as its last reference, and what is recorded by a parent names no tree. Knows nothing of why the two
//! sides differ: whoever compares them says where they do.

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};
use parser::key::item;
use parser::{Key, ids};

use crate::codes::Code;
use crate::forest::{Expect, Forest, RootId};
use crate::reconcile::{Difference, Finding, Touched};
use crate::record::{ExtentRecord, RefKey, Site};
use crate::tree::Searcher;
use crate::violation::Violation;

/// Which trees there are in one commit.
pub struct Trees<'a> {
    forest: Forest<'a>,
    known: HashMap<u64, bool>,
}

impl<'a> Trees<'a> {
    /// Those of `forest`.
    #[must_use]
    pub fn new(forest: Forest<'a>) -> Self {
        Trees { forest, known: HashMap::new() }
    }

    /// Whether a backref names a tree that does not exist.
    pub fn is_ghost(&mut self, key: &RefKey) -> bool {
        key.parent == 0 && !self.has(key.root)
    }

    fn has(&mut self, tree: u64) -> bool {
        let forest = self.forest;
        *self.known.entry(tree).or_insert_with(|| exists(&forest, tree))
    }
}

fn exists(forest: &Forest<'_>, tree: u64) -> bool {
    // The first two have no root item; log trees hold nothing that is recorded, and relocation trees hold it by parent.
    if matches!(tree, ids::ROOT_TREE | ids::CHUNK_TREE | ids::TREE_LOG | ids::TREE_RELOC) {
        return true;
    }
    let known = forest.snapshot.roots.range(RootId { tree, offset: 0 }..).next();
    known.is_some_and(|(id, _)| id.tree == tree) || has_root_item(forest, tree)
}

/// Whether the root tree has an item for a tree, one that can't be understood included. Where it can't be read it may
/// have one.
fn has_root_item(forest: &Forest<'_>, tree: u64) -> bool {
    let Some(view) = forest.snapshot.super_view() else { return true };
    let mut found = false;
    let (from, to) = (Key::new(tree, item::ROOT_ITEM, 0), Key::new(tree, item::ROOT_ITEM, u64::MAX));
    let read = Searcher::new(*forest, Some(Expect::root_tree(&view))).range(from, to, |_| found = true);
    found || read.is_err()
}

/// A backref in the name of a tree that does not exist.
#[derive(Debug, Clone, Copy)]
pub struct Ghost {
    /// Address of the extent.
    pub bytenr: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The reference.
    pub key: RefKey,
    /// Where it is recorded.
    pub site: Site,
}

/// Those of a record, the first of each tree.
pub fn of_record(record: &ExtentRecord, trees: &mut Trees<'_>) -> Vec<Ghost> {
    let mut ghosts: Vec<Ghost> = Vec::new();
    for backref in record.backrefs.iter().filter(|backref| backref.count > 0) {
        let key = backref.key;
        if trees.is_ghost(&key) && !ghosts.iter().any(|known| known.key.root == key.root) {
            ghosts.push(Ghost { bytenr: record.bytenr, len: record.len, key, site: backref.site });
        }
    }
    ghosts
}

/// Those of the extents that a commit touches, but for those that were there before.
#[must_use]
pub fn of_commit(work: &[Touched], old: Forest<'_>, new: Forest<'_>) -> Vec<Ghost> {
    let (mut before, mut now) = (Trees::new(old), Trees::new(new));
    let mut ghosts = Vec::new();
    for touched in work {
        let Some(record) = touched.new.as_deref() else { continue };
        let was_recorded = |root: u64| {
            let old = touched.old.as_deref();
            old.is_some_and(|old| old.backrefs.iter().any(|b| b.key.parent == 0 && b.key.root == root))
        };
        let is_old = |ghost: &Ghost, before: &mut Trees<'_>| {
            was_recorded(ghost.key.root) && before.is_ghost(&ghost.key)
        };
        ghosts.extend(of_record(record, &mut now).into_iter().filter(|ghost| !is_old(ghost, &mut before)));
    }
    ghosts
}

/// An extent with a backref in the name of one tree.
struct Case {
    ghost: Ghost,
    /// What differs, where the trees don't hold the reference.
    finding: Option<Finding>,
}

/// One report for each tree that does not exist. Findings that say nothing else than that such references are not held
/// are taken out; those about which something else is said (`is_told` or a finding) explain themselves.
pub(crate) fn fold(
    findings: Vec<Finding>,
    ghosts: Vec<Ghost>,
    is_told: impl Fn(u64) -> bool,
    new: &Forest<'_>,
) -> (Vec<Violation>, Vec<Finding>) {
    let mut trees = Trees::new(*new);
    let mut seen: HashSet<u64> = findings.iter().map(|finding| finding.touched.id.bytenr).collect();
    let mut by_tree: BTreeMap<u64, Vec<Case>> = BTreeMap::new();
    let mut rest = Vec::new();
    for finding in findings {
        match left_behind(&finding, &mut trees) {
            Some(ghost) if !is_told(ghost.bytenr) => {
                by_tree.entry(ghost.key.root).or_default().push(Case { ghost, finding: Some(finding) });
            }
            _ => rest.push(finding),
        }
    }
    for ghost in ghosts {
        if !is_told(ghost.bytenr) && seen.insert(ghost.bytenr) {
            by_tree.entry(ghost.key.root).or_default().push(Case { ghost, finding: None });
        }
    }
    (by_tree.into_values().filter_map(report).collect(), rest)
}

/// The first reference of a finding that says of each only that a tree which does not exist is recorded for it.
fn left_behind(finding: &Finding, trees: &mut Trees<'_>) -> Option<Ghost> {
    let record = finding.touched.new.as_deref().filter(|_| finding.refused.is_empty())?;
    let first = finding.differences.first()?;
    let mut is_ghost = |found: &Difference| found.held < found.recorded && trees.is_ghost(&found.key);
    finding.differences.iter().all(&mut is_ghost).then(|| Ghost {
        bytenr: record.bytenr,
        len: record.len,
        key: first.key,
        site: first.record_site.unwrap_or(record.site),
    })
}

fn report(mut cases: Vec<Case>) -> Option<Violation> {
    cases.sort_by_key(|case| case.ghost.bytenr);
    let count = cases.len();
    let Case { ghost: Ghost { bytenr, len, key, site }, finding } = cases.into_iter().next()?;
    let root = key.root as i64;
    let held = if finding.is_some() { "no tree holds it" } else { "a block in its name holds it" };
    let more = match count {
        1 => String::new(),
        _ => format!(", and so have {} more extents", count - 1),
    };
    let message = format!(
        "extent [{bytenr} {len}] has a backref of {key}, but root {root} has no root item and is not being deleted \
         ({held}; recorded in leaf {} slot {}){more}",
        site.block, site.slot
    );
    let mut violation = Violation::new(Code::RefUnknownRoot, bytenr, len, message)
        .with_worth(0u64, count as u64)
        .with_key(key);
    if let Some(finding) = finding {
        violation.history = finding.history;
        violation.sides = Some(finding.sides);
    }
    Some(violation)
}
