//! The local cache: clean blocks near the guest, and the gate that every request passes here.
//!
//! * `memory` keeps opened blocks in memory, within an exact budget of bytes.
//! * `disk` keeps blocks sealed in files of the node's directory; it survives restarts and may be damaged or deleted at
//!   any time, also while the node runs.
//! * `gate` is gate 2: may this principal touch these regions.
//!
//! Blocks are cached by [`BlockLocation`], not by their place in a volume: what lies at a location never changes, so
//! nothing is ever invalidated, and a block that was overwritten simply is not asked for again. Dirty blocks are not here;
//! they live in the volume's buffer and in the journal until the extent map gives them a location. So everything in this
//! folder can be lost without losing data.

pub mod disk;
pub mod gate;
pub mod memory;
pub mod permits;

use std::hash::{Hash, Hasher};

use velum_protocol::{
    format::location::Frame,
    id::{BlockIndex, Incarnation, ObjectNumber, VolumeId},
};

pub use disk::{DiskCache, DiskCacheSettings, DiskStats};
pub use memory::{MemoryCache, MemoryStats};

use crate::env::map::MixHasher;

/// One block in the clouds. Segment numbers are unique within (volume, incarnation), so the volume is part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockLocation {
    /// The volume whose segment it is.
    pub volume: VolumeId,
    /// The cluster life that wrote the segment.
    pub incarnation: Incarnation,
    /// The segment.
    pub segment: ObjectNumber,
    /// The frame in the segment.
    pub frame: u32,
    /// The block in the frame.
    pub block: u16,
}

impl BlockLocation {
    /// Where `block` of a volume lies in `frame`; `None` when the frame does not hold it.
    #[must_use]
    pub fn of(volume: VolumeId, frame: &Frame, block: BlockIndex) -> Option<Self> {
        let within = u16::try_from(block.0.checked_sub(frame.start.0)?).ok()?;
        (within < frame.blocks).then_some(Self {
            volume,
            incarnation: frame.incarnation,
            segment: frame.segment,
            frame: frame.frame,
            block: within,
        })
    }

    /// 64 bits that stand for it; equal in every process.
    fn fingerprint(&self) -> u64 {
        let mut hasher = MixHasher::default();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

impl Hash for BlockLocation {
    /// Three words instead of five fields: this is hashed several times per read. Volume ids are random, so half of one
    /// tells volumes apart as well as all of it.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.volume.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
        state.write_u64(self.segment.0 ^ (u64::from(self.incarnation.0) << 40));
        state.write_u64(u64::from(self.frame) << 16 | u64::from(self.block));
    }
}
