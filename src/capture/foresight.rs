//! Watches for the root block of the transaction that is being written, so that its commit can be verified while the
//! guest still flushes.
//!
//! Only a guess: what it leads to counts for nothing unless the super block says the same.

use std::sync::{Mutex, PoisonError};

use parser::{Header, ids};

/// Attempts that are made for one transaction. A guest that runs out of memory may write root blocks, and flush, long
/// before it commits.
const ATTEMPTS: u32 = 4;

/// Root block of a root tree: address and level.
pub type Root = (u64, u8);

/// What was seen of the running transaction.
#[derive(Debug, Default)]
pub struct Foresight {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    root: Option<Root>,
    /// Blocks have been written since the last attempt.
    is_new: bool,
    attempts: u32,
}

impl Foresight {
    /// A tree block was written; `committed` is the generation of the last commit.
    pub fn wrote(&self, header: &Header<'_>, committed: u64) {
        let generation = header.generation();
        if Some(generation) != committed.checked_add(1) || header.owner() == ids::TREE_LOG {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.generation != generation {
            *state = State { generation, ..State::default() };
        }
        state.is_new = true;
        // Of several, the last one: a block that was written and then changed is written elsewhere.
        let is_higher = state.root.is_none_or(|(_, level)| level <= header.level());
        if header.owner() == ids::ROOT_TREE && is_higher {
            state.root = Some((header.bytenr(), header.level()));
        }
    }

    /// The guest flushes: the root that it may be about to commit, if one was written.
    pub fn at_flush(&self, committed: u64) -> Option<Root> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due =
            Some(state.generation) == committed.checked_add(1) && state.is_new && state.attempts < ATTEMPTS;
        let root = state.root.filter(|_| is_due)?;
        state.is_new = false;
        state.attempts += 1;
        Some(root)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use parser::layout::Header as Raw;

    use super::*;

    /// A header of this generation, owner, address and level.
    fn header(generation: u64, owner: u64, (bytenr, level): Root) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<Raw>()];
        let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(offset_of!(Raw, generation), generation);
        put(offset_of!(Raw, owner), owner);
        put(offset_of!(Raw, bytenr), bytenr);
        bytes[offset_of!(Raw, level)] = level;
        bytes
    }

    fn write(foresight: &Foresight, generation: u64, owner: u64, root: Root) {
        foresight.wrote(&Header::parse(&header(generation, owner, root)).unwrap(), 7);
    }

    #[test]
    fn the_highest_and_last_root_block_of_the_running_transaction_is_meant() {
        let foresight = Foresight::default();
        write(&foresight, 8, ids::EXTENT_TREE, (1, 3));
        assert_eq!(foresight.at_flush(7), None);
        write(&foresight, 8, ids::ROOT_TREE, (2, 1));
        write(&foresight, 8, ids::ROOT_TREE, (3, 0));
        write(&foresight, 7, ids::ROOT_TREE, (4, 2));
        assert_eq!(foresight.at_flush(7), Some((2, 1)));
        assert_eq!(foresight.at_flush(7), None, "nothing was written since");
        write(&foresight, 8, ids::ROOT_TREE, (5, 1));
        assert_eq!(foresight.at_flush(7), Some((5, 1)));
        assert_eq!(foresight.at_flush(8), None, "it is committed");
    }

    #[test]
    fn a_guest_that_flushes_often_is_not_followed_for_ever() {
        let foresight = Foresight::default();
        write(&foresight, 8, ids::ROOT_TREE, (2, 1));
        let mut made = 0;
        for _ in 0..20 {
            write(&foresight, 8, ids::TREE_LOG, (3, 0));
            made += u32::from(foresight.at_flush(7).is_some());
        }
        assert_eq!(made, 1, "the log is none of the trees");
        for _ in 0..20 {
            write(&foresight, 8, ids::FS_TREE, (3, 0));
            made += u32::from(foresight.at_flush(7).is_some());
        }
        assert_eq!(made, ATTEMPTS);
        // The next transaction.
        foresight.wrote(&Header::parse(&header(9, ids::ROOT_TREE, (6, 0))).unwrap(), 8);
        assert_eq!(foresight.at_flush(8), Some((6, 0)));
    }
}
