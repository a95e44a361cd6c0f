//! An in-memory btrfs for tests: tree blocks from lists of items, commits with every backref computed by a model of
//! its own, and the same model over the bytes that were written.

pub mod bytes;
#[path = "../../../tests/common/cases.rs"]
mod cases;
pub mod image;
pub mod layout;
pub mod model;
pub mod oracle;
pub mod rig;
pub mod world;

pub use cases::cases;

pub use bytes::{BlockSpec, Config, Content, Items, Ptr, RootSpec};
pub use model::{Extent, Holder};
pub use rig::Rig;
pub use world::{Fault, World, tree};
