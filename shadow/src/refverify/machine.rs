//! The state machine: actions on entries, and the checks of each.

use std::collections::{BTreeMap, VecDeque};

use crate::codes::Code;
use crate::record::{ExtentRecord, RefKey, Site};
use crate::refverify::{BlockEntry, Step};
use crate::violation::Violation;

/// What happens to an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActionKind {
    /// It is allocated, with a first reference (`BTRFS_ADD_DELAYED_EXTENT`).
    Alloc,
    /// A reference is added (`BTRFS_ADD_DELAYED_REF`).
    Add,
    /// A reference is dropped (`BTRFS_DROP_DELAYED_REF`).
    Drop,
    /// Its last reference is gone.
    Free,
}

impl ActionKind {
    /// As events spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ActionKind::Alloc => "alloc",
            ActionKind::Add => "add",
            ActionKind::Drop => "drop",
            ActionKind::Free => "free",
        }
    }

    const fn past(self) -> &'static str {
        match self {
            ActionKind::Alloc => "allocate",
            ActionKind::Add => "add a ref to",
            ActionKind::Drop => "drop a ref from",
            ActionKind::Free => "free",
        }
    }
}

/// One step of the state machine (`struct btrfs_ref`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// What to do.
    pub kind: ActionKind,
    /// Logical address of the extent.
    pub bytenr: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The reference.
    pub key: RefKey,
    /// How many equal references at once; at least 1.
    pub count: u64,
    /// Transaction that did it.
    pub generation: u64,
    /// The block that holds the reference.
    pub site: Site,
}

/// All entries that are remembered.
#[derive(Debug)]
pub struct Shadow {
    entries: BTreeMap<u64, BlockEntry>,
    /// In the order they were last settled: the front is forgotten first. May name entries that are gone, or name
    /// one twice.
    settled: VecDeque<(u64, u64)>,
    /// When each entry was last settled, to tell which of its places in `settled` counts.
    clock: u64,
    stamps: BTreeMap<u64, u64>,
    bytes: usize,
    limit: usize,
}

/// Bookkeeping an entry costs beside its own footprint, about.
const ENTRY_OVERHEAD: usize = 64;

