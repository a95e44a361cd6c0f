//! What the extent tree records about one extent: its item and all its backrefs, put together.

use std::fmt;

use hashbrown::HashMap;
use parser::extent::{FLAG_DATA, FLAG_FULL_BACKREF, FLAG_TREE_BLOCK};
use parser::key::item;
use parser::superblock::incompat;
use parser::{BackRef, ExtentItem, Key};

use crate::codes::Code;
use crate::forest::Geometry;
use crate::violation::Violation;

/// One reference, as ref-verify keys it (`struct ref_entry`). Two references with equal keys are
/// indistinguishable to the extent tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefKey {
    /// Whether the reference is to a tree block.
    pub metadata: bool,
    /// Tree whose blocks hold the reference; 0 where the parent says it.
    pub root: u64,
    /// Block that holds the reference, where it is a FULL_BACKREF one; else 0.
    pub parent: u64,
    /// Data: inode number, 0 with a parent. Tree block: its level.
    pub owner: u64,
    /// Data: file offset less offset into the extent, 0 with a parent. Tree block: 0.
    pub offset: u64,
}

impl RefKey {
    /// A reference to a tree block at `level` by the blocks of `root`.
    #[must_use]
    pub fn tree(root: u64, level: u8) -> Self {
        RefKey { metadata: true, root, parent: 0, owner: level.into(), offset: 0 }
    }

    /// A reference to a tree block at `level` by the block at `parent`.
    #[must_use]
    pub fn shared_tree(parent: u64, level: u8) -> Self {
        RefKey { metadata: true, root: 0, parent, owner: level.into(), offset: 0 }
    }

    /// A reference to a data extent by file extent items of `inode` in leaves of `root`.
    #[must_use]
    pub fn data(root: u64, inode: u64, offset: u64) -> Self {
        RefKey { metadata: false, root, parent: 0, owner: inode, offset }
    }

    /// A reference to a data extent by file extent items in the leaf at `parent`.
    #[must_use]
    pub fn shared_data(parent: u64) -> Self {
        RefKey { metadata: false, root: 0, parent, owner: 0, offset: 0 }
    }
}

impl fmt::Display for RefKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.metadata, self.parent) {
            (true, 0) => write!(f, "root {} level {}", self.root as i64, self.owner),
            (true, parent) => write!(f, "parent {parent} level {}", self.owner),
            (false, 0) => {
                let RefKey { root, owner, offset, .. } = self;
                write!(f, "root {} owner {owner} offset {}", *root as i64, *offset as i64)
            }
            (false, parent) => write!(f, "parent {parent}"),
        }
    }
}

/// Where an item stands: leaf and slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Site {
    /// Logical address of the block.
    pub block: u64,
    /// Slot in it.
    pub slot: usize,
}

/// Backrefs that are searched one by one.
const FEW: usize = 16;

/// A backref, where it is recorded, and its count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// Which reference.
    pub key: RefKey,
    /// How many.
    pub count: u64,
    /// Where it is recorded.
    pub site: Site,
}

/// All that the extent tree records about one extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentRecord {
    /// Logical address.
    pub bytenr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Level of a tree block; `None` for data.
    pub level: Option<u8>,
    /// The refs field.
    pub refs: u64,
    /// Transaction that allocated it.
    pub generation: u64,
    /// The flags field.
    pub flags: u64,
    /// All backrefs, in the order they were read.
    pub backrefs: Vec<Recorded>,
    /// Where the extent item stands.
    pub site: Site,
}

impl ExtentRecord {
    /// Whether the extent is a tree block.
    #[must_use]
    pub fn metadata(&self) -> bool {
        self.level.is_some()
    }

    /// Whether it is a tree block whose own pointers are recorded by its address.
    #[must_use]
    pub fn full_backref(&self) -> bool {
        self.flags & FLAG_FULL_BACKREF != 0
    }

    /// Sum of the counts of all backrefs.
    #[must_use]
    pub fn backref_sum(&self) -> u64 {
        self.backrefs.iter().fold(0, |sum, backref| sum.saturating_add(backref.count))
    }
}

