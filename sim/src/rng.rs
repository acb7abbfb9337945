//! Chance under a seed: xoshiro256**, one independent stream per subsystem.
//!
//! Streams are named, so that a new draw in one subsystem does not shift the draws of another.

use std::cell::Cell;

/// A seeded stream of numbers. Drawing needs no `&mut`, for streams are shared within the one thread of a simulation.
#[derive(Debug)]
pub struct Rng {
    state: Cell<[u64; 4]>,
}

impl Rng {
    /// The stream called `stream` of `seed`.
    #[must_use]
    pub fn new(seed: u64, stream: &str) -> Self {
        let name = stream.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut state = seed ^ name.rotate_left(32);
        Self { state: Cell::new(std::array::from_fn(|_| split_mix(&mut state))) }
    }

    /// A stream of its own, split off this one.
    #[must_use]
    pub fn fork(&self, stream: &str) -> Self {
        Self::new(self.next(), stream)
    }

    /// The next 64 bits.
    pub fn next(&self) -> u64 {
        let mut s = self.state.get();
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        self.state.set(s);
        result
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below zero");
        u64::try_from((u128::from(self.next()) * u128::from(bound)) >> 64).expect("a 64-bit product's high half")
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "{low} is above {high}");
        low + self.below(high - low + 1)
    }

    /// True `per_million` times in a million.
    pub fn chance(&self, per_million: u32) -> bool {
        self.below(1_000_000) < u64::from(per_million)
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// One of `items`, as often as its weight says.
    pub fn weighted<'a, T>(&self, items: &'a [(u32, T)]) -> &'a T {
        let total: u64 = items.iter().map(|(weight, _)| u64::from(*weight)).sum();
        let mut at = self.below(total);
        for (weight, item) in items {
            match at.checked_sub(u64::from(*weight)) {
                Some(rest) => at = rest,
                None => return item,
            }
        }
        unreachable!("a number below the total falls on an item")
    }

    /// Fills `bytes`.
    pub fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mix(*state)
}

/// Mixes 64 bits; a bijection.
#[must_use]
pub fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_repeats_under_its_seed_and_name_only() {
        let draw = |seed, name| {
            std::array::from_fn::<u64, 4, _>({
                let rng = Rng::new(seed, name);
                move |_| rng.next()
            })
        };
        assert_eq!(draw(7, "disk"), draw(7, "disk"));
        assert_ne!(draw(7, "disk"), draw(7, "cloud"));
        assert_ne!(draw(7, "disk"), draw(8, "disk"));
    }

    #[test]
    fn weights_are_kept() {
        let rng = Rng::new(1, "weights");
        let heads = (0..10_000).filter(|_| *rng.weighted(&[(9, true), (1, false)])).count();
        assert!((8_800..9_200).contains(&heads), "{heads}");
    }
}
