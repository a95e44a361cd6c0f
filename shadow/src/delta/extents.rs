//! The first source: what the extent tree says has changed.

use std::collections::BTreeMap;
use std::rc::Rc;

use hashbrown::HashMap;
use parser::key::item;
use parser::{Key, ids};

use crate::forest::{BlockProblem, Forest};
use crate::record::{BuiltRecord, ExtentRecord, RecordBuilder, is_record_item};
use crate::space::group::GroupChange;
use crate::tree::{Searcher, diff};
use crate::violation::Violation;

/// Room for the extents that a small commit changes.
const ROOM: usize = 128;

/// Looks extents up in the extent tree of one commit.
pub struct Records<'a> {
    forest: Forest<'a>,
    searcher: Searcher<'a>,
    known: HashMap<u64, Option<Rc<ExtentRecord>>>,
}

impl<'a> Records<'a> {
    /// The records of `forest`.
    #[must_use]
    pub fn new(forest: Forest<'a>) -> Self {
        let searcher = Searcher::new(forest, forest.snapshot.tree(ids::EXTENT_TREE));
        Records { forest, searcher, known: HashMap::with_capacity(ROOM) }
    }

    /// What is recorded about the extent at `bytenr`; `None` when there is no extent item.
    ///
    /// # Errors
    /// [`BlockProblem`] when the extent tree can't be read there.
    pub fn get(&mut self, bytenr: u64) -> Result<Option<Rc<ExtentRecord>>, BlockProblem> {
        if let Some(known) = self.known.get(&bytenr) {
            return Ok(known.clone());
        }
        Ok(self.build(bytenr)?.0)
    }

    fn build(&mut self, bytenr: u64) -> Result<(Option<Rc<ExtentRecord>>, Vec<Violation>), BlockProblem> {
        let mut builder = RecordBuilder::new(&self.forest.snapshot.geometry, bytenr);
        let (from, to) =
            (Key::new(bytenr, item::EXTENT_ITEM, 0), Key::new(bytenr, item::SHARED_DATA_REF, u64::MAX));
        self.searcher.scan(from, to, |key, data, site| {
            if is_record_item(key.item_type) {
                builder.push(&key, data, site);
            }
        })?;
        let BuiltRecord { record, violations } = builder.finish();
        let record = record.map(Rc::new);
        self.known.insert(bytenr, record.clone());
        Ok((record, violations))
    }
}

/// An extent whose record changed.
#[derive(Debug, Clone)]
pub struct ExtentChange {
    /// What the old extent tree records.
    pub old: Option<Rc<ExtentRecord>>,
    /// What the new one records.
    pub new: Option<Rc<ExtentRecord>>,
}

/// All that changed in the extent tree.
#[derive(Debug, Default)]
pub struct ExtentDelta {
    /// By bytenr.
    pub changes: BTreeMap<u64, ExtentChange>,
    /// Block group items that stand in the extent tree.
    pub groups: Vec<GroupChange>,
    /// What is wrong with changed records by themselves, and was not before.
    pub violations: Vec<Violation>,
    /// What could not be read; where there is anything, `changes` is not to be relied upon.
    pub problems: Vec<BlockProblem>,
}

/// Compares the extent trees of two commits.
#[must_use]
pub fn extent_delta<'a>(old: &mut Records<'a>, new: &mut Records<'a>) -> ExtentDelta {
    let side = |records: &Records<'a>| (records.forest, records.forest.snapshot.tree(ids::EXTENT_TREE));
    let mut touched = Vec::new();
    let mut groups = Vec::new();
    let problems = diff(side(old), side(new), |change| {
        let key = change.key();
        if is_record_item(key.item_type) && touched.last() != Some(&key.objectid) {
            touched.push(key.objectid);
        }
        groups.extend(GroupChange::new(&change));
    });
    let mut delta = ExtentDelta { problems, groups, ..ExtentDelta::default() };
    for bytenr in touched {
        match (old.build(bytenr), new.build(bytenr)) {
            (Ok((old, known)), Ok((new, violations))) => {
                let is_new = |violation: &Violation| !known.iter().any(|known| known.code == violation.code);
                delta.violations.extend(violations.into_iter().filter(is_new));
                delta.changes.insert(bytenr, ExtentChange { old, new });
            }
            (Err(problem), _) | (_, Err(problem)) => delta.problems.push(problem),
        }
    }
    delta
}