/// Whether an item of the extent tree is part of an extent's record.
#[must_use]
pub fn is_record_item(item_type: u8) -> bool {
    matches!(item_type, item::EXTENT_ITEM | item::METADATA_ITEM | item::EXTENT_REF_V0)
        || BackRef::is_keyed_type(item_type)
}

/// Puts a record together from the items of one bytenr, in key order.
#[derive(Debug)]
pub struct RecordBuilder<'a> {
    geometry: &'a Geometry,
    bytenr: u64,
    record: Option<ExtentRecord>,
    /// Places of the record's backrefs, once there are many.
    index: HashMap<RefKey, usize>,
    /// Backrefs without an extent item.
    strays: Vec<Recorded>,
    violations: Vec<Violation>,
}

/// What the items of one bytenr add up to.
#[derive(Debug, Default)]
pub struct BuiltRecord {
    /// The record; `None` where there is no extent item.
    pub record: Option<ExtentRecord>,
    /// What is wrong with it by itself.
    pub violations: Vec<Violation>,
}

impl<'a> RecordBuilder<'a> {
    /// A builder for the extent at `bytenr`.
    #[must_use]
    pub fn new(geometry: &'a Geometry, bytenr: u64) -> Self {
        RecordBuilder {
            geometry,
            bytenr,
            record: None,
            index: HashMap::new(),
            strays: Vec::new(),
            violations: Vec::new(),
        }
    }

    /// Takes the next item.
    pub fn push(&mut self, key: &Key, data: &[u8], site: Site) {
        match key.item_type {
            item::EXTENT_ITEM | item::METADATA_ITEM => self.push_extent_item(key, data, site),
            item::EXTENT_REF_V0 => {
                self.violate(Code::RefInvalidBackref, site, format!("{key}: obsolete backref of version 0"));
            }
            _ => match BackRef::parse_keyed(key, data) {
                Ok(backref) => self.push_keyed(key, &backref, site),
                Err(error) => self.violate(Code::RefInvalidBackref, site, format!("{key}: {error}")),
            },
        }
    }

    /// The record.
    #[must_use]
    pub fn finish(mut self) -> BuiltRecord {
        if let Some(record) = &self.record {
            self.violations.extend(inconsistencies(record));
        } else if let Some(stray) = self.strays.first() {
            let message = format!("backref {} of {} without an extent item", stray.key, self.bytenr);
            self.violate(Code::RefNoExtentItem, stray.site, message);
        }
        BuiltRecord { record: self.record, violations: self.violations }
    }

    fn violate(&mut self, code: Code, site: Site, message: String) {
        let len = self.record.as_ref().map_or(0, |record| record.len);
        let message = format!("{message} (leaf {} slot {})", site.block, site.slot);
        self.violations.push(Violation::new(code, self.bytenr, len, message));
    }

