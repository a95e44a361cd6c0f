//! How many cases a property is tried with, and which.

use proptest::test_runner::{Config, RngSeed};

/// So many, the same in every run, so that no change is refused for a case that it has nothing to do with. Others with
/// `PROPTEST_RNG_SEED`, as `vm-scripts/fuzz properties` has them. What fails goes into a test of its own, not into a file of
/// seeds.
pub fn cases(count: u32) -> Config {
    let chosen = Config::default();
    let rng_seed = match chosen.rng_seed {
        RngSeed::Random => RngSeed::Fixed(1),
        fixed => fixed,
    };
    Config { cases: count, rng_seed, failure_persistence: None, ..chosen }
}
