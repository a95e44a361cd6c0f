//! Calls every view and every accessor of the parser on bytes that need not be what they are said to be.
//!
//! Knows nothing but the parser: its property tests take this file in as well.

use std::hint::black_box;

use parser::block::Header;
use parser::dev::{BlockGroupItem, DevExtent, DevItem};
use parser::dir::DirEntries;
use parser::free_space::{FreeSpaceInfo, bitmap_runs};
use parser::inode::InodeItem;
use parser::inode_ref::{InodeRef, InodeRefs};
use parser::key::item;
use parser::map::Physical;
use parser::root::RootRef;
use parser::superblock::{self, SuperBlock, compat_ro, incompat};
use parser::{
    BackRef, Block, ChecksumType, Chunk, ChunkItem, ChunkMap, ExtentItem, FileExtent, Key, RootItem, check,
};

/// Calls every accessor of every item view on `data`, whatever its key says.
pub fn use_item(key: &Key, data: &[u8]) {
    black_box(key.to_string());
    for item_type in [item::EXTENT_ITEM, item::METADATA_ITEM, key.item_type] {
        if let Ok(extent) = ExtentItem::parse(item_type, data) {
            black_box((extent.refs(), extent.generation(), extent.flags(), extent.block_info_level()));
            for backref in extent.inline_refs().flatten() {
                black_box((backref.count(), backref.item_type()));
            }
        }
    }
    for item_type in
        (0..=u8::MAX).filter(|item_type| BackRef::is_keyed_type(*item_type)).chain([key.item_type])
    {
        black_box(BackRef::parse_keyed(&Key { item_type, ..*key }, data)).ok();
    }
    if let Ok(extent) = FileExtent::parse(data) {
        black_box(extent.extent());
    }
    if let Ok(root) = RootItem::parse(data) {
        black_box(root.drop_cursor());
    }
    if let Ok(chunk) = ChunkItem::parse_prefix(data) {
        black_box((chunk.item_size(), chunk.length(), chunk.owner(), chunk.stripe_len(), chunk.flags()));
        black_box(chunk.stripes().count());
        use_chunk(key.offset, &chunk);
    }
    black_box(ChunkItem::parse(data)).ok();
    black_box(RootRef::parse(data)).ok();
    black_box(BlockGroupItem::parse(data)).ok();
    black_box(DevExtent::parse(data)).ok();
    black_box(DevItem::parse(data)).ok();
    black_box(FreeSpaceInfo::parse(data)).ok();
    if let Ok(inode) = InodeItem::parse(data) {
        black_box((inode.is_dir(), inode.is_regular()));
    }
    use_names(key, data);
    let set: u64 = bitmap_runs(data).map(|(_, bits)| bits).sum();
    assert_eq!(set, data.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>());
}

/// The items that hold names.
fn use_names(key: &Key, data: &[u8]) {
    black_box(InodeRef::parse_first(key.offset, data)).ok();
    black_box(InodeRef::parse_first_extended(data)).ok();
    // Each entry takes some bytes, so that no item yields more than it has.
    assert!(InodeRefs::new(key.offset, data).count() <= data.len() + 1);
    assert!(InodeRefs::extended(data).count() <= data.len() + 1);
    assert!(DirEntries::new(data).count() <= data.len() + 1);
}

/// A map of two chunks made from one hostile item, asked at the edges.
pub fn use_chunk(logical: u64, item: &ChunkItem<'_>) {
    let chunk = Chunk::new(logical, item);
    black_box((chunk.end(), chunk.stripe_size(), chunk.flags.holds_data(), chunk.flags.holds_metadata()));
    let other = Chunk { logical: chunk.logical / 2, length: 4096, ..chunk.clone() };
    let Ok(map) = ChunkMap::new(vec![chunk.clone(), other]) else { return };
    for bytenr in [0, chunk.logical, chunk.end().wrapping_sub(1), chunk.end(), u64::MAX] {
        for len in [0, 1, 4096, u64::MAX] {
            if let Ok(copies) = map.copies(bytenr, len) {
                for place in copies {
                    black_box(map.logical(place).map(|(chunk, logical)| (chunk.logical, logical)));
                }
            }
        }
        black_box(map.chunk_at(bytenr));
        black_box(map.logical(Physical { devid: chunk.stripes[0].devid, offset: bytenr }));
    }
    for (range, chunk) in map.device_ranges(chunk.stripes[0].devid) {
        black_box((range.stripe(), chunk.end()));
    }
}