    fn push_extent_item(&mut self, key: &Key, data: &[u8], site: Site) {
        if self.record.is_some() {
            let message = format!("extent item {} has multiple extent items", self.bytenr);
            return self.violate(Code::RefExtentOverlap, site, message);
        }
        let parsed = match ExtentItem::parse(key.item_type, data) {
            Ok(parsed) => parsed,
            Err(error) => return self.violate(Code::TreeExtentItem, site, format!("{key}: {error}")),
        };
        let is_tree_block = parsed.flags() & FLAG_TREE_BLOCK != 0 || key.item_type == item::METADATA_ITEM;
        let level = match (is_tree_block, key.item_type) {
            (false, _) => None,
            (true, item::METADATA_ITEM) => Some(u8::try_from(key.offset).unwrap_or(u8::MAX)),
            (true, _) => Some(parsed.block_info_level().unwrap_or(u8::MAX)),
        };
        let len = if is_tree_block { self.geometry.nodesize.into() } else { key.offset };
        let mut record = ExtentRecord {
            bytenr: self.bytenr,
            len,
            level,
            refs: parsed.refs(),
            generation: parsed.generation(),
            flags: parsed.flags(),
            backrefs: Vec::new(),
            site,
        };
        let faults = item_faults(key, &parsed, level, self.geometry);
        let mut order = InlineOrder::default();
        let mut problems = Vec::new();
        for inline in parsed.inline_refs() {
            match inline {
                Ok(BackRef::Owner { root }) if !self.geometry.has_incompat(incompat::SIMPLE_QUOTA) => {
                    problems.push((
                        Code::RefOwnerRef,
                        format!("found extent owner ref (root {root}) without simple quotas enabled"),
                    ));
                }
                Ok(backref) => {
                    if let Some(problem) = order.next(&backref) {
                        problems.push((Code::TreeExtentItem, problem));
                    }
                    problems.extend(add_backref(&mut record, &mut self.index, &backref, site));
                }
                Err(error) => {
                    problems.push((Code::RefInvalidBackref, format!("invalid inline ref: {error}")))
                }
            }
        }
        self.record = Some(record);
        for fault in faults {
            self.violate(Code::TreeExtentItem, site, format!("{key}: {fault}"));
        }
        for (code, message) in problems {
            self.violate(code, site, format!("{key}: {message}"));
        }
    }

    fn push_keyed(&mut self, key: &Key, backref: &BackRef, site: Site) {
        let Some(record) = &mut self.record else {
            let level = 0;
            if let Some(key) = ref_key(backref, level) {
                self.strays.push(Recorded { key, count: backref.count().into(), site });
            }
            return;
        };
        let problem = add_backref(record, &mut self.index, backref, site);
        if let Some((code, message)) = problem {
            self.violate(code, site, format!("{key}: {message}"));
        }
        if let BackRef::ExtentData { root, objectid, offset, .. } = backref {
            let hash = parser::csum::extent_data_ref_hash(*root, *objectid, *offset);
            // The kernel moves on to the next offset when two hashes collide, so it may be greater.
            if key.offset < hash {
                let message =
                    format!("{key}: invalid extent data ref hash, have {} expect {hash}", key.offset);
                self.violate(Code::TreeExtentItem, site, message);
            }
        }
    }
}

/// The key under which ref-verify files a backref of an extent whose tree level is `level`. Owner refs have none.
#[must_use]
pub fn ref_key(backref: &BackRef, level: u8) -> Option<RefKey> {
    Some(match *backref {
        BackRef::TreeBlock { root } => RefKey::tree(root, level),
        BackRef::SharedBlock { parent } => RefKey::shared_tree(parent, level),
        BackRef::ExtentData { root, objectid, offset, .. } => RefKey::data(root, objectid, offset),
        BackRef::SharedData { parent, .. } => RefKey::shared_data(parent),
        BackRef::Owner { .. } => return None,
    })
}

fn add_backref(
    record: &mut ExtentRecord,
    index: &mut HashMap<RefKey, usize>,
    backref: &BackRef,
    site: Site,
) -> Option<(Code, String)> {
    let key = ref_key(backref, record.level.unwrap_or(0))?;
    let count = u64::from(backref.count());
    if key.metadata != record.metadata() {
        let kind = if record.metadata() { "tree block" } else { "data" };
        return Some((
            Code::RefInvalidBackref,
            format!("backref {key} of the wrong kind on a {kind} extent"),
        ));
    }
    let place = place_of(&record.backrefs, index, &key);
    if let Some(existing) = place.and_then(|place| record.backrefs.get_mut(place)) {
        // Counted twice, as the kernel would on reading it.
        existing.count = existing.count.saturating_add(count);
        return Some((Code::RefDuplicateBackref, format!("existing ref {key} when reading from disk")));
    }
    record.backrefs.push(Recorded { key, count, site });
    if count == 0 {
        return Some((Code::RefInvalidBackref, format!("backref {key} with count 0")));
    }
    None
}

