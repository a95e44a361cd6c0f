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
//! pairs are compared first ([`pairs`]), so that what is in both costs nothing.

mod leaks;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use parser::{Block, Key, RootItem, ids};

use crate::codes::Code;
use crate::delta::extents::{ExtentDelta, Records};
use crate::delta::items::ItemFaults;
use crate::delta::masks::{self, Masks};
use crate::delta::pairs::{self, Common, Pairs};
use crate::edges::{self, Edge, Form, Target};
use crate::forest::{BlockProblem, Copies, Expect, Forest, RootId};
use crate::items;
use crate::owners::Claim;
use crate::record::{ExtentRecord, RefKey, Site};
use crate::source::TreeBlock;
use crate::space::LostChunk;
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

/// Logical ranges whose chunk is another one than before.
#[derive(Debug, Default)]
pub struct ReplacedRanges(Vec<(u64, u64)>);

impl ReplacedRanges {
    /// Compares the chunk maps of two commits. What lay in a chunk that was `lost` with all its extents is still there,
    /// as far as references go.
    #[must_use]
    pub fn new(old: &Forest<'_>, new: &Forest<'_>, lost: &[LostChunk]) -> Self {
        let (old, new) = (&old.snapshot.chunks, &new.snapshot.chunks);
        let gone = |chunk: &&parser::Chunk| {
            // A chunk that was made again lies elsewhere: what it took is not given out before the commit.
            new.chunk_at(chunk.logical).is_none_or(|now| !now.is_where(chunk))
                && !lost.iter().any(|lost| lost.chunk.logical == chunk.logical)
        };
        ReplacedRanges(old.chunks().iter().filter(gone).map(|chunk| (chunk.logical, chunk.end())).collect())
    }

    /// Whether the address lay in a chunk that is gone.
    #[must_use]
    pub fn contains(&self, bytenr: u64) -> bool {
        self.0.iter().any(|&(start, end)| (start..end).contains(&bytenr))
    }

