//! Tree blocks that are in both commits and hold their references in another form than before: FULL_BACKREF was set, or the
//! cursor of a deletion has moved on.

use super::{Add, Walk};
use crate::delta::masks::Masks;
use crate::edges::{self, Form};
use crate::forest::{Expect, OwnerRule};
use crate::record::ExtentRecord;

impl Walk<'_, '_> {
    /// Blocks that are in both commits but hold their references in another form: FULL_BACKREF was set, or a
    /// deletion has moved on.
    pub(super) fn forms_of_survivors(&mut self) {
        let mut blocks: Vec<u64> = Vec::new();
        for (&bytenr, change) in &self.inputs.extents.changes {
            if let (Some(old), Some(new)) = (&change.old, &change.new)
                && old.metadata()
                && new.metadata()
                && old.generation == new.generation
                && old.full_backref() != new.full_backref()
                && !self.inputs.replaced.contains(bytenr)
            {
                blocks.push(bytenr);
            }
        }
        let moved = |masks: &Masks, other: &Masks| -> Vec<u64> {
            masks
                .iter()
                .filter(|(block, slot)| other.get(*block) != Some(slot))
                .map(|(block, _)| *block)
                .collect()
        };
        blocks.extend(moved(&self.old_masks, &self.new_masks));
        blocks.extend(moved(&self.new_masks, &self.old_masks));
        blocks.sort_unstable();
        blocks.dedup();
        for bytenr in blocks {
            let records = (self.old_record(bytenr), self.new_record(bytenr));
            let (Some(old), Some(new)) = records else { continue };
            if old.generation != new.generation || self.inputs.replaced.contains(bytenr) {
                continue;
            }
            let Some(expect) = survivor(&old) else { continue };
            self.reformed.insert(bytenr);
            let old_form = self.old_form(bytenr, Some(&old));
            let new_form = self.new_form(bytenr, Some(&new));
            self.push_survivor(&expect, old_form, new_form);
        }
    }

    /// Pushes the references of a block that stays, dropped under one form and added under the other.
    fn push_survivor(&mut self, expect: &Expect, old_form: Form, new_form: Form) {
        // The content is the same in both commits: one read serves.
        let Some(block) = self.read(self.inputs.old, expect) else { return };
        let Some(view) = block.view() else { return };
        edges::for_each(&view, expect, new_form, |edge| self.adds.push(Add::checked(edge)));
        edges::for_each(&view, expect, old_form, |edge| self.drops.push(edge));
    }
}

/// How to reach a block that is known from its record alone. Its parents have been checked when it was born.
pub(super) fn survivor(record: &ExtentRecord) -> Option<Expect> {
    Some(Expect {
        bytenr: record.bytenr,
        generation: record.generation,
        level: record.level?,
        first_key: None,
        limit: None,
        owner: OwnerRule::Any,
        from: (0, 0),
    })
}
