//! Extent items and backrefs in all their forms.

use crate::error::ParseError;
use crate::key::{Key, item};
use crate::layout;

/// `BTRFS_EXTENT_FLAG_DATA`.
pub const FLAG_DATA: u64 = 1 << 0;
/// `BTRFS_EXTENT_FLAG_TREE_BLOCK`.
pub const FLAG_TREE_BLOCK: u64 = 1 << 1;
/// `BTRFS_BLOCK_FLAG_FULL_BACKREF`: the block's own pointers are recorded by its address, not by its owner.
pub const FLAG_FULL_BACKREF: u64 = 1 << 8;

/// What the extent tree records about one holder of an extent, inline or keyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackRef {
    /// `TREE_BLOCK_REF`: a block without FULL_BACKREF owned by `root`, or the root itself, points here.
    TreeBlock {
        /// Tree id.
        root: u64,
    },
    /// `SHARED_BLOCK_REF`: the FULL_BACKREF block at `parent` points here.
    SharedBlock {
        /// Logical address of the pointing block.
        parent: u64,
    },
    /// `EXTENT_DATA_REF`: `count` file extent items in leaves owned by `root`.
    ExtentData {
        /// Tree id.
        root: u64,
        /// Inode number.
        objectid: u64,
        /// File offset minus the offset into the extent; wraps, so that it may be negative.
        offset: u64,
        /// Number of file extent items.
        count: u32,
    },
    /// `SHARED_DATA_REF`: `count` file extent items in the FULL_BACKREF leaf at `parent`.
    SharedData {
        /// Logical address of the leaf.
        parent: u64,
        /// Number of file extent items.
        count: u32,
    },
    /// `EXTENT_OWNER_REF`: simple quotas' note of who allocated the extent. Not a reference.
    Owner {
        /// Tree id.
        root: u64,
    },
}

impl BackRef {
    /// How many references it stands for.
    #[must_use]
    pub const fn count(&self) -> u32 {
        match self {
            BackRef::TreeBlock { .. } | BackRef::SharedBlock { .. } => 1,
            BackRef::ExtentData { count, .. } | BackRef::SharedData { count, .. } => *count,
            BackRef::Owner { .. } => 0,
        }
    }

    /// The item or inline type it is stored as.
    #[must_use]
    pub const fn item_type(&self) -> u8 {
        match self {
            BackRef::TreeBlock { .. } => item::TREE_BLOCK_REF,
            BackRef::SharedBlock { .. } => item::SHARED_BLOCK_REF,
            BackRef::ExtentData { .. } => item::EXTENT_DATA_REF,
            BackRef::SharedData { .. } => item::SHARED_DATA_REF,
            BackRef::Owner { .. } => item::EXTENT_OWNER_REF,
        }
    }

    /// Whether an item type is that of a keyed backref.
    #[must_use]
    pub const fn is_keyed_type(item_type: u8) -> bool {
        matches!(
            item_type,
            item::TREE_BLOCK_REF | item::SHARED_BLOCK_REF | item::EXTENT_DATA_REF | item::SHARED_DATA_REF
        )
    }

    /// Reads a keyed backref: an item of its own beside the extent item.
    ///
    /// # Errors
    /// [`ParseError`] for another item type or a wrong size.
    pub fn parse_keyed(key: &Key, data: &[u8]) -> Result<Self, ParseError> {
        Ok(match key.item_type {
            item::TREE_BLOCK_REF | item::SHARED_BLOCK_REF if !data.is_empty() => {
                return Err(ParseError::Oversized { what: "tree block backref", need: 0, have: data.len() });
            }
            item::TREE_BLOCK_REF => BackRef::TreeBlock { root: key.offset },
            item::SHARED_BLOCK_REF => BackRef::SharedBlock { parent: key.offset },
            item::EXTENT_DATA_REF => {
                BackRef::from(layout::exact::<layout::ExtentDataRef>("btrfs_extent_data_ref", data)?)
            }
            item::SHARED_DATA_REF => {
                let shared: &layout::SharedDataRef = layout::exact("btrfs_shared_data_ref", data)?;
                BackRef::SharedData { parent: key.offset, count: shared.count.get() }
            }
            other => {
                return Err(ParseError::Invalid { what: "backref", field: "type", value: other.into() });
            }
        })
    }
}

