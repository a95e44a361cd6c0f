//! Real commits without a guest: what the host's kernel does to a loop-mounted image is recorded commit by commit, then
//! replayed through the built program as a guest's writes, sound or with a fault planted in one of them.

pub mod backend;
pub mod campaign;
pub mod catalogue;
pub mod disk;
pub mod driver;
pub mod extents;
pub mod history;
pub mod past;
pub mod plan;
pub mod recorder;
pub mod refusal;
pub mod rng;
pub mod table;
pub mod trial;
pub mod writes;

pub use backend::{Backend, Op, Outcome, Writes, carry_out, check};
pub use history::{Change, History, Step};
pub use recorder::{Plan, record, record_on, record_singly, record_without_holes};
