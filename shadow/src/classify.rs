//! What a write of the primary super block means.

use parser::SuperBlock;
use parser::superblock::{MagicKind, PRIMARY, magic_kind};

/// How a super block follows the last one accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuperChange {
    /// The next transaction.
    Commit,
    /// The same transaction with another log tree: an fsync.
    LogCommit,
    /// The same bytes again.
    Rewrite,
    /// A file system that does not follow from the last one: mkfs, a tool that worked offline, an image rolled
    /// back. It has to be opened anew.
    Reattach(ReattachReason),
    /// No file system any more, or none yet.
    Gone,
    /// Has the magic but is no valid super block: the reason.
    Invalid,
}

/// Why a super block does not follow from the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReattachReason {
    /// There was none before.
    First,
    /// Another fsid: a new file system over the old one.
    NewFileSystem,
    /// The same generation with other contents: a tool worked on the file system offline.
    Rewritten,
    /// Commits are missing in between, or the generation went back.
    GenerationGap,
}

/// Compares the super block about to be written with the last one accepted.
#[must_use]
pub fn classify(last: Option<&SuperBlock<'_>>, bytes: &[u8]) -> SuperChange {
    if magic_kind(bytes) != MagicKind::Btrfs {
        return SuperChange::Gone;
    }
    let Ok(next) = SuperBlock::parse(bytes) else { return SuperChange::Invalid };
    if !next.verify_csum() || next.bytenr() != PRIMARY {
        return SuperChange::Invalid;
    }
    let Some(last) = last else { return SuperChange::Reattach(ReattachReason::First) };
    if next.bytes() == last.bytes() {
        return SuperChange::Rewrite;
    }
    if next.metadata_uuid() != last.metadata_uuid() || next.dev_item().uuid != last.dev_item().uuid {
        return SuperChange::Reattach(ReattachReason::NewFileSystem);
    }
    if next.fsid() != last.fsid()
        || next.nodesize() != last.nodesize()
        || next.csum_type() != last.csum_type()
    {
        return SuperChange::Reattach(ReattachReason::Rewritten);
    }
    if next.generation() == last.generation() {
        return if next.log_root().is_some() && next.same_but_log_root(last) {
            SuperChange::LogCommit
        } else {
            SuperChange::Reattach(ReattachReason::Rewritten)
        };
    }
    if Some(next.generation()) == last.generation().checked_add(1) {
        SuperChange::Commit
    } else {
        SuperChange::Reattach(ReattachReason::GenerationGap)
    }
}
