//! Where fuzzing begins: commits of the host's kernel on small file systems, those of logs too, and what a driver would send.
//!
//! Made anew each time rather than kept, so that no binary files are needed; [`all`] needs a loop mount.

mod logs;

use std::collections::BTreeMap;

use oracle::Volume;
use replay::disk::Memory;
use replay::history::{SUPER_SIZE, SUPERS};
use replay::{History, Plan, record};
use testkit::Spec;

use crate::ring;
use crate::world::Disk;

/// What is done to the small file systems; one commit each.
const STEPS: &[(&str, &str)] = &[
    ("files", "for i in 1 2 3 4 5; do echo $i > f$i; done; head -c 20000 /dev/urandom > data"),
    ("subvolume", "btrfs -q subvolume create sub; cp --reflink=always data sub/clone; ln f1 sub/../l1"),
    ("snapshot", "btrfs -q subvolume snapshot sub snap; echo changed > snap/new; setfattr -n user.k -v v f2"),
    ("holes", "fallocate -p -o 4096 -l 8192 data; fallocate -l 64K pre; ln -s f1 link; mkdir d; mv f3 d"),
    ("many", "seq 150 | split -l 1 -a 3 - d/x; for i in $(seq 40); do cp --reflink=always data d/c$i; done"),
    ("delete", "btrfs -q subvolume delete -c snap; until_deleted; rm d/x*[aeiou] d/c*3"),
    ("balance", "btrfs balance start --full-balance . > /dev/null"),
];

/// Seeds of the targets, by the target's name.
///
/// # Panics
/// When a file system can't be made, mounted or read.
#[must_use]
pub fn all() -> BTreeMap<&'static str, Vec<Vec<u8>>> {
    let mut shadow: Vec<Vec<u8>> = plans().iter().flat_map(|plan| commits(&record(plan))).collect();
    let logged: Vec<Vec<u8>> = specs().into_iter().flat_map(logs::commits).collect();
    assert!(logged.len() >= 6, "fsync wrote only {} logs", logged.len());
    shadow.extend(logged);
    let mut parser = Vec::new();
    for disk in shadow.iter().map(|seed| Disk::read(seed)).filter(|disk| disk.blocks.len() < 50) {
        parser.extend(disk.supers.into_iter().take(1).chain(disk.blocks.into_iter().map(|(_, bytes)| bytes)));
    }
    parser.sort();
    parser.dedup();
    BTreeMap::from([("parser", parser), ("shadow", shadow), ("ring", ring::seeds())])
}

fn specs() -> [Spec; 3] {
    [
        Spec::new("4K crc32c", "-n 4096 -m single"),
        Spec::new("4K fat xxhash", "-n 4096 -m dup -O ^skinny-metadata,^no-holes --csum xxhash -R quota"),
        Spec::new("4K mixed", "--mixed -n 4096 -s 4096 -R ^free-space-tree"),
    ]
}

fn plans() -> Vec<Plan> {
    let scripts = STEPS.iter().map(|(name, script)| ((*name).to_owned(), (*script).to_owned()));
    let plan = |spec: Spec| Plan {
        live: false,
        spec: spec.sized(256),
        prepare: String::new(),
        scripts: scripts.clone().collect(),
    };
    specs().into_iter().map(plan).collect()
}

/// Each recorded commit as an input.
fn commits(history: &History) -> Vec<Vec<u8>> {
    let mut memory = Memory::load(history.base.path());
    let mut seeds = Vec::new();
    for step in &history.steps {
        let mut blocks = live(&memory);
        let old = memory.get(SUPERS[0], SUPER_SIZE).map(<[u8]>::to_vec).unwrap_or_default();
        step.apply(&mut memory);
        blocks.extend(live(&memory));
        let new = memory.get(SUPERS[0], SUPER_SIZE).unwrap_or_default();
        // Everything that can be done besides, in turn.
        let flags = [0u32, 0x52, 0xd8, 0x26][seeds.len() % 4];
        let disk = Disk { flags, supers: [old, new.to_vec()], blocks: blocks.into_iter().collect() };
        let seed = disk.write();
        if seed.len() <= crate::shadow::MAX_LEN && step.is_single() {
            seeds.push(seed);
        }
    }
    seeds
}

/// Every live tree block of a disk, at the first of its places.
fn live(memory: &Memory) -> BTreeMap<u64, Vec<u8>> {
    let mut read = |offset: u64, buffer: &mut [u8]| memory.read_at(offset, buffer);
    let mut volume = Volume::open(&mut read).expect("a file system");
    let blocks = corrupt::live_blocks(&mut volume).expect("its trees");
    let mut live = BTreeMap::new();
    for bytenr in blocks.into_keys() {
        let place = volume.copies(bytenr).expect("places of a block")[0];
        live.insert(place, volume.block(bytenr).expect("a block").to_vec());
    }
    live
}
