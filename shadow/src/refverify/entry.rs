//! Entries: what is known about one extent.

use std::collections::VecDeque;
use std::fmt;

use crate::record::{ExtentRecord, RefKey, Site};
use crate::refverify::ActionKind;

/// Steps of history that an extent keeps, oldest forgotten first.
pub const HISTORY_LIMIT: usize = 32;

/// One action in an extent's history (`struct ref_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Transaction that did it.
    pub generation: u64,
    /// What was done.
    pub kind: ActionKind,
    /// The reference.
    pub key: RefKey,
    /// How often.
    pub count: u64,
    /// The block that holds (or held) the reference; block 0 where it is a root pointer.
    pub site: Site,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RefKey { root, parent, owner, offset, .. } = self.key;
        write!(
            f,
            "generation {}: {}, ref_root {}, parent {parent}, owner {owner}, offset {}, num_refs {}, held by block {} \
             slot {}",
            self.generation,
            self.kind.name(),
            root as i64,
            offset as i64,
            self.count,
            self.site.block,
            self.site.slot
        )
    }
}

/// How many direct references a root has on an extent (`struct root_entry`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootEntry {
    /// Tree id.
    pub root: u64,
    /// References that name it; shared ones do not count.
    pub num_refs: i64,
}

/// What is known about one extent (`struct block_entry`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    /// Logical address.
    pub bytenr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Sum of all references.
    pub num_refs: u64,
    /// Whether it is a tree block.
    pub metadata: bool,
    /// Whether it was built from the extent tree, not seen being allocated.
    pub from_disk: bool,
    roots: Vec<RootEntry>,
    refs: Vec<(RefKey, u64)>,
    history: VecDeque<Step>,
}

impl BlockEntry {
    /// An entry without references.
    #[must_use]
    pub fn new(bytenr: u64, len: u64, metadata: bool) -> Self {
        BlockEntry {
            bytenr,
            len,
            num_refs: 0,
            metadata,
            from_disk: false,
            roots: Vec::new(),
            refs: Vec::new(),
            history: VecDeque::new(),
        }
    }

    /// The entry that a record of the extent tree stands for (`process_extent_item`).
    #[must_use]
    pub fn from_record(record: &ExtentRecord) -> Self {
        let mut entry = BlockEntry::new(record.bytenr, record.len, record.metadata());
        entry.reload(record);
        entry
    }

    /// Replaces what the entry holds by what the record says; the history stays.
    pub fn reload(&mut self, record: &ExtentRecord) {
        self.len = record.len;
        self.metadata = record.metadata();
        self.from_disk = true;
        self.num_refs = 0;
        self.roots.clear();
        self.refs.clear();
        for backref in &record.backrefs {
            self.num_refs = self.num_refs.saturating_add(backref.count);
            self.refs.push((backref.key, backref.count));
            self.count_root(&backref.key, signed(backref.count));
        }
        // Not one by one into their places: there may be thousands.
        self.refs.sort_unstable_by_key(|(key, _)| *key);
        self.refs.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                earlier.1 = earlier.1.saturating_add(later.1);
            }
            same
        });
    }

    /// Forgets all references; the history stays.
    pub fn clear(&mut self) {
        self.num_refs = 0;
        self.roots.clear();
        self.refs.clear();
    }

    /// Forgets the last steps, as far as they are of this generation.
    pub fn retract(&mut self, generation: u64) {
        while self.history.back().is_some_and(|step| step.generation == generation) {
            self.history.pop_back();
        }
    }

    /// Corrects the references by damage that is known: by how many the trees hold more than are recorded.
    pub fn adjust(&mut self, known: &[(RefKey, i64)]) {
        for (key, more) in known {
            if *more > 0 {
                self.add(key, more.unsigned_abs());
            } else {
                self.drop_ref(key, more.unsigned_abs());
            }
        }
    }

    /// The references and their counts, by key.
    #[must_use]
    pub fn refs(&self) -> &[(RefKey, u64)] {
        &self.refs
    }

    /// The roots and their counts, by id.
    #[must_use]
    pub fn roots(&self) -> &[RootEntry] {
        &self.roots
    }

    /// The actions that led here, oldest first.
    pub fn history(&self) -> impl ExactSizeIterator<Item = &Step> {
        self.history.iter()
    }

    /// Count of one reference; `None` where there is no such reference at all.
    #[must_use]
    pub fn count_of(&self, key: &RefKey) -> Option<u64> {
        self.ref_slot(key).ok().map(|at| self.refs[at].1)
    }

    /// Bytes of memory the entry takes, about.
    #[must_use]
    pub fn footprint(&self) -> usize {
        size_of::<Self>()
            + self.refs.capacity() * size_of::<(RefKey, u64)>()
            + self.roots.capacity() * size_of::<RootEntry>()
            + self.history.capacity() * size_of::<Step>()
    }

    pub(super) fn add(&mut self, key: &RefKey, count: u64) {
        match self.ref_slot(key) {
            Ok(at) => self.refs[at].1 = self.refs[at].1.saturating_add(count),
            Err(at) => self.refs.insert(at, (*key, count)),
        }
        self.num_refs = self.num_refs.saturating_add(count);
        self.count_root(key, signed(count));
    }

    pub(super) fn drop_ref(&mut self, key: &RefKey, count: u64) {
        if let Ok(at) = self.ref_slot(key) {
            self.refs[at].1 = self.refs[at].1.saturating_sub(count);
            if self.refs[at].1 == 0 {
                self.refs.remove(at);
            }
        }
        self.num_refs = self.num_refs.saturating_sub(count);
        self.count_root(key, -signed(count));
    }

    pub(super) fn remember(&mut self, step: Step) {
        if self.history.len() == HISTORY_LIMIT {
            self.history.pop_front();
        }
        self.history.push_back(step);
    }

    pub(super) fn ensure_root(&mut self, root: u64) {
        if let Err(at) = self.roots.binary_search_by_key(&root, |entry| entry.root) {
            self.roots.insert(at, RootEntry { root, num_refs: 0 });
        }
    }

    fn count_root(&mut self, key: &RefKey, change: i64) {
        if key.parent != 0 {
            return;
        }
        self.ensure_root(key.root);
        if let Ok(at) = self.roots.binary_search_by_key(&key.root, |entry| entry.root) {
            self.roots[at].num_refs = self.roots[at].num_refs.saturating_add(change);
        }
    }

    fn ref_slot(&self, key: &RefKey) -> Result<usize, usize> {
        self.refs.binary_search_by(|(existing, _)| existing.cmp(key))
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl fmt::Display for BlockEntry {
    /// What `dump_block_entry` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "block entry [{} {}], num_refs {}, metadata {}, from disk {}",
            self.bytenr,
            self.len,
            self.num_refs,
            u8::from(self.metadata),
            u8::from(self.from_disk)
        )?;
        for (key, count) in &self.refs {
            let RefKey { root, parent, owner, offset, .. } = key;
            writeln!(
                f,
                "  ref root {}, parent {parent}, owner {owner}, offset {}, num_refs {count}",
                *root as i64, *offset as i64
            )?;
        }
        for entry in &self.roots {
            writeln!(f, "  root entry {}, num_refs {}", entry.root as i64, entry.num_refs)?;
        }
        for step in &self.history {
            writeln!(f, "  {step}")?;
        }
        Ok(())
    }
}