impl From<&layout::ExtentDataRef> for BackRef {
    fn from(data: &layout::ExtentDataRef) -> Self {
        BackRef::ExtentData {
            root: data.root.get(),
            objectid: data.objectid.get(),
            offset: data.offset.get(),
            count: data.count.get(),
        }
    }
}

/// An `EXTENT_ITEM` or `METADATA_ITEM` (`struct btrfs_extent_item`).
#[derive(Debug, Clone, Copy)]
pub struct ExtentItem<'a> {
    fixed: &'a layout::ExtentItem,
    block_info: Option<&'a layout::TreeBlockInfo>,
    inline: &'a [u8],
}

impl<'a> ExtentItem<'a> {
    /// Reads the item with key type `item_type`: [`item::EXTENT_ITEM`] or [`item::METADATA_ITEM`].
    ///
    /// # Errors
    /// [`ParseError::Truncated`] when the fixed part does not fit.
    pub fn parse(item_type: u8, data: &'a [u8]) -> Result<Self, ParseError> {
        let fixed: &layout::ExtentItem = layout::prefix("btrfs_extent_item", data)?;
        let rest = data.get(size_of::<layout::ExtentItem>()..).unwrap_or(&[]);
        if item_type == item::EXTENT_ITEM && fixed.flags.get() & FLAG_TREE_BLOCK != 0 {
            let info = layout::prefix("btrfs_tree_block_info", rest)?;
            let inline = rest.get(size_of::<layout::TreeBlockInfo>()..).unwrap_or(&[]);
            return Ok(ExtentItem { fixed, block_info: Some(info), inline });
        }
        Ok(ExtentItem { fixed, block_info: None, inline: rest })
    }

    /// Total number of references, inline and keyed.
    #[must_use]
    pub fn refs(&self) -> u64 {
        self.fixed.refs.get()
    }

    /// Transaction that allocated the extent.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.fixed.generation.get()
    }

    /// [`FLAG_DATA`] or [`FLAG_TREE_BLOCK`], and [`FLAG_FULL_BACKREF`].
    #[must_use]
    pub fn flags(&self) -> u64 {
        self.fixed.flags.get()
    }

    /// Level in `struct btrfs_tree_block_info`, which only tree blocks in an `EXTENT_ITEM` have; those in a
    /// `METADATA_ITEM` have it in their key.
    #[must_use]
    pub fn block_info_level(&self) -> Option<u8> {
        self.block_info.map(|info| info.level)
    }

    /// The inline backrefs, in the order they are stored. Ends after the first error.
    #[must_use]
    pub fn inline_refs(&self) -> InlineRefs<'a> {
        InlineRefs { rest: self.inline }
    }
}

/// Iterator over the inline backrefs of an extent item.
#[derive(Debug, Clone)]
pub struct InlineRefs<'a> {
    rest: &'a [u8],
}

impl InlineRefs<'_> {
    fn parse_one(&self) -> Result<(BackRef, usize), ParseError> {
        let what = "btrfs_extent_inline_ref";
        let ref_type = self.rest.first().copied().unwrap_or_default();
        Ok(match ref_type {
            item::EXTENT_DATA_REF => {
                let inline: &layout::InlineExtentDataRef = layout::prefix(what, self.rest)?;
                (BackRef::from(&inline.data_ref), size_of::<layout::InlineExtentDataRef>())
            }
            item::SHARED_DATA_REF => {
                let inline: &layout::InlineSharedDataRef = layout::prefix(what, self.rest)?;
                let backref = BackRef::SharedData { parent: inline.parent.get(), count: inline.count.get() };
                (backref, size_of::<layout::InlineSharedDataRef>())
            }
            item::TREE_BLOCK_REF | item::SHARED_BLOCK_REF | item::EXTENT_OWNER_REF => {
                let inline: &layout::InlineRef = layout::prefix(what, self.rest)?;
                let offset = inline.offset.get();
                let backref = match ref_type {
                    item::TREE_BLOCK_REF => BackRef::TreeBlock { root: offset },
                    item::SHARED_BLOCK_REF => BackRef::SharedBlock { parent: offset },
                    _ => BackRef::Owner { root: offset },
                };
                (backref, size_of::<layout::InlineRef>())
            }
            other => return Err(ParseError::Invalid { what, field: "type", value: other.into() }),
        })
    }
}

impl Iterator for InlineRefs<'_> {
    type Item = Result<BackRef, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match self.parse_one() {
            Ok((backref, size)) => {
                self.rest = self.rest.get(size..).unwrap_or(&[]);
                Some(Ok(backref))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}
