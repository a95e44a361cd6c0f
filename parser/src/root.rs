//! Root items and the links between subvolumes.

use crate::error::ParseError;
use crate::key::Key;
use crate::layout;

/// A root item (`struct btrfs_root_item`): key `(tree id, ROOT_ITEM, offset)`; the offset is 0, for a snapshot the
/// transaction that made it, for a relocation tree the subvolume it relocates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootItem {
    /// Transaction that last wrote the root block.
    pub generation: u64,
    /// Inode of the top directory: 256 in a subvolume, 0 in trees that hold no files.
    pub root_dirid: u64,
    /// Logical address of the root block.
    pub bytenr: u64,
    /// Bytes of tree blocks, as the kernel counts them.
    pub bytes_used: u64,
    /// Transaction of the last snapshot taken of the tree.
    pub last_snapshot: u64,
    /// `BTRFS_ROOT_SUBVOL_*`.
    pub flags: u64,
    /// Links to the subvolume; 0 while it is being deleted.
    pub refs: u32,
    /// How far deletion, or the merge of a relocation tree, has come.
    pub drop_progress: Key,
    /// Level of the node that `drop_progress` is a key of.
    pub drop_level: u8,
    /// Level of the root block.
    pub level: u8,
    /// Equals `generation` where a kernel since 3.6 wrote the item; `None` in the legacy form.
    pub generation_v2: Option<u64>,
}

impl RootItem {
    /// Reads a root item, of today's size or of that before Linux 3.6.
    ///
    /// # Errors
    /// [`ParseError`] for any other size.
    pub fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let what = "btrfs_root_item";
        let (legacy, generation_v2) = if data.len() == size_of::<layout::LegacyRootItem>() {
            (layout::exact::<layout::LegacyRootItem>(what, data)?, None)
        } else {
            let item: &layout::RootItem = layout::exact(what, data)?;
            (&item.legacy, Some(item.generation_v2.get()))
        };
        Ok(RootItem {
            generation: legacy.generation.get(),
            root_dirid: legacy.root_dirid.get(),
            bytenr: legacy.bytenr.get(),
            bytes_used: legacy.bytes_used.get(),
            last_snapshot: legacy.last_snapshot.get(),
            flags: legacy.flags.get(),
            refs: legacy.refs.get(),
            drop_progress: Key::from(&legacy.drop_progress),
            drop_level: legacy.drop_level,
            level: legacy.level,
            generation_v2,
        })
    }

    /// Where deletion of the subvolume has come to: pointers before this key, in the node of this level, hold no
    /// references any more. `None` for a relocation tree that is being merged, whose cursor masks nothing: it has
    /// references.
    #[must_use]
    pub fn drop_cursor(&self) -> Option<(Key, u8)> {
        (self.refs == 0 && self.drop_progress.objectid != 0).then_some((self.drop_progress, self.drop_level))
    }
}

/// A root ref or root backref (`struct btrfs_root_ref`): the directory entry of a subvolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootRef<'a> {
    /// Directory that holds the entry.
    pub dirid: u64,
    /// Index of the entry in the directory.
    pub sequence: u64,
    /// Name of the entry.
    pub name: &'a [u8],
}

impl<'a> RootRef<'a> {
    /// Reads a root ref.
    ///
    /// # Errors
    /// [`ParseError`] when `data` is not as long as the name requires.
    pub fn parse(data: &'a [u8]) -> Result<Self, ParseError> {
        let what = "btrfs_root_ref";
        let fixed: &layout::RootRef = layout::prefix(what, data)?;
        let name = data.get(size_of::<layout::RootRef>()..).unwrap_or(&[]);
        let need = size_of::<layout::RootRef>() + usize::from(fixed.name_len.get());
        if data.len() != need {
            return Err(ParseError::Truncated { what, need, have: data.len() });
        }
        Ok(RootRef { dirid: fixed.dirid.get(), sequence: fixed.sequence.get(), name })
    }
}
