//! What kind of fault a violation was, where that can be told.

use parser::ChecksumType;

use crate::codes::Code;
use crate::source::{Origin, TreeBlock};
use crate::violation::{Violation, Worth};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// One bit differs from what must have been written, on the way or on the disk.
    BitFlip,
    /// One bit of a number differs, under a right checksum: it flipped in the guest's memory.
    MemoryBitFlip,
    /// The write never reached the disk; what lies there is older.
    LostWrite,
    /// An older version was written.
    StaleWrite,
    /// A block was written in the place of another.
    MisdirectedWrite,
    /// The checksum is right and the content is wrong: the file system has made a mistake.
    Logic,
    /// It was right when it was committed, and the guest hasn't written to it since.
    ChangedBehind,
}

impl Cause {
    /// As events spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Cause::BitFlip => "bit-flip",
            Cause::MemoryBitFlip => "memory-bit-flip",
            Cause::LostWrite => "lost-write",
            Cause::StaleWrite => "stale-write",
            Cause::MisdirectedWrite => "misdirected-write",
            Cause::Logic => "logic",
            Cause::ChangedBehind => "changed-behind",
        }
    }

    /// For people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Cause::BitFlip => "one bit has flipped on the way to the disk or on it",
            Cause::MemoryBitFlip => {
                "one bit differs under a right checksum: it flipped in the guest's memory"
            }
            Cause::LostWrite => "a lost write: nothing was written there for this commit",
            Cause::StaleWrite => "a stale write: an older version was written",
            Cause::MisdirectedWrite => "a misdirected write: another block was written there",
            Cause::Logic => "a mistake of the file system: the checksums are right, the content is wrong",
            Cause::ChangedBehind => {
                "it was right when it was committed: the image was changed behind the guest's back, or has decayed"
            }
        }
    }
}

/// What has become of a copy of a tree block that breaks the rule `code`. `was_verified`: it was right in an earlier
/// commit.
pub(crate) fn of_block(
    code: Code,
    csum: ChecksumType,
    block: &TreeBlock,
    origin: Origin,
    was_verified: bool,
) -> Option<Cause> {
    let not_since = matches!(origin, Origin::NotWritten | Origin::Unknown);
    match code {
        Code::TreeChecksum if csum.flipped_bit(block.bytes()).is_some() => Some(Cause::BitFlip),
        _ if was_verified && not_since => Some(Cause::ChangedBehind),
        _ if origin == Origin::NotWritten => Some(Cause::LostWrite),
        Code::TreeBytenr => Some(Cause::MisdirectedWrite),
        Code::TreeGeneration => Some(Cause::StaleWrite),
        Code::TreeLevel
        | Code::TreeOwner
        | Code::TreeFirstKey
        | Code::TreeKeyOrder
        | Code::TreeItemBounds => Some(Cause::Logic),
        _ => None,
    }
}

/// The kind of a violation about which nothing is known but what it says.
pub(crate) fn of_violation(violation: &Violation) -> Option<Cause> {
    if let (Worth::Number(expected), Worth::Number(found)) = (&violation.expected, &violation.found) {
        // The low bits of a counter differ in one as often as not.
        let bit = expected ^ found;
        if bit.is_power_of_two() && bit >= 1 << 8 && is_content(violation.code) {
            return Some(Cause::MemoryBitFlip);
        }
    }
    is_content(violation.code).then_some(Cause::Logic)
}

/// Whether a rule is about what sound blocks hold.
fn is_content(code: Code) -> bool {
    match code.family() {
        "ref" | "root" | "inode" => true,
        "space" => code != Code::SpaceDeviceTooSmall,
        // Those about whole blocks are judged with the block at hand.
        "tree" => !matches!(
            code,
            Code::TreeUnmapped
                | Code::TreeUnreadable
                | Code::TreeChecksum
                | Code::TreeFsid
                | Code::TreeBytenr
                | Code::TreeGeneration
                | Code::TreeHeader
                | Code::TreeSuperBlock
        ),
        _ => false,
    }
}
