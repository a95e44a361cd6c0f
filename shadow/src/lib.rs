//! The pure half of btrfs-shadow: verifies the references of a btrfs, commit by commit.
//!
//! Two independent sources say what happened between two commits. The extent tree says it in its backrefs; the
//! trees that hold the references say it in their pointers, file extents and root items. [`commit`] compares them,
//! in time proportional to what changed, and drives a port of the kernel's `fs/btrfs/ref-verify.c`
//! ([`refverify`]) with the references.
//!
//! Reads tree blocks through one trait, [`BlockSource`]. Knows no file, no thread and no clock; what is wrong with
//! the file system it looks at is a [`Violation`], a value, never an `Err`.

pub mod attach;
pub mod audit;
mod cause;
pub mod classify;
pub mod codes;
pub mod commit;
pub mod delta;
pub mod edges;
mod fold;
pub mod forest;
pub mod ghosts;
pub mod inodes;
pub mod items;
pub mod live;
pub mod log_tree;
pub mod owners;
pub mod paths;
pub mod reconcile;
pub mod record;
pub mod refverify;
pub mod roots;
pub mod rules;
pub mod source;
pub mod space;
pub mod tree;
pub mod unreadable;
pub mod violation;

pub use attach::{AttachError, Coverage};
pub use cause::Cause;
pub use classify::{SuperChange, classify};
pub use codes::{Code, Severity};
pub use commit::{CommitReport, Verdict, Verifier};
pub use forest::{Forest, Geometry, Snapshot};
pub use record::{ExtentRecord, RefKey};
pub use refverify::{BlockEntry, Shadow};
pub use rules::{RuleSwitch, Rules};
pub use source::{BlockSource, Origin, ReadError, TreeBlock};
pub use violation::{Violation, Worth};