/// Calls every accessor of a tree block and of every item in it.
pub fn use_block(bytes: &[u8]) {
    if let Ok(header) = Header::parse(bytes) {
        black_box((header.csum(), header.fsid(), header.bytenr(), header.generation(), header.owner()));
        black_box((
            header.backref_rev(),
            header.is_reloc(),
            header.flags(),
            header.nritems(),
            header.level(),
        ));
    }
    for csum_type in 0..4 {
        black_box(ChecksumType::from_disk(csum_type).unwrap().verify(bytes));
    }
    let Ok(block) = Block::parse(bytes) else { return };
    black_box((block.header().level(), block.first_key(), block.last_key()));
    for sectorsize in [0, 1, 4096, u32::MAX] {
        if let Err(fault) = check::block(&block, sectorsize) {
            black_box(fault.to_string());
        }
    }
    match block {
        Block::Node(node) => {
            assert_eq!(node.ptrs().count(), node.len());
            for slot in 0..=node.len() {
                let ptr = node.ptr(slot);
                assert_eq!(ptr.is_some(), slot < node.len());
                if let Some(ptr) = ptr {
                    black_box((node.slot_for(&ptr.key), ptr.key.to_string()));
                }
            }
            black_box((node.slot_for(&Key::MIN), node.slot_for(&Key::MAX), node.ptr(usize::MAX)));
            assert_eq!(node.common_run(0, &node, 0), node.len());
            assert_eq!(node.common_run(usize::MAX, &node, 0), 0);
        }
        Block::Leaf(leaf) => {
            assert_eq!(leaf.items().count(), leaf.len());
            for (slot, (key, data)) in leaf.items().enumerate() {
                assert_eq!((leaf.key(slot), leaf.data(slot)), (Some(key), data));
                black_box(leaf.lower_bound(&key));
                use_item(&key, data);
                black_box((leaf.common_run(slot, &leaf, slot), leaf.common_run(slot, &leaf, slot + 1)));
            }
            assert_eq!(leaf.common_run(usize::MAX, &leaf, 0), 0);
            assert!(leaf.key(leaf.len()).is_none() && leaf.data(usize::MAX).is_empty());
        }
    }
}

/// Calls every accessor of a super block.
pub fn use_super_block(bytes: &[u8]) {
    black_box(superblock::magic_kind(bytes));
    let Ok(sb) = SuperBlock::parse(bytes) else { return };
    black_box((sb.fsid(), sb.metadata_uuid(), sb.bytenr(), sb.flags(), sb.generation(), sb.root()));
    black_box((
        sb.chunk_root(),
        sb.chunk_root_generation(),
        sb.log_root(),
        sb.total_bytes(),
        sb.bytes_used(),
    ));
    black_box((sb.num_devices(), sb.compat_flags(), sb.dev_item(), sb.label(), sb.verify_csum()));
    assert!(sb.sectorsize() <= sb.nodesize() && sb.nodesize() <= 65536);
    black_box(incompat::names(sb.incompat_flags()).count() + compat_ro::names(sb.compat_ro_flags()).count());
    assert!(sb.same_but_log_root(&sb) && sb.is_as_foretold(&sb));
    let foretold = sb.foretold((12345, 3));
    let foretold = SuperBlock::parse(&foretold).unwrap();
    assert_eq!((foretold.root(), foretold.generation()), ((12345, 3), sb.generation().saturating_add(1)));
    assert!(!sb.is_as_foretold(&foretold) || sb.generation() == u64::MAX);
    assert_eq!((foretold.chunk_root(), foretold.bytes_used()), (sb.chunk_root(), sb.bytes_used()));
    for (logical, chunk) in sb.sys_chunks().flatten() {
        use_chunk(logical, &chunk);
    }
}
