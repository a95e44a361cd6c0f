//! Trees that are not there.

use parser::key::item;
use parser::{BackRef, FileExtent, Key, ids};

use super::Set;
use crate::backref::Extent;
use crate::edit::Leaf;
use crate::rng::Rng;

/// A subvolume that no file system of the tests has.
const NOWHERE: u64 = 1 << 40;

/// A leaf that was left in the name of a subvolume that is gone: it refers to its data in that name, and so the backrefs
/// say.
pub(super) fn in_the_name_of_none(set: &mut Set<'_>, rng: &mut Rng) -> Option<String> {
    let of_files = |at: &u64| ids::is_fs_tree(set.owners[at]) && !set.leaves[at].is_reloc();
    let leaves: Vec<u64> = set.leaves.keys().copied().filter(of_files).collect();
    let (leaf, root, records) = rng.order(leaves.len()).into_iter().find_map(|index| {
        let leaf = leaves[index];
        let root = set.owners[&leaf];
        let records = set.records_of(&set.leaves[&leaf], root)?;
        (!records.is_empty()).then_some((leaf, root, records))
    })?;
    for &(record, found) in &records {
        let item = set.item(record)?;
        let mut extent = Extent::parse(item)?;
        for backref in &mut extent.inline {
            if *backref == found
                && let BackRef::ExtentData { root, .. } = backref
            {
                *root = NOWHERE;
            }
        }
        item.data = extent.build();
    }
    set.leaves.get_mut(&leaf)?.set_owner(NOWHERE);
    Some(format!(
        "leaf {leaf}: owner {root} became {NOWHERE}, in the backrefs of its {} extents too",
        records.len()
    ))
}

/// Where a record stands, and the backref of it that is meant.
type Record = ((u64, usize), BackRef);

impl Set<'_> {
    /// The backrefs for all that a leaf refers to; `None` where not all of them stand inline among the leaves, each for
    /// one reference.
    fn records_of(&self, leaf: &Leaf, root: u64) -> Option<Vec<Record>> {
        let mut records: Vec<Record> = Vec::new();
        for file_extent in leaf.items.iter().filter(|item| item.key.item_type == item::EXTENT_DATA) {
            let Some(range) = FileExtent::parse(&file_extent.data).ok()?.extent() else { continue };
            let Key { objectid, offset, .. } = file_extent.key;
            let wanted =
                BackRef::ExtentData { root, objectid, offset: offset.wrapping_sub(range.offset), count: 1 };
            let record = self.of_tree(ids::EXTENT_TREE).find_map(|(at, leaf)| {
                let is_it = |item: &crate::edit::Item| {
                    item.key.objectid == range.disk_bytenr
                        && Extent::parse(item).is_some_and(|extent| extent.inline.contains(&wanted))
                };
                Some((at, leaf.items.iter().position(is_it)?))
            })?;
            records.push((record, wanted));
        }
        Some(records)
    }
}
