//! Tree blocks: header, nodes and leaves.

use zerocopy::FromBytes as _;

use crate::Uuid;
use crate::error::ParseError;
use crate::key::Key;
use crate::layout;

/// Levels run from 0 (leaves) to 7 (`BTRFS_MAX_LEVEL` is 8).
pub const MAX_LEVEL: u8 = 7;

/// Size of a block's header; item offsets count from its end.
pub const HEADER_SIZE: usize = size_of::<layout::Header>();

/// `BTRFS_HEADER_FLAG_WRITTEN`.
pub const FLAG_WRITTEN: u64 = 1 << 0;
/// `BTRFS_HEADER_FLAG_RELOC`: written by relocation, always FULL_BACKREF.
pub const FLAG_RELOC: u64 = 1 << 1;

/// Header of a tree block (`struct btrfs_header`).
#[derive(Debug, Clone, Copy)]
pub struct Header<'a>(&'a layout::Header);

impl<'a> Header<'a> {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] when there are fewer than [`HEADER_SIZE`] bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        layout::prefix("btrfs_header", bytes).map(Header)
    }

    /// Checksum field; only the first bytes, as many as the algorithm makes, are meaningful.
    #[must_use]
    pub fn csum(&self) -> &'a [u8; 32] {
        &self.0.csum
    }

    /// The file system's metadata UUID.
    #[must_use]
    pub fn fsid(&self) -> &'a Uuid {
        &self.0.fsid
    }

    /// Logical address the block was written for.
    #[must_use]
    pub fn bytenr(&self) -> u64 {
        self.0.bytenr.get()
    }

    /// [`FLAG_WRITTEN`], [`FLAG_RELOC`]; the top byte is the backref revision.
    #[must_use]
    pub fn flags(&self) -> u64 {
        self.0.flags.get()
    }

    /// `BTRFS_MIXED_BACKREF_REV` is 1; 0 means backrefs of before 2009.
    #[must_use]
    pub fn backref_rev(&self) -> u8 {
        (self.flags() >> 56) as u8
    }

    /// Whether relocation wrote the block.
    #[must_use]
    pub fn is_reloc(&self) -> bool {
        self.flags() & FLAG_RELOC != 0
    }

    /// Transaction that allocated (and wrote) the block.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation.get()
    }

    /// Tree that allocated the block.
    #[must_use]
    pub fn owner(&self) -> u64 {
        self.0.owner.get()
    }

    /// Number of items or key pointers.
    #[must_use]
    pub fn nritems(&self) -> u32 {
        self.0.nritems.get()
    }

    /// 0 for a leaf.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.0.level
    }
}

/// A tree block whose header and item array fit its bytes.
#[derive(Debug, Clone, Copy)]
pub enum Block<'a> {
    /// Level 1 and above.
    Node(Node<'a>),
    /// Level 0.
    Leaf(Leaf<'a>),
}

impl<'a> Block<'a> {
    /// Reads a block of `bytes.len()` (the node size) bytes. Checks, in constant time, what later access relies on:
    /// the level, and that the item array lies within the block.
    ///
    /// # Errors
    /// [`ParseError`] when it does not. Item data is checked by [`crate::check::block`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let header = Header::parse(bytes)?;
        let level = header.level();
        if level > MAX_LEVEL {
            return Err(ParseError::Invalid { what: "btrfs_header", field: "level", value: level.into() });
        }
        let (_, body) = bytes.split_at_checked(HEADER_SIZE).unwrap_or((bytes, &[]));
        let nritems = header.nritems();
        let invalid = ParseError::Invalid { what: "btrfs_header", field: "nritems", value: nritems.into() };
        let count = usize::try_from(nritems).map_err(|_| invalid)?;
        if level > 0 {
            let ptrs = <[layout::KeyPtr]>::ref_from_prefix_with_elems(body, count).map_err(|_| invalid)?.0;
            Ok(Block::Node(Node { header, ptrs }))
        } else {
            let items = <[layout::Item]>::ref_from_prefix_with_elems(body, count).map_err(|_| invalid)?.0;
            Ok(Block::Leaf(Leaf { header, items, body }))
        }
    }

    /// The block's header.
    #[must_use]
    pub fn header(&self) -> Header<'a> {
        match self {
            Block::Node(node) => node.header,
            Block::Leaf(leaf) => leaf.header,
        }
    }

    /// Number of items or pointers.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Block::Node(node) => node.len(),
            Block::Leaf(leaf) => leaf.len(),
        }
    }

    /// Whether there are no items or pointers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Key of the first item or pointer.
    #[must_use]
    pub fn first_key(&self) -> Option<Key> {
        match self {
            Block::Node(node) => node.ptr(0).map(|ptr| ptr.key),
            Block::Leaf(leaf) => leaf.key(0),
        }
    }

    /// Key of the last item or pointer.
    #[must_use]
    pub fn last_key(&self) -> Option<Key> {
        match self {
            Block::Node(node) => node.key(node.len().checked_sub(1)?),
            Block::Leaf(leaf) => leaf.key(leaf.len().checked_sub(1)?),
        }
    }
}

