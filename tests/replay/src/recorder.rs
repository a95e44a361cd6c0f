//! Records the commits of the host's kernel on a loop-mounted image, by looking at the image after each.
//!
//! Most steps are a script and one `sync`: when it has returned, everything is at rest. In the middle of a balance or a
//! deletion the kernel goes on meanwhile, and a copy holds blocks of the transaction after the commit as well. Those
//! carry its generation, and are left for the next look: they lie where the commit has nothing, but where the one
//! before it may have.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use parser::{ChecksumType, Header, SuperBlock, Uuid, layout};
use testkit::{Session, Spec};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::disk::{Memory, PAGE};
use crate::history::{Change, History, SUPER_SIZE, SUPERS, Step, generation};

/// Tries to look at the image while no commit is made.
const ATTEMPTS: usize = 8;

/// Recordings, of which one has to have each script in one commit.
const RECORDINGS: usize = 10;

/// What is done to a file system, one script after the other.
pub struct Plan {
    /// How it is made and mounted.
    pub spec: Spec,
    /// What is in it before the first step.
    pub prepare: String,
    /// The steps: what to call them, and the script. Each is followed by one sync.
    pub scripts: Vec<(String, String)>,
    /// Whether to look during scripts too. Not with mixed block groups: data of the next transaction, which has no
    /// generation to tell it by, may lie where the last commit has a tree block.
    pub live: bool,
}

/// Looks at an image and notes what has changed.
struct Recorder {
    file: File,
    known: Memory,
    fresh: Memory,
    steps: Vec<Step>,
    nodesize: usize,
    csum: ChecksumType,
    uuid: Uuid,
}

/// Makes an image and records what the kernel does to it.
///
/// # Panics
/// When a tool is missing or a script fails.
#[must_use]
pub fn record(plan: &Plan) -> History {
    let image = plan.spec.mkfs();
    if !plan.prepare.is_empty() {
        image.run(&plan.prepare);
    }
    record_on(&image, plan)
}

/// The same, again and again until each script was one commit: now and then the kernel makes two of one, if only because
/// somebody else on this machine syncs all file systems.
///
/// # Panics
/// As [`record`], and when the kernel never makes one commit of each.
#[must_use]
pub fn record_singly(plan: &Plan) -> History {
    record_until(plan, |history| is_each_single(plan, history))
}

/// The same, until what mount and unmount commit, if anything, is one commit too: nothing is missing between two steps.
///
/// # Panics
/// As [`record_singly`].
#[must_use]
pub fn record_without_holes(plan: &Plan) -> History {
    record_until(plan, |history| is_each_single(plan, history) && history.steps.iter().all(Step::is_single))
}

fn is_each_single(plan: &Plan, history: &History) -> bool {
    plan.scripts.iter().all(|(name, _)| {
        let mut own = history.steps.iter().filter(|step| step.doing == *name);
        own.next().is_some_and(Step::is_single) && own.next().is_none()
    })
}

fn record_until(plan: &Plan, is_wanted: impl Fn(&History) -> bool) -> History {
    let recorded = (0..RECORDINGS).map(|_| record(plan)).find(is_wanted);
    recorded.unwrap_or_else(|| panic!("{}: more than one commit of a script, each time", plan.spec.name))
}

/// Records what the kernel does to an image that is there.
///
/// # Panics
/// When a script fails.
#[must_use]
pub fn record_on(image: &testkit::Image, plan: &Plan) -> History {
    let base = image.copy();
    let mut recorder = Recorder::new(image);
    let mut session = Session::start(image);
    recorder.look("mount");
    for (name, script) in &plan.scripts {
        let script = format!("{script}\nsync -f .\n");
        session.run(&script, || {
            if plan.live {
                recorder.look(name);
            }
        });
        recorder.look(name);
    }
    session.finish();
    recorder.look("unmount");
    History { name: plan.spec.name.to_owned(), base, steps: recorder.steps }
}

impl Recorder {
    fn new(image: &testkit::Image) -> Self {
        let known = Memory::load(image.path());
        let superblock = known.get(SUPERS[0], SUPER_SIZE).expect("a disk with a super block");
        let view = SuperBlock::parse(superblock).expect("a super block");
        let (nodesize, csum) = (view.nodesize() as usize, view.csum().expect("a known checksum"));
        let uuid = *view.metadata_uuid();
        let fresh = Memory::zeros(known.bytes().len());
        let file = File::open(image.path()).expect("the image");
        Recorder { file, known, fresh, steps: Vec::new(), nodesize, csum, uuid }
    }

