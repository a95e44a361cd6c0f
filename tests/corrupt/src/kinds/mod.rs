//! The kinds of faults.

mod backrefs;
mod extents;
mod files;
mod harmless;
mod headers;
mod inodes;
mod items;
mod nodes;
mod roots;
mod space;

use parser::{Key, ids};

use crate::edit::{Edited, Leaf, Node};
use crate::rng::Rng;

/// A kind of fault.
#[derive(Debug, Clone)]
pub struct Kind {
    /// Name, of the form "what-how".
    pub name: String,
    /// The codes (or families, ending in a slash) of which one must be reported; none for a harmless change.
    pub expected: Vec<&'static str>,
    /// Only a block that is not the root of its tree shows the fault.
    pub needs_parent: bool,
    /// Only a comparison with the commit before shows the fault: in itself, the file system is sound.
    pub needs_past: bool,
    /// Only a block of the newest generation is sure to show the fault: it can't have FULL_BACKREF.
    pub needs_new_block: bool,
    /// Only an item that the commit before had just as it is shows the fault: what is new may say anything.
    pub needs_old_item: bool,
    /// The model of the references, which the tests compare with, knows nothing of what is changed.
    pub is_beyond_model: bool,
    pub(crate) place: Place,
    pub(crate) leaves_checksum: bool,
    edit: Edit,
}

/// Blocks that a kind changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Leaves of the extent tree.
    ExtentLeaf,
    /// Nodes of the extent tree.
    ExtentNode,
    /// Leaves of subvolumes.
    FileLeaf,
    /// Nodes of subvolumes.
    FileNode,
    /// Leaves and nodes of subvolumes.
    FileBlock,
    /// Leaves and nodes of the checksum tree.
    CsumBlock,
    /// Leaves of the root tree.
    RootLeaf,
    /// Nodes of the root tree.
    RootNode,
    /// Leaves of the tree with this id.
    LeafOf(u64),
    /// Leaves of the tree that holds block group items.
    GroupLeaf,
}

impl Place {
    pub(crate) const CSUM_LEAF: Place = Place::LeafOf(ids::CSUM_TREE);
    pub(crate) const DATA_RELOC_LEAF: Place = Place::LeafOf(ids::DATA_RELOC_TREE);
    pub(crate) const CHUNK_LEAF: Place = Place::LeafOf(ids::CHUNK_TREE);
    pub(crate) const DEV_LEAF: Place = Place::LeafOf(ids::DEV_TREE);
    pub(crate) const FREE_SPACE_LEAF: Place = Place::LeafOf(ids::FREE_SPACE_TREE);
    pub(crate) const QUOTA_LEAF: Place = Place::LeafOf(ids::QUOTA_TREE);
    pub(crate) const LOG_LEAF: Place = Place::LeafOf(ids::TREE_LOG);
    pub(crate) const UUID_LEAF: Place = Place::LeafOf(ids::UUID_TREE);

    /// Whether a block is one of them.
    pub(crate) fn admits(self, owner: u64, level: u8) -> bool {
        let leaf = level == 0;
        match self {
            Place::ExtentLeaf => owner == ids::EXTENT_TREE && leaf,
            Place::ExtentNode => owner == ids::EXTENT_TREE && !leaf,
            Place::FileLeaf => ids::is_fs_tree(owner) && leaf,
            Place::FileNode => ids::is_fs_tree(owner) && !leaf,
            Place::FileBlock => ids::is_fs_tree(owner),
            Place::CsumBlock => owner == ids::CSUM_TREE,
            Place::RootLeaf => owner == ids::ROOT_TREE && leaf,
            Place::RootNode => owner == ids::ROOT_TREE && !leaf,
            Place::LeafOf(tree) => owner == tree && leaf,
            Place::GroupLeaf => [ids::EXTENT_TREE, ids::BLOCK_GROUP_TREE].contains(&owner) && leaf,
        }
    }
}

/// Changes a leaf at a slot; says what it changed, `None` when there is nothing to change.
type LeafEdit = fn(&mut Leaf, usize, &mut Rng) -> Option<String>;
/// Changes a node at a slot.
type NodeEdit = fn(&mut Node, usize, &mut Rng) -> Option<String>;
/// Changes the bytes of a block.
type RawEdit = fn(&mut [u8], &mut Rng) -> Option<String>;

/// Whether an item, by its key and data, may be changed.
pub type Wanted<'a> = &'a dyn Fn(&Key, &[u8]) -> bool;

/// How the block is changed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Edit {
    /// An item; the leaf keeps its place in the tree, and its keys their order.
    Item(LeafEdit),
    /// An item; the leaf is written just as the edit left it.
    Disorder(LeafEdit),
    /// A backref.
    Backref(backrefs::Stored, crate::backref::Form, backrefs::Change),
    /// A pointer of a node.
    Pointer(NodeEdit),
    /// Anything.
    Raw(RawEdit),
}

