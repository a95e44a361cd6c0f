//! Extent items and backrefs taken apart, and put together in the order the kernel keeps.

use parser::csum::extent_data_ref_hash;
use parser::extent::{FLAG_DATA, FLAG_TREE_BLOCK};
use parser::key::item;
use parser::{BackRef, ExtentItem, Key, layout};
use zerocopy::IntoBytes as _;

use crate::edit::{Item, Leaf, read};

/// The forms of backrefs that stand for references.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `TREE_BLOCK_REF`.
    Tree,
    /// `SHARED_BLOCK_REF`.
    SharedTree,
    /// `EXTENT_DATA_REF`.
    Data,
    /// `SHARED_DATA_REF`.
    SharedData,
}

impl Form {
    /// All forms.
    pub const ALL: [Form; 4] = [Form::Tree, Form::SharedTree, Form::Data, Form::SharedData];

    /// Name in the names of kinds.
    pub const fn name(self) -> &'static str {
        match self {
            Form::Tree => "tree",
            Form::SharedTree => "shared-tree",
            Form::Data => "data",
            Form::SharedData => "shared-data",
        }
    }

    /// The form of a backref; `None` for an owner ref.
    pub const fn of(backref: &BackRef) -> Option<Form> {
        match backref {
            BackRef::TreeBlock { .. } => Some(Form::Tree),
            BackRef::SharedBlock { .. } => Some(Form::SharedTree),
            BackRef::ExtentData { .. } => Some(Form::Data),
            BackRef::SharedData { .. } => Some(Form::SharedData),
            BackRef::Owner { .. } => None,
        }
    }

    /// Whether it has a count.
    pub const fn is_counted(self) -> bool {
        matches!(self, Form::Data | Form::SharedData)
    }
}

/// Whether two backrefs name the same holder.
pub fn same_holder(a: &BackRef, b: &BackRef) -> bool {
    without_count(a) == without_count(b)
}

fn without_count(backref: &BackRef) -> BackRef {
    match *backref {
        BackRef::ExtentData { root, objectid, offset, .. } => {
            BackRef::ExtentData { root, objectid, offset, count: 0 }
        }
        BackRef::SharedData { parent, .. } => BackRef::SharedData { parent, count: 0 },
        other => other,
    }
}

/// An extent item taken apart.
#[derive(Debug, Clone)]
pub struct Extent {
    /// The fixed part.
    pub fixed: layout::ExtentItem,
    /// Tree blocks that are no skinny items.
    pub info: Option<layout::TreeBlockInfo>,
    /// The inline backrefs.
    pub inline: Vec<BackRef>,
}

impl Extent {
    /// Takes an item apart; `None` for another item or a malformed one.
    pub fn parse(item: &Item) -> Option<Self> {
        if ![item::EXTENT_ITEM, item::METADATA_ITEM].contains(&item.key.item_type) {
            return None;
        }
        let view = ExtentItem::parse(item.key.item_type, &item.data).ok()?;
        let inline = view.inline_refs().collect::<Result<_, _>>().ok()?;
        let fixed: layout::ExtentItem = read(&item.data)?;
        let rest = item.data.get(size_of::<layout::ExtentItem>()..)?;
        let info = if view.block_info_level().is_some() { Some(read(rest)?) } else { None };
        Some(Extent { fixed, info, inline })
    }

    /// Data of the item, inline backrefs in the kernel's order.
    pub fn build(&self) -> Vec<u8> {
        let mut inline = self.inline.clone();
        inline.sort_by_key(|backref| (backref.item_type(), std::cmp::Reverse(sequence(backref))));
        self.build_as_is(&inline)
    }

    /// Data of the item with these inline backrefs, in the order given.
    pub fn build_as_is(&self, inline: &[BackRef]) -> Vec<u8> {
        let mut data = self.fixed.as_bytes().to_vec();
        data.extend(self.info.iter().flat_map(|info| info.as_bytes().to_vec()));
        for backref in inline {
            data.push(backref.item_type());
            match backref {
                BackRef::TreeBlock { root } | BackRef::Owner { root } => data.extend(root.to_le_bytes()),
                BackRef::SharedBlock { parent } => data.extend(parent.to_le_bytes()),
                BackRef::ExtentData { .. } => data.extend(body(backref)),
                BackRef::SharedData { parent, count } => {
                    data.extend(parent.to_le_bytes());
                    data.extend(count.to_le_bytes());
                }
            }
        }
        data
    }

    /// Whether all its backrefs stand in the item.
    pub fn is_whole(&self) -> bool {
        self.inline.iter().map(|backref| u64::from(backref.count())).sum::<u64>() == self.fixed.refs.get()
    }

    /// Whether it is a tree block.
    pub fn is_tree_block(&self) -> bool {
        self.fixed.flags.get() & FLAG_TREE_BLOCK != 0
    }

    /// Whether it is file data.
    pub fn is_data(&self) -> bool {
        self.fixed.flags.get() & FLAG_DATA != 0
    }

    /// Level of a tree block.
    pub fn level(&self, key: &Key) -> u64 {
        self.info.map_or(key.offset, |info| info.level.into())
    }
}

/// What inline backrefs of one type are ordered by, descending.
fn sequence(backref: &BackRef) -> u64 {
    match *backref {
        BackRef::TreeBlock { root } | BackRef::Owner { root } => root,
        BackRef::SharedBlock { parent } | BackRef::SharedData { parent, .. } => parent,
        BackRef::ExtentData { root, objectid, offset, .. } => extent_data_ref_hash(root, objectid, offset),
    }
}

/// Data of a keyed backref.
fn body(backref: &BackRef) -> Vec<u8> {
    match *backref {
        BackRef::ExtentData { root, objectid, offset, count } => layout::ExtentDataRef {
            root: root.into(),
            objectid: objectid.into(),
            offset: offset.into(),
            count: count.into(),
        }
        .as_bytes()
        .to_vec(),
        BackRef::SharedData { count, .. } => count.to_le_bytes().to_vec(),
        _ => Vec::new(),
    }
}

/// A keyed backref as an item.
pub fn keyed(bytenr: u64, backref: &BackRef) -> Item {
    Item { key: Key::new(bytenr, backref.item_type(), sequence(backref)), data: body(backref) }
}

/// A keyed backref of an item; `None` for any other item.
pub fn parse_keyed(item: &Item) -> Option<BackRef> {
    if !BackRef::is_keyed_type(item.key.item_type) {
        return None;
    }
    BackRef::parse_keyed(&item.key, &item.data).ok()
}

/// All backrefs of an extent that stand in this leaf.
pub fn backrefs_of(leaf: &Leaf, bytenr: u64) -> Vec<BackRef> {
    let own = leaf.items.iter().filter(|item| item.key.objectid == bytenr);
    own.flat_map(|item| {
        let inline = Extent::parse(item).map(|extent| extent.inline).unwrap_or_default();
        inline.into_iter().chain(parse_keyed(item))
    })
    .collect()
}

/// Takes every extent item and keyed backref of a leaf apart and puts it together again.
pub fn rebuild_all(leaf: &mut Leaf) {
    for item in &mut leaf.items {
        if let Some(extent) = Extent::parse(item) {
            item.data = extent.build();
        } else if let Some(backref) = parse_keyed(item) {
            // After a collision of hashes an item lies behind its hash; the key is kept.
            item.data = body(&backref);
        }
    }
}