/// A pointer to a child (`struct btrfs_key_ptr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePtr {
    /// First key of the child.
    pub key: Key,
    /// Logical address of the child.
    pub bytenr: u64,
    /// Generation of the child.
    pub generation: u64,
}

impl From<&layout::KeyPtr> for NodePtr {
    fn from(ptr: &layout::KeyPtr) -> Self {
        NodePtr { key: (&ptr.key).into(), bytenr: ptr.blockptr.get(), generation: ptr.generation.get() }
    }
}

/// An interior node (`struct btrfs_node`).
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    header: Header<'a>,
    pub(crate) ptrs: &'a [layout::KeyPtr],
}

impl<'a> Node<'a> {
    /// The block's header.
    #[must_use]
    pub fn header(&self) -> Header<'a> {
        self.header
    }

    /// Number of pointers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ptrs.len()
    }

    /// Whether there are no pointers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ptrs.is_empty()
    }

    /// Key of the pointer in `slot`.
    #[must_use]
    pub fn key(&self, slot: usize) -> Option<Key> {
        self.ptrs.get(slot).map(|ptr| Key::from(&ptr.key))
    }

    /// The pointer in `slot`.
    #[must_use]
    pub fn ptr(&self, slot: usize) -> Option<NodePtr> {
        self.ptrs.get(slot).map(NodePtr::from)
    }

    /// All pointers, in slot order.
    pub fn ptrs(&self) -> impl ExactSizeIterator<Item = NodePtr> + use<'a> {
        self.ptrs.iter().map(NodePtr::from)
    }

    /// Slot of the last pointer whose key is not greater than `key`; `None` when all are greater.
    #[must_use]
    pub fn slot_for(&self, key: &Key) -> Option<usize> {
        self.ptrs.partition_point(|ptr| Key::from(&ptr.key) <= *key).checked_sub(1)
    }
}

/// A leaf (`struct btrfs_leaf`).
#[derive(Debug, Clone, Copy)]
pub struct Leaf<'a> {
    header: Header<'a>,
    pub(crate) items: &'a [layout::Item],
    pub(crate) body: &'a [u8],
}

impl<'a> Leaf<'a> {
    /// The block's header.
    #[must_use]
    pub fn header(&self) -> Header<'a> {
        self.header
    }

    /// Number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are no items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Key of the item in `slot`.
    #[must_use]
    pub fn key(&self, slot: usize) -> Option<Key> {
        self.items.get(slot).map(|item| Key::from(&item.key))
    }

    /// Data of the item in `slot`: empty where there is no such item, or where its data does not lie within the
    /// block, which [`crate::check::block`] reports.
    #[must_use]
    pub fn data(&self, slot: usize) -> &'a [u8] {
        self.items.get(slot).map_or(&[], |item| self.item_data(item))
    }

    /// All items, in slot order: key and data.
    pub fn items(&self) -> impl ExactSizeIterator<Item = (Key, &'a [u8])> + use<'a> {
        let leaf = *self;
        self.items.iter().map(move |item| (Key::from(&item.key), leaf.item_data(item)))
    }

    /// First slot whose key is not less than `key`; the number of items when all are less.
    #[must_use]
    pub fn lower_bound(&self, key: &Key) -> usize {
        self.items.partition_point(|item| Key::from(&item.key) < *key)
    }

    /// Offset (from the end of the header) and size of the data of the item in `slot`, as the item says.
    pub(crate) fn data_range(&self, slot: usize) -> Option<(usize, usize)> {
        let item = self.items.get(slot)?;
        Some((usize::try_from(item.offset.get()).ok()?, usize::try_from(item.size.get()).ok()?))
    }

    /// Bytes between the end of the header and the end of the block.
    pub(crate) fn body_len(&self) -> usize {
        self.body.len()
    }

    fn item_data(&self, item: &layout::Item) -> &'a [u8] {
        let start = item.offset.get() as usize;
        let end = start.saturating_add(item.size.get() as usize);
        self.body.get(start..end).unwrap_or(&[])
    }
}
