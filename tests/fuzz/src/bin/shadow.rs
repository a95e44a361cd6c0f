//! The target `shadow` for libFuzzer, with a mutator that knows tree blocks.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use replay::rng::Rng;

fuzz_target!(|input: &[u8]| fuzz::shadow::run(input));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let input = fuzz::shadow::mutate(&data[..size], &mut Rng::new(seed.into()), &mut |bytes| {
        let len = bytes.len();
        fuzzer_mutate(bytes, len, len);
    });
    let len = input.len().min(max_size);
    data[..len].copy_from_slice(&input[..len]);
    len
});
