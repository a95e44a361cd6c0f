//! Visits every live tree block once and adds up the references it holds.

use std::sync::Mutex;
use std::sync::PoisonError;

use hashbrown::{HashMap, HashSet};
use parser::Block;

use crate::audit::explain::Collected;
use crate::audit::table::Table;
use crate::codes::Code;
use crate::delta::masks::{self, Masks};
use crate::delta::references::root_edges;
use crate::edges::{self, Edge, Form, Target};
use crate::forest::{BlockProblem, Copies, Expect, Forest, Snapshot};
use crate::items;
use crate::owners::Claim;
use crate::record::{RefKey, Site};
use crate::space::audit::CsumCheck;
use crate::violation::Violation;

/// What a visit does with each reference.
pub enum Visitor<'t> {
    /// Adds it to its extent's sum.
    Sum(&'t Table),
    /// Collects those of the extents that are asked for.
    Collect(&'t Mutex<Collected>),
}

/// A walk over all trees. Workers share it.
pub struct Walk<'a> {
    forest: Forest<'a>,
    table: &'a Table,
    visitor: Visitor<'a>,
    masks: Masks,
    findings: Mutex<Findings>,
    checksums: CsumCheck,
}

/// What came up on the way.
#[derive(Debug, Default)]
pub struct Findings {
    /// References to extents that have no extent item, and how often each is held.
    pub unknown: HashMap<u64, Vec<(RefKey, u64, Site, u64)>>,
    /// Blocks among those that were visited.
    visited_unknown: HashSet<u64>,
    /// What is wrong.
    pub violations: Vec<Violation>,
    /// What could not be read.
    pub problems: Vec<BlockProblem>,
    /// What is to be said of checksum items.
    pub checksums: CsumCheck,
    /// Owners of blocks that are not the only ones to hold them.
    pub claims: Vec<Claim>,
}

impl<'a> Walk<'a> {
    /// A walk that has not begun.
    #[must_use]
    pub fn new(forest: Forest<'a>, table: &'a Table, visitor: Visitor<'a>) -> Self {
        let mut findings = Findings::default();
        let masks = masks::all(&forest, &mut findings.problems);
        let checksums = CsumCheck::default();
        Walk { forest, table, visitor, masks, findings: Mutex::new(findings), checksums }
    }

    /// Where the walk begins: the roots, each with the reference to it counted.
    pub fn roots(&self) -> Vec<Expect> {
        let mut next = Vec::new();
        for edge in root_edges(&self.forest, |_, _| true).into_values() {
            self.reference(&edge, &mut next);
        }
        next
    }

    /// Visits one block; blocks to be visited because of it are added to `next`.
    pub fn visit(&self, expect: &Expect, next: &mut Vec<Expect>) {
        let (block, bad_copies) = match self.forest.read_copies(expect, Copies::UntilGood) {
            Ok(found) => found,
            Err(problem) => return self.lock().problems.push(problem),
        };
        let Some(view) = block.view() else { return };
        if let Visitor::Sum(table) = self.visitor {
            self.checksums.visit(&view, table, &self.forest.snapshot.geometry);
        }
        let row = self.table.row(expect.bytenr);
        let facts = row.and_then(|row| self.table.facts(row));
        let form = Form {
            full: facts.is_some_and(super::table::Facts::full_backref),
            first_slot: self.masks.get(&expect.bytenr).copied().unwrap_or(0),
        };
        edges::for_each(&view, expect, form, |edge| self.reference(&edge, next));
        if matches!(self.visitor, Visitor::Collect(_)) {
            return;
        }
        let header = view.header();
        let mut found = bad_copies;
        self.check_items(&view, &mut found);
        if let Some(facts) = facts {
            if facts.metadata() && facts.generation() != header.generation() {
                let (have, want) = (facts.generation(), header.generation());
                let message =
                    format!("invalid generation for extent {}, have {have} expect {want}", expect.bytenr);
                let violation = Violation::new(Code::RefExtentGeneration, expect.bytenr, 0, message);
                found.push(violation.with_worth(want, have));
            }
            if header.is_reloc() && facts.metadata() && !facts.full_backref() {
                let message = format!(
                    "bad full backref, on [{}]: a relocation block without FULL_BACKREF",
                    expect.bytenr
                );
                found.push(Violation::new(Code::RefFullBackref, expect.bytenr, 0, message));
            }
        }
        if !found.is_empty() {
            self.lock().violations.extend(found);
        }
        if let (Some(row), Some(claim)) = (row, Claim::of(&view)) {
            let key = RefKey::tree(claim.owner, claim.level);
            let is_open = facts.is_some_and(|facts| facts.metadata() && !facts.full_backref());
            if is_open && !self.table.records_only(row, &key) {
                self.lock().claims.push(claim);
            }
        }
    }

