//! Tree blocks that became reachable: each is read in all its copies, checked against the pointer that led to it, and adds the
//! references that it holds.
//!
//! Most are copies of a block that dies, and what both hold costs nothing. Knows nothing of when a block is born, which the
//! counts say.

use parser::Block;

use super::{Add, ExtentId, Walk};
use crate::codes::Code;
use crate::delta::pairs::{self, Common};
use crate::edges::{self, Edge, Form, Target};
use crate::forest::{Copies, Expect};
use crate::items;
use crate::owners::Claim;
use crate::record::{ExtentRecord, Site};
use crate::violation::Violation;

impl Walk<'_, '_> {
    pub(super) fn birth(&mut self, expect: &Expect) {
        self.result.born += 1;
        self.push_born(expect);
    }

    /// Reads a block that was born and pushes its references; those that the block it is a copy of holds as well
    /// are left out on both sides.
    pub(super) fn push_born(&mut self, expect: &Expect) {
        // All copies were written for this commit, and must be good.
        let (block, bad_copies) = match self.inputs.new.read_copies(expect, Copies::All) {
            Ok(found) => found,
            Err(problem) => {
                self.unborn.insert(expect.bytenr);
                return self.result.problems.push(problem);
            }
        };
        self.unborn.remove(&expect.bytenr);
        self.result.violations.extend(bad_copies);
        if expect.generation == self.inputs.new.snapshot.generation {
            self.result.fresh.push(*expect);
        }
        let Some(view) = block.view() else { return };
        let record = self.new_record(expect.bytenr);
        self.check_born_record(&view, record.as_deref());
        let form = self.new_form(expect.bytenr, record.as_deref());
        let original = self.pairs.original_of(expect.bytenr);
        let before = original.and_then(|original| Some((original, self.block_before(&original.expect)?)));
        let before =
            before.as_ref().and_then(|(original, (block, form))| Some((original, block.view()?, *form)));
        let common = before.as_ref().map(|(_, old, _)| Common::new(old, &view)).unwrap_or_default();
        self.check_items(&view, &common);
        // What is in both is left out, where it cancels out.
        let cancels = before.as_ref().is_some_and(|(original, old, old_form)| {
            original.gone
                && old.header().owner() == view.header().owner()
                && is_plain(form)
                && is_plain(*old_form)
        });
        let left_out = if cancels { common } else { Common::default() };
        let mut born = Vec::new();
        edges::for_each_in(&view, expect, form, left_out.made(view.len()), |edge| born.push(edge));
        let Some((original, old, old_form)) = before else {
            return self.adds.extend(born.into_iter().map(Add::unchecked));
        };
        let mut held = Vec::new();
        let gone = left_out.gone(old.len());
        edges::for_each_in(&old, &original.expect, old_form, gone, |edge| held.push(edge));
        let compared = pairs::compare(held, born);
        for (old, new) in &compared.same_place {
            self.propose_pair(old, new);
        }
        self.adds.extend(compared.added.into_iter().map(Add::unchecked));
        if original.gone {
            self.pairs.settle(original.expect.bytenr, compared.dropped);
        } else {
            self.adds.extend(compared.shared.into_iter().map(Add::checked));
        }
    }

    /// Notes that the block at `new` seems to be the copy of the one at `old`, if the extent tree says that it is
    /// new. If it says as well that the other had a single reference and is gone, what both hold will cancel out:
    /// should the trees say something else, one of the two is found to disagree with its record, whatever was
    /// cancelled between them.
    pub(super) fn propose_pair(&mut self, old: &Edge, new: &Edge) {
        let (Target::Tree(from), Target::Tree(to)) = (old.target, new.target) else { return };
        let changes = &self.inputs.extents.changes;
        let gone = changes.get(&old.bytenr).is_some_and(|change| {
            change.new.is_none()
                && change.old.as_ref().is_some_and(|record| record.refs == 1 && record.metadata())
        });
        let made = changes
            .get(&new.bytenr)
            .is_some_and(|change| change.old.is_none() && change.new.as_ref().is_some_and(|r| r.metadata()));
        let plain =
            |bytenr| !self.inputs.replaced.contains(bytenr) && !self.inputs.residuals.contains_key(&bytenr);
        if from.level == to.level && made && plain(old.bytenr) && plain(new.bytenr) {
            self.pairs.propose(from, to, gone);
        }
    }

    /// Checks the header of a block that was born and those of its items that its original did not have.
    fn check_items(&mut self, view: &Block<'_>, common: &Common) {
        let snapshot = self.inputs.new.snapshot;
        self.result.violations.extend(items::header_fault(view, snapshot.geometry.nodesize));
        if let Block::Leaf(leaf) = view {
            self.item_faults.check(snapshot, leaf, common);
        }
    }

    fn check_born_record(&mut self, view: &Block<'_>, record: Option<&ExtentRecord>) {
        let Some(record) = record else { return };
        let header = view.header();
        let claim = Claim::of(view);
        self.result.disowned.extend(claim.and_then(|claim| claim.refute(record, &self.inputs.new)));
        if record.metadata() && record.generation != header.generation() {
            let message = format!(
                "invalid generation for extent {}, have {} expect {}",
                record.bytenr,
                record.generation,
                header.generation()
            );
            self.result.violations.push(
                Violation::new(Code::RefExtentGeneration, record.bytenr, record.len, message)
                    .with_worth(header.generation(), record.generation),
            );
        }
        if header.is_reloc() && !record.full_backref() && record.metadata() {
            let message =
                format!("bad full backref, on [{}]: a relocation block without FULL_BACKREF", record.bytenr);
            self.result.violations.push(Violation::new(
                Code::RefFullBackref,
                record.bytenr,
                record.len,
                message,
            ));
        }
    }

    /// A pointer that is new, to a block that is not: what it says must be true of the block. A block that was
    /// born in this commit was checked against the first pointer to it.
    pub(super) fn check_pointer(&mut self, id: ExtentId, expect: &Expect, site: Site) {
        if let Err(problem) = self.inputs.new.read(expect) {
            return self.result.problems.push(problem);
        }
        if !id.reborn
            && expect.generation == self.inputs.new.snapshot.generation
            && let Some(old) = self.old_record(id.bytenr)
            && old.generation < expect.generation
        {
            self.reallocated(&old, expect, site);
        }
    }

    /// A pointer to a block of this transaction at an address that was taken before it: the allocator gave it out
    /// again while it was in use.
    fn reallocated(&mut self, old: &ExtentRecord, expect: &Expect, site: Site) {
        let ExtentRecord { bytenr, len, generation, .. } = *old;
        let message = format!(
            "re-allocated a block that still has references to it! [{bytenr} {len}]: block {} slot {} points to it \
             with generation {}, but it has been in use since generation {generation}",
            site.block, site.slot, expect.generation
        );
        let violation = Violation::new(Code::RefReallocated, bytenr, len, message);
        self.result.violations.push(violation.with_worth(generation, expect.generation));
    }
}

/// Whether a block's references are recorded by its owner, all of them.
fn is_plain(form: Form) -> bool {
    form == Form::default()
}
