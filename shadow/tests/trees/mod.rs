//! Cursor, searches and the comparison of two trees, each against the obvious way over the list of all items.

use std::collections::BTreeSet;

use parser::Key;
use proptest::prelude::*;
use shadow::forest::{Expect, Forest, OwnerRule, Snapshot};
use shadow::tree::{Change, Cursor, ItemRef, Searcher, diff};

use crate::support::layout::{Shape, layout};
use crate::support::*;

const TREE: u64 = 300;

/// A world of blocks that are written as they are made, and never committed.
struct Grove {
    world: World,
    snapshot: Snapshot,
}

/// A tree in it, with its blocks.
struct Tree {
    root: Expect,
    blocks: BTreeSet<u64>,
}

impl Grove {
    fn new() -> Self {
        let mut world = World::new(Config { dup: false, ..Config::default() });
        let superblock = world.commit();
        let snapshot = shadow::attach::load(&superblock, &world.image).unwrap();
        Grove { world, snapshot }
    }

    /// A tree of these items; blocks that some tree before has, too, are shared.
    fn plant(&mut self, items: &Items, shape: &Shape) -> Tree {
        let mut blocks = BTreeSet::new();
        let config = self.world.config.clone();
        let (ptr, level) = layout(items, shape, &config, |level, content| {
            let known = self
                .world
                .blocks
                .values()
                .find(|block| block.owner == TREE && block.level == level && block.content == content);
            let ptr = match known.map(BlockSpec::ptr) {
                Some(ptr) => ptr,
                None => {
                    let ptr = self.world.block(TREE, level, content);
                    let bytes = bytes::encode(&self.world.blocks[&ptr.bytenr], &config);
                    self.world.write(ptr.bytenr, &bytes);
                    ptr
                }
            };
            blocks.insert(ptr.bytenr);
            ptr
        });
        let (bytenr, generation) = (ptr.bytenr, ptr.generation);
        let owner = OwnerRule::AnyFsTree;
        let root = Expect { bytenr, generation, level, first_key: None, limit: None, owner, from: (0, 0) };
        Tree { root, blocks }
    }

    fn forest(&self) -> Forest<'_> {
        Forest::new(&self.snapshot, &self.world.image)
    }
}

fn pair(item: &ItemRef) -> (Key, Vec<u8>) {
    (item.key, item.data().to_vec())
}

fn items() -> impl Strategy<Value = Items> {
    let key =
        (0u64..40, 1u8..3, 0u64..3).prop_map(|(objectid, kind, offset)| Key::new(objectid, kind, offset));
    prop::collection::btree_map(key, prop::collection::vec(any::<u8>(), 0..4), 0..80)
}

fn shape() -> impl Strategy<Value = Shape> {
    (1usize..10, 2usize..8, 2u64..9, any::<u64>()).prop_map(|(leaf, node, every, salt)| Shape {
        leaf,
        node,
        every,
        salt,
        ..Shape::default()
    })
}

/// A few changes to a list of items.
fn edits() -> impl Strategy<Value = Vec<(Key, Option<Vec<u8>>)>> {
    let key =
        (0u64..45, 1u8..3, 0u64..3).prop_map(|(objectid, kind, offset)| Key::new(objectid, kind, offset));
    prop::collection::vec((key, prop::option::of(prop::collection::vec(any::<u8>(), 0..4))), 0..12)
}

fn edited(items: &Items, edits: &[(Key, Option<Vec<u8>>)]) -> Items {
    let mut items = items.clone();
    for (key, data) in edits {
        match data {
            Some(data) => drop(items.insert(*key, data.clone())),
            None => drop(items.remove(key)),
        }
    }
    items
}

/// What a comparison found: by key, the data before and after.
type Changes = Vec<(Key, Option<Vec<u8>>, Option<Vec<u8>>)>;

fn naive(old: &Items, new: &Items) -> Changes {
    let keys: BTreeSet<&Key> = old.keys().chain(new.keys()).collect();
    let changes = keys.into_iter().filter(|key| old.get(key) != new.get(key));
    changes.map(|key| (*key, old.get(key).cloned(), new.get(key).cloned())).collect()
}

fn compared(grove: &Grove, old: Option<&Tree>, new: Option<&Tree>) -> Changes {
    let side = |tree: Option<&Tree>| (grove.forest(), tree.map(|tree| tree.root));
    let mut changes = Changes::new();
    let problems = diff(side(old), side(new), |change: Change| {
        let data = |item: Option<&ItemRef>| item.map(|item| item.data().to_vec());
        changes.push((change.key(), data(change.before()), data(change.after())));
    });
    assert!(problems.is_empty(), "{problems:?}");
    changes
}

