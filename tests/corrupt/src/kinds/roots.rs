//! Faults in root items.

use parser::key::item;
use parser::{Key, RootItem, ids, layout};

use super::nodes::doubled;
use super::{Edit, Kind, Place};
use crate::edit::{self, Leaf, Node};
use crate::rng::Rng;

/// Every fault of a root item.
pub fn kinds() -> Vec<Kind> {
    let kind = |name, edit, expected| Kind::new(name, Place::RootLeaf, Edit::Item(edit), expected);
    vec![
        kind("root-bytenr-beside", bytenr_beside, &["tree/", "ref/"]),
        kind(
            "root-bytenr-of-another-tree",
            of_another_tree,
            &["tree/owner", "ref/duplicate-tree-ref", "tree/", "ref/"],
        ),
        kind("root-bytenr-unmapped", bytenr_unmapped, &["tree/unmapped", "tree/", "ref/"]),
        kind(
            "root-level-plus-1",
            |leaf, slot, _| subvolume(leaf, slot, |root| root.level += 1),
            &["tree/level", "tree/root-item"],
        ),
        kind(
            "root-level-out-of-range",
            |leaf, slot, _| subvolume(leaf, slot, |root| root.level = 8),
            &["tree/root-item", "tree/level"],
        ),
        kind(
            "root-generation-plus-1",
            |leaf, slot, _| {
                subvolume(leaf, slot, |root| root.generation = (root.generation.get() + 1).into())
            },
            &["tree/generation", "tree/root-item"],
        ),
        kind(
            "root-generation-minus-1",
            |leaf, slot, _| {
                subvolume(leaf, slot, |root| root.generation = (root.generation.get() - 1).into())
            },
            &["tree/generation", "tree/root-item"],
        ),
        kind(
            "root-refs-0-without-orphan",
            |leaf, slot, _| subvolume(leaf, slot, |root| root.refs = 0.into()),
            &["root/no-orphan-item"],
        ),
        kind("root-half-deleted", half_deleted, &["ref/stale-backref", "ref/stale-extent", "ref/", "root/"]),
        kind("root-item-lost", item_lost, &["ref/unknown-root", "ref/"]),
        kind("root-ref-lost", |leaf, slot, _| lost(leaf, slot, item::ROOT_REF), &["root/ref"])
            .beyond_the_model(),
        kind("root-backref-lost", |leaf, slot, _| lost(leaf, slot, item::ROOT_BACKREF), &["root/ref"])
            .beyond_the_model(),
        kind("root-ref-of-another-directory", other_directory, &["root/ref"]).beyond_the_model(),
        kind("root-ref-leads-nowhere", leads_nowhere, &["root/ref", "root/unknown"]).beyond_the_model(),
        kind("root-links-lost", links_lost, &["root/unreferenced"]).beyond_the_model(),
        kind("root-links-renamed", links_renamed, &["root/dir-item"]).beyond_the_model(),
        kind("root-link-to-nowhere", link_to_nowhere, &["root/unknown"]).beyond_the_model(),
        kind("root-item-doubled", item_doubled, &["ref/duplicate-tree-ref"]),
        kind("root-generation-v2", generation_v2, &["root/generation-v2"]).beyond_the_model(),
        kind("root-item-cut-short", cut_short, &["tree/root-item"]),
        Kind::new(
            "root-pointer-doubled",
            Place::RootNode,
            Edit::Pointer(pointer_doubled),
            &["tree/doubly-linked"],
        ),
    ]
}

/// Edits the root item of a subvolume that is not being deleted.
fn subvolume(leaf: &mut Leaf, slot: usize, edit: impl FnOnce(&mut layout::LegacyRootItem)) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::ROOT_ITEM)?;
    let old = RootItem::parse(&item.data).ok().filter(|root| root.refs > 0)?;
    if !ids::is_fs_tree(item.key.objectid) || item.key.objectid == ids::FS_TREE {
        return None;
    }
    edit::change(&mut item.data, edit)?;
    let RootItem { bytenr, level, generation, refs, drop_progress, .. } = RootItem::parse(&item.data).ok()?;
    let before = format!("bytenr {} level {} generation {}", old.bytenr, old.level, old.generation);
    let after =
        format!("bytenr {bytenr} level {level} generation {generation} refs {refs} cursor {drop_progress}");
    Some(format!("{}: {before} became {after}", item.key))
}

fn bytenr_beside(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let nodesize = leaf.nodesize as u64;
    subvolume(leaf, slot, |root| root.bytenr = (root.bytenr.get() + nodesize).into())
}

fn bytenr_unmapped(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    subvolume(leaf, slot, |root| root.bytenr = (1 << 50).into())
}

