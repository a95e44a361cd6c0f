//! ref-verify's state machine: what each extent's references are, action by action.
//!
//! A port, in behaviour, of the kernel's `fs/btrfs/ref-verify.c`: one [`BlockEntry`] an extent, with its roots, its
//! references and the actions that led there; every check of `btrfs_ref_tree_mod`, `process_extent_item` and
//! `btrfs_free_ref_tree_range`. It differs in four ways, all wanted: it goes on after a violation; a history has
//! leaf and slot where the kernel has a stack trace, is bounded, and survives re-allocation; whether an extent is a
//! tree block is said by its item, not guessed from the owner; and an allocation counts for its root at once.
//!
//! Knows nothing about trees or commits: actions come in, entries and violations go out.

mod entry;
mod machine;

pub use entry::{BlockEntry, RootEntry, Step};
pub use machine::{Action, ActionKind, Shadow};