    /// Notes what has changed, if there was a commit.
    fn look(&mut self, doing: &str) {
        for _ in 0..ATTEMPTS {
            let superblock = self.superblock();
            if Some(superblock.as_slice()) == self.known.get(SUPERS[0], SUPER_SIZE) {
                return;
            }
            let ranges = self.fresh.refresh(&self.file);
            if superblock == self.superblock() {
                return self.note(&superblock, &ranges, doing);
            }
        }
    }

    /// The super block, without a log: no script makes one, but whatever calls fsync on this machine while a script runs
    /// does, and its blocks are of the transaction after the commit.
    fn superblock(&self) -> Vec<u8> {
        let mut bytes = vec![0; SUPER_SIZE];
        self.file.read_exact_at(&mut bytes, SUPERS[0]).expect("a super block");
        if SuperBlock::parse(&bytes).is_ok_and(|view| view.log_root().is_some()) {
            self.edit(&mut bytes, |view| {
                view.log_root = 0.into();
                view.log_root_level = 0;
            });
        }
        bytes
    }

    /// Changes fields of a super block and mends its checksum.
    fn edit(&self, bytes: &mut [u8], change: impl FnOnce(&mut layout::SuperBlock)) {
        let (mut view, _) = layout::SuperBlock::read_from_prefix(bytes).expect("a whole super block");
        change(&mut view);
        view.write_to_prefix(bytes).expect("a whole super block");
        self.csum.seal(bytes);
    }

    fn note(&mut self, superblock: &[u8], ranges: &[(usize, usize)], doing: &str) {
        let to = generation(superblock);
        let known = self.known.get(SUPERS[0], SUPER_SIZE);
        let from = known.map_or(0, generation);
        let mut blocks = Vec::new();
        for &(start, end) in ranges {
            self.compare(start, end, to, &mut blocks);
        }
        let mut supers = vec![Change { offset: SUPERS[0], bytes: superblock.to_vec() }];
        for offset in &SUPERS[1..] {
            if self.known.get(*offset, SUPER_SIZE).is_some_and(|before| generation(before) > 0) {
                supers.push(Change { offset: *offset, bytes: self.super_copy(superblock, *offset) });
            }
        }
        let step = Step { from, to, blocks, supers, doing: doing.to_owned() };
        step.apply(&mut self.known);
        self.steps.push(step);
    }

    /// The copy that goes with a primary super block. A look may come before the kernel has written it.
    fn super_copy(&self, superblock: &[u8], offset: u64) -> Vec<u8> {
        let mut bytes = superblock.to_vec();
        self.edit(&mut bytes, |view| view.bytenr = offset.into());
        bytes
    }

    /// Collects what differs in a range, tree blocks as a whole.
    fn compare(&self, start: usize, end: usize, to: u64, changes: &mut Vec<Change>) {
        let mut at = start;
        while at < end {
            let block = self.fresh.get(at as u64, self.nodesize).filter(|bytes| self.is_block(bytes));
            let len = if block.is_some() { self.nodesize } else { PAGE };
            let (now, before) = (self.fresh.get(at as u64, len), self.known.get(at as u64, len));
            let is_whole = block.is_none_or(|block| self.is_committed(block, to));
            if now != before && is_whole && !SUPERS.contains(&(at as u64)) {
                let bytes = now.map(<[u8]>::to_vec).unwrap_or_default();
                changes.push(Change { offset: at as u64, bytes });
            }
            at += len;
        }
    }

    fn is_block(&self, bytes: &[u8]) -> bool {
        Header::parse(bytes).is_ok_and(|header| *header.fsid() == self.uuid && header.bytenr() != 0)
    }

    /// Whether a block belongs to the commit, or to one before, and was not just being written.
    fn is_committed(&self, block: &[u8], to: u64) -> bool {
        let generation = Header::parse(block).map_or(u64::MAX, |header| header.generation());
        generation <= to && self.csum.verify(block)
    }
}
