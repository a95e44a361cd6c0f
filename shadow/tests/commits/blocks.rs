//! Blocks that cannot be used, and trees that are no trees: one violation, no panic, no hang, and going on.

use parser::Key;
use parser::key::item;
use shadow::forest::RootId;
use shadow::{Cause, Code, ReadError, Verdict};

use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };

/// A tree of three levels in the middle of a transaction that has written one path of it: the root, a node, a leaf.
fn prepare() -> (Rig, [u64; 3]) {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 60);
    let mut rig = Rig::attach(world);
    rig.world.write_file(TOP, 330, 0, 4096);
    let next = rig.world.next();
    let mut path = Vec::new();
    for bytenr in rig.world.tree_blocks(TOP) {
        if rig.world.get(bytenr).generation == next {
            path.push(bytenr);
        }
    }
    let path = [path[0], path[path.len() - 2], path[path.len() - 1]];
    (rig, path)
}

/// Commits with the fault, which is one violation about this block; goes on while it is there and after it is gone.
#[track_caller]
fn check(fault: impl Fn(u64) -> Fault<'static>, code: Code) {
    for nth in 0..3 {
        let (mut rig, path) = prepare();
        let bytenr = path[nth];
        rig.fault(&fault(bytenr), code, bytenr);
        // The block stays as it is; what else happens is verified as far as it can be.
        for inode in [300, 355] {
            rig.world.write_file(TOP, inode, 0, 4096);
            let report = rig.commit(&Fault::none());
            assert!(report.violations.is_empty(), "{:#?}", rig::messages(&report));
        }
        // The block is replaced.
        rig.world.write_file(TOP, 330, 0, 4096);
        rig.commit(&Fault::none());
        for inode in [300, 330, 355] {
            rig.world.write_file(TOP, inode, 0, 4096);
            rig.clean();
        }
    }
}

fn block(edit: fn(&mut BlockSpec)) -> impl Fn(u64) -> Fault<'static> {
    move |bytenr| Fault::block(bytenr, edit)
}

/// Changes bytes and mends the checksum.
fn resealed(edit: fn(&mut Vec<u8>)) -> impl Fn(u64) -> Fault<'static> {
    move |bytenr| {
        Fault::bytes(bytenr, move |bytes| {
            edit(bytes);
            parser::ChecksumType::Crc32c.seal(bytes);
        })
    }
}

#[test]
fn the_checksum_is_wrong() {
    check(|bytenr| Fault::bytes(bytenr, |bytes| bytes[4000] ^= 1), Code::TreeChecksum);
}

#[test]
fn the_block_was_never_written() {
    check(|bytenr| Fault::bytes(bytenr, |bytes| bytes.fill(0)), Code::TreeChecksum);
}

#[test]
fn the_block_is_of_another_place() {
    check(block(|spec| spec.generation -= 1), Code::TreeGeneration);
    check(block(|spec| spec.owner = 7), Code::TreeOwner);
    check(resealed(|bytes| bytes[32] ^= 1), Code::TreeFsid);
    check(resealed(|bytes| bytes[49] ^= 1), Code::TreeBytenr);
}

#[test]
fn the_owner_does_not_hold_the_block() {
    check(block(|spec| spec.owner = 7000), Code::TreeOwner);
}

#[test]
fn the_level_is_not_what_the_parent_says() {
    check(resealed(|bytes| bytes[100] = if bytes[100] == 0 { 1 } else { bytes[100] - 1 }), Code::TreeLevel);
}

#[test]
fn the_number_of_items_is_impossible() {
    check(resealed(|bytes| bytes[96..100].fill(0xff)), Code::TreeHeader);
    check(resealed(|bytes| bytes[96..98].fill(0x7f)), Code::TreeHeader);
}

#[test]
fn keys_are_not_in_order() {
    check(
        block(|spec| match &mut spec.content {
            Content::Leaf(items) => items[1].0 = items[0].0,
            Content::Node(ptrs) => ptrs[1].key = ptrs[0].key,
        }),
        Code::TreeKeyOrder,
    );
}

