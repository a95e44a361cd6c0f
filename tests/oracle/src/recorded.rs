//! What the extent tree records: extent items with their inline backrefs, and keyed backrefs.

use std::collections::BTreeMap;

use parser::extent::{FLAG_DATA, FLAG_FULL_BACKREF, FLAG_TREE_BLOCK};
use parser::key::item;
use parser::superblock::incompat;
use parser::{BackRef, Block, ExtentItem, Key, RootItem, ids};

use crate::report::{Multiset, RefKey};
use crate::volume::Volume;

/// An extent item without its backrefs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub length: u64,
    /// The item's count of references.
    pub refs: u64,
    /// Transaction that allocated the extent.
    pub generation: u64,
    /// `BTRFS_EXTENT_FLAG_*` and FULL_BACKREF.
    pub flags: u64,
    /// Level of a tree block, from the key of a skinny item or from the tree block info.
    pub level: Option<u64>,
}

impl Extent {
    /// Whether it is a tree block.
    #[must_use]
    pub fn is_tree_block(&self) -> bool {
        self.flags & FLAG_TREE_BLOCK != 0
    }

    /// Data or tree block, one of the two, and FULL_BACKREF only for tree blocks.
    fn has_sound_flags(&self) -> bool {
        [FLAG_DATA, FLAG_TREE_BLOCK, FLAG_TREE_BLOCK | FLAG_FULL_BACKREF].contains(&self.flags)
    }

    /// Whether it is a tree block whose pointers are recorded by its address.
    #[must_use]
    pub fn is_full_backref(&self) -> bool {
        self.flags & FLAG_FULL_BACKREF != 0
    }
}

/// A tree as the root tree names it.
#[derive(Debug, Clone, Copy)]
pub struct Root {
    /// Key of the root item; made up for the root tree and the chunk tree.
    pub key: Key,
    /// Logical address of the root block.
    pub bytenr: u64,
    /// Its level.
    pub level: u8,
    /// Its generation.
    pub generation: u64,
    /// Where a deletion has come to.
    pub cursor: Option<(Key, u8)>,
}

/// The whole extent tree.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Extent items by bytenr.
    pub extents: BTreeMap<u64, Extent>,
    /// Backrefs, inline and keyed.
    pub backrefs: Multiset,
    /// Owner refs of simple quotas, which are no references.
    pub owner_refs: usize,
    /// Malformed items, in words.
    pub problems: Vec<String>,
}

/// Reads the whole extent tree.
pub(crate) fn read(volume: &mut Volume<'_>) -> Result<Recorded, String> {
    let mut recorded = Recorded::default();
    let roots = roots(volume)?;
    let nodesize = volume.nodesize() as u64;
    let simple_quota = volume.super_block().incompat_flags() & incompat::SIMPLE_QUOTA != 0;
    for root in roots.iter().filter(|root| root.key.objectid == ids::EXTENT_TREE) {
        volume.walk(root.bytenr, root.level, &mut |_, block| {
            let Block::Leaf(leaf) = block else { return };
            for (key, data) in leaf.items() {
                match key.item_type {
                    item::EXTENT_ITEM => recorded.add_extent(&key, key.offset, data, simple_quota),
                    item::METADATA_ITEM => recorded.add_extent(&key, nodesize, data, simple_quota),
                    other if BackRef::is_keyed_type(other) => match BackRef::parse_keyed(&key, data) {
                        Ok(backref) => recorded.add_backref(key.objectid, &backref),
                        Err(error) => recorded.problems.push(format!("{key}: {error}")),
                    },
                    _ => {}
                }
            }
        })?;
    }
    Ok(recorded)
}

impl Recorded {
    fn add_extent(&mut self, key: &Key, length: u64, data: &[u8], simple_quota: bool) {
        let bytenr = key.objectid;
        let extent_item = match ExtentItem::parse(key.item_type, data) {
            Ok(extent_item) => extent_item,
            Err(error) => return self.problems.push(format!("extent {bytenr}: {error}")),
        };
        let extent = Extent {
            length,
            refs: extent_item.refs(),
            generation: extent_item.generation(),
            flags: extent_item.flags(),
            level: match key.item_type {
                item::METADATA_ITEM => Some(key.offset),
                _ => extent_item.block_info_level().map(u64::from),
            },
        };
        if self.extents.insert(bytenr, extent).is_some() {
            self.problems.push(format!("extent {bytenr}: two extent items"));
        }
        if !extent.has_sound_flags() {
            self.problems.push(format!("extent {bytenr}: flags {:#x}", extent.flags));
        }
        for backref in extent_item.inline_refs() {
            match backref {
                Ok(BackRef::Owner { root }) if !simple_quota => {
                    self.problems.push(format!("extent {bytenr}: owner ref of {root} without simple quotas"));
                }
                Ok(backref) => self.add_backref(bytenr, &backref),
                Err(error) => self.problems.push(format!("extent {bytenr}: {error}")),
            }
        }
    }

    fn add_backref(&mut self, bytenr: u64, backref: &BackRef) {
        let key = match *backref {
            BackRef::TreeBlock { root } => RefKey::Tree { root },
            BackRef::SharedBlock { parent } => RefKey::SharedTree { parent },
            BackRef::ExtentData { root, objectid, offset, .. } => RefKey::Data { root, objectid, offset },
            BackRef::SharedData { parent, .. } => RefKey::SharedData { parent },
            BackRef::Owner { .. } => {
                self.owner_refs += 1;
                return;
            }
        };
        let count = u64::from(backref.count());
        if count == 0 {
            self.problems.push(format!("extent {bytenr} ({key}): a backref with count 0"));
        }
        if self.backrefs.insert((bytenr, key), count).is_some() {
            self.problems.push(format!("extent {bytenr} ({key}): recorded twice"));
        }
    }
}

/// The root tree, the chunk tree and every tree that has a root item.
///
/// # Errors
/// When the root tree cannot be read.
pub fn roots(volume: &mut Volume<'_>) -> Result<Vec<Root>, String> {
    let sb = volume.super_block();
    let (root, root_level) = sb.root();
    let (chunk_root, chunk_level) = sb.chunk_root();
    let (generation, chunk_generation) = (sb.generation(), sb.chunk_root_generation());
    let made_up = |tree, bytenr, level, generation| Root {
        key: Key::new(tree, item::ROOT_ITEM, 0),
        bytenr,
        level,
        generation,
        cursor: None,
    };
    let mut roots = vec![
        made_up(ids::ROOT_TREE, root, root_level, generation),
        made_up(ids::CHUNK_TREE, chunk_root, chunk_level, chunk_generation),
    ];
    let mut problem = None;
    volume.walk(root, root_level, &mut |_, block| {
        let Block::Leaf(leaf) = block else { return };
        for (key, data) in leaf.items().filter(|(key, _)| key.item_type == item::ROOT_ITEM) {
            match RootItem::parse(data) {
                Ok(root) => roots.push(Root {
                    key,
                    bytenr: root.bytenr,
                    level: root.level,
                    generation: root.generation,
                    cursor: root.drop_cursor(),
                }),
                Err(error) => problem = Some(format!("{key}: {error}")),
            }
        }
    })?;
    problem.map_or(Ok(roots), Err)
}
