//! Commits that a kernel made on a disk, for tests that play them with something gone wrong in between.

use std::os::unix::fs::FileExt as _;
use std::sync::LazyLock;

use parser::{Header, SuperBlock};
use replay::disk::{self, Memory};
use replay::{Change, History, Plan, Step, Writes, record_singly};
use testkit::{Image, Spec};

/// What the file with checksums is full of.
pub const SUMMED: &[u8; 16] = b"summed file data";
/// What the file without is.
pub const PLAIN: &[u8; 16] = b"plain  file data";

/// Commits that are played before the fault: enough for the guest's ways to be known.
pub const BEFORE: usize = 5;

/// A disk, and commits that are made on it one after the other.
pub struct Recorded {
    pub image: Image,
    pub commits: Vec<Writes>,
}

pub static RECORDED: LazyLock<Recorded> = LazyLock::new(|| {
    let fill = |name: &str, text: &[u8]| {
        let text = String::from_utf8_lossy(text).into_owned();
        format!("yes '{text}' | tr -d '\\n' | head -c 524288 > {name}\n")
    };
    let prepare =
        format!("touch plain; chattr +C plain\n{}{}sync -f .", fill("plain", PLAIN), fill("summed", SUMMED));
    let scripts = (0..9).map(|n| (format!("commit {n}"), format!("seq 300 > f{n}; mkdir d{n}"))).collect();
    let spec = Spec::new("writes", "-n 16384 -m dup -d single").mounted("commit=300,nodiscard");
    let History { base, steps, .. } = record_singly(&Plan { spec, prepare, scripts, live: false });
    let first = steps.iter().position(|step| step.doing.starts_with("commit")).expect("commits");
    let (before, rest) = steps.split_at(first);
    let file = disk::open(base.path());
    for change in before.iter().flat_map(Step::changes) {
        file.write_all_at(&change.bytes, change.offset).expect("the image");
    }
    let commits: Vec<Writes> = rest.iter().take_while(|step| step.is_single()).map(Writes::from).collect();
    assert!(commits.len() >= BEFORE + 3, "{} commits", commits.len());
    Recorded { image: base, commits }
});

/// What is on the disk after this many commits.
pub fn disk_after(commits: usize) -> Memory {
    let mut memory = Memory::load(RECORDED.image.path());
    for writes in &RECORDED.commits[..commits] {
        for change in writes.blocks.iter().chain(&writes.supers) {
            memory.set(change.offset, &change.bytes);
        }
    }
    memory
}

/// A tree block that every commit replaces: the root of the root tree, of the commit with this index. Each copy.
pub fn root_block(index: usize) -> Vec<Change> {
    let writes = &RECORDED.commits[index];
    let (root, _) = SuperBlock::parse(&writes.supers[0].bytes).unwrap().root();
    let is_root = |change: &&Change| Header::parse(&change.bytes).is_ok_and(|header| header.bytenr() == root);
    let copies: Vec<Change> = writes.blocks.iter().filter(is_root).cloned().collect();
    assert_eq!(copies.len(), 2, "a root in two copies");
    copies
}