impl Kind {
    pub(crate) fn new(name: impl Into<String>, place: Place, edit: Edit, expected: &[&'static str]) -> Self {
        Kind {
            name: name.into(),
            expected: expected.to_vec(),
            needs_parent: false,
            needs_past: false,
            needs_new_block: false,
            needs_old_item: false,
            is_beyond_model: false,
            place,
            leaves_checksum: false,
            edit,
        }
    }

    /// The same for blocks that are not roots.
    pub(crate) fn below_the_root(mut self) -> Self {
        self.needs_parent = true;
        self
    }

    /// The same for blocks of the newest generation.
    pub(crate) fn in_new_blocks(mut self) -> Self {
        self.needs_new_block = true;
        self
    }

    /// The same for what was right before.
    pub(crate) fn against_the_past(mut self) -> Self {
        self.needs_past = true;
        self
    }

    /// The same for items that the commit before had as they are.
    pub(crate) fn in_old_items(mut self) -> Self {
        (self.needs_past, self.needs_old_item) = (true, true);
        self
    }

    /// The same for what the model can't see.
    pub(crate) fn beyond_the_model(mut self) -> Self {
        self.is_beyond_model = true;
        self
    }

    /// The families of the expected codes.
    pub fn families(&self) -> impl Iterator<Item = &'static str> {
        self.expected.iter().filter_map(|code| code.split('/').next())
    }

    /// Whether only `check --inodes` can see the fault.
    #[must_use]
    pub fn is_for_inodes(&self) -> bool {
        !self.expected.is_empty() && self.families().all(|family| family == "inode")
    }

    /// Whether the fault can be planted in a log tree only, which is there between an fsync and the next commit.
    #[must_use]
    pub fn is_for_logs(&self) -> bool {
        self.place == Place::LOG_LEAF
    }

    /// Changes a block, at the first of its slots, in random order, that has what the kind changes, and an item that
    /// is `wanted`.
    pub(crate) fn apply(&self, bytes: &[u8], wanted: Wanted<'_>, rng: &mut Rng) -> Option<Edited> {
        match self.edit {
            Edit::Item(edit) => on_leaf(bytes, rng, (wanted, true), edit),
            Edit::Disorder(edit) => on_leaf(bytes, rng, (wanted, false), edit),
            Edit::Backref(stored, form, change) => on_leaf(bytes, rng, (wanted, true), |leaf, slot, rng| {
                stored.apply(form, change, leaf, slot, rng)
            }),
            Edit::Pointer(edit) => on_node(bytes, rng, edit),
            Edit::Raw(edit) => {
                let mut bytes = bytes.to_vec();
                let change = edit(&mut bytes, rng)?;
                Some(Edited { bytes, change })
            }
        }
    }
}

fn on_leaf(
    bytes: &[u8],
    rng: &mut Rng,
    (wanted, settle): (Wanted<'_>, bool),
    edit: impl Fn(&mut Leaf, usize, &mut Rng) -> Option<String>,
) -> Option<Edited> {
    let original = Leaf::parse(bytes)?;
    for slot in rng.order(original.items.len()) {
        let mut leaf = original.clone();
        if !leaf.items.get(slot).is_some_and(|item| wanted(&item.key, &item.data)) {
            continue;
        }
        let Some(change) = edit(&mut leaf, slot, rng) else { continue };
        if settle && !leaf.settle(&original, false) {
            continue;
        }
        if let Some(bytes) = leaf.build() {
            return Some(Edited { bytes, change });
        }
    }
    None
}

fn on_node(bytes: &[u8], rng: &mut Rng, edit: NodeEdit) -> Option<Edited> {
    let original = Node::parse(bytes)?;
    for slot in rng.order(original.ptrs.len()) {
        let mut node = original.clone();
        if let (Some(change), Some(bytes)) = (edit(&mut node, slot, rng), node.build()) {
            return Some(Edited { bytes, change });
        }
    }
    None
}

/// Every kind there is.
#[must_use]
pub fn all() -> Vec<Kind> {
    let mut kinds = backrefs::kinds();
    kinds.extend(extents::kinds());
    kinds.extend(files::kinds());
    kinds.extend(nodes::kinds());
    kinds.extend(roots::kinds());
    kinds.extend(space::kinds());
    kinds.extend(headers::kinds());
    kinds.extend(items::kinds());
    kinds.extend(inodes::kinds());
    kinds.extend(harmless::kinds());
    kinds
}

/// The kind of that name.
#[must_use]
pub fn find(name: &str) -> Option<Kind> {
    all().into_iter().find(|kind| kind.name == name)
}