impl Shadow {
    /// An empty shadow that keeps about `limit` bytes of entries.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Shadow {
            entries: BTreeMap::new(),
            settled: VecDeque::new(),
            clock: 0,
            stamps: BTreeMap::new(),
            bytes: 0,
            limit,
        }
    }

    /// Entries that are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory the entries take, about.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.bytes
    }

    /// The entry of the extent at `bytenr`, if it is remembered.
    #[must_use]
    pub fn entry(&self, bytenr: u64) -> Option<&BlockEntry> {
        self.entries.get(&bytenr)
    }

    /// Makes the entry say what the extent tree records (`None`: nothing), keeping its history: what
    /// `btrfs_build_ref_tree` does for every extent at mount, and what follows every violation.
    pub fn load(&mut self, bytenr: u64, record: Option<&ExtentRecord>) {
        match record {
            Some(record) => {
                let before = self.cost(bytenr);
                self.entries
                    .entry(bytenr)
                    .and_modify(|entry| entry.reload(record))
                    .or_insert_with(|| BlockEntry::from_record(record));
                self.account(bytenr, before);
            }
            None => {
                if let Some(entry) = self.entries.get_mut(&bytenr) {
                    entry.clear();
                }
            }
        }
    }

    /// Corrects an entry by damage that is known: see [`BlockEntry::adjust`].
    pub fn adjust(&mut self, bytenr: u64, known: &[(RefKey, i64)]) {
        if known.is_empty() {
            return;
        }
        let before = self.cost(bytenr);
        let entry = self
            .entries
            .entry(bytenr)
            .or_insert_with(|| BlockEntry::new(bytenr, 0, known.iter().any(|(key, _)| key.metadata)));
        entry.adjust(known);
        self.account(bytenr, before);
    }

    /// Does one action (`btrfs_ref_tree_mod`). An action that violates a rule changes nothing.
    ///
    /// # Errors
    /// The violation.
    pub fn modify(&mut self, action: &Action) -> Result<(), Box<Violation>> {
        let before = self.cost(action.bytenr);
        let done = match action.kind {
            ActionKind::Alloc => self.allocate(action),
            ActionKind::Add | ActionKind::Drop | ActionKind::Free => self.change(action),
        };
        self.account(action.bytenr, before);
        done
    }

    /// Notes that an extent is done with for this commit; what was settled longest ago is forgotten when memory is
    /// short. Nothing is forgotten in between, so that a commit sees all it has loaded.
    pub fn settle(&mut self, bytenr: u64) {
        if self.entries.contains_key(&bytenr) {
            self.clock += 1;
            self.stamps.insert(bytenr, self.clock);
            self.settled.push_back((bytenr, self.clock));
        }
        while self.bytes > self.limit {
            let Some((oldest, stamp)) = self.settled.pop_front() else { break };
            if self.stamps.get(&oldest) == Some(&stamp) {
                self.forget(oldest);
            }
        }
        // While memory is not short nothing is taken from the front: places that no longer count must not pile up.
        if self.settled.len() > 2 * self.stamps.len() + 64 {
            let stamps = &self.stamps;
            self.settled.retain(|(bytenr, stamp)| stamps.get(bytenr) == Some(stamp));
        }
    }

    /// Takes back what a commit that was refused did to an entry: its steps are forgotten, and its references until
    /// they are loaded again.
    pub fn retract(&mut self, bytenr: u64, generation: u64) {
        let before = self.cost(bytenr);
        if let Some(entry) = self.entries.get_mut(&bytenr) {
            entry.clear();
            entry.retract(generation);
        }
        self.account(bytenr, before);
        if self.entries.get(&bytenr).is_some_and(|entry| entry.history().len() == 0) {
            self.forget(bytenr);
        }
    }

    /// A block group of `len` bytes at `start` is gone, and the entries in it with it
    /// (`btrfs_free_ref_tree_range`).
    pub fn free_range(&mut self, start: u64, len: u64) -> Vec<Violation> {
        let end = start.saturating_add(len);
        let mut violations = Vec::new();
        if let Some((_, below)) = self.entries.range(..start).next_back()
            && below.num_refs > 0
            && below.bytenr.saturating_add(below.len) > start
        {
            violations.push(overlaps(below, start, len));
        }
        let inside: Vec<u64> = self.entries.range(start..end).map(|(&bytenr, _)| bytenr).collect();
        for bytenr in inside {
            if let Some(entry) = self.entries.get(&bytenr)
                && entry.num_refs > 0
                && bytenr.saturating_add(entry.len) > end
            {
                violations.push(overlaps(entry, start, len));
            }
            self.forget(bytenr);
        }
        violations
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Shadow::new(self.limit);
    }

    fn allocate(&mut self, action: &Action) -> Result<(), Box<Violation>> {
        let entry = self
            .entries
            .entry(action.bytenr)
            .or_insert_with(|| BlockEntry::new(action.bytenr, action.len, action.key.metadata));
        if entry.num_refs != 0 {
            let text = "re-allocated a block that still has references to it!";
            return Err(violation(Code::RefReallocated, text, entry, action));
        }
        entry.clear();
        entry.len = action.len;
        entry.metadata = action.key.metadata;
        entry.from_disk = false;
        if action.key.metadata && action.count > 1 {
            entry.add(&action.key, 1);
            let text = "attempting to add another ref for an existing ref on a tree block";
            return Err(violation(Code::RefDuplicateTreeRef, text, entry, action));
        }
        entry.add(&action.key, action.count);
        entry.remember(step(action, action.kind));
        Ok(())
    }

    fn change(&mut self, action: &Action) -> Result<(), Box<Violation>> {
        let Some(entry) = self.entries.get_mut(&action.bytenr) else {
            let text = format!(
                "trying to {} bytenr {} num_bytes {} but there is no existing entry!",
                action.kind.past(),
                action.bytenr,
                action.len
            );
            let found = Violation::new(Code::RefNoExtentItem, action.bytenr, action.len, text);
            return Err(Box::new(found.with_key(action.key)));
        };
        if entry.num_refs == 0 {
            let text = format!(
                "trying to {} bytenr {} that has 0 total references",
                action.kind.past(),
                action.bytenr
            );
            return Err(violation(Code::RefNoReferences, &text, entry, action));
        }
        if action.key.parent == 0 {
            entry.ensure_root(action.key.root);
        }
        match (action.kind, entry.count_of(&action.key)) {
            (ActionKind::Add | ActionKind::Alloc, existing) => {
                let total = existing.unwrap_or(0).saturating_add(action.count);
                if entry.metadata && total > 1 {
                    let text = "attempting to add another ref for an existing ref on a tree block";
                    return Err(violation(Code::RefDuplicateTreeRef, text, entry, action));
                }
                entry.add(&action.key, action.count);
            }
            (ActionKind::Drop | ActionKind::Free, None) => {
                let text = "dropping a ref for a root that doesn't have a ref on the block";
                return Err(violation(Code::RefDropUnknown, text, entry, action));
            }
            (ActionKind::Drop | ActionKind::Free, Some(existing)) if existing < action.count => {
                let text = "dropping a ref for an existing root whose refs on the block are used up";
                return Err(violation(Code::RefDropExhausted, text, entry, action));
            }
            (ActionKind::Drop | ActionKind::Free, Some(_)) => entry.drop_ref(&action.key, action.count),
        }
        entry.remember(step(action, action.kind));
        if entry.num_refs == 0 {
            entry.remember(Step { count: 0, ..step(action, ActionKind::Free) });
        }
        Ok(())
    }

    fn cost(&self, bytenr: u64) -> usize {
        self.entries.get(&bytenr).map_or(0, |entry| entry.footprint() + ENTRY_OVERHEAD)
    }

    fn account(&mut self, bytenr: u64, before: usize) {
        let now = self.cost(bytenr);
        self.bytes = self.bytes.saturating_sub(before).saturating_add(now);
    }

    fn forget(&mut self, bytenr: u64) {
        let before = self.cost(bytenr);
        self.entries.remove(&bytenr);
        self.stamps.remove(&bytenr);
        self.bytes = self.bytes.saturating_sub(before);
    }
}

