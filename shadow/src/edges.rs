//! The references that one tree block holds, as a function of its content and three things that lie outside it:
//! the FULL_BACKREF flag of its extent item, who owns it, and how far deletion of its subvolume has come.

use std::ops::Range;

use parser::key::item;
use parser::{Block, FileExtent, Key};

use crate::forest::Expect;
use crate::record::{RefKey, Site};

/// What a reference leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A tree block, to be read with these expectations.
    Tree(Expect),
    /// A data extent of this length in bytes.
    Data {
        /// `disk_num_bytes` of the file extent item.
        len: u64,
    },
}

/// One reference held by one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Key of the item or pointer that holds it; the smallest key for a root.
    pub item: Key,
    /// Logical address of the extent.
    pub bytenr: u64,
    /// How the extent tree must record it.
    pub key: RefKey,
    /// What is there.
    pub target: Target,
    /// Who holds it.
    pub site: Site,
}

impl Edge {
    /// Whether two edges are one and the same reference, whoever holds it: dropping one and adding the other changes
    /// nothing.
    #[must_use]
    pub fn is_same_reference(&self, other: &Edge) -> bool {
        let target = |edge: &Edge| match edge.target {
            Target::Tree(expect) => (expect.generation, u64::from(expect.level)),
            Target::Data { len } => (0, len),
        };
        self.bytenr == other.bytenr && self.key == other.key && target(self) == target(other)
    }
}

/// What decides how a block's references are recorded, beside the block itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    /// The block's extent item has FULL_BACKREF: its references are recorded by its address.
    pub full: bool,
    /// Slots before this one hold no references any more: their subtrees have been dropped.
    pub first_slot: usize,
}

/// Hands every reference that `block` holds to `visit`. `expect` is how the block was reached. A file extent that is
/// malformed holds none; [`crate::items`] reports it.
pub fn for_each(block: &Block<'_>, expect: &Expect, form: Form, visit: impl FnMut(Edge)) {
    for_each_in(block, expect, form, std::iter::once(0..block.len()), visit);
}

/// Like [`for_each`], for those slots that are in `ranges`.
pub fn for_each_in(
    block: &Block<'_>,
    expect: &Expect,
    form: Form,
    ranges: impl IntoIterator<Item = Range<usize>>,
    mut visit: impl FnMut(Edge),
) {
    let header = block.header();
    let (bytenr, owner) = (header.bytenr(), header.owner());
    let slots = ranges.into_iter().flatten();
    match block {
        Block::Node(node) => {
            let level = header.level().saturating_sub(1);
            let key = if form.full { RefKey::shared_tree(bytenr, level) } else { RefKey::tree(owner, level) };
            for slot in slots.filter(|slot| *slot >= form.first_slot) {
                let Some(ptr) = node.ptr(slot) else { continue };
                let target = Target::Tree(expect.child(node, slot, &ptr));
                visit(Edge {
                    item: ptr.key,
                    bytenr: ptr.bytenr,
                    key,
                    target,
                    site: Site { block: bytenr, slot },
                });
            }
        }
        Block::Leaf(leaf) => {
            for slot in slots {
                let Some(key) = leaf.key(slot).filter(|key| key.item_type == item::EXTENT_DATA) else {
                    continue;
                };
                let Some(range) = FileExtent::parse(leaf.data(slot)).ok().and_then(|extent| extent.extent())
                else {
                    continue;
                };
                let ref_key = if form.full {
                    RefKey::shared_data(bytenr)
                } else {
                    RefKey::data(owner, key.objectid, key.offset.wrapping_sub(range.offset))
                };
                visit(Edge {
                    item: key,
                    bytenr: range.disk_bytenr,
                    key: ref_key,
                    target: Target::Data { len: range.disk_num_bytes },
                    site: Site { block: bytenr, slot },
                });
            }
        }
    }
}
