//! Log commits: what an fsync writes between two transactions.
//!
//! A log tree is reached from the super block's `log_root`, belongs to the running transaction, and takes no part
//! in reference counting: neither its blocks nor data that only it refers to are in the extent tree. What can be
//! verified is that the blocks are there and are what their pointers say.

use hashbrown::HashSet;
use parser::key::item;
use parser::{Block, RootItem, SuperBlock, ids};

use crate::codes::Code;
use crate::forest::{BlockProblem, Expect, Forest, OwnerRule};
use crate::violation::Violation;

/// What was found in the log trees of one super block.
#[derive(Debug, Default)]
pub struct LogReport {
    /// Blocks reached that no earlier log commit of the transaction had reached.
    pub blocks: u64,
    /// What is wrong.
    pub violations: Vec<Violation>,
    /// What could not be read.
    pub unknown: Vec<String>,
}

/// Verifies the log trees that `superblock` reaches, in the forest of the commit it extends. `verified` holds the
/// blocks of this transaction's logs that are known already; what is reached is added to it.
pub fn verify(forest: &Forest<'_>, superblock: &SuperBlock<'_>, verified: &mut HashSet<u64>) -> LogReport {
    let mut report = LogReport::default();
    let Some((bytenr, level)) = superblock.log_root() else { return report };
    let generation = superblock.generation().saturating_add(1);
    let owner = OwnerRule::Exactly(ids::TREE_LOG);
    let mut pending = vec![Expect { bytenr, generation, level, first_key: None, owner, from: (0, 0) }];
    while let Some(expect) = pending.pop() {
        if !verified.insert(expect.bytenr) {
            continue;
        }
        report.blocks += 1;
        let block = match forest.read(&expect) {
            Ok(block) => block,
            Err(BlockProblem::Violation(violation)) => {
                report.violations.push(*violation);
                continue;
            }
            Err(BlockProblem::Unknown(reason)) => {
                report.unknown.push(reason);
                continue;
            }
        };
        match block.view() {
            Some(Block::Node(node)) => {
                let header = node.header();
                pending.extend(node.ptrs().enumerate().map(|(slot, ptr)| expect.child(&header, slot, &ptr)));
            }
            Some(Block::Leaf(leaf)) => {
                for (slot, (key, data)) in leaf.items().enumerate() {
                    if key.item_type != item::ROOT_ITEM || key.objectid != ids::TREE_LOG {
                        continue;
                    }
                    match RootItem::parse(data) {
                        Ok(root) => pending.push(Expect {
                            bytenr: root.bytenr,
                            generation,
                            level: root.level,
                            first_key: None,
                            owner,
                            from: (expect.bytenr, slot),
                        }),
                        Err(error) => {
                            let message =
                                format!("log root tree block={} slot={slot}: {error}", expect.bytenr);
                            report.violations.push(Violation::new(
                                Code::TreeRootItem,
                                expect.bytenr,
                                forest.nodesize(),
                                message,
                            ));
                        }
                    }
                }
            }
            None => {}
        }
    }
    report
}
