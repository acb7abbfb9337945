//! Where a run of blocks lies in the clouds.

use serde::{Deserialize, Serialize};

use crate::id::{BlockIndex, Incarnation, KeyEpoch, ObjectNumber};

/// The most blocks one frame may hold (64 KiB of plaintext): large enough to seal at full speed, small enough that
/// a cold 4 KiB read does not drag much in with it.
pub const FRAME_BLOCKS_MAX: u16 = 16;

/// Bytes a sealed frame is longer than its plaintext: a 24-byte nonce before it and a 16-byte tag after it.
pub const FRAME_OVERHEAD_BYTES: u32 = 40;

/// One frame in one segment: all that a reader needs to fetch it and to bind it when opening it.
///
/// The 128-bit block uid is (`incarnation`, `segment`, `frame`): never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// The cluster life that wrote the segment.
    pub incarnation: Incarnation,
    /// The segment's number.
    pub segment: ObjectNumber,
    /// The frame's place in the segment, from zero.
    pub frame: u32,
    /// Byte offset of the sealed frame in the segment object.
    pub offset: u32,
    /// The key generation it was sealed under.
    pub key_epoch: KeyEpoch,
    /// First block of the volume that the frame holds.
    pub start: BlockIndex,
    /// Blocks in the frame, 1 to [`FRAME_BLOCKS_MAX`].
    pub blocks: u16,
}

impl Frame {
    /// Length of the sealed frame in the segment object, in bytes.
    #[must_use]
    pub fn sealed_bytes(&self) -> u32 {
        u32::from(self.blocks) * 4096 + FRAME_OVERHEAD_BYTES
    }
}

/// One change of the extent map: a run of blocks now lies in a frame, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunUpdate {
    /// First block of the run.
    pub start: BlockIndex,
    /// Blocks in the run; at most [`FRAME_BLOCKS_MAX`] when `frame` is given, any number when the run is unmapped.
    pub count: u64,
    /// The frame that holds the run; `start..start + count` lies within the frame's blocks. `None` unmaps the run.
    pub frame: Option<Frame>,
}
