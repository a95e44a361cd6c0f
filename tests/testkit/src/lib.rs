//! What the tests share: real images, the corpus, and the btrfs tools they are compared with.
//!
//! Everything here panics with a clear message when something is missing: a test that cannot run has failed. Nothing
//! in this crate knows the on-disk format; that is the business of `parser` and of the `oracle` crate.

pub mod corpus;
pub mod fuse;
pub mod image;
pub mod live;
pub mod mounts;
pub mod session;
pub mod tool;
pub mod workload;

pub use image::{Image, Spec};
pub use session::Session;
