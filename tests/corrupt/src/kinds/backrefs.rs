//! Faults in one backref: each form, inline and keyed, lost, doubled, or with one field wrong.

use parser::BackRef;

use super::{Edit, Kind, Place};
use crate::backref::{Extent, Form, backrefs_of, keyed, parse_keyed, same_holder};
use crate::edit::Leaf;
use crate::rng::Rng;

/// What is changed may be like a backref on the next leaf, which whoever changes it doesn't see.
const TWIN: &str = "ref/duplicate-backref";

/// Where a backref is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// In the extent item.
    Inline,
    /// As an item of its own.
    Keyed,
}

/// What happens to it.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// It is gone; the item's count of references is not changed.
    Lost,
    /// It is gone, and the item's count of references lowered with it.
    LostAndCounted,
    /// It stands there a second time in the same item.
    DoubledInline,
    /// It stands there a second time, as an item of its own.
    DoubledKeyed,
    /// A field is wrong. Called with 1, 2, … until the outcome names a holder that has no backref yet.
    Field(fn(BackRef, u64) -> Option<BackRef>),
    /// The count is wrong.
    Count(fn(u32) -> Option<u32>),
}

const LOST: &[&str] = &["ref/missing-backref", "ref/count"];
const DOUBLED: &[&str] = &["ref/duplicate-backref", "ref/count"];
const COUNT: &[&str] = &["ref/backref-count", "ref/count"];
const ZERO: &[&str] = &["ref/backref-count", "ref/count", "ref/invalid-backref", "tree/extent-item"];

/// Every fault of a backref.
pub fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for (stored, prefix) in [(Stored::Inline, "inline"), (Stored::Keyed, "keyed")] {
        for form in Form::ALL {
            for (how, change, expected) in changes(stored, form) {
                let name = format!("{prefix}-{}-{how}", form.name());
                let edit = Edit::Backref(stored, form, change);
                kinds.push(Kind::new(name, Place::ExtentLeaf, edit, expected));
            }
        }
    }
    kinds
}

