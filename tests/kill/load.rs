//! What the guest does, and what it may expect to find: blocks of known contents beside the file system, and the commits of
//! a real kernel in it, both at once.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use replay::rng::Rng;
use replay::{Op, Writes};

use crate::guest::{Answer, DATA, FLUSH, Guest, IN, OUT, QUEUES, WRITE_ZEROES};

const BLOCK: usize = 4096;
const BLOCKS: usize = 2048;

enum Request {
    Write {
        first: usize,
        count: usize,
        version: u64,
    },
    Read {
        first: usize,
        count: usize,
    },
    Flush,
    /// Of a commit.
    Commit,
}

/// The load.
pub struct Load {
    rng: Rng,
    /// Where the blocks begin, in bytes of the disk.
    start: u64,
    /// What each block holds: the number of the write whose answer came last. Zeros for 0.
    versions: Vec<u64>,
    /// Which are being read or written.
    busy: Vec<bool>,
    writes: u64,
    flying: HashMap<(usize, usize), Request>,
    commits: VecDeque<Vec<Op>>,
    begun: usize,
    /// How many may be begun in all, for now.
    allowed: usize,
    /// What the running commit has left: steps, writes of the step, and how many of those are unanswered.
    steps: VecDeque<Op>,
    left: Vec<(u64, Vec<u8>)>,
    unanswered: usize,
    pub answered: usize,
}

impl Load {
    pub fn new(seed: u64, start: u64, commits: impl Iterator<Item = Writes>) -> Self {
        Self {
            rng: Rng::new(seed),
            start,
            versions: vec![0; BLOCKS],
            busy: vec![false; BLOCKS],
            writes: 0,
            flying: HashMap::new(),
            commits: commits.map(|commit| commit.ops()).collect(),
            begun: 0,
            allowed: usize::MAX,
            steps: VecDeque::new(),
            left: Vec::new(),
            unanswered: 0,
            answered: 0,
        }
    }

    /// The blocks are zeros again, of a guest that has nothing to do with the one before.
    pub fn forget(&mut self, image: &File) {
        image.write_all_at(&vec![0; BLOCKS * BLOCK], self.start).expect("the image");
        self.versions.fill(0);
    }

    /// Whether all commits were made.
    pub fn commits_done(&self) -> bool {
        self.commits.is_empty() && !self.is_committing()
    }

    /// Whether a commit is under way: begun, and not all of it answered.
    pub fn is_committing(&self) -> bool {
        !self.steps.is_empty() || !self.left.is_empty() || self.unanswered > 0
    }

    /// Begins no more than so many commits in all, until this is called again.
    pub fn allow_commits(&mut self, count: usize) {
        self.allowed = count;
    }

    /// Submits as much as there is room for.
    pub fn fill(&mut self, guest: &mut Guest) {
        for queue in 0..QUEUES {
            while let Some(slot) = guest.free_slot(queue) {
                self.submit_one(guest, (queue, slot));
            }
        }
    }

    fn submit_one(&mut self, guest: &mut Guest, at: (usize, usize)) {
        let indirect = self.rng.below(2) == 0;
        if self.rng.below(2) == 0
            && let Some(request) = self.next_of_commit()
        {
            self.unanswered += 1;
            self.flying.insert(at, Request::Commit);
            match request {
                Some((offset, bytes)) => guest.submit(at, OUT, (offset, bytes.len()), &bytes, indirect),
                None => guest.submit(at, FLUSH, (0, 0), &[], indirect),
            }
            return;
        }
        let (first, count) = self.choose();
        let (offset, len) = (self.start + (first * BLOCK) as u64, count * BLOCK);
        let request = match self.rng.below(10) {
            _ if count == 0 => Request::Flush,
            0 => Request::Flush,
            1..3 => Request::Read { first, count },
            kind => {
                self.writes += 1;
                Request::Write { first, count, version: if kind == 3 { 0 } else { self.writes } }
            }
        };
        match request {
            Request::Flush => guest.submit(at, FLUSH, (0, 0), &[], indirect),
            Request::Read { .. } => guest.submit(at, IN, (offset, len), &[], indirect),
            Request::Write { version: 0, .. } => guest.submit(at, WRITE_ZEROES, (offset, len), &[], indirect),
            Request::Write { version, .. } => {
                guest.submit(at, OUT, (offset, len), &contents(first, count, |_| version), indirect);
            }
            Request::Commit => {}
        }
        if !matches!(request, Request::Flush) {
            self.busy[first..first + count].fill(true);
        }
        self.flying.insert(at, request);
    }

