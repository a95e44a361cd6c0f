//! The crate from outside: ref-verify's rules one by one, tree walks, and whole commits over file systems in memory.

mod support;

mod classify;
mod commits;
mod machine;
mod trees;
