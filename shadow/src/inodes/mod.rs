//! The inodes of one subvolume against each other and the checksum tree: names in directories and names of inodes, link
//! counts, sizes, checksums.
//!
//! For `check`, where it is asked for: every item of the subvolume is read, in order, snapshots each by themselves.
//! Trees whose blocks can't all be read are left to who reports that.

mod inode;
mod names;
mod sums;

use hashbrown::HashSet;
use parser::inode::InodeItem;
use parser::key::item;
use parser::superblock::incompat;
use parser::{RootItem, ids};

use crate::codes::Code;
use crate::forest::{Expect, Forest, RootId};
use crate::record::Site;
use crate::tree::{Cursor, ItemRef};
use crate::violation::Violation;
use inode::Inode;
use names::{Name, Names, Place, names_of};
use sums::Sums;

pub use sums::Checksums;

/// The subvolumes whose inodes can be verified: those that are not being deleted, and the data relocation tree.
pub fn subvolumes(forest: &Forest<'_>) -> Vec<(RootId, RootItem)> {
    let holds_inodes = |tree| ids::is_fs_tree(tree) || tree == ids::DATA_RELOC_TREE;
    let roots = forest.snapshot.roots.iter();
    let alive = roots.filter(|(id, root)| holds_inodes(id.tree) && root.refs > 0);
    alive.map(|(id, root)| (*id, *root)).collect()
}

/// What was found in one subvolume.
#[derive(Debug)]
pub struct Found {
    violations: Vec<Violation>,
    sums: Sums,
}

/// Verifies the inodes of one subvolume, without `checksums` all but theirs; `None` if it can't be read as a whole.
#[must_use]
pub fn verify(
    forest: &Forest<'_>,
    id: RootId,
    root: &RootItem,
    checksums: Option<&Checksums>,
) -> Option<Found> {
    // A relocation copies whole extents, also what was never written of them.
    let checksums = checksums.filter(|_| id.tree != ids::DATA_RELOC_TREE);
    let mut pass = Pass::new(forest, id.tree, checksums);
    let mut cursor = Cursor::new(*forest, Some(Expect::root(id, root)));
    while let Some(found) = cursor.next_item() {
        pass.take(&found);
    }
    if !cursor.into_problems().is_empty() {
        return None;
    }
    let Pass { names, found: mut violations, sums, .. } = pass.finish();
    violations.extend(names.tell(forest, id, root));
    Some(Found { violations, sums })
}

/// Puts together what was found in all subvolumes.
#[must_use]
pub fn unite(forest: &Forest<'_>, found: Vec<Found>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut sums = Vec::new();
    for mut found in found {
        violations.append(&mut found.violations);
        sums.push(found.sums);
    }
    violations.extend(sums::tell(forest, sums));
    violations
}

/// One walk over a subvolume.
struct Pass<'a> {
    forest: &'a Forest<'a>,
    tree: u64,
    checksums: Option<&'a Checksums>,
    names: Names,
    sums: Sums,
    current: Option<Inode>,
    /// Inodes without a link, which must have an orphan item.
    unlinked: Vec<(u64, Site)>,
    orphans: HashSet<u64>,
    found: Vec<Violation>,
}

impl<'a> Pass<'a> {
    fn new(forest: &'a Forest<'a>, tree: u64, checksums: Option<&'a Checksums>) -> Self {
        Pass {
            forest,
            tree,
            checksums,
            names: Names::default(),
            sums: Sums::new(tree),
            current: None,
            unlinked: Vec::new(),
            orphans: HashSet::new(),
            found: Vec::new(),
        }
    }

    fn take(&mut self, found: &ItemRef) {
        let key = found.key;
        if key.objectid == ids::ORPHAN {
            self.orphans.insert(key.offset);
        }
        if !(ids::FIRST_FREE..=ids::LAST_FREE).contains(&key.objectid) {
            return self.end_inode();
        }
        if self.current.as_ref().is_none_or(|inode| inode.number != key.objectid) {
            self.end_inode();
            self.current = Some(Inode::new(key.objectid, found.site));
        }
        let Some(inode) = &mut self.current else { return };
        match key.item_type {
            item::INODE_ITEM => inode.item = InodeItem::parse(found.data()).ok(),
            item::EXTENT_DATA => {
                let sectorsize = u64::from(self.forest.snapshot.geometry.sectorsize.max(1));
                inode.extent(&key, found.data(), sectorsize);
                if let (Some(checksums), Some(item)) =
                    (self.checksums, inode.item.filter(InodeItem::has_data))
                {
                    self.sums.take(checksums, &key, found.data(), item.is_nodatasum());
                }
            }
            _ => self.take_names(found),
        }
    }

    fn take_names(&mut self, found: &ItemRef) {
        let Some(inode) = &mut self.current else { return };
        let dir_type = inode.item.and_then(|item| item.dir_type());
        let mut odd = None;
        names_of(&found.key, found.data(), dir_type, |place, name| {
            match place {
                Place::InodeRef => inode.links += 1,
                Place::DirIndex | Place::DirItem => inode.entries += name.name.len() as u64,
            }
            if place == Place::InodeRef && name.is_top() && (name.name, name.index) != (b"..", 0) {
                let Name { index, name, .. } = name;
                odd = Some(format!(
                    "odd dir item, index {index} name {} expect index 0 name ..",
                    name.escape_ascii()
                ));
            }
            self.names.add(place, &name);
        });
        let number = inode.number;
        if let Some(message) = odd {
            self.report(Code::InodeTop, number, found.site, &message);
        }
    }

    fn report(&mut self, code: Code, inode: u64, site: Site, message: &str) {
        let text = format!("root {} inode {inode}: {message}", self.tree);
        self.found.push(Violation::new(code, site.block, self.forest.nodesize(), text));
    }

    fn end_inode(&mut self) {
        let Some(inode) = self.current.take() else { return };
        let has_holes = self.forest.snapshot.geometry.has_incompat(incompat::NO_HOLES);
        for (code, message) in inode.faults(has_holes) {
            self.report(code, inode.number, inode.site, &message);
        }
        if inode.item.is_some_and(|item| item.nlink == 0) {
            self.unlinked.push((inode.number, inode.site));
        }
    }

    fn finish(mut self) -> Self {
        self.end_inode();
        for (number, site) in std::mem::take(&mut self.unlinked) {
            if !self.orphans.contains(&number) {
                self.report(Code::InodeNoOrphan, number, site, "no link and no orphan item");
            }
        }
        self
    }
}
