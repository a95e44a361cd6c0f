//! The target `parser`: bytes as a tree block, as a super block and as an item of every type.

use parser::Key;

use crate::bytes::Bytes;
use crate::memory::bounded;
use crate::views::{use_block, use_item, use_super_block};

/// What an input may take: what is looked at is borrowed, but for the stripes of chunks and messages.
const MEMORY: usize = 4 << 20;

/// The longest input that means anything: the largest tree block.
pub const MAX_LEN: usize = 64 << 10;

/// Parses an input.
pub fn run(input: &[u8]) {
    bounded(MEMORY, || {
        use_block(input);
        use_super_block(input);
        let mut rest = Bytes::new(input);
        let key = Key::new(rest.u64(), rest.u8(), rest.u64());
        use_item(&key, rest.take(usize::MAX));
    });
}
