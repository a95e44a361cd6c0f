//! The rules that a commit is held to, judged by what it changed.

use std::collections::BTreeSet;

use parser::Chunk;

use crate::codes::Code;
use crate::delta::extents::ExtentDelta;
use crate::forest::{BlockProblem, Forest};
use crate::space::explained::Explained;
use crate::space::group::{GroupChange, changed_chunks, changes_in_own_tree, has_own_tree};
use crate::space::lost::{self, LostChunk};
use crate::space::ranges::{Range, union};
use crate::space::{checksums, device_ids, devices, extents, free_space, groups};
use crate::violation::Violation;

/// What a rule has found, or what kept it from looking.
pub(crate) type Outcome = Result<Vec<Violation>, BlockProblem>;

/// Ranges about which something was said that are remembered.
const MEMORY_LIMIT: usize = 4096;

/// A rule.
struct Rule {
    /// What it compares, for messages.
    what: &'static str,
    /// Items that are malformed are the finding: a rule that would misread them stays silent.
    unless: &'static [Code],
    /// It takes the chunks to be as they are told: what it finds may follow from a chunk that is not.
    by_chunks: bool,
    run: fn(&mut Commit<'_, '_>) -> Outcome,
}

const fn rule(what: &'static str, unless: &'static [Code], run: fn(&mut Commit<'_, '_>) -> Outcome) -> Rule {
    Rule { what, unless, by_chunks: false, run }
}

impl Rule {
    const fn by_chunks(mut self) -> Self {
        self.by_chunks = true;
        self
    }

    /// Whether items that are malformed are all that can be said.
    fn is_silent(&self, codes: &BTreeSet<Code>) -> bool {
        self.unless.iter().any(|code| codes.contains(code))
    }
}

/// All of them. What an earlier one finds may explain what a later one would.
const RULES: &[Rule] = &[
    rule("block groups and chunks", &[Code::TreeBlockGroupItem, Code::TreeChunkItem], groups::chunks),
    rule("extents", &[Code::TreeChunkItem], extents::changed).by_chunks(),
    rule("block groups' used", &[Code::TreeBlockGroupItem], groups::used).by_chunks(),
    rule("bytes_used", &[Code::TreeBlockGroupItem], groups::bytes_used).by_chunks(),
    rule("free space tree", &[Code::TreeFreeSpaceItem, Code::TreeItemPlace], free_space::changed).by_chunks(),
    rule("device extents", &[Code::TreeDevExtent, Code::TreeChunkItem], devices::extents).by_chunks(),
    rule("devices' bytes_used", &[Code::TreeDevExtent, Code::TreeDevItem], devices::bytes_used).by_chunks(),
    rule("system chunk array", &[Code::TreeChunkItem], devices::system_chunks),
    rule("devices' UUIDs", &[Code::TreeDevItem, Code::TreeChunkItem], device_ids::changed),
    rule("total_bytes", &[Code::TreeDevItem], devices::total_bytes),
    rule("checksum tree", &[Code::TreeCsumItem], checksums::changed),
];

/// Both sides of a commit, and what is known of it.
pub(crate) struct Commit<'a, 'r> {
    /// The last commit.
    pub(crate) old: Forest<'a>,
    /// The commit to be verified.
    pub(crate) new: Forest<'a>,
    /// What changed in the extent tree.
    pub(crate) extents: &'r ExtentDelta,
    /// Block group items that changed.
    pub(crate) groups: Vec<GroupChange>,
    /// Chunks that are gone with extents in them.
    pub(crate) lost: &'r [LostChunk],
    /// Block groups whose chunk is another one: what lies in them can't be judged by either.
    pub(crate) unlike: Vec<u64>,
    /// Extents over the edge of a block group that is gone.
    pub(crate) crossing: Vec<u64>,
    /// What has been reported already.
    pub(crate) explained: Explained,
    /// What the old checksum tree holds is not to be relied on.
    pub(crate) missed: bool,
    /// Where `bytes_used` of the new super block is not known yet: by how much it must have changed is put here.
    pub(crate) bytes_used: Option<&'r mut Option<i128>>,
    /// What earlier commits have left.
    pub(crate) memory: &'r mut Memory,
}

/// What is kept from commit to commit: nothing that a rule needs to be right, only what it has said already.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Data whose checksums were reported: they may change back.
    checksums: Vec<Range>,
    /// The checksum tree of the last commit was not compared: what it held is not to be relied on.
    missed: bool,
}

impl Memory {
    /// A commit was not looked at.
    pub(crate) fn miss(&mut self) {
        self.missed = true;
    }

    pub(crate) fn catch_up(&mut self) {
        self.missed = false;
    }

    pub(crate) fn checksums(&self) -> &[Range] {
        &self.checksums
    }

    pub(crate) fn remember_checksums(&mut self, ranges: &[Range]) {
        let known = std::mem::take(&mut self.checksums);
        self.checksums = union(known.into_iter().chain(ranges.iter().copied()).collect());
        self.checksums.truncate(MEMORY_LIMIT);
    }
}

impl<'a> Commit<'a, '_> {
    /// Chunks that are gone, and chunks that are new; one that changed is among both.
    pub(crate) fn changed_chunks(&self) -> (Vec<&'a Chunk>, Vec<&'a Chunk>) {
        changed_chunks(&self.old.snapshot.chunks, &self.new.snapshot.chunks)
    }
}

