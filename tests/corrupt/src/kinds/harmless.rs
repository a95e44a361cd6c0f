//! Changes that look like faults and are none: a verifier that reports one of them cries wolf.

use parser::key::item;
use parser::{ids, layout};
use zerocopy::IntoBytes as _;

use super::{Edit, Kind, Place};
use crate::backref::Extent;
use crate::edit::{self, Leaf};
use crate::rng::Rng;

/// Every harmless change.
pub fn kinds() -> Vec<Kind> {
    vec![
        Kind::new("harmless-merge-cursor", Place::RootLeaf, Edit::Item(merge_cursor), &[]),
        Kind::new("harmless-tree-block-info-key", Place::ExtentLeaf, Edit::Item(info_key), &[]),
        Kind::new("harmless-checksum-tail", Place::FileBlock, Edit::Raw(checksum_tail), &[]),
    ]
}

fn root(leaf: &mut Leaf, slot: usize, edit: impl FnOnce(&mut layout::LegacyRootItem)) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::ROOT_ITEM)?;
    if !ids::is_fs_tree(item.key.objectid) {
        return None;
    }
    edit::change(&mut item.data, edit)?;
    Some(item.key.to_string())
}

/// A cursor masks nothing while the root item has references.
fn merge_cursor(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let mut applies = false;
    let note = root(leaf, slot, |root| {
        applies = root.refs.get() > 0 && root.level > 0;
        root.drop_progress =
            layout::DiskKey { objectid: 270.into(), item_type: item::INODE_ITEM, offset: 0.into() };
        root.drop_level = root.level;
    })?;
    applies.then(|| format!("{note}: a cursor, but refs above 0"))
}

/// The key in the tree block info is that of the block's first allocation, and is not kept up.
fn info_key(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot)?;
    let mut extent = Extent::parse(item)?;
    let info = extent.info.as_mut()?;
    info.key.offset = (info.key.offset.get() ^ 5).into();
    item.data = extent.build();
    Some(format!("extent {}: key in the tree block info", item.key.objectid))
}

/// Bytes of the checksum field that the algorithm does not use.
fn checksum_tail(bytes: &mut [u8], _: &mut Rng) -> Option<String> {
    let uses = crate::checksum_type(bytes)?.size();
    edit::change::<layout::Header>(bytes, |header| {
        for byte in header.csum.as_mut_bytes().iter_mut().skip(uses) {
            *byte ^= 0xa5;
        }
    })?;
    (uses < 32).then(|| format!("checksum field behind byte {uses}"))
}
