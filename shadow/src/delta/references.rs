//! The second source: what the trees that hold the references say has changed.
//!
//! A reference is held by a live tree block, each of which counts once, however many snapshots share it. Blocks
//! become live and die by reference counts, and the counts before the commit are those of the old extent tree: so
//! the work follows the change, and nothing is kept from one commit to the next.
//!
//! Adds come before drops: a block that moves from one parent to another must not seem dead in between. Beside
//! births and deaths, two things change the references of a block that stays: its FULL_BACKREF flag, and the cursor
//! of a deletion.
//!
//! Most blocks that are born are copies of one that dies (copy on write), and hold nearly the same references. Such
//! pairs are compared first ([`pairs`](crate::delta::pairs)), so that what is in both costs nothing.
//!
//! Here are the walk's state and its counts. What becomes of a block that is born, dies, or stays and changes its form has a
//! file each, and so have the roots where it begins and the blocks that no pointer leads to.

mod births;
mod deaths;
mod leaks;
mod replaced;
mod roots;
mod survivors;

pub use replaced::ReplacedRanges;
pub use roots::holds_references;
pub(crate) use roots::root_edges;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::delta::extents::{ExtentDelta, Records};
use crate::delta::items::ItemFaults;
use crate::delta::masks::{self, Masks};
use crate::delta::pairs::Pairs;
use crate::edges::{Edge, Form, Target};
use crate::forest::{BlockProblem, Expect, Forest};
use crate::record::{ExtentRecord, RefKey, Site};
use crate::source::TreeBlock;
use crate::violation::Violation;

/// Room for the references that a small commit changes, so that nothing has to grow.
const ROOM: usize = 256;

/// An extent. Logical addresses of a removed chunk can be taken by a new one in the same transaction: then one
/// address stands for two extents, the old and the new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentId {
    /// Logical address.
    pub bytenr: u64,
    /// Whether it is the new of two.
    pub reborn: bool,
}

/// By how much one reference changed, and where. `net` is 0 only where the length changed.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetChange {
    /// Number of references more (or fewer) than before.
    pub net: i64,
    /// Where one was added last.
    pub added: Option<Site>,
    /// Where one was dropped last.
    pub dropped: Option<Site>,
    /// Length that the adding file extents name; 0 for tree blocks.
    pub len: u64,
    /// Another length that one of them names.
    pub other_len: Option<u64>,
    /// Whether the dropped file extents named another length.
    pub len_differs: bool,
}

/// All that changed in the references of the trees.
#[derive(Debug, Default)]
pub struct ReferenceDelta {
    /// By extent and reference; changes that cancel out are not in it.
    pub changes: BTreeMap<ExtentId, Vec<(RefKey, NetChange)>>,
    /// What was found on the way.
    pub violations: Vec<Violation>,
    /// Blocks of this transaction that the owners named in their headers don't hold.
    pub disowned: Vec<Violation>,
    /// What could not be read; where there is anything, `changes` is not all.
    pub problems: Vec<BlockProblem>,
    /// How the blocks of this transaction are reached that became reachable.
    pub fresh: Vec<Expect>,
    /// Tree blocks that became reachable.
    pub born: u64,
    /// Tree blocks that are no longer reachable.
    pub died: u64,
}

/// What is known to be wrong already, by extent: how many references the trees hold more than are recorded.
pub type Residuals = HashMap<u64, Vec<(RefKey, i64)>>;

/// What one walk needs: both forests, the records of both extent trees, and what the extent tree says has changed.
pub struct Inputs<'a, 'r> {
    /// The last commit.
    pub old: Forest<'a>,
    /// The commit to be verified.
    pub new: Forest<'a>,
    /// Records of the last commit.
    pub old_records: &'r mut Records<'a>,
    /// Records of the new one.
    pub new_records: &'r mut Records<'a>,
    /// What the extent tree says.
    pub extents: &'r ExtentDelta,
    /// Chunks that are gone.
    pub replaced: &'r ReplacedRanges,
    /// Damage known before.
    pub residuals: &'r Residuals,
}

/// Walks from the changed roots to everything that became reachable or unreachable.
#[must_use]
pub fn reference_delta(inputs: Inputs<'_, '_>) -> ReferenceDelta {
    let mut walk = Walk::new(inputs);
    walk.roots();
    walk.forms_of_survivors();
    walk.adds();
    walk.drops();
    walk.leaks();
    walk.finish()
}

/// A reference that was added.
#[derive(Debug, Clone, Copy)]
struct Add {
    edge: Edge,
    /// What its pointer says of the block has been checked before.
    checked: bool,
}

impl Add {
    fn checked(edge: Edge) -> Self {
        Add { edge, checked: true }
    }

    fn unchecked(edge: Edge) -> Self {
        Add { edge, checked: false }
    }
}

struct Walk<'a, 'r> {
    inputs: Inputs<'a, 'r>,
    old_masks: Masks,
    new_masks: Masks,
    /// Blocks that stay, whose references are already counted under their new form.
    reformed: HashSet<u64>,
    pairs: Pairs,
    /// Blocks that could not be used as the pointers to them say. Another pointer may be right.
    unborn: HashSet<u64>,
    /// Blocks whose references have been dropped.
    dead: HashSet<u64>,
    counts: HashMap<ExtentId, i64>,
    net: HashMap<(ExtentId, RefKey), NetChange>,
    adds: Vec<Add>,
    drops: Vec<Edge>,
    item_faults: ItemFaults,
    result: ReferenceDelta,
}

