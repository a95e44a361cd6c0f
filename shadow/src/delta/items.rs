//! Items that violate a rule of [`crate::items`] since this commit.
//!
//! Looked at are only those items of a block that was born that its original did not have, or not behind the same
//! item. What is found is looked up in the old tree: an item that was just as wrong before, perhaps in another leaf, is
//! no finding about this commit.

use parser::{Key, Leaf, ids};

use crate::codes::Code;
use crate::delta::pairs::Common;
use crate::forest::{Expect, Forest, Snapshot};
use crate::items::{self, Context, Found, Item};
use crate::tree::{ItemRef, Searcher};
use crate::violation::Violation;

/// Faults of one commit that are looked up in the old trees, while the guest waits.
const LIMIT: usize = 1024;

/// What is wrong with the items of the blocks that were born.
#[derive(Debug, Default)]
pub(super) struct ItemFaults {
    /// With the tree that owns the leaf.
    found: Vec<(u64, Found)>,
}

impl ItemFaults {
    /// Checks those items of `leaf` that are not in `common` with its original.
    pub(super) fn check(&mut self, snapshot: &Snapshot, leaf: &Leaf<'_>, common: &Common) {
        let owner = leaf.header().owner();
        let context = Context::new(&snapshot.geometry, snapshot.generation, owner);
        items::check_leaf(&context, leaf, common.touched(leaf.len()), |fault| {
            if self.found.len() < LIMIT {
                self.found.push((owner, fault));
            }
        });
    }

    /// Forgets what was found of a leaf that follows from a wrong owner: that no item in it is in its place.
    pub(super) fn forget_places(&mut self, bytenr: u64) {
        self.found.retain(|(_, found)| found.site.block != bytenr || found.fault.code != Code::TreeItemPlace);
    }

    /// Those that the commit brought about.
    pub(super) fn new_ones<'a>(
        &'a self,
        old: &'a Forest<'_>,
        new: &'a Forest<'_>,
    ) -> impl Iterator<Item = Violation> + 'a {
        let nodesize = new.snapshot.geometry.nodesize;
        let is_new = |(owner, found): &&(u64, Found)| {
            !before(old.snapshot, new.snapshot, *owner).any(|tree| was_wrong(old, tree, *owner, found))
        };
        self.found.iter().filter(is_new).map(move |(owner, found)| found.violation(*owner, nodesize))
    }
}

/// The trees from which a leaf of the tree `owner` can have its items: its own as it was, or, where it is a snapshot
/// taken in this commit, those of which one was taken.
fn before<'a>(old: &'a Snapshot, new: &'a Snapshot, owner: u64) -> impl Iterator<Item = Expect> + 'a {
    let own = root_of(old, owner);
    let sources = new
        .roots
        .iter()
        .filter(move |(id, root)| {
            own.is_none() && ids::is_fs_tree(id.tree) && root.last_snapshot == new.generation
        })
        .filter_map(|(id, _)| old.roots.get(id).map(|root| Expect::root(*id, root)));
    own.into_iter().chain(sources)
}

fn root_of(snapshot: &Snapshot, tree: u64) -> Option<Expect> {
    match tree {
        ids::ROOT_TREE => snapshot.super_view().map(|view| Expect::root_tree(&view)),
        ids::CHUNK_TREE => snapshot.super_view().map(|view| Expect::chunk_tree(&view)),
        tree => snapshot.tree(tree),
    }
}

/// Whether the item that was found to be wrong was wrong in the same way in this tree.
pub(crate) fn was_wrong(forest: &Forest<'_>, tree: Expect, owner: u64, found: &Found) -> bool {
    let from = found.previous.unwrap_or(found.key);
    let mut last: [Option<ItemRef>; 2] = [None, None];
    let read = Searcher::new(*forest, Some(tree)).range(from, found.key, |item| {
        last.swap(0, 1);
        last[1] = Some(item);
    });
    let [previous, Some(item)] = &last else { return false };
    if read.is_err() || item.key != found.key {
        return false;
    }
    let context = Context::new(&forest.snapshot.geometry, forest.snapshot.generation, owner);
    let previous: Option<(Key, &[u8])> = previous.as_ref().map(|item| (item.key, item.data()));
    let fault = items::check(&context, &Item { key: item.key, data: item.data(), previous });
    fault.is_err_and(|fault| fault.code == found.fault.code)
}