/// The root block of a tree that is no subvolume.
fn of_another_tree(leaf: &mut Leaf, slot: usize, rng: &mut Rng) -> Option<String> {
    let other = rng.order(leaf.items.len()).into_iter().find_map(|slot| {
        let item = leaf.items.get(slot).filter(|item| item.key.item_type == item::ROOT_ITEM)?;
        let root = RootItem::parse(&item.data).ok()?;
        [ids::EXTENT_TREE, ids::CSUM_TREE, ids::DEV_TREE, ids::UUID_TREE]
            .contains(&item.key.objectid)
            .then_some(root)
    })?;
    subvolume(leaf, slot, |root| {
        root.bytenr = other.bytenr.into();
        root.level = other.level;
        root.generation = other.generation.into();
    })
}

/// A drop cursor, as of a deletion that has come past the first children, though they are all still there.
fn half_deleted(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get(slot)?;
    let level = RootItem::parse(&item.data).ok().filter(|root| root.level > 0)?.level;
    subvolume(leaf, slot, |root| {
        root.refs = 0.into();
        root.drop_progress =
            layout::DiskKey { objectid: 270.into(), item_type: item::INODE_ITEM, offset: 0.into() };
        root.drop_level = level;
    })
}

fn item_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let key: Key = leaf.items.get(slot)?.key;
    subvolume(leaf, slot, |_| {})?;
    leaf.items.remove(slot);
    Some(format!("{key}: lost"))
}

fn cut_short(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    subvolume(leaf, slot, |_| {})?;
    let item = leaf.items.get_mut(slot)?;
    item.data.truncate(200);
    Some(format!("{}: cut short to 200 bytes", item.key))
}

fn lost(leaf: &mut Leaf, slot: usize, item_type: u8) -> Option<String> {
    let key = leaf.items.get(slot).filter(|item| item.key.item_type == item_type)?.key;
    leaf.items.remove(slot);
    Some(format!("{key}: lost"))
}

fn link(leaf: &mut Leaf, slot: usize, edit: impl FnOnce(&mut layout::RootRef)) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::ROOT_REF)?;
    edit::change(&mut item.data, edit)?;
    Some(item.key.to_string())
}

fn other_directory(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let key = link(leaf, slot, |link| link.dirid = (link.dirid.get() + 1).into())?;
    Some(format!("{key}: another directory"))
}

fn leads_nowhere(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::ROOT_REF)?;
    let old = item.key;
    item.key.offset += 1 << 40;
    Some(format!("{old} became {}", item.key))
}

/// The items of the link that the item in `slot` begins, where the other half stands in the same leaf.
fn both_halves(leaf: &Leaf, slot: usize) -> Option<(Key, [usize; 2])> {
    let key = leaf.items.get(slot).filter(|item| item.key.item_type == item::ROOT_REF)?.key;
    let back = Key::new(key.offset, item::ROOT_BACKREF, key.objectid);
    let other = leaf.items.iter().position(|item| item.key == back)?;
    Some((key, [slot, other]))
}

/// Nothing links to the subvolume any more.
fn links_lost(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let (key, mut halves) = both_halves(leaf, slot)?;
    halves.sort_unstable();
    halves.iter().rev().for_each(|slot| drop(leaf.items.remove(*slot)));
    Some(format!("{key}: lost, and its backref with it"))
}

/// Both halves agree on a name that stands in no directory.
fn links_renamed(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let (key, halves) = both_halves(leaf, slot)?;
    for slot in halves {
        *leaf.items.get_mut(slot)?.data.last_mut()? ^= 1;
    }
    Some(format!("{key}: another name, in its backref too"))
}

fn generation_v2(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let item = leaf.items.get_mut(slot).filter(|item| item.key.item_type == item::ROOT_ITEM)?;
    let old = RootItem::parse(&item.data).ok()?.generation_v2.filter(|old| *old > 1)?;
    edit::change::<layout::RootItem>(&mut item.data, |root| root.generation_v2 = (old - 1).into())?;
    Some(format!("{}: generation_v2 {old} became {}", item.key, old - 1))
}

/// One more link, whole in itself, to a subvolume that does not exist.
fn link_to_nowhere(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let (key, halves) = both_halves(leaf, slot)?;
    let child = key.offset + (1 << 40);
    let [mut forward, mut backward] = halves.map(|slot| leaf.items[slot].clone());
    forward.key.offset = child;
    backward.key.objectid = child;
    leaf.items.extend([forward, backward]);
    Some(format!("{key}: a second one, to root {child}"))
}

/// A second root item of a subvolume, for the same root block.
fn item_doubled(leaf: &mut Leaf, slot: usize, _: &mut Rng) -> Option<String> {
    let mut item = leaf.items.get(slot)?.clone();
    subvolume(leaf, slot, |_| {})?;
    item.key.offset += 1;
    let note = format!("{}: added", item.key);
    leaf.items.push(item);
    Some(note)
}

/// A new child a second time: one that was there before need not be entered to compare the trees.
fn pointer_doubled(node: &mut Node, slot: usize, rng: &mut Rng) -> Option<String> {
    let before = node.ptrs.get(slot.checked_sub(1)?)?;
    (before.generation == node.generation()).then_some(())?;
    doubled(node, slot, rng)
}
