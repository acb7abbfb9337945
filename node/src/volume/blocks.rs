//! A run of blocks of a volume.

use velum_protocol::id::BLOCK_BYTES;

use crate::audit::ByteRange;

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Blocks {
    /// The blocks that a range of bytes touches, also partly.
    pub(super) const fn of(bytes: ByteRange) -> Self {
        let first = bytes.offset / BLOCK_BYTES;
        Self { first, count: (bytes.offset + bytes.length).div_ceil(BLOCK_BYTES) - first }
    }

    pub(super) const fn end(self) -> u64 {
        self.first + self.count
    }

    pub(super) const fn overlaps(self, other: Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }
}
