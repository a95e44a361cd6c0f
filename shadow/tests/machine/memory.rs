//! Histories and the bound on memory.

use proptest::prelude::*;
use shadow::record::Site;
use shadow::refverify::{Action, ActionKind};
use shadow::{BlockEntry, RefKey, Shadow};

use crate::support::cases;

use super::{BYTENR, LEN, action, record};

const DATA: RefKey = RefKey { metadata: false, root: 5, parent: 0, owner: 257, offset: 0 };

/// Steps that an extent keeps (`refverify::entry::HISTORY_LIMIT`).
const KEPT: usize = 32;

fn history(shadow: &Shadow) -> Vec<(u64, ActionKind)> {
    shadow.entry(BYTENR).unwrap().history().map(|step| (step.generation, step.kind)).collect()
}

/// `struct ref_action` with generation, leaf and slot in place of a stack trace.
#[test]
fn a_step_says_when_and_where() {
    let mut shadow = Shadow::new(1 << 20);
    let site = Site { block: 123 << 12, slot: 45 };
    shadow.modify(&Action { generation: 77, site, count: 3, ..action(ActionKind::Alloc, DATA) }).unwrap();
    let entry = shadow.entry(BYTENR).unwrap();
    let step = entry.history().next().unwrap();
    assert_eq!(
        (step.generation, step.kind, step.key, step.count, step.site),
        (77, ActionKind::Alloc, DATA, 3, site)
    );
}

/// It survives a reload and the extent's end; refused actions are not in it.
#[test]
fn it_survives_reloading() {
    let mut shadow = Shadow::new(1 << 20);
    shadow.modify(&action(ActionKind::Alloc, DATA)).unwrap();
    shadow.load(BYTENR, Some(&record(BYTENR, Some(0), &[(RefKey::tree(5, 0), 1)])));
    shadow.modify(&action(ActionKind::Drop, DATA)).unwrap_err();
    shadow.load(BYTENR, None);
    shadow.settle(BYTENR);
    assert_eq!(history(&shadow), [(9, ActionKind::Alloc)]);
    assert_eq!(shadow.entry(BYTENR).unwrap().num_refs, 0);
}

/// It is bounded; the oldest steps are forgotten first.
#[test]
fn it_is_bounded() {
    let mut shadow = Shadow::new(1 << 20);
    shadow.modify(&Action { generation: 0, ..action(ActionKind::Alloc, DATA) }).unwrap();
    for generation in 1..100 {
        shadow.modify(&Action { generation, ..action(ActionKind::Add, DATA) }).unwrap();
    }
    let generations: Vec<_> = history(&shadow).into_iter().map(|(generation, _)| generation).collect();
    assert_eq!(generations, (100 - KEPT as u64..100).collect::<Vec<_>>());
}

/// What was settled longest ago goes first; what was settled again stays.
#[test]
fn the_oldest_entry_is_forgotten_first() {
    let mut shadow = Shadow::new(10_000);
    let load = |shadow: &mut Shadow, bytenr| {
        shadow.load(bytenr, Some(&record(bytenr, None, &[(DATA, 1)])));
        shadow.settle(bytenr);
    };
    for n in 0..1000 {
        load(&mut shadow, n * LEN);
        load(&mut shadow, 1 << 40);
        assert!(shadow.memory() <= 10_000);
    }
    assert!(shadow.entry(1 << 40).is_some());
    assert!(shadow.entry(999 * LEN).is_some());
    assert!(shadow.entry(0).is_none());
    let kept: Vec<u64> = (0..1000).filter(|n| shadow.entry(n * LEN).is_some()).collect();
    assert!(kept.windows(2).all(|pair| pair[1] == pair[0] + 1), "not the oldest: {kept:?}");
}

/// Without room for anything, nothing is kept, and a commit still sees what it has loaded.
#[test]
fn no_memory_at_all() {
    let mut shadow = Shadow::new(0);
    shadow.modify(&action(ActionKind::Alloc, DATA)).unwrap();
    shadow.modify(&action(ActionKind::Add, DATA)).unwrap();
    assert_eq!(shadow.entry(BYTENR).map(|entry| entry.num_refs), Some(2));
    shadow.settle(BYTENR);
    assert_eq!((shadow.len(), shadow.memory()), (0, 0));
}

/// One thing done to a shadow.
#[derive(Debug, Clone)]
enum Op {
    Modify(u64, ActionKind, u64, u64),
    Load(u64, u8),
    Unload(u64),
    Adjust(u64, i64),
    Settle(u64),
    Free(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let at = || 0u64..24;
    let kind = prop_oneof![Just(ActionKind::Alloc), Just(ActionKind::Add), Just(ActionKind::Drop)];
    prop_oneof![
        5 => (at(), kind, 0u64..9, 1u64..4).prop_map(|(at, kind, root, n)| Op::Modify(at, kind, root, n)),
        2 => (at(), 0u8..12).prop_map(|(at, count)| Op::Load(at, count)),
        1 => at().prop_map(Op::Unload),
        1 => (at(), -3i64..4).prop_map(|(at, more)| Op::Adjust(at, more)),
        3 => at().prop_map(Op::Settle),
        1 => (at(), 1u64..4).prop_map(|(at, len)| Op::Free(at, len)),
    ]
}

proptest! {
    #![proptest_config(cases(256))]

    /// The sum that is kept up to date is the sum of what is there, plus the same overhead for each entry.
    #[test]
    fn accounting_never_drifts(ops in prop::collection::vec(op(), 1..300), limit in 0usize..20_000) {
        let mut shadow = Shadow::new(limit);
        for op in ops {
            match op {
                Op::Modify(at, kind, root, count) => {
                    let bytenr = at * LEN;
                    let _ = shadow.modify(&Action { bytenr, count, ..action(kind, RefKey { root, ..DATA }) });
                }
                Op::Load(at, count) => {
                    let refs: Vec<_> = (0..count).map(|n| (RefKey { offset: n.into(), ..DATA }, 1)).collect();
                    shadow.load(at * LEN, Some(&record(at * LEN, None, &refs)));
                }
                Op::Unload(at) => shadow.load(at * LEN, None),
                Op::Adjust(at, more) => shadow.adjust(at * LEN, &[(DATA, more)]),
                Op::Settle(at) => {
                    shadow.settle(at * LEN);
                    prop_assert!(shadow.memory() <= limit || shadow.entry(at * LEN).is_none(), "what is settled goes");
                }
                Op::Free(at, len) => drop(shadow.free_range(at * LEN, len * LEN)),
            }
            let entries: Vec<&BlockEntry> = (0..32).filter_map(|n| shadow.entry(n * LEN)).collect();
            prop_assert_eq!(entries.len(), shadow.len());
            let footprint: usize = entries.iter().map(|entry| entry.footprint()).sum();
            prop_assert_eq!(shadow.memory(), footprint + 64 * entries.len());
        }
    }
}