/// What came of all rules.
#[derive(Debug, Default)]
pub struct Verified {
    /// What is wrong.
    pub violations: Vec<Violation>,
    /// What could not be compared, and why.
    pub unverified: Vec<String>,
}

/// A commit, and what is known of it.
pub struct Inputs<'a, 'r> {
    /// The last commit.
    pub old: Forest<'a>,
    /// The commit to be verified.
    pub new: Forest<'a>,
    /// What changed in the extent tree, all of it.
    pub extents: &'r ExtentDelta,
    /// Chunks that are gone with extents in them.
    pub lost: &'r [LostChunk],
    /// What other rules have said of this commit.
    pub reported: Vec<&'r Violation>,
}

impl<'a, 'r> Inputs<'a, 'r> {
    /// The commit before any rule has been run.
    fn commit(&self, groups: Vec<GroupChange>, memory: &'r mut Memory, missed: bool) -> Commit<'a, 'r> {
        Commit {
            old: self.old,
            new: self.new,
            extents: self.extents,
            groups,
            lost: self.lost,
            unlike: Vec::new(),
            crossing: Vec::new(),
            explained: Explained::new(self.reported.iter().copied(), self.new.nodesize()),
            missed,
            bytes_used: None,
            memory,
        }
    }

    /// What the state machine has said when the block group went.
    fn is_repeated(&self, found: &Violation) -> bool {
        let same = |told: &&Violation| told.code == found.code && told.bytenr == found.bytenr;
        found.code == Code::SpaceBlockGroupOverlap && self.reported.iter().any(same)
    }
}

/// Holds a commit to every rule. With `bytes_used` the super block's is not known yet: by how much it must have changed
/// is put there.
pub fn verify(
    inputs: &Inputs<'_, '_>,
    memory: &mut Memory,
    bytes_used: Option<&mut Option<i128>>,
) -> Verified {
    let (old, new, nodesize) = (inputs.old, inputs.new, inputs.new.nodesize());
    let mut verified = Verified::default();
    // Until the rule about checksums has said otherwise.
    let missed = std::mem::replace(&mut memory.missed, true);
    let groups = if has_own_tree(&new.snapshot.geometry) {
        match changes_in_own_tree(old, new) {
            Ok(groups) => groups,
            Err(problem) => {
                verified.unverified.push(format!("block group tree: {problem}"));
                return verified;
            }
        }
    } else {
        inputs.extents.groups.clone()
    };
    let codes: BTreeSet<Code> = inputs.reported.iter().map(|violation| violation.code).collect();
    // What is foreseen is forgotten where there is anything to say.
    let is_ahead = bytes_used.is_some();
    let mut commit = inputs.commit(groups.clone(), memory, missed);
    commit.bytes_used = bytes_used;
    let mut by_chunks = Vec::new();
    for rule in RULES.iter().filter(|rule| !rule.is_silent(&codes)) {
        match (rule.run)(&mut commit) {
            Ok(found) => {
                let is_news =
                    |found: &Violation| !is_told(&commit.explained, found) && !inputs.is_repeated(found);
                let news: Vec<Violation> = found.into_iter().filter(is_news).collect();
                commit.explained.learn(&news, nodesize);
                let list = if rule.by_chunks { &mut by_chunks } else { &mut verified.violations };
                list.extend(news);
            }
            Err(problem) => verified.unverified.push(format!("{}: {problem}", rule.what)),
        }
    }
    if !is_ahead && !by_chunks.is_empty() {
        by_chunks = in_either_case(inputs, &groups, &codes, by_chunks);
        by_chunks = lost::fold_missing(by_chunks, &new.snapshot.chunks);
    }
    verified.violations.extend(by_chunks);
    verified
}

/// Those of the findings that are there as well when the chunks are as they would be without the fault in one of them
/// that has been reported.
fn in_either_case(
    inputs: &Inputs<'_, '_>,
    groups: &[GroupChange],
    codes: &BTreeSet<Code>,
    found: Vec<Violation>,
) -> Vec<Violation> {
    let Ok(Some((old, new))) = lost::supposed((&inputs.old, &inputs.new), inputs.lost) else { return found };
    let inputs = Inputs {
        old: Forest::new(&old, inputs.old.source),
        new: Forest::new(&new, inputs.new.source),
        extents: inputs.extents,
        lost: inputs.lost,
        reported: inputs.reported.clone(),
    };
    let mut memory = Memory::default();
    let mut commit = inputs.commit(groups.to_vec(), &mut memory, true);
    let mut supposed = Vec::new();
    for rule in RULES.iter().filter(|rule| rule.by_chunks && !rule.is_silent(codes)) {
        match (rule.run)(&mut commit) {
            Ok(found) => supposed.extend(found),
            Err(_) => return found,
        }
    }
    let is_there = |found: &Violation| {
        supposed.iter().any(|other| other.code == found.code && other.bytenr == found.bytenr)
    };
    found.into_iter().filter(is_there).collect()
}

/// Whether a finding about an extent is about one that something was reported of.
pub(crate) fn is_told(explained: &Explained, found: &Violation) -> bool {
    let of_extent = matches!(
        found.code,
        Code::SpaceExtentOverlap
            | Code::SpaceExtentOutsideBlockGroup
            | Code::SpaceExtentType
            | Code::SpaceExtentOnSuperBlock
    );
    of_extent && explained.names(found.bytenr)
}
