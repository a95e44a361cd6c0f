//! The root tree against itself and against the directories that name subvolumes: a subvolume that nothing refers to is
//! being deleted, and says so in an orphan item; links between subvolumes stand in both directions and in a directory.
//!
//! At a commit those subvolumes and links are looked at whose items changed. Knows nothing of what a subvolume holds.

use std::collections::BTreeSet;

use parser::csum::name_hash;
use parser::dir::DirEntries;
use parser::key::item;
use parser::root::RootRef;
use parser::{Key, RootItem, ids};

use crate::codes::Code;
use crate::forest::{BlockProblem, Expect, Forest, RootId};
use crate::record::Site;
use crate::tree::{Change, Cursor, ItemRef, Searcher};
use crate::violation::Violation;

/// Subvolumes, and links between them, that are to be looked at.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// Ids of subvolumes.
    roots: BTreeSet<u64>,
    /// Parent and child.
    links: BTreeSet<(u64, u64)>,
}

impl Links {
    /// Notes what an item of the root tree that came, went or changed is about.
    pub fn note(&mut self, change: &Change) {
        // The rest of a root item changes with every commit.
        let refs = |item: Option<&ItemRef>| {
            item.and_then(|item| RootItem::parse(item.data()).ok()).map(|root| root.refs)
        };
        let key = change.key();
        if key.item_type != item::ROOT_ITEM || refs(change.before()) != refs(change.after()) {
            self.note_item(&key);
        }
    }

    fn note_item(&mut self, key: &Key) {
        match key.item_type {
            item::ROOT_ITEM => drop(self.roots.insert(key.objectid)),
            item::ORPHAN_ITEM => drop(self.roots.insert(key.offset)),
            item::ROOT_REF => drop(self.links.insert((key.objectid, key.offset))),
            item::ROOT_BACKREF => {
                self.links.insert((key.offset, key.objectid));
                self.roots.insert(key.objectid);
            }
            _ => {}
        }
    }
}

/// Everything there is in the root tree of `forest`. What can't be read is found by who reads all blocks: nothing is
/// said then.
#[must_use]
pub fn verify_all(forest: &Forest<'_>) -> Vec<Violation> {
    let mut links = Links::default();
    let mut cursor = Cursor::new(*forest, root_tree(forest));
    while let Some(found) = cursor.next_item() {
        links.note_item(&found.key);
    }
    if !cursor.into_problems().is_empty() {
        return Vec::new();
    }
    let mut view = View::new(*forest);
    let of_roots = links.roots.iter().flat_map(|id| view.subvolume(*id).unwrap_or_default());
    let mut found: Vec<Finding> = of_roots.collect();
    found.extend(links.links.iter().flat_map(|link| view.link(*link).unwrap_or_default()));
    found.into_iter().map(|finding| finding.violation(forest)).collect()
}

/// What is wrong with `links` in `new`, and was not in `old`.
#[must_use]
pub fn verify(old: &Forest<'_>, new: &Forest<'_>, links: &Links) -> (Vec<Violation>, Vec<BlockProblem>) {
    let (mut before, mut now) = (View::new(*old), View::new(*new));
    let mut found = Vec::new();
    let mut problems = Vec::new();
    // A link says something of its subvolumes, so it is looked at with them, though it did not change itself.
    let mut all = links.links.clone();
    for id in &links.roots {
        match now.links_of(*id) {
            Ok(of_root) => all.extend(of_root),
            Err(problem) => problems.push(problem),
        }
    }
    let mut take =
        |now: Result<Vec<Finding>, BlockProblem>, before: &mut dyn FnMut() -> Vec<Finding>| match now {
            Ok(findings) if findings.is_empty() => {}
            Ok(findings) => {
                let known = before();
                let is_new = |finding: &Finding| !known.iter().any(|known| known.code == finding.code);
                found.extend(findings.into_iter().filter(is_new).map(|finding| finding.violation(new)));
            }
            Err(problem) => problems.push(problem),
        };
    for id in &links.roots {
        take(now.subvolume(*id), &mut || before.subvolume(*id).unwrap_or_default());
    }
    for link in &all {
        take(now.link(*link), &mut || before.link(*link).unwrap_or_default());
    }
    (found, problems)
}

fn root_tree(forest: &Forest<'_>) -> Option<Expect> {
    forest.snapshot.super_view().map(|view| Expect::root_tree(&view))
}

/// What is wrong, and where the item stands that says so.
#[derive(Debug)]
struct Finding {
    code: Code,
    site: Option<Site>,
    message: String,
}

impl Finding {
    fn violation(self, forest: &Forest<'_>) -> Violation {
        let Finding { code, site, message } = self;
        let Some(Site { block, slot }) = site else { return Violation::new(code, 0, 0, message) };
        Violation::new(code, block, forest.nodesize(), format!("{message} (block {block} slot {slot})"))
    }
}

/// The root tree of one commit.
struct View<'a> {
    forest: Forest<'a>,
    root_tree: Searcher<'a>,
}

impl<'a> View<'a> {
    fn new(forest: Forest<'a>) -> Self {
        View { forest, root_tree: Searcher::new(forest, root_tree(&forest)) }
    }

    fn find(&mut self, key: Key) -> Result<Option<ItemRef>, BlockProblem> {
        self.first(key, key)
    }

    fn first(&mut self, from: Key, to: Key) -> Result<Option<ItemRef>, BlockProblem> {
        let mut first = None;
        self.root_tree.range(from, to, |found| {
            first.get_or_insert(found);
        })?;
        Ok(first)
    }

