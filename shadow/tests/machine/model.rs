//! The machine against the simplest model there is: a map of counts.

use std::collections::BTreeMap;

use proptest::prelude::*;
use shadow::refverify::{Action, ActionKind};
use shadow::{Code, RefKey, Shadow};

use crate::support::cases;

use super::{LEN, action};

/// Counts by reference, for each extent; and whether it is a tree block.
#[derive(Default)]
struct Model(BTreeMap<u64, (bool, BTreeMap<RefKey, u64>)>);

impl Model {
    fn modify(&mut self, action: &Action) -> Option<Code> {
        let total = |refs: &BTreeMap<RefKey, u64>| refs.values().sum::<u64>();
        if action.kind == ActionKind::Alloc {
            if self.0.get(&action.bytenr).is_some_and(|(_, refs)| total(refs) > 0) {
                return Some(Code::RefReallocated);
            }
            let is_twice = action.key.metadata && action.count > 1;
            let count = if is_twice { 1 } else { action.count };
            self.0.insert(action.bytenr, (action.key.metadata, [(action.key, count)].into()));
            return is_twice.then_some(Code::RefDuplicateTreeRef);
        }
        let Some((metadata, refs)) = self.0.get_mut(&action.bytenr) else {
            return Some(Code::RefNoExtentItem);
        };
        if total(refs) == 0 {
            return Some(Code::RefNoReferences);
        }
        let have = refs.get(&action.key).copied();
        if action.kind == ActionKind::Add {
            if *metadata && have.unwrap_or(0) + action.count > 1 {
                return Some(Code::RefDuplicateTreeRef);
            }
            *refs.entry(action.key).or_default() += action.count;
            return None;
        }
        match have {
            None => Some(Code::RefDropUnknown),
            Some(have) if have < action.count => Some(Code::RefDropExhausted),
            Some(have) if have == action.count => {
                refs.remove(&action.key);
                None
            }
            Some(have) => {
                refs.insert(action.key, have - action.count);
                None
            }
        }
    }
}

fn key() -> impl Strategy<Value = RefKey> {
    prop_oneof![
        (5u64..8, 0u8..2).prop_map(|(root, level)| RefKey::tree(root, level)),
        (1u64..3).prop_map(|parent| RefKey::shared_tree(parent * LEN, 0)),
        (5u64..7, 257u64..259).prop_map(|(root, inode)| RefKey::data(root, inode, 0)),
        (1u64..3).prop_map(|parent| RefKey::shared_data(parent * LEN)),
    ]
}

fn actions() -> impl Strategy<Value = Vec<(u64, ActionKind, RefKey, u64)>> {
    let kind = prop_oneof![
        1 => Just(ActionKind::Alloc),
        2 => Just(ActionKind::Add),
        2 => Just(ActionKind::Drop),
    ];
    prop::collection::vec((0u64..3, kind, key(), prop_oneof![4 => Just(1u64), 1 => 2u64..4]), 1..200)
}

proptest! {
    #![proptest_config(cases(256))]

    /// They agree on every acceptance, every refusal and its code, and on all counts.
    #[test]
    fn the_machine_agrees_with_the_model(actions in actions()) {
        let (mut shadow, mut model) = (Shadow::new(1 << 20), Model::default());
        for (at, kind, key, count) in actions {
            let action = Action { bytenr: at * LEN, count, ..action(kind, key) };
            let refused = shadow.modify(&action).err().map(|violation| violation.code);
            prop_assert_eq!(refused, model.modify(&action));
            for (bytenr, (metadata, refs)) in &model.0 {
                let entry = shadow.entry(*bytenr).unwrap();
                prop_assert_eq!(entry.metadata, *metadata);
                prop_assert_eq!(entry.refs().to_vec(), refs.iter().map(|(k, n)| (*k, *n)).collect::<Vec<_>>());
                prop_assert_eq!(entry.num_refs, refs.values().sum::<u64>());
                for root in entry.roots() {
                    let direct = refs.iter().filter(|(key, _)| key.parent == 0 && key.root == root.root);
                    prop_assert_eq!(root.num_refs, direct.map(|(_, n)| *n as i64).sum::<i64>());
                }
            }
        }
    }
}