fn step(action: &Action, kind: ActionKind) -> Step {
    Step { generation: action.generation, kind, key: action.key, count: action.count, site: action.site }
}

fn violation(code: Code, text: &str, entry: &BlockEntry, action: &Action) -> Box<Violation> {
    let message = format!(
        "{text} [{} {}], {} {} (held by block {} slot {})",
        entry.bytenr,
        entry.len,
        action.kind.name(),
        action.key,
        action.site.block,
        action.site.slot
    );
    let mut violation = Violation::new(code, entry.bytenr, entry.len, message).with_key(action.key);
    violation.history = entry.history().copied().collect();
    Box::new(violation)
}

fn overlaps(entry: &BlockEntry, start: u64, len: u64) -> Violation {
    let message =
        format!("block entry [{} {}] overlaps a block group [{start},{len}]!", entry.bytenr, entry.len);
    let mut violation = Violation::new(Code::SpaceBlockGroupOverlap, entry.bytenr, entry.len, message);
    violation.history = entry.history().copied().collect();
    violation
}

#[cfg(test)]
mod tests {
    //! What only the inside shows: the queue by which entries are forgotten.

    use super::*;

    #[test]
    fn the_queue_does_not_grow_while_memory_is_plenty() {
        let mut shadow = Shadow::new(usize::MAX);
        let key = RefKey::data(5, 257, 0);
        let known = [(key, 1)];
        for round in 0..10_000 {
            shadow.adjust(4096 * (round % 10), &known);
            shadow.settle(4096 * (round % 10));
            shadow.settle(1 << 40);
        }
        assert_eq!(shadow.stamps.len(), 10);
        assert!(shadow.settled.len() <= 2 * shadow.stamps.len() + 64);
    }
}
