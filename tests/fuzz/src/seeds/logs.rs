//! What fsync writes between two commits: log trees, of files and of directories, and the super block that reaches them.

use std::collections::BTreeMap;

use oracle::Volume;
use parser::key::item;
use parser::{Block, RootItem, SuperBlock, ids};
use replay::disk::Memory;
use replay::history::{SUPER_SIZE, SUPERS};
use shadow::{Verdict, Verifier};
use testkit::{Session, Spec};

use super::live;
use crate::shadow::{MAX_LEN, also};
use crate::world::{Disk, World};

/// What is there before.
const PREPARE: &str = "mkdir d; for i in 1 2 3 4 5; do echo $i > f$i; done; btrfs -q subvolume create sub; \
                       head -c 20000 /dev/urandom > sub/data; sync -f .";

/// What is done, one fsync or a few each. Some make the kernel commit instead, now and then; that is no seed then.
const STEPS: &[&str] = &[
    "echo more >> f1; sync f1",
    "mkdir e; echo x > e/y; setfattr -n user.k -v v e/y; sync e/y e",
    "head -c 300000 /dev/urandom > sub/data; fallocate -p -o 4096 -l 8192 sub/data; sync sub/data",
    "for i in $(seq 90); do echo $i > d/a-file-with-quite-a-long-name-$i; done; sync d/*; sync d",
    "fallocate -l 64K f2; rm d/a*3; ln f4 d/l; ln -s f4 d/s; sync f2; sync d",
    "cp --reflink=always sub/data sub/clone; sync sub/clone; truncate -s 100 f5; sync f5",
];

/// Each log commit as an input; all take the same way, and some are looked at further.
pub(super) fn commits(spec: Spec) -> Vec<Vec<u8>> {
    let image = spec.sized(256).mounted("commit=300,nodiscard").mkfs();
    let mut session = Session::start(&image);
    session.run(PREPARE, || ());
    let superblock = |memory: &Memory| memory.get(SUPERS[0], SUPER_SIZE).expect("a super block").to_vec();
    let mut seeds = Vec::new();
    let mut before = superblock(&Memory::load(image.path()));
    for script in STEPS {
        session.run(script, || ());
        let memory = Memory::load(image.path());
        let after = superblock(&memory);
        let is_log = SuperBlock::parse(&after).is_ok_and(|view| view.log_root().is_some());
        if is_log && after != before {
            let mut blocks = live(&memory);
            blocks.extend(logged(&memory));
            // Refused, taken back, and followed by the same once more as a commit, in turn.
            let flags = also::LOG_COMMIT | [0, also::REVOCABLE | also::REVOKE, also::AGAIN][seeds.len() % 3];
            let supers = [before, after.clone()];
            let seed = Disk { flags, supers, blocks: blocks.into_iter().collect() }.write();
            assert_reached(&seed);
            seeds.extend((seed.len() <= MAX_LEN).then_some(seed));
        }
        before = after;
    }
    session.finish();
    seeds
}

/// The log is verified, and there is nothing wrong with it.
fn assert_reached(seed: &[u8]) {
    let world = World::new(Disk::read(seed));
    let mut verifier = Verifier::new(1 << 20);
    verifier.attach(&world.supers[0], &world).expect("a file system");
    let report = verifier.log_commit(&world.supers[1], &world);
    assert!(!report.log_blocks.is_empty(), "a log that isn't reached");
    assert_eq!(report.verdict(), Verdict::Clean, "{report:?}");
}

/// The blocks of all log trees, at the first of their places.
fn logged(memory: &Memory) -> BTreeMap<u64, Vec<u8>> {
    let mut read = |offset: u64, buffer: &mut [u8]| memory.read_at(offset, buffer);
    let mut volume = Volume::open(&mut read).expect("a file system");
    let mut roots: Vec<(u64, u8)> = volume.super_block().log_root().into_iter().collect();
    let mut blocks = Vec::new();
    while let Some((bytenr, level)) = roots.pop() {
        let visited = volume.walk(bytenr, level, &mut |bytenr, block| {
            blocks.push(bytenr);
            let Block::Leaf(leaf) = block else { return };
            let logs = leaf
                .items()
                .filter(|(key, _)| key.item_type == item::ROOT_ITEM && key.objectid == ids::TREE_LOG);
            roots.extend(
                logs.filter_map(|(_, data)| RootItem::parse(data).ok().map(|root| (root.bytenr, root.level))),
            );
        });
        visited.expect("a log tree");
    }
    let mut found = BTreeMap::new();
    for bytenr in blocks {
        let place = volume.copies(bytenr).expect("places of a block")[0];
        found.insert(place, volume.block(bytenr).expect("a block").to_vec());
    }
    found
}
