//! Log commits: what an fsync writes between two transactions.
//!
//! A log tree is reached from the super block's `log_root`, belongs to the running transaction, and takes no part
//! in reference counting: neither its blocks nor data that only it refers to are in the extent tree. What can be
//! verified is that the blocks are there, are what their pointers say, and hold items that are well formed.

use hashbrown::HashSet;
use parser::key::item;
use parser::{Block, Key, Leaf, RootItem, SuperBlock, ids};

use crate::codes::Code;
use crate::delta::items::was_wrong;
use crate::forest::{BlockProblem, Expect, Forest, OwnerRule, Snapshot, Unsafe};
use crate::items::{self, Context};
use crate::unreadable::Unread;
use crate::violation::Violation;

/// What was found in the log trees of one super block.
#[derive(Debug, Default)]
pub struct LogReport {
    /// Addresses of blocks reached that no earlier log commit of the transaction had reached.
    pub blocks: Vec<u64>,
    /// One of them that was not flushed.
    pub not_flushed: Option<Violation>,
    /// What is wrong with blocks, so that they can't be used.
    pub violations: Vec<Violation>,
    /// What is wrong with what they hold.
    pub faults: Vec<Violation>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// What is known of the logs of the running transaction.
#[derive(Debug, Default)]
pub struct KnownLogs {
    /// Blocks that were verified.
    blocks: HashSet<u64>,
    /// Items that were reported, by tree. A log's leaves are copied from one log commit to the next.
    faults: HashSet<(u64, Key, Code)>,
}

impl KnownLogs {
    /// Forgets them: another transaction has begun.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.faults.clear();
    }
}

/// Verifies the log trees that `superblock` reaches, in the forest of the commit it extends. What is reached is added to
/// `known`.
pub fn verify(forest: &Forest<'_>, superblock: &SuperBlock<'_>, known: &mut KnownLogs) -> LogReport {
    let Some((bytenr, level)) = superblock.log_root() else { return LogReport::default() };
    let generation = superblock.generation().saturating_add(1);
    let mut walk = Walk { forest, generation, known, pending: Vec::new(), report: LogReport::default() };
    walk.push_root(ids::TREE_LOG, (bytenr, level), (0, 0));
    while let Some((tree, expect)) = walk.pending.pop() {
        walk.visit(tree, &expect);
    }
    walk.report
}

struct Walk<'a, 'f> {
    forest: &'a Forest<'f>,
    /// Transaction of all log blocks.
    generation: u64,
    known: &'a mut KnownLogs,
    /// Blocks to be visited, each with the subvolume whose log it is part of.
    pending: Vec<(u64, Expect)>,
    report: LogReport,
}

impl Walk<'_, '_> {
    fn push_root(&mut self, tree: u64, (bytenr, level): (u64, u8), from: (u64, usize)) {
        let owner = OwnerRule::Exactly(ids::TREE_LOG);
        let generation = self.generation;
        self.pending
            .push((tree, Expect { bytenr, generation, level, first_key: None, limit: None, owner, from }));
    }

    fn visit(&mut self, tree: u64, expect: &Expect) {
        if !self.known.blocks.insert(expect.bytenr) {
            return;
        }
        let block = match self.forest.read(expect) {
            Ok(block) => block,
            Err(BlockProblem::Violation(violation)) => return self.report.violations.push(*violation),
            Err(BlockProblem::Unknown(reason)) => return self.report.unread.push(reason),
        };
        self.report.blocks.push(expect.bytenr);
        match self.forest.unsafe_copy(expect) {
            Some(Unsafe::Missing(violation)) => self.report.violations.push(violation),
            Some(Unsafe::NotFlushed(violation)) => {
                self.report.not_flushed.get_or_insert(violation);
            }
            None => {}
        }
        let Some(view) = block.view() else { return };
        let nodesize = self.forest.snapshot.geometry.nodesize;
        self.report.faults.extend(items::header_fault(&view, nodesize));
        match view {
            Block::Node(node) => {
                let children =
                    node.ptrs().enumerate().map(|(slot, ptr)| (tree, expect.child(&node, slot, &ptr)));
                self.pending.extend(children);
            }
            Block::Leaf(leaf) => self.visit_leaf(tree, expect.bytenr, &leaf),
        }
    }

    fn visit_leaf(&mut self, tree: u64, bytenr: u64, leaf: &Leaf<'_>) {
        self.check_items(tree, leaf);
        for (slot, (key, data)) in leaf.items().enumerate() {
            if key.item_type != item::ROOT_ITEM || key.objectid != ids::TREE_LOG {
                continue;
            }
            match RootItem::parse(data) {
                Ok(root) => self.push_root(key.offset, (root.bytenr, root.level), (bytenr, slot)),
                Err(error) => {
                    let message = format!("log root tree block={bytenr} slot={slot}: {error}");
                    let len = self.forest.nodesize();
                    self.report.violations.push(Violation::new(Code::TreeRootItem, bytenr, len, message));
                }
            }
        }
    }

    /// Items are copied into the log as they are: one that is as wrong in the subvolume is no finding about the log.
    fn check_items(&mut self, tree: u64, leaf: &Leaf<'_>) {
        let Snapshot { geometry, generation, .. } = self.forest.snapshot;
        let context = Context::new(geometry, *generation, leaf.header().owner());
        let mut faults = Vec::new();
        items::check_leaf(&context, leaf, std::iter::once(0..leaf.len()), |fault| faults.push(fault));
        for found in faults {
            let is_known = !self.known.faults.insert((tree, found.key, found.fault.code));
            let root = self.forest.snapshot.tree(tree);
            if !is_known && !root.is_some_and(|root| was_wrong(self.forest, root, tree, &found)) {
                self.report.faults.push(found.violation(ids::TREE_LOG, geometry.nodesize));
            }
        }
    }
}
