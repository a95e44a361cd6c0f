//! Histories: random work on real kernels, where every commit is verified by the program and by the oracle.
//!
//! The host's kernel works on a loop device whose file is a FUSE file served by [`frontend`]; guests under QEMU work
//! on the program's own device ([`serve`]). Either way each request goes through the program's tap with a
//! [`witness`] around it, which compares every verdict with what the oracle finds in the image at that moment.

pub mod frontend;
pub mod fs;
pub mod ground;
pub mod guest;
pub mod kinds;
pub mod rng;
pub mod run;
pub mod serve;
pub mod stop;
pub mod tool;
pub mod witness;
pub mod world;