#[test]
fn the_first_key_is_not_what_the_parent_says() {
    for nth in 1..3 {
        let (mut rig, path) = prepare();
        let fault = Fault::block(path[nth], |spec| match &mut spec.content {
            Content::Leaf(items) => items[0].0.objectid -= 1,
            Content::Node(ptrs) => ptrs[0].key.objectid -= 1,
        });
        rig.fault(&fault, Code::TreeFirstKey, path[nth]);
    }
}

#[test]
fn item_data_is_out_of_bounds() {
    for field in [101 + 17, 101 + 21] {
        let (mut rig, path) = prepare();
        let fault = Fault::bytes(path[2], move |bytes| {
            bytes[field] ^= 1;
            parser::ChecksumType::Crc32c.seal(bytes);
        });
        rig.fault(&fault, Code::TreeItemBounds, path[2]);
    }
}

#[test]
fn a_pointer_leads_nowhere() {
    for nth in 0..2 {
        let (mut rig, path) = prepare();
        let fault = Fault::block(path[nth], |spec| {
            let Content::Node(ptrs) = &mut spec.content else { panic!() };
            ptrs[1].bytenr += 1;
        });
        rig.fault(&fault, Code::TreeBlockPointer, path[nth]);
        let (mut rig, path) = prepare();
        let fault = Fault::block(path[nth], |spec| {
            let Content::Node(ptrs) = &mut spec.content else { panic!() };
            ptrs[1].bytenr = 1 << 50;
        });
        rig.fault(&fault, Code::TreeUnmapped, 1 << 50);
        let (mut rig, path) = prepare();
        rig.fault(&resealed(|bytes| bytes[96..100].fill(0))(path[nth]), Code::TreeBlockPointer, path[nth]);
    }
}

#[test]
fn the_disk_fails() {
    for (error, code) in [
        (ReadError::Io("gone".into()), None),
        (ReadError::ForeignDevice(2), None),
        (ReadError::OutOfBounds { devid: 1, offset: 0 }, Some(Code::TreeUnreadable)),
    ] {
        let (mut rig, path) = prepare();
        let superblock = rig.world.commit();
        for place in rig.world.places(path[2]) {
            rig.world.image.fail(place, error.clone());
        }
        let report = rig.verifier.commit(&superblock, &rig.world.image);
        let codes: Vec<_> = report.violations.iter().map(|found| found.code).collect();
        assert_eq!(codes, code.into_iter().collect::<Vec<_>>());
        assert_eq!(report.verdict(), if code.is_some() { Verdict::Violations } else { Verdict::Unverified });
    }
}

/// A new block must be good in all its copies; one is enough to read on.
#[test]
fn one_copy_of_two_is_damaged() {
    for copy in [0, 1] {
        let (mut rig, path) = prepare();
        let superblock = rig.world.commit();
        let place = rig.world.places(path[2])[copy];
        rig.world.image.write(place, vec![0; 4096]);
        let report = rig.verifier.commit(&superblock, &rig.world.image);
        let found: Vec<_> = report.violations.iter().map(|found| (found.code, found.bytenr)).collect();
        assert_eq!(found, [(Code::TreeChecksum, path[2])], "{:#?}", rig::messages(&report));
        assert!(report.violations[0].message.contains(&format!("copy {}", copy + 1)));
        assert!(report.references.add > 0, "what the other copy holds was not compared");
    }
}

/// The trees that everything else is found by.
#[test]
fn the_root_extent_or_chunk_tree_is_damaged() {
    for tree in [1, 2] {
        let (mut rig, _) = prepare();
        let superblock = rig.world.commit();
        let root = rig.world.managed_blocks(tree)[0];
        rig.world.write(root, &[0; 4096]);
        let report = rig.verifier.commit(&superblock, &rig.world.image);
        let found: Vec<_> = report.violations.iter().map(|found| (found.code, found.bytenr)).collect();
        assert_eq!(found, [(Code::TreeChecksum, root)], "{:#?}", rig::messages(&report));
        rig.verifier.commit(&superblock, &rig.world.image);
    }
}

