//! A type-specific corruptor: changes one field of one item of a real file system, mends the checksums and says which
//! codes a verifier must report.
//!
//! Every kind of fault (but those of [`sets`]) changes a single tree block and looks at nothing else, so that the same fault can be planted in
//! an image ([`corrupt_image`]) and in a block that a guest is just writing ([`mutate_block`]). Which item of a block is
//! changed, and to what, depends on the seed alone: both copies of a DUP block come out the same.
//!
//! What is edited is written back as the kernel would have written it: items without holes, inline backrefs in their
//! order, keyed backrefs at their hash, keys sorted. Only the planted fault is wrong.

mod backref;
mod edit;
mod image;
mod kinds;
mod rng;
pub mod sets;

pub use image::{LiveBlock, Patches, corrupt_image, live_blocks, plan};
pub use kinds::{Kind, Wanted, all, find};

use edit::Edited;
use parser::{Block, ChecksumType};
use rng::Rng;

/// A fault that has been planted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planted {
    /// Name of the kind.
    pub kind: String,
    /// Logical address of the changed block, as its header had it before.
    pub block: u64,
    /// What was changed, in words.
    pub change: String,
    /// The codes (or families, ending in a slash) of which one must be reported, the most fitting first. Empty for a
    /// change that is harmless, and must not be reported.
    pub expected: Vec<&'static str>,
}

impl Planted {
    /// Whether the reported codes are what the fault calls for: one of the expected codes or families, or, for a
    /// harmless change, none at all.
    pub fn is_found_in<'a>(&self, codes: impl IntoIterator<Item = &'a str>) -> bool {
        let mut codes = codes.into_iter().peekable();
        if self.expected.is_empty() {
            return codes.peek().is_none();
        }
        codes.any(|code| self.expected.iter().any(|expected| code_matches(code, expected)))
    }
}

/// Whether a code is the expected one, or one of the expected family.
fn code_matches(code: &str, expected: &str) -> bool {
    code == expected || (expected.ends_with('/') && code.starts_with(expected))
}

/// Plants a fault of the named kind in a tree block, in memory. `None`, and the block as it was, when the block has
/// nothing that the kind could change, or is no tree block with a right checksum.
///
/// A block that a guest writes need not be live at the next commit; then nothing will be found. Kinds that are about a
/// block's place in its tree want a block that is not the tree's root ([`Kind::needs_parent`]).
#[must_use]
pub fn mutate_block(bytes: &mut [u8], kind: &Kind, seed: u64) -> Option<Planted> {
    mutate_wanted(bytes, kind, &|_, _| true, seed)
}

/// The same, for a kind that changes an item, at one that is wanted.
#[must_use]
pub fn mutate_wanted(bytes: &mut [u8], kind: &Kind, wanted: Wanted<'_>, seed: u64) -> Option<Planted> {
    let csum = checksum_type(bytes)?;
    let header = Block::parse(bytes).ok()?.header();
    let (block, level) = (header.bytenr(), header.level());
    // A block of a relocation has FULL_BACKREF from the start.
    if !kind.place.admits(header.owner(), level) || (kind.needs_new_block && header.is_reloc()) {
        return None;
    }
    let mut rng = Rng::new(seed);
    let Edited { bytes: mut changed, change } = kind.apply(bytes, wanted, &mut rng)?;
    if !kind.leaves_checksum {
        csum.seal(&mut changed);
    }
    if changed == bytes {
        return None;
    }
    bytes.copy_from_slice(&changed);
    Some(Planted { kind: kind.name.clone(), block, change, expected: kind.expected.clone() })
}

/// Takes a block apart and puts it together again, with no change but for a checksum field of zeros. For the tests:
/// what comes out must be what the kernel wrote.
#[must_use]
pub fn rebuild(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rebuilt = match Block::parse(bytes).ok()? {
        Block::Leaf(_) => {
            let mut leaf = edit::Leaf::parse(bytes)?;
            backref::rebuild_all(&mut leaf);
            leaf.build()?
        }
        Block::Node(_) => edit::Node::parse(bytes)?.build()?,
    };
    rebuilt.get_mut(..32)?.fill(0);
    Some(rebuilt)
}

/// The checksum algorithm under which a block's checksum is right.
fn checksum_type(bytes: &[u8]) -> Option<ChecksumType> {
    (0..4).filter_map(|number| ChecksumType::from_disk(number).ok()).find(|csum| csum.verify(bytes))
}
