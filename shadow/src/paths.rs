//! Whose extent it is: the file or subvolume behind a reference, for people who must decide what to restore.
//!
//! A service to the reader of a report, never to the verification: what can't be read is left out.

use parser::inode_ref::InodeRef;
use parser::key::item;
use parser::root::RootRef;
use parser::{Block, Key, ids};

use crate::forest::Forest;
use crate::record::Site;
use crate::tree::Searcher;
use crate::violation::Violation;

/// Directories deep that are followed: a damaged directory may contain itself.
const MAX_DEPTH: usize = 256;

/// Says whose extent a violation is about, as far as the trees tell.
#[must_use]
pub fn describe(forest: &Forest<'_>, violation: &Violation) -> Option<String> {
    let key = violation.key?;
    if key.metadata {
        let root = (key.root != 0).then_some(key.root)?;
        return ids::is_fs_tree(root).then(|| format!("a tree block of {}", subvolume(forest, root)));
    }
    let (root, inode) = match key.parent {
        0 => (key.root, key.owner),
        parent => holder(forest, Site { block: parent, slot: 0 }, violation.bytenr)?,
    };
    if !ids::is_fs_tree(root) {
        return None;
    }
    let path = inode_path(forest, root, inode).unwrap_or_else(|| "?".to_owned());
    Some(format!("data of inode {inode} ({path}) in {}", subvolume(forest, root)))
}

/// Owner of the leaf at `site`, and the inode of its first file extent that refers to `bytenr`.
fn holder(forest: &Forest<'_>, site: Site, bytenr: u64) -> Option<(u64, u64)> {
    let place = forest.snapshot.chunks.copies(site.block, forest.nodesize()).ok()?.next()?;
    let block = forest.source.read(place).ok()?;
    let Some(Block::Leaf(leaf)) = block.view() else { return None };
    let refers = |data: &[u8]| {
        parser::FileExtent::parse(data)
            .ok()
            .and_then(|item| item.extent())
            .is_some_and(|e| e.disk_bytenr == bytenr)
    };
    let (key, _) = leaf.items().find(|(key, data)| key.item_type == item::EXTENT_DATA && refers(data))?;
    Some((leaf.header().owner(), key.objectid))
}

/// "subvolume 256 (/home)".
fn subvolume(forest: &Forest<'_>, root: u64) -> String {
    match subvolume_path(forest, root) {
        Some(path) => format!("subvolume {root} ({path})"),
        None => format!("subvolume {root}"),
    }
}

/// Path of a subvolume from the top level of the file system.
fn subvolume_path(forest: &Forest<'_>, root: u64) -> Option<String> {
    let mut root_tree = Searcher::new(
        *forest,
        forest.snapshot.super_view().map(|view| crate::forest::Expect::root_tree(&view)),
    );
    let mut parts: Vec<String> = Vec::new();
    let mut tree = root;
    while tree != ids::FS_TREE {
        if parts.len() >= MAX_DEPTH {
            return None;
        }
        let (from, to) =
            (Key::new(tree, item::ROOT_BACKREF, 0), Key::new(tree, item::ROOT_BACKREF, u64::MAX));
        let mut link = None;
        let read = root_tree.range(from, to, |found| {
            if let (None, Ok(entry)) = (&link, RootRef::parse(found.data())) {
                link = Some((found.key.offset, entry.dirid, text(entry.name)));
            }
        });
        read.ok()?;
        let (parent, directory, name) = link?;
        parts.push(name);
        let within = inode_path(forest, parent, directory)?;
        if within != "/" {
            parts.push(within.trim_start_matches('/').to_owned());
        }
        tree = parent;
    }
    parts.reverse();
    Some(format!("/{}", parts.join("/")))
}

/// Path of an inode from the top of its subvolume.
fn inode_path(forest: &Forest<'_>, root: u64, inode: u64) -> Option<String> {
    let mut searcher = Searcher::new(*forest, forest.snapshot.tree(root));
    let mut parts: Vec<String> = Vec::new();
    let mut current = inode;
    while current != ids::FIRST_FREE {
        if parts.len() >= MAX_DEPTH {
            return None;
        }
        let (from, to) =
            (Key::new(current, item::INODE_REF, 0), Key::new(current, item::INODE_EXTREF, u64::MAX));
        let mut link = None;
        let read = searcher.range(from, to, |found| {
            let parsed = match found.key.item_type {
                item::INODE_REF => InodeRef::parse_first(found.key.offset, found.data()),
                _ => InodeRef::parse_first_extended(found.data()),
            };
            if let (None, Ok(entry)) = (&link, parsed) {
                link = Some((entry.parent, text(entry.name)));
            }
        });
        read.ok()?;
        let (parent, name) = link?;
        parts.push(name);
        current = parent;
    }
    parts.reverse();
    Some(format!("/{}", parts.join("/")))
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
