//! Pointers from new nodes to blocks that stay, which no one has a reason to read; and the log trees of an fsync.

use parser::key::item;
use parser::layout::SuperBlock as Raw;
use parser::{Key, ids};
use shadow::forest::RootId;
use shadow::{Code, Verdict};
use zerocopy::FromBytes as _;

use crate::support::*;

const TOP: RootId = RootId { tree: 5, offset: 0 };

/// Changes the pointer of a new node to a child of an older commit.
#[track_caller]
fn check(edit: impl Fn(&mut Ptr), code: Code) {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 60);
    let mut rig = Rig::attach(world);
    rig.world.write_file(TOP, 330, 0, 4096);
    let next = rig.world.next();
    let is_old = |ptr: &Ptr| ptr.generation < next;
    let mut blocks = rig.world.tree_blocks(TOP).into_iter().map(|bytenr| rig.world.get(bytenr));
    let node =
        blocks.find(|block| block.generation == next && block.ptrs().iter().skip(1).any(is_old)).unwrap();
    let slot = node.ptrs().iter().rposition(is_old).unwrap();
    let fault = Fault::block(node.bytenr, |spec| {
        let Content::Node(ptrs) = &mut spec.content else { panic!() };
        edit(&mut ptrs[slot]);
    });
    rig.fault(&fault, code, node.ptrs()[slot].bytenr);
}

#[test]
fn the_generation_of_a_child_that_stays() {
    check(|ptr| ptr.generation -= 1, Code::TreeGeneration);
    check(|ptr| ptr.generation = 0, Code::TreeGeneration);
}

#[test]
fn the_first_key_of_a_child_that_stays() {
    check(|ptr| ptr.key.offset += 1, Code::TreeFirstKey);
}

/// A super block that names this log root.
fn with_log(superblock: &[u8], root: Ptr, level: u8) -> Vec<u8> {
    let mut raw = Raw::read_from_bytes(superblock).unwrap();
    (raw.log_root, raw.log_root_level) = (root.bytenr.into(), level);
    bytes::seal(&raw, parser::ChecksumType::Crc32c)
}

/// A log root tree over one log tree of one leaf; `edit` changes the leaf.
fn log(rig: &mut Rig, edit: impl Fn(&mut BlockSpec)) -> (Ptr, u64) {
    let world = &mut rig.world;
    let leaf = Content::Leaf(vec![(Key::new(300, item::INODE_ITEM, 0), bytes::inode_item())]);
    let leaf = world.block(ids::TREE_LOG, 0, leaf);
    let (bytenr, generation) = (leaf.bytenr, leaf.generation);
    let root = RootSpec { bytenr, level: 0, generation, refs: 1, cursor: None, last_snapshot: 0 };
    let items = vec![(Key::new(ids::TREE_LOG, item::ROOT_ITEM, 5), bytes::root_item(&root))];
    let root = world.block(ids::TREE_LOG, 0, Content::Leaf(items));
    edit(world.blocks.get_mut(&leaf.bytenr).unwrap());
    for bytenr in [leaf.bytenr, root.bytenr] {
        let bytes = bytes::encode(&world.blocks[&bytenr], &world.config);
        world.write(bytenr, &bytes);
    }
    (root, leaf.bytenr)
}

#[test]
fn log_commits_between_commits() {
    let mut world = World::new(Config::default());
    world.fill(TOP, 300, 20);
    let mut rig = Rig::attach(world);
    for round in 0..3 {
        let superblock = rig.world.commit();
        rig::assert_clean(&rig.verifier.commit(&superblock, &rig.world.image));
        for _ in 0..3 {
            let (root, _) = log(&mut rig, |_| ());
            let report = rig.verifier.log_commit(&with_log(&superblock, root, 0), &rig.world.image);
            rig::assert_clean(&report);
            assert_eq!(report.blocks_born, 2);
        }
        rig.world.write_file(TOP, 300 + round, 0, 4096);
    }
    rig.clean();
}

#[test]
fn a_damaged_log() {
    type Edit = fn(&mut BlockSpec);
    let edits: [(Edit, Code); 3] = [
        (|leaf| leaf.generation -= 1, Code::TreeGeneration),
        (|leaf| leaf.owner = 5, Code::TreeOwner),
        (|leaf| leaf.bytenr += 4096, Code::TreeBytenr),
    ];
    for (edit, code) in edits {
        let mut rig = Rig::attach(World::new(Config::default()));
        let superblock = rig.world.commit();
        rig::assert_clean(&rig.verifier.commit(&superblock, &rig.world.image));
        let (root, leaf) = log(&mut rig, edit);
        let report = rig.verifier.log_commit(&with_log(&superblock, root, 0), &rig.world.image);
        let found: Vec<_> = report.violations.iter().map(|found| (found.code, found.bytenr)).collect();
        assert_eq!((report.verdict(), found), (Verdict::Violations, vec![(code, leaf)]));
        // Refused, it never was, and is found again.
        rig.verifier.revoke();
        assert_eq!(rig.verifier.snapshot().unwrap().superblock[..], superblock[..]);
        let again = rig.verifier.log_commit(&with_log(&superblock, root, 0), &rig.world.image);
        assert_eq!(format!("{again:?}"), format!("{report:?}"));
        rig.clean();
    }
}

/// A log's leaves are copied from one log commit to the next; what is wrong in them is said once.
#[test]
fn a_damaged_item_in_a_log() {
    let mut rig = Rig::attach(World::new(Config::default()));
    for _ in 0..2 {
        let superblock = rig.world.commit();
        rig::assert_clean(&rig.verifier.commit(&superblock, &rig.world.image));
        for nth in 0..3 {
            let (root, leaf) = log(&mut rig, |leaf| {
                leaf.content = Content::Leaf(vec![(Key::new(300, item::INODE_ITEM, 0), vec![0; 160])]);
            });
            let report = rig.verifier.log_commit(&with_log(&superblock, root, 0), &rig.world.image);
            let found: Vec<_> = report.violations.iter().map(|found| (found.code, found.bytenr)).collect();
            let first = (nth == 0).then_some((Code::TreeInodeItem, leaf));
            assert_eq!(found, Vec::from_iter(first), "{:#?}", rig::messages(&report));
        }
    }
}
