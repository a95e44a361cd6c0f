//! What an item must satisfy by itself, or with the item before it in its leaf: what the kernel's tree checker
//! verifies when it reads or writes a leaf (`fs/btrfs/tree-checker.c`), for each item type.
//!
//! One file for each item type, or for a few that belong together, with its [`Rule`]s; one row in `RULES` registers
//! each. Knows no other block: whether what an item says is true of other trees is not asked here. Rules are silent on
//! what any kernel or btrfs-progs writes; fields that newer ones may fill with new values are not looked at.

mod block_group;
mod chunk;
mod csum;
mod device;
mod dir;
mod extent;
mod file_extent;
mod free_space;
mod homes;
mod inode;
mod inode_ref;
mod log;
mod orphan;
mod others;
mod quota;
mod raid_stripe;
mod root;
mod root_ref;
mod uuid;

use std::ops::Range;

use parser::block::FLAG_WRITTEN;
use parser::{Block, Header, Key, Leaf, ids};

pub use homes::Homes;

use crate::codes::Code;
use crate::forest::Geometry;
use crate::record::Site;
use crate::violation::Violation;

/// All rules. A new item type is a new file and a row here.
const RULES: &[&[Rule]] = &[
    inode::RULES,
    inode_ref::RULES,
    dir::RULES,
    log::RULES,
    orphan::RULES,
    file_extent::RULES,
    csum::RULES,
    root::RULES,
    root_ref::RULES,
    extent::RULES,
    block_group::RULES,
    free_space::RULES,
    device::RULES,
    chunk::RULES,
    raid_stripe::RULES,
    quota::RULES,
    uuid::RULES,
    others::RULES,
];

/// The rules by item type.
static BY_TYPE: [Option<Rule>; 256] = by_type();

const fn by_type() -> [Option<Rule>; 256] {
    let mut table = [None; 256];
    let mut group = 0;
    while group < RULES.len() {
        let rules = RULES[group];
        let mut index = 0;
        while index < rules.len() {
            let rule = rules[index];
            assert!(table[rule.item_type as usize].is_none(), "two rules for one item type");
            table[rule.item_type as usize] = Some(rule);
            index += 1;
        }
        group += 1;
    }
    table
}

/// What holds for the items of one type.
#[derive(Clone, Copy)]
pub struct Rule {
    item_type: u8,
    /// Trees that may hold them.
    homes: Homes,
    check: fn(&Context<'_>, &Item<'_>) -> Result<(), Fault>,
}

impl Rule {
    const fn new(
        item_type: u8,
        homes: Homes,
        check: fn(&Context<'_>, &Item<'_>) -> Result<(), Fault>,
    ) -> Self {
        Rule { item_type, homes, check }
    }
}

/// What is the same for all items of a leaf.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Of the file system.
    pub geometry: &'a Geometry,
    /// Transaction of the super block.
    pub generation: u64,
    /// Tree that owns the leaf.
    pub owner: u64,
    home: Homes,
}

impl<'a> Context<'a> {
    /// For the leaves that the tree `owner` owns.
    #[must_use]
    pub fn new(geometry: &'a Geometry, generation: u64, owner: u64) -> Self {
        Context { geometry, generation, owner, home: Homes::of_tree(owner) }
    }

    fn sectorsize(&self) -> u64 {
        u64::from(self.geometry.sectorsize.max(1))
    }

    fn is_log(&self) -> bool {
        self.owner == ids::TREE_LOG
    }

    /// The newest generation that anything may name: log trees belong to the transaction after the super block's.
    fn last_generation(&self) -> u64 {
        self.generation.saturating_add(1)
    }

    /// Whether `value` is a multiple of the sector size.
    fn is_aligned(&self, value: u64) -> bool {
        // A power of two in every file system that could be opened.
        value & (self.sectorsize() - 1) == 0
    }
}

/// An item and the one before it in its leaf.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Its key.
    pub key: Key,
    /// Its data.
    pub data: &'a [u8],
    /// Key and data of the item before it.
    pub previous: Option<(Key, &'a [u8])>,
}

/// What is wrong with an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The rule.
    pub code: Code,
    /// In words.
    pub message: String,
}

/// An item that violates a rule, and where it stands.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its key.
    pub key: Key,
    /// Key of the item before it in its leaf.
    pub previous: Option<Key>,
    /// Leaf and slot.
    pub site: Site,
    /// What is wrong.
    pub fault: Fault,
}

