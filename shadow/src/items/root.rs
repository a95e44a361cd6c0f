//! Root items.

use parser::block::MAX_LEVEL;
use parser::key::item::ROOT_ITEM;
use parser::superblock::incompat;
use parser::{RootItem, ids};

use super::{Context, Fault, Homes, Item, Rule, ensure};
use crate::codes::Code::{RootGenerationV2, TreeRootItem};

/// `BTRFS_ROOT_SUBVOL_RDONLY` and `BTRFS_ROOT_SUBVOL_DEAD`.
const KNOWN_FLAGS: u64 = 1 | 1 << 48;

/// Trees of which there is one. The data relocation tree is found at any offset, and btrfs-convert puts it at another.
const ONE_OF_A_KIND: [u64; 8] = [
    ids::EXTENT_TREE,
    ids::DEV_TREE,
    ids::CSUM_TREE,
    ids::QUOTA_TREE,
    ids::UUID_TREE,
    ids::FREE_SPACE_TREE,
    ids::BLOCK_GROUP_TREE,
    ids::RAID_STRIPE_TREE,
];

pub(super) const RULES: &[Rule] = &[Rule::new(ROOT_ITEM, Homes::ROOT.or(Homes::LOG), check)];

fn check(context: &Context<'_>, item: &Item<'_>) -> Result<(), Fault> {
    let code = TreeRootItem;
    // One that can't be read is reported by who reads all of them.
    let Ok(root) = RootItem::parse(item.data) else { return Ok(()) };
    let key = &item.key;
    ensure(key.objectid != 0, code, || "invalid root id 0".to_owned())?;
    ensure(key.objectid != ids::TREE_RELOC || key.offset != 0, code, || {
        "invalid ROOT_ITEM key for reloc tree, offset 0".to_owned()
    })?;
    // It is looked for at 0; with many extent trees the offset counts them.
    let is_at_0 =
        ONE_OF_A_KIND.contains(&key.objectid) && !context.geometry.has_incompat(incompat::EXTENT_TREE_V2);
    ensure(key.offset == 0 || !is_at_0, code, || {
        format!("invalid root item offset, have {} expect 0", key.offset)
    })?;
    // None where mkfs is about to make the directory.
    let dirid = root.root_dirid;
    ensure(!ids::is_fs_tree(key.objectid) || [0, ids::FIRST_FREE].contains(&dirid), code, || {
        format!("invalid root dirid, have {dirid} expect {}", ids::FIRST_FREE)
    })?;
    let last = context.last_generation();
    let generations = [
        ("generation", root.generation),
        ("v2 generation", root.generation_v2.unwrap_or(0)),
        ("last_snapshot", root.last_snapshot),
    ];
    for (what, value) in generations {
        ensure(value <= last, code, || format!("invalid root {what}, have {value} expect [0, {last}]"))?;
    }
    ensure(context.is_aligned(root.bytenr), code, || {
        format!("invalid root bytenr, have {} expect to be aligned to {}", root.bytenr, context.sectorsize())
    })?;
    for (what, level) in [("level", root.level), ("drop_level", root.drop_level)] {
        ensure(level <= MAX_LEVEL, code, || {
            format!("invalid root {what}, have {level} expect [0, {MAX_LEVEL}]")
        })?;
    }
    ensure(root.drop_progress.objectid == 0 || root.drop_level > 0, code, || {
        format!("invalid root drop_level 0 with drop_progress {}", root.drop_progress)
    })?;
    ensure(root.flags & !KNOWN_FLAGS == 0, code, || {
        format!("invalid root flags, have {:#x} expect mask {KNOWN_FLAGS:#x}", root.flags)
    })?;
    // 0 where a kernel before 3.6 wrote the item, or none has written it yet.
    let (generation, v2) = (root.generation, root.generation_v2.unwrap_or(0));
    ensure(v2 == 0 || v2 == generation || context.is_log(), RootGenerationV2, || {
        format!("mismatching generation and generation_v2 found in root item, {generation} and {v2}")
    })
}
