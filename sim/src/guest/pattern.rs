//! What guests write: sectors that say which write they come from, and whose bytes are recognised anywhere.
//!
//! A sector begins with the unique number of (write, sector within the write); every later byte follows from the eight
//! before it by a fixed rule. So a reader can tell from one sector which write it came from and whether a single bit of it
//! was changed or mixed with another; and any 16 bytes of a guest's data are recognised wherever they turn up, at any
//! alignment, by the rule alone ([`Leaks`]), without a dictionary.

use bytes::{Bytes, BytesMut};
use velum_protocol::id::REGION_BLOCKS;

/// Bytes in a sector, the unit that a guest's writes are stamped in.
pub const SECTOR: usize = 512;
/// Sectors in a block.
pub const BLOCK_SECTORS: u64 = 8;
/// Sectors in a region.
pub const REGION_SECTORS: u64 = REGION_BLOCKS * BLOCK_SECTORS;
/// Bits of a stamp that count sectors within one write (32 MiB).
const INDEX_BITS: u32 = 16;

/// What one sector of a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell(u64);

impl Cell {
    /// All zeros: never written, trimmed or zeroed.
    pub const ZERO: Self = Self(0);
    /// Bytes that no guest wrote.
    pub const GARBAGE: Self = Self(u64::MAX);

    /// Sector `index` of write `write`, which counts from 1.
    #[must_use]
    pub fn stamp(write: u64, index: u64) -> Self {
        assert!(write > 0 && write < 1 << 47 && index < 1 << INDEX_BITS);
        Self(write << INDEX_BITS | index)
    }

    /// The write and the sector within it, when a guest wrote this.
    #[must_use]
    pub fn origin(self) -> Option<(u64, u64)> {
        (self != Self::ZERO && self != Self::GARBAGE)
            .then_some((self.0 >> INDEX_BITS, self.0 & ((1 << INDEX_BITS) - 1)))
    }
}

/// An odd number and its inverse modulo 2^64: spreads the bits of a stamp over the sector's first eight bytes.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const GATHER: u64 = inverse(SPREAD);

const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut round = 0;
    while round < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
}

/// Substitution that makes the rule unlike anything found in nature; `TABLE[0]` is not zero, so zeros do not follow the rule.
const TABLE: [u8; 256] = table();

const fn table() -> [u8; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    let mut state = 0x1234_5678_9abc_def1_u64;
    while index < 256 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        table[index] = (state >> 32) as u8;
        index += 1;
    }
    table[0] = 0xa7;
    table
}

/// The rule: a byte from those eight and seven places before it.
const fn rule(eighth: u8, seventh: u8) -> u8 {
    TABLE[eighth as usize].wrapping_add(seventh.rotate_left(3))
}

fn fill_sector(cell: Cell, sector: &mut [u8]) {
    sector[..8].copy_from_slice(&cell.0.wrapping_mul(SPREAD).to_le_bytes());
    for at in 8..SECTOR {
        sector[at] = rule(sector[at - 8], sector[at - 7]);
    }
}

/// The payload of write `write`, `sectors` long.
#[must_use]
pub fn payload(write: u64, sectors: u64) -> Bytes {
    let mut bytes = BytesMut::zeroed(sectors as usize * SECTOR);
    for (index, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        fill_sector(Cell::stamp(write, index as u64), sector);
    }
    bytes.freeze()
}

/// What a sector that was read holds.
#[must_use]
pub fn recognise(sector: &[u8]) -> Cell {
    let Some(head) = sector.first_chunk::<8>() else { return Cell::GARBAGE };
    let cell = Cell(u64::from_le_bytes(*head).wrapping_mul(GATHER));
    if cell == Cell::ZERO {
        return if sector.iter().all(|byte| *byte == 0) { Cell::ZERO } else { Cell::GARBAGE };
    }
    let follows = sector.len() == SECTOR && (8..SECTOR).all(|at| sector[at] == rule(sector[at - 8], sector[at - 7]));
    let is_stamp = cell.origin().is_some_and(|(write, _)| write > 0 && write < 1 << 47);
    if follows && is_stamp { cell } else { Cell::GARBAGE }
}

/// Finds guests' bytes in anything.
#[derive(Clone, Debug, Default)]
pub struct Leaks;

/// Length of a leak that counts.
pub const LEAK_BYTES: usize = 16;

impl Leaks {
    /// Where the first run of [`LEAK_BYTES`] bytes of a guest's data with at least eight distinct values begins.
    #[must_use]
    pub fn find(bytes: &[u8]) -> Option<usize> {
        let mut run = 0;
        for (at, window) in bytes.windows(9).enumerate() {
            if window[8] == rule(window[0], window[1]) {
                run += 1;
                // Eight bytes that the rule takes from the eight before them make 16 bytes of a guest.
                if run >= LEAK_BYTES - 8 && distinct(&bytes[at + 9 - LEAK_BYTES..at + 9]) >= 8 {
                    return Some(at + 9 - LEAK_BYTES);
                }
            } else {
                run = 0;
            }
        }
        None
    }
}

/// Distinct values among `bytes`.
#[must_use]
pub fn distinct(bytes: &[u8]) -> usize {
    let mut seen = [false; 256];
    for byte in bytes {
        seen[usize::from(*byte)] = true;
    }
    seen.iter().filter(|seen| **seen).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn a_sector_tells_its_write() {
        let bytes = payload(77, 3);
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            assert_eq!(recognise(sector), Cell::stamp(77, index as u64));
            assert_eq!(recognise(sector).origin(), Some((77, index as u64)));
        }
        assert_eq!(recognise(&[0; SECTOR]), Cell::ZERO);
    }

    #[test]
    fn any_changed_bit_makes_it_garbage_or_another_write() {
        let original = payload(1, 1);
        for bit in 0..SECTOR * 8 {
            let mut bytes = original.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(recognise(&bytes), Cell::GARBAGE, "bit {bit}");
        }
    }

    #[test]
    fn sixteen_leaked_bytes_are_found_at_any_place() {
        let rng = Rng::new(5, "noise");
        let secret = payload(1234, 2);
        for _ in 0..200 {
            let mut noise = vec![0; 300];
            rng.fill(&mut noise);
            assert_eq!(Leaks::find(&noise), None);
            let from = rng.below(SECTOR as u64 - LEAK_BYTES as u64) as usize;
            let to = rng.below(noise.len() as u64 - LEAK_BYTES as u64) as usize;
            noise[to..to + LEAK_BYTES].copy_from_slice(&secret[from..from + LEAK_BYTES]);
            // The noise before it may follow the rule by chance for a byte or two.
            assert!(Leaks::find(&noise).is_some_and(|at| at <= to && to - at < 4));
        }
        assert_eq!(Leaks::find(&[0; 4096]), None);
    }
}