/// Where a backref stands among those there are: looked up as soon as there are many, of which an extent that is
/// cloned often has thousands.
fn place_of(backrefs: &[Recorded], index: &mut HashMap<RefKey, usize>, key: &RefKey) -> Option<usize> {
    if backrefs.len() < FEW {
        return backrefs.iter().position(|existing| existing.key == *key);
    }
    for (place, backref) in backrefs.iter().enumerate().skip(index.len()) {
        index.insert(backref.key, place);
    }
    index.get(key).copied()
}

/// Inline refs stand by type ascending, and within a type by root, parent or hash descending.
#[derive(Debug, Default)]
struct InlineOrder {
    last: Option<(u8, u64)>,
}

impl InlineOrder {
    fn next(&mut self, backref: &BackRef) -> Option<String> {
        let sequence = match *backref {
            BackRef::TreeBlock { root } | BackRef::Owner { root } => root,
            BackRef::SharedBlock { parent } | BackRef::SharedData { parent, .. } => parent,
            BackRef::ExtentData { root, objectid, offset, .. } => {
                parser::csum::extent_data_ref_hash(root, objectid, offset)
            }
        };
        let current = (backref.item_type(), sequence);
        let (last_type, last_sequence) = self.last.replace(current)?;
        let in_order = last_type < current.0 || (last_type == current.0 && last_sequence >= sequence);
        (!in_order).then(|| format!("inline extent refs out of order: {backref:?}"))
    }
}

/// What the kernel's tree checker verifies of an extent item by itself (`check_extent_item`).
fn item_faults(key: &Key, parsed: &ExtentItem<'_>, level: Option<u8>, geometry: &Geometry) -> Vec<String> {
    let mut faults = Vec::new();
    let sectorsize = u64::from(geometry.sectorsize);
    let nodesize = u64::from(geometry.nodesize);
    let flags = parsed.flags();
    if !key.objectid.is_multiple_of(sectorsize) {
        faults.push(format!("bytenr {} is not aligned to {sectorsize}", key.objectid));
    }
    if key.item_type == item::EXTENT_ITEM && !key.offset.is_multiple_of(sectorsize) {
        faults.push(format!("length {} is not aligned to {sectorsize}", key.offset));
    }
    if (flags & FLAG_DATA != 0) == (flags & FLAG_TREE_BLOCK != 0) {
        faults.push(format!("invalid flags {flags:#x}: one of DATA and TREE_BLOCK must be set"));
    }
    if flags & !(FLAG_DATA | FLAG_TREE_BLOCK | FLAG_FULL_BACKREF) != 0 {
        faults.push(format!("unknown flags {flags:#x}"));
    }
    if flags & FLAG_DATA != 0 && (flags & FLAG_FULL_BACKREF != 0 || key.item_type == item::METADATA_ITEM) {
        faults.push(format!("invalid flags {flags:#x} for this item"));
    }
    if key.item_type == item::METADATA_ITEM && !geometry.has_incompat(incompat::SKINNY_METADATA) {
        faults.push("METADATA_ITEM without the SKINNY_METADATA feature".to_owned());
    }
    if level.is_some_and(|level| level > parser::block::MAX_LEVEL) {
        faults.push(format!("invalid tree level {}", level.unwrap_or_default()));
    }
    if level.is_some() && key.item_type == item::EXTENT_ITEM && key.offset != nodesize {
        faults.push(format!("tree block of {} bytes where the node size is {nodesize}", key.offset));
    }
    faults
}

/// What must agree within one record.
fn inconsistencies(record: &ExtentRecord) -> Option<Violation> {
    let sum = record.backref_sum();
    if record.refs == sum && sum > 0 {
        return None;
    }
    let ExtentRecord { bytenr, len, refs, site, .. } = record;
    let message = format!(
        "incorrect global backref count on {bytenr} found {refs} wanted {sum}: the extent item's refs field is \
         {refs}, its backrefs add up to {sum} (leaf {} slot {})",
        site.block, site.slot
    );
    Some(Violation::new(Code::RefCount, *bytenr, *len, message).with_worth(sum, *refs))
}
