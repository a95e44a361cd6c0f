//! The rules that a commit is held to, judged by what it changed.

use std::collections::BTreeSet;

use parser::Chunk;

use crate::codes::Code;
use crate::delta::extents::ExtentDelta;
use crate::forest::{BlockProblem, Forest};
use crate::space::explained::Explained;
use crate::space::group::{GroupChange, changed_chunks, changes_in_own_tree, has_own_tree};
use crate::space::ranges::{Range, union};
use crate::space::{checksums, devices, extents, free_space, groups};
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
    run: fn(&mut Commit<'_, '_>) -> Outcome,
}

const fn rule(what: &'static str, unless: &'static [Code], run: fn(&mut Commit<'_, '_>) -> Outcome) -> Rule {
    Rule { what, unless, run }
}

/// All of them. What an earlier one finds may explain what a later one would.
const RULES: &[Rule] = &[
    rule("block groups and chunks", &[Code::TreeBlockGroupItem, Code::TreeChunkItem], groups::chunks),
    rule("extents", &[Code::TreeChunkItem], extents::changed),
    rule("block groups' used", &[Code::TreeBlockGroupItem], groups::used),
    rule("bytes_used", &[Code::TreeBlockGroupItem], groups::bytes_used),
    rule("free space tree", &[Code::TreeFreeSpaceItem, Code::TreeItemPlace], free_space::changed),
    rule("device extents", &[Code::TreeDevExtent, Code::TreeChunkItem], devices::extents),
    rule("devices' bytes_used", &[Code::TreeDevExtent, Code::TreeDevItem], devices::bytes_used),
    rule("system chunk array", &[Code::TreeChunkItem], devices::system_chunks),
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
    /// Block groups whose chunk is another one: what lies in them can't be judged by either.
    pub(crate) unlike: Vec<u64>,
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

/// Holds a commit to every rule. `extents` is what changed in the extent tree, all of it; `reported` what other rules
/// have said of this commit. With `bytes_used` the super block's is not known yet: by how much it must have changed is
/// put there.
pub fn verify<'v>(
    (old, new): (Forest<'_>, Forest<'_>),
    extents: &ExtentDelta,
    reported: impl Iterator<Item = &'v Violation>,
    memory: &mut Memory,
    bytes_used: Option<&mut Option<i128>>,
) -> Verified {
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
        extents.groups.clone()
    };
    let nodesize = new.nodesize();
    let reported: Vec<&Violation> = reported.collect();
    let codes: BTreeSet<Code> = reported.iter().map(|violation| violation.code).collect();
    let explained = Explained::new(reported, nodesize);
    let unlike = Vec::new();
    let mut commit = Commit { old, new, extents, groups, unlike, explained, missed, bytes_used, memory };
    for Rule { what, unless, run } in RULES {
        if unless.iter().any(|code| codes.contains(code)) {
            continue;
        }
        match run(&mut commit) {
            Ok(found) => {
                let news = found.into_iter().filter(|found| !is_told(&commit.explained, found));
                let news: Vec<Violation> = news.collect();
                commit.explained.learn(&news, nodesize);
                verified.violations.extend(news);
            }
            Err(problem) => verified.unverified.push(format!("{what}: {problem}")),
        }
    }
    verified
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
