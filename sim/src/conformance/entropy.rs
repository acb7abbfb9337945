//! Random bytes fill what they are asked to fill and are never the same twice.

use std::collections::BTreeSet;

use velum_node::env::Env;

/// Runs the suite.
///
/// # Panics
/// When the source breaks its contract.
pub fn run(env: &Env) {
    no_two_draws_are_the_same(env);
    every_length_is_filled_to_its_end(env);
    bits_are_balanced(env);
}

fn no_two_draws_are_the_same(env: &Env) {
    let draws: BTreeSet<[u8; 16]> = (0..2000).map(|_| env.entropy.fresh16()).collect();
    assert_eq!(draws.len(), 2000, "a draw of 16 bytes came twice");
}

fn every_length_is_filled_to_its_end(env: &Env) {
    for length in [0_usize, 1, 7, 32, 33, 4096, 100_000] {
        // Each byte is random: that the last one is zero eight times in a row has a chance of 2^-64.
        let filled = length == 0
            || (0..8).any(|_| {
                let mut bytes = vec![0; length];
                env.entropy.fill(&mut bytes);
                bytes.last().is_some_and(|last| *last != 0)
            });
        assert!(filled, "the last of {length} bytes stays zero");
    }
}

fn bits_are_balanced(env: &Env) {
    let mut bytes = vec![0; 1 << 16];
    env.entropy.fill(&mut bytes);
    let ones: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
    // Half of 2^19 bits, give or take ten standard deviations of 362.
    assert!((258_524..=265_764).contains(&ones), "{ones} of 524,288 bits are set");
}