impl Found {
    /// As it is reported, in the kernel's words.
    #[must_use]
    pub fn violation(&self, owner: u64, nodesize: u32) -> Violation {
        let Found { key, site: Site { block, slot }, fault: Fault { code, message }, .. } = self;
        let owner = owner as i64;
        let text = format!("corrupt leaf: root={owner} block={block} slot={slot}, {key}: {message}");
        Violation::new(*code, *block, nodesize.into(), text)
    }
}

/// Says what is wrong unless `holds`. Items without a fault are many: nothing is put into words for them.
fn ensure(holds: bool, code: Code, message: impl FnOnce() -> String) -> Result<(), Fault> {
    if holds { Ok(()) } else { Err(Fault { code, message: message() }) }
}

/// Whether the data of an item is as long as it must be.
fn ensure_size(item: &Item<'_>, size: usize, code: Code) -> Result<(), Fault> {
    let have = item.data.len();
    ensure(have == size, code, || format!("invalid item size, have {have} expect {size}"))
}

/// Items of an inode stand behind one another: one that follows an item of another inode has lost its inode item.
/// Log trees hold parts of inodes only.
fn ensure_same_inode(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let Some((previous, _)) = item.previous else { return Ok(()) };
    let holds = previous.objectid == item.key.objectid || !ids::is_fs_tree(context.owner);
    ensure(holds, Code::TreeInodeOrder, || {
        format!(
            "invalid previous key objectid, have {} expect {}: the inode has no inode item",
            previous.objectid, item.key.objectid
        )
    })
}

/// Checks one item.
///
/// # Errors
/// The first fault found.
pub fn check(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let Some(rule) = &BY_TYPE[usize::from(item.key.item_type)] else { return Ok(()) };
    ensure_place(context, rule.homes)?;
    (rule.check)(context, item)
}

/// Whether the tree that owns the leaf is one of `homes`.
fn ensure_place(context: &Context<'_>, homes: Homes) -> Result<(), Fault> {
    ensure(homes.intersects(context.home), Code::TreeItemPlace, || {
        format!("tree {} can't hold such an item", context.owner as i64)
    })
}

/// Checks the items of a leaf in those slots that are in `ranges`, and hands what is wrong to `found`.
pub fn check_leaf(
    context: &Context<'_>,
    leaf: &Leaf<'_>,
    ranges: impl IntoIterator<Item = Range<usize>>,
    mut found: impl FnMut(Found),
) {
    let item_in = |slot: usize| leaf.key(slot).map(|key| (key, leaf.data(slot)));
    for range in ranges {
        let mut previous = range.start.checked_sub(1).and_then(item_in);
        for slot in range {
            let Some((key, data)) = item_in(slot) else { break };
            if let Err(fault) = check(context, &Item { key, data, previous }) {
                let site = Site { block: leaf.header().bytenr(), slot };
                found(Found { key, previous: previous.map(|(key, _)| key), site, fault });
            }
            previous = Some((key, data));
        }
    }
}

/// What must hold for the header of a block that is in use, whatever its parent says (`btrfs_check_leaf`).
#[must_use]
pub fn header_fault(block: &Block<'_>, nodesize: u32) -> Option<Violation> {
    let header = block.header();
    let detail = if header.flags() & FLAG_WRITTEN == 0 {
        format!("invalid flags {:#x}, WRITTEN not set", header.flags())
    } else if header.backref_rev() != BACKREF_REVISION {
        format!("invalid backref revision {}", header.backref_rev())
    } else if matches!(block, Block::Leaf(leaf) if leaf.is_empty()) && !may_be_empty(&header) {
        format!("invalid nritems 0: root {} must never be empty", header.owner() as i64)
    } else {
        return None;
    };
    let (bytenr, owner) = (header.bytenr(), header.owner() as i64);
    let kind = if header.level() == 0 { "leaf" } else { "node" };
    let message = format!("corrupt {kind}: root={owner} block={bytenr}, {detail}");
    Some(Violation::new(Code::TreeHeader, bytenr, nodesize.into(), message))
}

/// `BTRFS_MIXED_BACKREF_REV`.
const BACKREF_REVISION: u8 = 1;

/// Whether a leaf without items may be the whole of a tree. A relocation tree is a copy of whatever there was.
fn may_be_empty(header: &Header<'_>) -> bool {
    let never = [
        ids::ROOT_TREE,
        ids::EXTENT_TREE,
        ids::CHUNK_TREE,
        ids::DEV_TREE,
        ids::FS_TREE,
        ids::DATA_RELOC_TREE,
    ];
    header.is_reloc() || !never.contains(&header.owner())
}