proptest! {
    #![proptest_config(cases(256))]

    /// Shared subtrees, other fan-outs, other heights, empty trees, no tree at all: the same differences, in order,
    /// and nothing that both trees have is read.
    #[test]
    fn differences_of_two_trees(
        first in items(), edits in edits(), shape in shape(), other in prop::option::of(shape()),
    ) {
        let second = edited(&first, &edits);
        let mut grove = Grove::new();
        let old = grove.plant(&first, &shape);
        let new = grove.plant(&second, &other.clone().unwrap_or_else(|| shape.clone()));
        grove.world.image.take_reads();
        prop_assert_eq!(compared(&grove, Some(&old), Some(&new)), naive(&first, &second));
        let (read, reads) = grove.world.image.take_reads();
        if other.is_none() && old.root.level == new.root.level {
            prop_assert_eq!(read.len(), reads, "a block was read twice");
            // Where only leaves change, what is shared meets at its own level and is passed over.
            let changed: BTreeSet<u64> = old.blocks.symmetric_difference(&new.blocks).copied().collect();
            let in_vain: Vec<_> = read.difference(&changed).collect();
            prop_assert!(in_vain.is_empty(), "read although shared: {:?} of {:?}", in_vain, changed);
        }
        let empty = Items::new();
        prop_assert_eq!(compared(&grove, Some(&old), Some(&old)), Changes::new());
        prop_assert!(grove.world.image.take_reads().0.is_empty(), "a tree compared with itself is not read");
        prop_assert_eq!(compared(&grove, None, Some(&new)), naive(&empty, &second));
        prop_assert_eq!(compared(&grove, Some(&old), None), naive(&first, &empty));
    }

    /// Every item, in order.
    #[test]
    fn a_cursor_sees_all(items in items(), shape in shape()) {
        let mut grove = Grove::new();
        let tree = grove.plant(&items, &shape);
        let mut cursor = Cursor::new(grove.forest(), Some(tree.root));
        let seen: Vec<_> = std::iter::from_fn(|| cursor.next_item()).map(|item| pair(&item)).collect();
        prop_assert_eq!(seen, items.into_iter().collect::<Vec<_>>());
        prop_assert!(cursor.into_problems().is_empty());
    }

    /// Ranges in any order, by one searcher.
    #[test]
    fn ranges(items in items(), shape in shape(), ranges in prop::collection::vec((0u64..45, 0u64..45, 0u8..4), 1..20)) {
        let mut grove = Grove::new();
        let tree = grove.plant(&items, &shape);
        let mut searcher = Searcher::new(grove.forest(), Some(tree.root));
        for (first, last, kind) in ranges {
            let (from, to) = (Key::new(first, kind, 1), Key::new(last, 2, 1));
            let mut found = Vec::new();
            searcher.range(from, to, |item| found.push(pair(&item))).unwrap();
            let wanted = items.iter().filter(|(key, _)| (from..=to).contains(key));
            let wanted: Vec<_> = wanted.map(|(key, data)| (*key, data.clone())).collect();
            prop_assert_eq!(found, wanted, "{:?}..={:?}", from, to);
        }
    }
}

/// One leaf of a large tree changes: a path on each side is read.
#[test]
fn cost_follows_the_change() {
    let items: Items = (0..2000).map(|n| (Key::new(n, 1, 0), vec![1])).collect();
    let shape = Shape { leaf: 8, node: 6, every: 50, ..Shape::default() };
    let mut grove = Grove::new();
    let old = grove.plant(&items, &shape);
    let new = grove.plant(&edited(&items, &[(Key::new(1000, 1, 0), Some(vec![2]))]), &shape);
    grove.world.image.take_reads();
    assert_eq!(compared(&grove, Some(&old), Some(&new)).len(), 1);
    let (_, reads) = grove.world.image.take_reads();
    assert!(old.root.level >= 4);
    assert_eq!(reads, 2 * (usize::from(old.root.level) + 1));
}

#[test]
fn no_tree() {
    let grove = Grove::new();
    assert!(Cursor::new(grove.forest(), None).next_item().is_none());
    Searcher::new(grove.forest(), None).range(Key::MIN, Key::MAX, |_| panic!()).unwrap();
}
