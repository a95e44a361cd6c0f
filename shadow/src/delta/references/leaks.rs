//! Tree blocks that the extent tree records, though no usable pointer leads to them.
//!
//! A pointer that was lost is one fault; what the block behind it holds is as it was. So such a block lives from the
//! commit that brings its record to the one that takes it away.

use std::rc::Rc;

use super::deaths::is_same_extent;
use super::survivors::survivor;
use super::{ExtentId, Walk};
use crate::codes::Code;
use crate::delta::pairs::Pairs;
use crate::edges::{self, Edge};
use crate::forest::{BlockProblem, Expect, Forest};
use crate::record::ExtentRecord;

/// References of an unreached block that are looked at, to see whether they are recorded.
const LEAK_SAMPLE: usize = 8;

impl Walk<'_, '_> {
    /// Blocks that the extent tree says came or went with this commit, and that no usable pointer leads to, or led to:
    /// what they hold has come or gone with them. Parents first, as what they refer to is not lost.
    pub(super) fn leaks(&mut self) {
        // Their originals, if any, have died for good.
        self.pairs = Pairs::default();
        let mut made = Vec::new();
        let mut gone = Vec::new();
        let newest = self.inputs.new.snapshot.generation;
        for (&bytenr, change) in &self.inputs.extents.changes {
            let block = |record: &Option<Rc<ExtentRecord>>| record.as_deref().and_then(survivor);
            if is_same_extent(change.old.as_deref(), change.new.as_deref())
                || self.inputs.replaced.contains(bytenr)
            {
                continue;
            }
            made.extend(block(&change.new).filter(|expect| expect.generation == newest));
            if self.inputs.residuals.contains_key(&bytenr) {
                gone.extend(block(&change.old));
            }
        }
        made.sort_by_key(|expect| std::cmp::Reverse(expect.level));
        for expect in made {
            let id = self.id_now(expect.bytenr);
            let is_damaged = self.unborn.contains(&expect.bytenr);
            let problems = self.result.problems.len();
            if (self.count(id) <= 0 || is_damaged) && self.explains(self.inputs.new, &expect) {
                self.push_born(&expect);
                self.adds();
            }
            if is_damaged {
                // Its pointers need not be right: the block has been found to be wrong already.
                self.result.problems.truncate(problems);
                if self.has_wrong_owner(expect.bytenr) {
                    self.item_faults.forget_places(expect.bytenr);
                }
            }
        }
        for expect in gone {
            let id = ExtentId { bytenr: expect.bytenr, reborn: false };
            let is_dead = self.dead.contains(&expect.bytenr);
            if self.count(id) <= 0 && !is_dead && self.explains(self.inputs.old, &expect) {
                self.push_dead(&expect);
                self.drops();
            }
        }
    }

    fn has_wrong_owner(&self, bytenr: u64) -> bool {
        self.result.problems.iter().any(|problem| match problem {
            BlockProblem::Violation(found) => found.code == Code::TreeOwner && found.bytenr == bytenr,
            BlockProblem::Unknown(_) => false,
        })
    }

    /// Whether the block is there, and what it holds would make the extent tree and the references agree. Else its
    /// record alone is left, or made up.
    fn explains(&mut self, forest: Forest<'_>, expect: &Expect) -> bool {
        let is_new = forest.snapshot.generation == self.inputs.new.snapshot.generation;
        let Ok(block) = forest.read(expect) else { return false };
        let Some(view) = block.view() else { return false };
        let form = if is_new {
            let record = self.new_record(expect.bytenr);
            self.new_form(expect.bytenr, record.as_deref())
        } else {
            let record = self.old_record(expect.bytenr);
            self.old_form(expect.bytenr, record.as_deref())
        };
        let mut held = Vec::new();
        edges::for_each(&view, expect, form, |edge| held.push(edge));
        held.truncate(LEAK_SAMPLE);
        let wanted = if is_new { -1 } else { 1 };
        let explained = held.iter().filter(|edge| self.surplus(edge).signum() == wanted).count();
        2 * explained >= held.len()
    }

    /// Whether what a block holds to which nothing refers any more is recorded still. Else its record alone is left.
    pub(super) fn leaks_with_all(&mut self, expect: &Expect) -> bool {
        let Ok(block) = self.inputs.old.read(expect) else { return true };
        let Some(view) = block.view() else { return true };
        let record = self.old_record(expect.bytenr);
        let form = self.old_form(expect.bytenr, record.as_deref());
        let mut held = Vec::new();
        edges::for_each(&view, expect, form, |edge| held.push(edge));
        held.truncate(LEAK_SAMPLE);
        let mut is_recorded = |edge: &Edge| {
            let record = self.new_record(edge.bytenr);
            record.is_some_and(|record| record.backrefs.iter().any(|backref| backref.key == edge.key))
        };
        let kept = held.iter().filter(|edge| is_recorded(edge)).count();
        2 * kept >= held.len()
    }

    /// How many more references like this one are held than are recorded.
    fn surplus(&mut self, edge: &Edge) -> i64 {
        let count = |record: Option<Rc<ExtentRecord>>| {
            let backrefs = record.iter().flat_map(|record| &record.backrefs).filter(|b| b.key == edge.key);
            backrefs
                .map(|backref| i64::try_from(backref.count).unwrap_or(i64::MAX))
                .fold(0, i64::saturating_add)
        };
        let id = self.id_now(edge.bytenr);
        let recorded = count(self.new_record(edge.bytenr));
        let before = if id.reborn { 0 } else { count(self.old_record(edge.bytenr)) };
        let known = self.inputs.residuals.get(&edge.bytenr);
        let known = known.and_then(|keys| keys.iter().find(|(key, _)| *key == edge.key));
        let net = self.net.get(&(id, edge.key)).map_or(0, |change| change.net);
        before.saturating_add(known.map_or(0, |(_, more)| *more)).saturating_add(net).saturating_sub(recorded)
    }

    /// Whether a block to which something refers again has been recorded all the time, so that what it holds has been
    /// counted.
    pub(super) fn was_leaked(&mut self, id: ExtentId, expect: &Expect) -> bool {
        !id.reborn
            && self.old_record(id.bytenr).is_some_and(|old| {
                old.metadata() && old.backref_sum() > 0 && old.generation == expect.generation
            })
    }
}
