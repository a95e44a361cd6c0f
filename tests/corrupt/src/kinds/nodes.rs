//! Faults in the pointers of nodes.

use super::{Edit, Kind, NodeEdit, Place};
use crate::edit::Node;
use crate::rng::Rng;

const FAR_AWAY: u64 = 1 << 50;

/// Every fault of a pointer: in a subvolume's nodes, and some in the extent tree's.
pub fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    let rows: [(&str, NodeEdit, &[&'static str]); 9] = [
        ("generation-plus-1", |node, slot, _| generation(node, slot, 1), &["tree/generation"]),
        ("generation-minus-1", |node, slot, _| generation(node, slot, -1), &["tree/generation"]),
        ("elsewhere", elsewhere, &["tree/first-key", "tree/generation", "tree/", "ref/"]),
        ("doubled", doubled, &["tree/first-key", "ref/duplicate-tree-ref", "tree/", "ref/"]),
        ("swapped", swapped, &["tree/first-key", "tree/"]),
        ("unmapped", unmapped, &["tree/unmapped", "tree/", "ref/"]),
        ("unaligned", unaligned, &["tree/block-pointer", "tree/", "ref/"]),
        ("key", key, &["tree/first-key"]),
        ("key-order", key_order, &["tree/key-order"]),
    ];
    for (name, edit, expected) in rows {
        for (tree, place) in [("file", Place::FileNode), ("extent", Place::ExtentNode)] {
            kinds.push(Kind::new(format!("{tree}-pointer-{name}"), place, Edit::Pointer(edit), expected));
        }
    }
    let lost: &[&str] = &["ref/stale-extent", "ref/stale-backref", "ref/"];
    kinds.push(Kind::new("file-pointer-lost", Place::FileNode, Edit::Pointer(pointer_lost), lost));
    kinds
}

fn generation(node: &mut Node, slot: usize, by: i64) -> Option<String> {
    let ptr = node.ptrs.get_mut(slot)?;
    ptr.generation = ptr.generation.checked_add_signed(by)?;
    Some(format!("slot {slot}: generation became {}", ptr.generation))
}

/// The address of another child; key and generation stay.
fn elsewhere(node: &mut Node, slot: usize, rng: &mut Rng) -> Option<String> {
    let own = node.ptrs.get(slot)?.bytenr;
    let other =
        rng.order(node.ptrs.len()).into_iter().map(|slot| node.ptrs[slot].bytenr).find(|to| *to != own)?;
    node.ptrs[slot].bytenr = other;
    Some(format!("slot {slot}: pointer {own} became {other}"))
}

/// The address and generation of the child before.
pub(super) fn doubled(node: &mut Node, slot: usize, _: &mut Rng) -> Option<String> {
    let before = *node.ptrs.get(slot.checked_sub(1)?)?;
    let ptr = node.ptrs.get_mut(slot)?;
    (ptr.bytenr, ptr.generation) = (before.bytenr, before.generation);
    Some(format!("slot {slot}: points to the child of slot {}, {}", slot - 1, before.bytenr))
}

/// Two children change places, their keys stay.
fn swapped(node: &mut Node, slot: usize, _: &mut Rng) -> Option<String> {
    let before = *node.ptrs.get(slot.checked_sub(1)?)?;
    let own = *node.ptrs.get(slot)?;
    (node.ptrs[slot].bytenr, node.ptrs[slot].generation) = (before.bytenr, before.generation);
    (node.ptrs[slot - 1].bytenr, node.ptrs[slot - 1].generation) = (own.bytenr, own.generation);
    Some(format!("slots {} and {slot}: children swapped", slot - 1))
}

fn unmapped(node: &mut Node, slot: usize, _: &mut Rng) -> Option<String> {
    let ptr = node.ptrs.get_mut(slot)?;
    ptr.bytenr += FAR_AWAY;
    Some(format!("slot {slot}: pointer became {}", ptr.bytenr))
}

fn unaligned(node: &mut Node, slot: usize, _: &mut Rng) -> Option<String> {
    let ptr = node.ptrs.get_mut(slot)?;
    ptr.bytenr += 1;
    Some(format!("slot {slot}: pointer became {}", ptr.bytenr))
}

/// A key that is still in order, but not the child's first.
fn key(node: &mut Node, slot: usize, _: &mut Rng) -> Option<String> {
    let next = node.ptrs.get(slot + 1).map(|ptr| ptr.key);
    let ptr = node.ptrs.get_mut(slot).filter(|_| slot > 0)?;
    ptr.key.offset = ptr.key.offset.checked_add(1)?;
    if next.is_some_and(|next| next <= ptr.key) {
        return None;
    }
    Some(format!("slot {slot}: key became {}", ptr.key))
}

fn key_order(node: &mut Node, slot: usize, _: &mut Rng) -> Option<String> {
    let before = slot.checked_sub(1).filter(|_| slot < node.ptrs.len())?;
    node.ptrs.swap(before, slot);
    Some(format!("slots {before} and {slot} swapped"))
}

fn pointer_lost(node: &mut Node, slot: usize, _: &mut Rng) -> Option<String> {
    if slot == 0 {
        return None;
    }
    let lost = node.ptrs.remove(slot);
    Some(format!("slot {slot}: pointer to {} lost", lost.bytenr))
}
