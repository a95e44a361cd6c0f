//! Fuzz targets: what is done with an input, and what must hold then. A target panics, or doesn't return, when it has
//! found something.
//!
//! Nothing here knows what an input comes from: `src/bin/` has the programs for libFuzzer, which `vm-scripts/fuzz`
//! builds and runs, and `tests/` runs seeds and simple mutations of them with every `cargo test`.

pub mod bytes;
pub mod memory;
pub mod parser;
pub mod ring;
pub mod seeds;
pub mod shadow;
pub mod views;

mod quiet;
mod world;