    /// The ranges: first address and first past the end.
    #[must_use]
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }
}

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

    /// The references of super block and root items.
    fn roots(&mut self) {
        // In a chunk that took the place of another, the same address is another block.
        let replaced = self.inputs.replaced;
        let (before, now) = (&self.inputs.old.snapshot.roots, &self.inputs.new.snapshot.roots);
        let is_changed = |id: &RootId, item: &RootItem| {
            before.get(id) != Some(item) || now.get(id) != Some(item) || replaced.contains(item.bytenr)
        };
        let old = root_edges(&self.inputs.old, is_changed);
        let new = root_edges(&self.inputs.new, is_changed);
        let same_root = |a: &Edge, b: &Edge| same_root(a, b) && !replaced.contains(a.bytenr);
        for (id, edge) in &new {
            match old.get(id) {
                Some(before) if same_root(before, edge) => {
                    // The same root block under a root item that says something else about it.
                    let Target::Tree(expect) = edge.target else { continue };
                    if before != edge
                        && let Err(problem) = self.inputs.new.read(&expect)
                    {
                        self.result.problems.push(problem);
                    }
                }
                Some(before) => {
                    self.propose_pair(before, edge);
                    self.adds.push(Add::unchecked(*edge));
                }
                None => self.adds.push(Add::unchecked(*edge)),
            }
        }
        for (id, edge) in &old {
            if new.get(id).is_none_or(|now| !same_root(now, edge)) {
                self.drops.push(*edge);
            }
        }
    }

    /// Notes that the block at `new` seems to be the copy of the one at `old`, if the extent tree says that it is
    /// new. If it says as well that the other had a single reference and is gone, what both hold will cancel out:
    /// should the trees say something else, one of the two is found to disagree with its record, whatever was
    /// cancelled between them.
    fn propose_pair(&mut self, old: &Edge, new: &Edge) {
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

    /// Blocks that are in both commits but hold their references in another form: FULL_BACKREF was set, or a
    /// deletion has moved on.
    fn forms_of_survivors(&mut self) {
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

    fn birth(&mut self, expect: &Expect) {
        self.result.born += 1;
        self.push_born(expect);
    }

    /// No reference to the block is left. Its own references go with it, unless the extent tree says that it is
    /// still there: then it leaked, which is one fault, not one for each of its children.
    fn death(&mut self, expect: &Expect) {
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

    /// Reads a block that was born and pushes its references; those that the block it is a copy of holds as well
    /// are left out on both sides.
    fn push_born(&mut self, expect: &Expect) {
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

    /// Pushes the references of a block that died.
    fn push_dead(&mut self, expect: &Expect) {
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

    /// Pushes the references of a block that stays, dropped under one form and added under the other.
    fn push_survivor(&mut self, expect: &Expect, old_form: Form, new_form: Form) {
        // The content is the same in both commits: one read serves.
        let Some(block) = self.read(self.inputs.old, expect) else { return };
        let Some(view) = block.view() else { return };
        edges::for_each(&view, expect, new_form, |edge| self.adds.push(Add::checked(edge)));
        edges::for_each(&view, expect, old_form, |edge| self.drops.push(edge));
    }

    /// What a block of the last commit holds, in the form in which it is counted now.
    fn edges_before(&mut self, expect: &Expect) -> Option<Vec<Edge>> {
        let (block, form) = self.block_before(expect)?;
        let mut held = Vec::new();
        edges::for_each(&block.view()?, expect, form, |edge| held.push(edge));
        Some(held)
    }

    /// A block of the last commit, and the form in which its references are counted now.
    fn block_before(&mut self, expect: &Expect) -> Option<(Arc<TreeBlock>, Form)> {
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

    fn read(&mut self, forest: Forest<'_>, expect: &Expect) -> Option<Arc<TreeBlock>> {
        forest.read(expect).map_err(|problem| self.result.problems.push(problem)).ok()
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
    fn check_pointer(&mut self, id: ExtentId, expect: &Expect, site: Site) {
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

/// Whether a block's references are recorded by its owner, all of them.
fn is_plain(form: Form) -> bool {
    form == Form::default()
}

fn form(record: Option<&ExtentRecord>, first_slot: Option<&usize>) -> Form {
    Form {
        full: record.is_some_and(ExtentRecord::full_backref),
        first_slot: first_slot.copied().unwrap_or(0),
    }
}

/// How to reach a block that is known from its record alone. Its parents have been checked when it was born.
fn survivor(record: &ExtentRecord) -> Option<Expect> {
    Some(Expect {
        bytenr: record.bytenr,
        generation: record.generation,
        level: record.level?,
        first_key: None,
        limit: None,
        owner: crate::forest::OwnerRule::Any,
        from: (0, 0),
    })
}

/// Whether both records are of one extent, which the newer says is in use.
fn is_same_extent(old: Option<&ExtentRecord>, new: Option<&ExtentRecord>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => old.generation == new.generation && new.refs > 0,
        _ => false,
    }
}

fn same_root(a: &Edge, b: &Edge) -> bool {
    a.bytenr == b.bytenr && a.key == b.key
}

/// The references that the super block and those root items that are `wanted` hold. Log trees and the remap tree
/// hold none.
pub(crate) fn root_edges(
    forest: &Forest<'_>,
    wanted: impl Fn(&RootId, &RootItem) -> bool,
) -> BTreeMap<RootId, Edge> {
    let mut edges = BTreeMap::new();
    let mut insert = |id: RootId, expect: Expect| {
        let key = if id.tree == ids::TREE_RELOC {
            RefKey::shared_tree(expect.bytenr, expect.level)
        } else {
            RefKey::tree(id.tree, expect.level)
        };
        let site = Site { block: 0, slot: 0 };
        edges.insert(
            id,
            Edge { item: Key::MIN, bytenr: expect.bytenr, key, target: Target::Tree(expect), site },
        );
    };
    if let Some(superblock) = forest.snapshot.super_view() {
        insert(RootId { tree: ids::ROOT_TREE, offset: 0 }, Expect::root_tree(&superblock));
        insert(RootId { tree: ids::CHUNK_TREE, offset: 0 }, Expect::chunk_tree(&superblock));
    }
    for (id, item) in forest.snapshot.roots.iter() {
        if item.bytenr != 0 && holds_references(id.tree) && wanted(id, item) {
            insert(*id, Expect::root(*id, item));
        }
    }
    edges
}

/// Whether the blocks of a tree take part in reference counting.
#[must_use]
pub fn holds_references(tree: u64) -> bool {
    !matches!(tree, ids::REMAP_TREE | ids::TREE_LOG | ids::ROOT_TREE | ids::CHUNK_TREE)
}
