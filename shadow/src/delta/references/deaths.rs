//! Tree blocks that are no longer reachable, and what they held.
//!
//! Knows nothing of when a block dies, which the counts say.

use std::sync::Arc;

use super::Walk;
use super::survivors::survivor;
use crate::edges::{self, Edge, Form};
use crate::forest::Expect;
use crate::record::ExtentRecord;
use crate::source::TreeBlock;

impl Walk<'_, '_> {
    /// No reference to the block is left. Its own references go with it, unless the extent tree says that it is
    /// still there: then it leaked, which is one fault, not one for each of its children.
    pub(super) fn death(&mut self, expect: &Expect) {
        self.result.died += 1;
        let (old, new) = (self.old_record(expect.bytenr), self.new_record(expect.bytenr));
        let still_there = !self.inputs.replaced.contains(expect.bytenr)
            && is_same_extent(old.as_deref(), new.as_deref())
            && self.leaks_with_all(expect);
        if !still_there {
            self.dead.insert(expect.bytenr);
            self.push_dead(expect);
        }
    }

    /// Pushes the references of a block that died.
    pub(super) fn push_dead(&mut self, expect: &Expect) {
        if let Some(mut rest) = self.pairs.take_rest(expect.bytenr) {
            return self.drops.append(&mut rest);
        }
        // The pointer that goes last need not be one that was right.
        let record = self.old_record(expect.bytenr);
        let by_record = record.as_deref().and_then(survivor);
        let right = by_record.filter(|_| self.inputs.old.read(expect).is_err()).unwrap_or(*expect);
        if let Some(mut held) = self.edges_before(&right) {
            self.drops.append(&mut held);
        }
    }

    /// What a block of the last commit holds, in the form in which it is counted now.
    pub(super) fn edges_before(&mut self, expect: &Expect) -> Option<Vec<Edge>> {
        let (block, form) = self.block_before(expect)?;
        let mut held = Vec::new();
        edges::for_each(&block.view()?, expect, form, |edge| held.push(edge));
        Some(held)
    }

    /// A block of the last commit, and the form in which its references are counted now.
    pub(super) fn block_before(&mut self, expect: &Expect) -> Option<(Arc<TreeBlock>, Form)> {
        let block = self.read(self.inputs.old, expect)?;
        let bytenr = expect.bytenr;
        let form = if self.reformed.contains(&bytenr) {
            let record = self.new_record(bytenr);
            self.new_form(bytenr, record.as_deref())
        } else {
            let record = self.old_record(bytenr);
            self.old_form(bytenr, record.as_deref())
        };
        Some((block, form))
    }
}

/// Whether both records are of one extent, which the newer says is in use.
pub(super) fn is_same_extent(old: Option<&ExtentRecord>, new: Option<&ExtentRecord>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => old.generation == new.generation && new.refs > 0,
        _ => false,
    }
}