/// A node that holds the same child in every slot, level upon level: what would be read in 400^7 ways is read once.
#[test]
fn every_slot_leads_to_the_same_child() {
    let config = Config { nodesize: 16384, ..Config::default() };
    let mut rig = Rig::attach(World::new(config));
    let world = &mut rig.world;
    let mut ptr =
        world.block(5, 0, Content::Leaf(vec![(Key::new(256, item::INODE_ITEM, 0), bytes::inode_item())]));
    for level in 1..=7 {
        let ptrs = (0..400).map(|n| Ptr { key: Key::new(256, item::INODE_ITEM, n), ..ptr }).collect();
        ptr = world.block(5, level, Content::Node(ptrs));
    }
    world.set_root(TOP, ptr);
    let superblock = world.commit();
    rig.world.image.take_reads();
    let report = rig.verifier.commit(&superblock, &rig.world.image);
    assert_eq!(report.verdict(), Verdict::Violations);
    let (_, reads) = rig.world.image.take_reads();
    // Both copies, for each pointer; not for each way.
    assert!(reads <= 4 * 7 * 400, "{reads} reads");
}

/// A node that points to itself, and two that point to each other.
#[test]
fn pointers_in_a_circle() {
    for own in [true, false] {
        let (mut rig, path) = prepare();
        let target = rig.world.get(path[if own { 1 } else { 0 }]);
        let fault = Fault::block(path[1], |spec| {
            let Content::Node(ptrs) = &mut spec.content else { panic!() };
            ptrs[1].bytenr = target.bytenr;
            ptrs[1].generation = target.generation;
        });
        let report = rig.commit(&fault);
        assert_eq!(report.verdict(), Verdict::Violations);
        rig.world.write_file(TOP, 2000, 0, 4096);
        rig.commit(&Fault::none());
    }
}

/// One block under two parents of one tree.
#[test]
fn a_doubly_linked_leaf() {
    let (mut rig, path) = prepare();
    let next = rig.world.next();
    let leaf = rig.world.get(path[2]);
    let fault = Fault::block(path[1], |spec| {
        let Content::Node(ptrs) = &mut spec.content else { panic!() };
        let at = ptrs.iter().position(|ptr| ptr.bytenr != leaf.bytenr && ptr.generation < next).unwrap();
        ptrs[at].bytenr = leaf.bytenr;
        ptrs[at].generation = leaf.generation;
    });
    let report = rig.commit(&fault);
    assert_eq!(report.verdict(), Verdict::Violations, "{:#?}", rig::messages(&report));
    let leaf = report.violations.iter().filter(|found| found.bytenr == leaf.bytenr).count();
    assert_eq!(leaf, 1, "{:#?}", rig::messages(&report));
}

/// A tree block is given out again while it is in use.
#[test]
fn a_live_block_is_allocated_again() {
    let (mut rig, _) = prepare();
    let generation = rig.world.generation;
    let old = rig.world.tree_blocks(TOP).into_iter().map(|bytenr| rig.world.get(bytenr));
    let old = old.filter(|block| block.level == 0 && block.generation <= generation).last().unwrap();
    let BlockSpec { bytenr, content, .. } = old;
    // The subvolume still holds it; a new subvolume takes its place.
    let root = rig.world.block_at(bytenr, 300, 0, content);
    rig.world.set_root(tree(300), root);
    let report = rig.commit(&Fault::none());
    let codes: Vec<_> = report.violations.iter().map(|found| (found.code, found.bytenr)).collect();
    // What the old block held is held by another tree now, and may be told of as well.
    assert!(codes.contains(&(Code::RefReallocated, bytenr)), "{:#?}", rig::messages(&report));
}

#[test]
fn a_block_that_was_right_when_it_was_committed_is_wrong_now() {
    let (mut rig, path) = prepare();
    rig.clean();
    // Its leaf is copied on write, and compared with what it was.
    rig.world.write_file(TOP, 330, 8192, 4096);
    let place = rig.world.places(path[2])[0];
    let mut bytes = rig.world.image.bytes(place).expect("the leaf").to_vec();
    bytes[4000] ^= 3;
    rig.world.write(path[2], &bytes);
    let report = rig.commit(&Fault::none());
    let causes: Vec<_> =
        report.violations.iter().map(|found| (found.code, found.bytenr, found.cause)).collect();
    assert_eq!(causes, [(Code::TreeChecksum, path[2], Some(Cause::ChangedBehind))]);
}