type Row = (&'static str, Change, &'static [&'static str]);

fn changes(stored: Stored, form: Form) -> Vec<Row> {
    let mut rows: Vec<Row> = vec![("lost", Change::Lost, LOST)];
    if stored == Stored::Inline {
        rows.push(("lost-and-counted", Change::LostAndCounted, &["ref/missing-backref"]));
        rows.push(("doubled", Change::DoubledInline, DOUBLED));
        rows.push(("doubled-keyed", Change::DoubledKeyed, DOUBLED));
    }
    let stray: [Row; 4] = [
        (
            "wrong-root",
            Change::Field(wrong_root),
            &["ref/wrong-root", "ref/missing-backref", "ref/stale-backref", TWIN],
        ),
        (
            "wrong-parent",
            Change::Field(wrong_parent),
            &["ref/wrong-parent", "ref/missing-backref", "ref/stale-backref", TWIN],
        ),
        (
            "wrong-owner",
            Change::Field(wrong_owner),
            &["ref/wrong-owner", "ref/missing-backref", "ref/stale-backref", TWIN],
        ),
        (
            "wrong-offset",
            Change::Field(wrong_offset),
            &["ref/wrong-offset", "ref/missing-backref", "ref/stale-backref", TWIN],
        ),
    ];
    let fields: &[usize] = match form {
        Form::Tree => &[0],
        Form::SharedTree | Form::SharedData => &[1],
        Form::Data => &[0, 2, 3],
    };
    rows.extend(fields.iter().map(|index| stray[*index]));
    if form.is_counted() {
        rows.push(("count-plus-1", Change::Count(|count| count.checked_add(1)), COUNT));
        rows.push((
            "count-minus-1",
            Change::Count(|count| count.checked_sub(1).filter(|left| *left > 0)),
            COUNT,
        ));
        rows.push(("count-0", Change::Count(|_| Some(0)), ZERO));
        rows.push(("count-huge", Change::Count(|_| Some(u32::MAX)), COUNT));
    }
    rows
}

/// Another tree that could hold the reference.
fn wrong_root(backref: BackRef, step: u64) -> Option<BackRef> {
    let other = |root: u64| if root < 256 { 255 + step } else { root + step };
    match backref {
        BackRef::TreeBlock { root } => Some(BackRef::TreeBlock { root: other(root) }),
        BackRef::ExtentData { root, objectid, offset, count } => {
            Some(BackRef::ExtentData { root: other(root), objectid, offset, count })
        }
        _ => None,
    }
}

/// Another address, aligned for every node size.
fn wrong_parent(backref: BackRef, step: u64) -> Option<BackRef> {
    let other = |parent: u64| parent + step * 65536;
    match backref {
        BackRef::SharedBlock { parent } => Some(BackRef::SharedBlock { parent: other(parent) }),
        BackRef::SharedData { parent, count } => Some(BackRef::SharedData { parent: other(parent), count }),
        _ => None,
    }
}

fn wrong_owner(backref: BackRef, step: u64) -> Option<BackRef> {
    let BackRef::ExtentData { root, objectid, offset, count } = backref else { return None };
    Some(BackRef::ExtentData { root, objectid: objectid + step, offset, count })
}

fn wrong_offset(backref: BackRef, step: u64) -> Option<BackRef> {
    let BackRef::ExtentData { root, objectid, offset, count } = backref else { return None };
    Some(BackRef::ExtentData { root, objectid, offset: offset.wrapping_add(step * 65536), count })
}

fn with_count(backref: BackRef, change: fn(u32) -> Option<u32>) -> Option<BackRef> {
    match backref {
        BackRef::ExtentData { root, objectid, offset, count } => {
            Some(BackRef::ExtentData { root, objectid, offset, count: change(count)? })
        }
        BackRef::SharedData { parent, count } => Some(BackRef::SharedData { parent, count: change(count)? }),
        _ => None,
    }
}

/// The backref after the change, where that is one that replaces it.
fn replacement(leaf: &Leaf, bytenr: u64, backref: BackRef, change: Change) -> Option<BackRef> {
    match change {
        Change::Field(field) => {
            let others = backrefs_of(leaf, bytenr);
            (1..100)
                .filter_map(|step| field(backref, step))
                .find(|changed| !others.iter().any(|other| same_holder(other, changed)))
        }
        Change::Count(count) => with_count(backref, count).filter(|changed| *changed != backref),
        _ => None,
    }
}

impl Stored {
    /// Makes the change to a backref of the form in the item at `slot`.
    pub fn apply(
        self,
        form: Form,
        change: Change,
        leaf: &mut Leaf,
        slot: usize,
        rng: &mut Rng,
    ) -> Option<String> {
        match self {
            Stored::Inline => inline(form, change, leaf, slot, rng),
            Stored::Keyed => in_item(form, change, leaf, slot),
        }
    }
}

fn inline(form: Form, change: Change, leaf: &mut Leaf, slot: usize, rng: &mut Rng) -> Option<String> {
    let item = leaf.items.get(slot)?.clone();
    let mut extent = Extent::parse(&item)?;
    let of_form = |index: &usize| Form::of(&extent.inline[*index]) == Some(form);
    let index = rng.order(extent.inline.len()).into_iter().find(of_form)?;
    let (bytenr, backref) = (item.key.objectid, extent.inline[index]);
    let mut note = format!("extent {bytenr}: inline {backref:?}");
    match change {
        Change::Lost => {
            extent.inline.remove(index);
            note += " lost";
        }
        Change::LostAndCounted => {
            let left =
                extent.fixed.refs.get().checked_sub(backref.count().into()).filter(|left| *left > 0)?;
            extent.inline.remove(index);
            extent.fixed.refs = left.into();
            note += &format!(" lost, refs lowered to {left}");
        }
        Change::DoubledInline => {
            extent.inline.push(backref);
            note += " doubled";
        }
        Change::DoubledKeyed => {
            leaf.items.push(keyed(bytenr, &backref));
            note += " doubled as an item";
        }
        Change::Field(_) | Change::Count(_) => {
            let changed = replacement(leaf, bytenr, backref, change)?;
            extent.inline[index] = changed;
            note += &format!(" became {changed:?}");
        }
    }
    leaf.items[slot].data = extent.build();
    Some(note)
}

fn in_item(form: Form, change: Change, leaf: &mut Leaf, slot: usize) -> Option<String> {
    let item = leaf.items.get(slot)?.clone();
    let backref = parse_keyed(&item).filter(|backref| Form::of(backref) == Some(form))?;
    let bytenr = item.key.objectid;
    if let Change::Lost = change {
        leaf.items.remove(slot);
        return Some(format!("extent {bytenr}: keyed {backref:?} lost"));
    }
    let changed = replacement(leaf, bytenr, backref, change)?;
    leaf.items[slot] = keyed(bytenr, &changed);
    Some(format!("extent {bytenr}: keyed {backref:?} became {changed:?}"))
}
