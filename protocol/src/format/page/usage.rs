//! The usage page: how many blocks of each segment the map still refers to.

use super::{PAGE_BYTES_MAX, PageError, USAGE_SEGMENTS, UsageIndex, VERSION, bytes, bytes::Reader};
use crate::{
    format::metadata::ObjectRef,
    id::{Hash, Incarnation, ObjectNumber},
};

pub(super) const KIND: u8 = 4;
const HEADER_BYTES: usize = 20;
const SEGMENT_BYTES: usize = 48;

/// One segment the map refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentUsage {
    /// The segment's object.
    pub object: ObjectRef,
    /// Blocks of it that the map refers to, at least 1; `u32::MAX` when that is not known, so that the segment stays.
    pub live_blocks: u32,
}

/// A decoded usage page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsagePayload {
    /// Which segments it covers.
    pub index: UsageIndex,
    /// In rising order of number; a segment that is not named is not referred to.
    pub segments: Vec<SegmentUsage>,
}

impl UsagePayload {
    /// The page's bytes.
    ///
    /// # Panics
    /// When a segment does not belong to this page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.segments.len() * SEGMENT_BYTES);
        out.extend_from_slice(&[KIND, VERSION, 0, 0]);
        out.extend_from_slice(&self.index.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.index.index.to_le_bytes());
        out.extend_from_slice(&bytes::count_u16(self.segments.len()).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        for segment in &self.segments {
            let object = &segment.object;
            assert_eq!(UsageIndex::of(object.incarnation, object.number), self.index, "a segment is in its own page");
            let slot = usize::try_from(object.number.0 % USAGE_SEGMENTS).expect("a remainder of 1,024");
            out.extend_from_slice(&bytes::count_u16(slot).to_le_bytes());
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&segment.live_blocks.to_le_bytes());
            out.extend_from_slice(&object.bytes.to_le_bytes());
            out.extend_from_slice(&object.hash.0);
        }
        out
    }

    /// Reads a usage page.
    ///
    /// # Errors
    /// When the bytes are not exactly one usage page.
    pub fn decode(payload: &[u8]) -> Result<Self, PageError> {
        let mut reader = Reader::open(payload, PAGE_BYTES_MAX)?;
        reader.zeros::<2>()?;
        let index = UsageIndex { incarnation: Incarnation(reader.u32()?), index: reader.u64()? };
        let base = index.index.checked_mul(USAGE_SEGMENTS).ok_or(PageError::Bounds("usage index"))?;
        let count = usize::from(reader.u16()?);
        reader.zeros::<2>()?;
        reader.expect_left(count * SEGMENT_BYTES)?;
        let mut segments: Vec<SegmentUsage> = Vec::with_capacity(count);
        for _ in 0..count {
            let slot = u64::from(reader.u16()?);
            reader.zeros::<2>()?;
            let live_blocks = reader.u32()?;
            if slot >= USAGE_SEGMENTS || live_blocks == 0 {
                return Err(PageError::Bounds("segment usage"));
            }
            let number = ObjectNumber(base + slot);
            if segments.last().is_some_and(|last| last.object.number >= number) {
                return Err(PageError::Order("segments"));
            }
            let (bytes, hash) = (reader.u64()?, Hash(reader.array()?));
            segments.push(SegmentUsage {
                object: ObjectRef { incarnation: index.incarnation, number, bytes, hash },
                live_blocks,
            });
        }
        Ok(Self { index, segments })
    }
}

impl UsageIndex {
    /// The page that counts a segment.
    #[must_use]
    pub const fn of(incarnation: Incarnation, segment: ObjectNumber) -> Self {
        Self { incarnation, index: segment.0 / USAGE_SEGMENTS }
    }
}