    /// Checks the block's header, and all its items each by itself.
    fn check_items(&self, block: &Block<'_>, found: &mut Vec<Violation>) {
        let Snapshot { geometry, generation, .. } = self.forest.snapshot;
        found.extend(items::header_fault(block, geometry.nodesize));
        if let Block::Leaf(leaf) = block {
            let owner = leaf.header().owner();
            let context = items::Context::new(geometry, *generation, owner);
            items::check_leaf(&context, leaf, std::iter::once(0..leaf.len()), |fault| {
                found.push(fault.violation(owner, geometry.nodesize));
            });
        }
    }

    /// What came up.
    #[must_use]
    pub fn finish(self) -> Findings {
        let mut findings = self.findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        findings.checksums = self.checksums;
        findings
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reference(&self, edge: &Edge, next: &mut Vec<Expect>) {
        let row = self.table.row(edge.bytenr);
        let first_visit = match row {
            Some(row) => {
                self.count(row, edge);
                // In the second walk the visits of the first are all there: it keeps its own.
                match &self.visitor {
                    Visitor::Sum(table) => table.visit(row),
                    Visitor::Collect(collected) => {
                        let mut collected = collected.lock().unwrap_or_else(PoisonError::into_inner);
                        matches!(edge.target, Target::Tree(_)) && collected.visited.insert(edge.bytenr)
                    }
                }
            }
            None => self.unknown(edge),
        };
        let Target::Tree(expect) = edge.target else { return };
        if first_visit {
            next.push(expect);
        }
        if let (Visitor::Sum(table), Some(row)) = (&self.visitor, row)
            && !table.agrees(row, &expect)
            && !first_visit
            && let Err(problem) = self.forest.read(&expect)
        {
            self.lock().problems.push(problem);
        }
    }

    fn count(&self, row: usize, edge: &Edge) {
        match &self.visitor {
            Visitor::Sum(table) => {
                table.hold(row, &edge.key);
                if let (Target::Data { len }, Some(recorded)) = (edge.target, table.extent_len(row))
                    && len != recorded
                    && table.facts(row).is_some_and(|facts| !facts.metadata())
                {
                    let message = format!(
                        "data extent[{}, {recorded}] size mismatch, file extent item has {len}, {} (held by block {} \
                         slot {})",
                        edge.bytenr, edge.key, edge.site.block, edge.site.slot
                    );
                    let violation = Violation::new(Code::RefExtentLength, edge.bytenr, recorded, message);
                    self.lock().violations.push(violation.with_worth(recorded, len).with_key(edge.key));
                }
            }
            Visitor::Collect(collected) => {
                collected.lock().unwrap_or_else(PoisonError::into_inner).add(edge);
            }
        }
    }

    /// A reference to an extent that the extent tree does not know; a tree block is visited all the same.
    fn unknown(&self, edge: &Edge) -> bool {
        let mut findings = self.lock();
        let len = match edge.target {
            Target::Data { len } => len,
            Target::Tree(_) => self.forest.nodesize(),
        };
        let holders = findings.unknown.entry(edge.bytenr).or_default();
        match holders.iter_mut().find(|(key, ..)| *key == edge.key) {
            Some((_, count, ..)) => *count += 1,
            None => holders.push((edge.key, 1, edge.site, len)),
        }
        findings.visited_unknown.insert(edge.bytenr)
    }
}
