//! A hash map whose hash is the same in every process, for hot look-ups by key only.

use std::hash::{BuildHasherDefault, Hasher};

/// A hash map with a fixed hash. Its order is arbitrary: look up in it, never walk it where order can leak.
#[expect(
    clippy::disallowed_types,
    reason = "the ban is on random order; this one has a fixed hash and is for look-ups"
)]
pub type FixedMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<MixHasher>>;

/// Multiply-and-rotate mixing of integers; not for keys an attacker chooses freely.
#[derive(Clone, Copy, Debug, Default)]
pub struct MixHasher(u64);

impl MixHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.mix(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.mix(number);
    }
}