    /// Blocks that nobody is at; none now and then.
    fn choose(&mut self) -> (usize, usize) {
        let first = self.rng.below(BLOCKS);
        let most = 1 + self.rng.below(DATA / BLOCK);
        let free = self.busy[first..].iter().take(most).take_while(|busy| !**busy).count();
        (first, free)
    }

    /// The next write of the commit, or a flush; nothing while one of its steps waits for answers.
    fn next_of_commit(&mut self) -> Option<Option<(u64, Vec<u8>)>> {
        if let Some(write) = self.left.pop() {
            return Some(Some(write));
        }
        if self.unanswered > 0 {
            return None;
        }
        if self.steps.is_empty() {
            if self.begun >= self.allowed {
                return None;
            }
            self.steps = self.commits.pop_front()?.into();
            self.begun += 1;
        }
        match self.steps.pop_front()? {
            Op::Blocks(changes) => {
                self.left = changes.into_iter().map(|change| (change.offset, change.bytes)).collect();
                self.rng.shuffle(&mut self.left);
                self.next_of_commit()
            }
            Op::Write(change) => Some(Some((change.offset, change.bytes))),
            Op::Flush => Some(None),
            Op::Discard(..) | Op::Zeroes(..) => unreachable!("no part of a commit"),
        }
    }

    /// Takes what was answered.
    pub fn take(&mut self, guest: &mut Guest) {
        for answer in guest.answers() {
            self.answered += 1;
            self.take_one(guest, answer);
        }
    }

    fn take_one(&mut self, guest: &Guest, (queue, slot, status): Answer) {
        assert_eq!(status, 0, "status of a request");
        match self.flying.remove(&(queue, slot)).expect("a request") {
            Request::Flush => {}
            Request::Commit => self.unanswered -= 1,
            Request::Read { first, count } => {
                self.busy[first..first + count].fill(false);
                let expected = contents(first, count, |block| self.versions[block]);
                assert!(
                    guest.data(queue, slot, count * BLOCK) == expected,
                    "blocks {first}, {count} as read"
                );
            }
            Request::Write { first, count, version } => {
                self.busy[first..first + count].fill(false);
                self.versions[first..first + count].fill(version);
            }
        }
    }

    /// Goes on until `count` more requests are answered.
    pub fn run(&mut self, guest: &mut Guest, count: usize) {
        let end = self.answered + count;
        while self.answered < end {
            self.fill(guest);
            guest.wait();
            self.take(guest);
        }
    }

    /// Waits until everything is answered.
    pub fn drain(&mut self, guest: &mut Guest) {
        while guest.in_flight() > 0 {
            guest.wait();
            self.take(guest);
        }
    }

    /// What was acknowledged is in the image, block by block; what is being written may be there or not.
    pub fn assert_image(&self, image: &File) {
        let mut found = vec![0; BLOCKS * BLOCK];
        image.read_exact_at(&mut found, self.start).expect("the image");
        for block in (0..BLOCKS).filter(|block| !self.busy[*block]) {
            let expected = contents(block, 1, |block| self.versions[block]);
            assert!(found[block * BLOCK..][..BLOCK] == expected, "block {block} in the image");
        }
    }
}

/// Blocks whose every 16 bytes say which block and which version they are; version 0 is zeros.
fn contents(first: usize, count: usize, version: impl Fn(usize) -> u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * BLOCK);
    for block in first..first + count {
        let version = version(block);
        let words = if version == 0 { [0, 0] } else { [block as u64 + 1, version] };
        for _ in 0..BLOCK / 16 {
            words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        }
    }
    bytes
}