    /// The root item of a subvolume. There is one, whatever its offset.
    fn root(&self, id: u64) -> Option<&RootItem> {
        let (found, root) = self.forest.snapshot.roots.range(RootId { tree: id, offset: 0 }..).next()?;
        (found.tree == id).then_some(root)
    }

    /// Whether there is a root item of which this holds. One that can't be read is reported elsewhere.
    fn is_there(&mut self, id: u64, holds: impl Fn(&RootItem) -> bool) -> Result<bool, BlockProblem> {
        match self.root(id) {
            Some(root) => Ok(holds(root)),
            None => Ok(self.root_item(id)?.is_some()),
        }
    }

    fn root_item(&mut self, id: u64) -> Result<Option<ItemRef>, BlockProblem> {
        self.first(Key::new(id, item::ROOT_ITEM, 0), Key::new(id, item::ROOT_ITEM, u64::MAX))
    }

    /// The links that lead to a subvolume or from it.
    fn links_of(&mut self, id: u64) -> Result<Vec<(u64, u64)>, BlockProblem> {
        let mut links = Links::default();
        let (from, to) = (Key::new(id, item::ROOT_BACKREF, 0), Key::new(id, item::ROOT_REF, u64::MAX));
        self.root_tree.range(from, to, |found| links.note_item(&found.key))?;
        Ok(links.links.into_iter().collect())
    }

    /// A subvolume: whether somebody wants it, or else its deletion will go on.
    fn subvolume(&mut self, id: u64) -> Result<Vec<Finding>, BlockProblem> {
        let Some(root) = self.root(id).copied().filter(|_| ids::is_fs_tree(id) && id != ids::FS_TREE) else {
            return Ok(Vec::new());
        };
        let orphan = self.find(Key::new(ids::ORPHAN, item::ORPHAN_ITEM, id))?;
        if orphan.is_some() {
            return Ok(Vec::new());
        }
        let site = self.root_item(id)?.map(|item| item.site);
        if root.refs == 0 {
            let message = format!("root {id} has refs 0 but no orphan item: its deletion will never go on");
            return Ok(vec![Finding { code: Code::RootNoOrphan, site, message }]);
        }
        let (from, to) = (Key::new(id, item::ROOT_BACKREF, 0), Key::new(id, item::ROOT_BACKREF, u64::MAX));
        if self.first(from, to)?.is_none() {
            let message = format!("fs tree {id} not referenced: refs {} but no root backref", root.refs);
            return Ok(vec![Finding { code: Code::RootUnreferenced, site, message }]);
        }
        Ok(Vec::new())
    }

    /// A link: both its items, what it leads to, and its directory entry.
    fn link(&mut self, (parent, child): (u64, u64)) -> Result<Vec<Finding>, BlockProblem> {
        let forward = self.find(Key::new(parent, item::ROOT_REF, child))?;
        let backward = self.find(Key::new(child, item::ROOT_BACKREF, parent))?;
        let finding =
            |code, item: &ItemRef, message| Ok(vec![Finding { code, site: Some(item.site), message }]);
        let (forward, backward) = match (forward, backward) {
            (Some(forward), Some(backward)) => (forward, backward),
            (Some(one), None) => {
                let message = format!("root ref {} has no root backref", one.key);
                return finding(Code::RootRef, &one, message);
            }
            (None, Some(one)) => {
                let message = format!("root backref {} has no root ref", one.key);
                return finding(Code::RootRef, &one, message);
            }
            (None, None) => return Ok(Vec::new()),
        };
        // A name that can't be read is reported by the rules for items.
        let (Ok(there), Ok(back)) = (RootRef::parse(forward.data()), RootRef::parse(backward.data())) else {
            return Ok(Vec::new());
        };
        if there != back {
            let message = format!(
                "root ref {} has dirid {} sequence {} name {}, its backref has dirid {} sequence {} name {}",
                forward.key,
                there.dirid,
                there.sequence,
                there.name.escape_ascii(),
                back.dirid,
                back.sequence,
                back.name.escape_ascii()
            );
            return finding(Code::RootRef, &forward, message);
        }
        let refs = |root: &RootItem| root.refs > 0;
        if !(self.is_there(child, refs)? && self.is_there(parent, |_| true)?) {
            let message = format!("root ref {}: parent or child has no root item, or no refs", forward.key);
            return finding(Code::RootUnknown, &forward, message);
        }
        let missing = self.missing_entries(parent, child, &there)?;
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let message = format!(
            "unresolved ref root {child} parent {parent} dir {} index {} name {}: no {}",
            there.dirid,
            there.sequence,
            there.name.escape_ascii(),
            missing.join(" and no ")
        );
        finding(Code::RootDirItem, &forward, message)
    }

    /// Which of the two directory entries of a subvolume are not there, or lead elsewhere.
    fn missing_entries(
        &self,
        parent: u64,
        child: u64,
        link: &RootRef<'_>,
    ) -> Result<Vec<&'static str>, BlockProblem> {
        let mut files = Searcher::new(self.forest, self.forest.snapshot.tree(parent));
        let item = Key::new(link.dirid, item::DIR_ITEM, name_hash(link.name));
        let index = Key::new(link.dirid, item::DIR_INDEX, link.sequence);
        let mut missing = Vec::new();
        for (what, key) in [("dir item", item), ("dir index", index)] {
            let mut is_there = false;
            files.range(key, key, |found| {
                is_there |= DirEntries::new(found.data()).flatten().any(|entry| {
                    let leads_to = (entry.location.objectid, entry.location.item_type);
                    leads_to == (child, item::ROOT_ITEM) && entry.name == link.name
                });
            })?;
            if !is_there {
                missing.push(what);
            }
        }
        Ok(missing)
    }
}