impl<'a, 'r> Walk<'a, 'r> {
    fn new(inputs: Inputs<'a, 'r>) -> Self {
        let mut result = ReferenceDelta::default();
        let old_masks = masks::all(&inputs.old, &mut result.problems);
        let new_masks = masks::all(&inputs.new, &mut result.problems);
        Walk {
            inputs,
            old_masks,
            new_masks,
            reformed: HashSet::new(),
            pairs: Pairs::default(),
            unborn: HashSet::new(),
            dead: HashSet::new(),
            counts: HashMap::with_capacity(ROOM),
            net: HashMap::with_capacity(ROOM),
            adds: Vec::with_capacity(ROOM),
            drops: Vec::with_capacity(ROOM),
            item_faults: ItemFaults::default(),
            result,
        }
    }

    fn adds(&mut self) {
        while let Some(Add { edge, checked }) = self.adds.pop() {
            let id = self.id_now(edge.bytenr);
            let len = match edge.target {
                Target::Data { len } => len,
                Target::Tree(_) => 0,
            };
            let change = self.net.entry((id, edge.key)).or_default();
            change.net += 1;
            if change.added.replace(edge.site).is_some() && change.len != len {
                change.other_len = Some(change.len);
            }
            change.len = len;
            if let Target::Tree(expect) = edge.target {
                let count = self.count(id);
                self.counts.insert(id, count.saturating_add(1));
                let is_birth = count <= 0 && !self.was_leaked(id, &expect);
                if is_birth || self.unborn.contains(&id.bytenr) {
                    self.birth(&expect);
                } else if !checked {
                    self.check_pointer(id, &expect, edge.site);
                }
            }
        }
    }

    fn drops(&mut self) {
        while let Some(edge) = self.drops.pop() {
            let id = ExtentId { bytenr: edge.bytenr, reborn: false };
            let change = self.net.entry((id, edge.key)).or_default();
            change.net -= 1;
            change.dropped = Some(edge.site);
            if let Target::Data { len } = edge.target {
                let differs = change.len != len || change.other_len.is_some();
                change.len_differs |= change.added.is_some() && differs;
            }
            if let Target::Tree(expect) = edge.target {
                let count = self.count(id).saturating_sub(1);
                self.counts.insert(id, count);
                if count == 0 {
                    self.death(&expect);
                }
            }
        }
    }

    fn read(&mut self, forest: Forest<'_>, expect: &Expect) -> Option<Arc<TreeBlock>> {
        forest.read(expect).map_err(|problem| self.result.problems.push(problem)).ok()
    }

    fn finish(mut self) -> ReferenceDelta {
        self.result.violations.extend(self.item_faults.new_ones(&self.inputs.old, &self.inputs.new));
        let mut changes: BTreeMap<ExtentId, Vec<(RefKey, NetChange)>> = BTreeMap::new();
        for ((id, key), change) in self.net {
            if change.net != 0 || change.len_differs {
                changes.entry(id).or_default().push((key, change));
            }
        }
        for keys in changes.values_mut() {
            keys.sort_unstable_by_key(|(key, _)| *key);
        }
        self.result.changes = changes;
        self.result
    }

    /// The extent that a pointer of the new forest means.
    fn id_now(&self, bytenr: u64) -> ExtentId {
        ExtentId { bytenr, reborn: self.inputs.replaced.contains(bytenr) }
    }

    /// How many references there are to a tree block, as far as the walk has come.
    fn count(&mut self, id: ExtentId) -> i64 {
        if let Some(&count) = self.counts.get(&id) {
            return count;
        }
        if id.reborn {
            return 0;
        }
        // The residuals are about backrefs, which the refs field may contradict.
        let recorded = self
            .old_record(id.bytenr)
            .map_or(0, |record| i64::try_from(record.backref_sum()).unwrap_or(i64::MAX));
        let known = self.inputs.residuals.get(&id.bytenr);
        let known_wrong: i64 = known.map_or(0, |keys| keys.iter().map(|(_, more)| more).sum());
        recorded.saturating_add(known_wrong)
    }

    fn old_record(&mut self, bytenr: u64) -> Option<Rc<ExtentRecord>> {
        match self.inputs.old_records.get(bytenr) {
            Ok(record) => record,
            Err(problem) => {
                self.result.problems.push(problem);
                None
            }
        }
    }

    fn new_record(&mut self, bytenr: u64) -> Option<Rc<ExtentRecord>> {
        match self.inputs.new_records.get(bytenr) {
            Ok(record) => record,
            Err(problem) => {
                self.result.problems.push(problem);
                None
            }
        }
    }

    fn old_form(&self, bytenr: u64, record: Option<&ExtentRecord>) -> Form {
        form(record, self.old_masks.get(&bytenr))
    }

    fn new_form(&self, bytenr: u64, record: Option<&ExtentRecord>) -> Form {
        form(record, self.new_masks.get(&bytenr))
    }
}

fn form(record: Option<&ExtentRecord>, first_slot: Option<&usize>) -> Form {
    Form {
        full: record.is_some_and(ExtentRecord::full_backref),
        first_slot: first_slot.copied().unwrap_or(0),
    }
}
