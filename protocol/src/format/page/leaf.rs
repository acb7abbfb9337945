//! The leaf: sorted disjoint runs of blocks and the frames they lie in.

use super::{LEAF_BLOCKS, PAGE_BYTES_MAX, PageError, VERSION, bytes, bytes::Reader, check_first};
use crate::{
    format::location::{FRAME_BLOCKS_MAX, Frame},
    id::{BlockIndex, Incarnation, KeyEpoch, ObjectNumber},
};

pub(super) const KIND: u8 = 1;
const HEADER_BYTES: usize = 16;
const SEGMENT_BYTES: usize = 16;
const RUN_BYTES: usize = 16;

/// A segment and the key generation its frames are sealed under, named once per leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// The cluster life that wrote it.
    pub incarnation: Incarnation,
    /// Its number.
    pub number: ObjectNumber,
    /// The key generation.
    pub key_epoch: KeyEpoch,
}

/// A run of blocks that lies in one frame: 16 bytes, in memory and in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First block, counted from the leaf's first.
    pub start: u16,
    /// Blocks in the run, 1 to 16.
    pub count: u8,
    /// Blocks of the frame before the run's first; the frame may begin in the leaf before.
    pub skip: u8,
    /// Blocks in the frame, 1 to 16.
    pub blocks: u8,
    /// Index into the leaf's segments.
    pub segment: u16,
    /// The frame's place in its segment.
    pub frame: u32,
    /// Byte offset of the sealed frame in the segment.
    pub offset: u32,
}

impl Run {
    /// The block after the run's last, counted from the leaf's first.
    #[must_use]
    pub fn end(&self) -> u16 {
        self.start + u16::from(self.count)
    }
}

/// A decoded leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafPayload {
    /// First block the leaf covers, a multiple of [`LEAF_BLOCKS`].
    pub first: BlockIndex,
    /// The segments its runs lie in, in rising order, each used by a run.
    pub segments: Vec<SegmentId>,
    /// Sorted, disjoint.
    pub runs: Vec<Run>,
}

impl LeafPayload {
    /// The frame of a run of this leaf; `None` when the run names no segment of the leaf.
    #[must_use]
    pub fn frame(&self, run: &Run) -> Option<Frame> {
        let segment = self.segments.get(usize::from(run.segment))?;
        Some(Frame {
            incarnation: segment.incarnation,
            segment: segment.number,
            frame: run.frame,
            offset: run.offset,
            key_epoch: segment.key_epoch,
            start: BlockIndex((self.first.0 + u64::from(run.start)).checked_sub(u64::from(run.skip))?),
            blocks: u16::from(run.blocks),
        })
    }

    /// The page's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(HEADER_BYTES + self.segments.len() * SEGMENT_BYTES + self.runs.len() * RUN_BYTES);
        out.extend_from_slice(&[KIND, VERSION, 0, 0]);
        out.extend_from_slice(&self.first.0.to_le_bytes());
        out.extend_from_slice(&bytes::count_u16(self.segments.len()).to_le_bytes());
        out.extend_from_slice(&bytes::count_u16(self.runs.len()).to_le_bytes());
        for segment in &self.segments {
            out.extend_from_slice(&segment.incarnation.0.to_le_bytes());
            out.extend_from_slice(&segment.key_epoch.0.to_le_bytes());
            out.extend_from_slice(&segment.number.0.to_le_bytes());
        }
        for run in &self.runs {
            out.extend_from_slice(&run.start.to_le_bytes());
            out.extend_from_slice(&[run.count, run.skip, run.blocks, 0]);
            out.extend_from_slice(&run.segment.to_le_bytes());
            out.extend_from_slice(&run.frame.to_le_bytes());
            out.extend_from_slice(&run.offset.to_le_bytes());
        }
        out
    }

    /// Reads a leaf.
    ///
    /// # Errors
    /// When the bytes are not exactly one leaf.
    pub fn decode(payload: &[u8]) -> Result<Self, PageError> {
        let mut reader = Reader::open(payload, PAGE_BYTES_MAX)?;
        reader.zeros::<2>()?;
        let first = BlockIndex(reader.u64()?);
        check_first(first, 0)?;
        let segment_count = usize::from(reader.u16()?);
        let run_count = usize::from(reader.u16()?);
        reader.expect_left(segment_count * SEGMENT_BYTES + run_count * RUN_BYTES)?;
        let mut segments: Vec<SegmentId> = Vec::with_capacity(segment_count);
        for _ in 0..segment_count {
            let incarnation = Incarnation(reader.u32()?);
            let key_epoch = KeyEpoch(reader.u32()?);
            let segment = SegmentId { incarnation, number: ObjectNumber(reader.u64()?), key_epoch };
            if segments.last().is_some_and(|last| *last >= segment) {
                return Err(PageError::Order("segments"));
            }
            segments.push(segment);
        }
        let mut runs = Vec::with_capacity(run_count);
        let mut used = vec![false; segment_count];
        let mut end = 0;
        for _ in 0..run_count {
            let run = decode_run(&mut reader, first)?;
            if run.start < end {
                return Err(PageError::Order("runs"));
            }
            end = run.end();
            *used.get_mut(usize::from(run.segment)).ok_or(PageError::Bounds("run's segment"))? = true;
            runs.push(run);
        }
        if used.contains(&false) {
            return Err(PageError::Bounds("segment table"));
        }
        Ok(Self { first, segments, runs })
    }
}

fn decode_run(reader: &mut Reader<'_>, first: BlockIndex) -> Result<Run, PageError> {
    let start = reader.u16()?;
    let [count, skip, blocks] = reader.array()?;
    reader.zeros::<1>()?;
    let run = Run { start, count, skip, blocks, segment: reader.u16()?, frame: reader.u32()?, offset: reader.u32()? };
    let in_frame = u16::from(skip) + u16::from(count) <= u16::from(blocks) && u16::from(blocks) <= FRAME_BLOCKS_MAX;
    let in_leaf = u64::from(start) + u64::from(count) <= LEAF_BLOCKS;
    let in_volume = first.0 + u64::from(start) >= u64::from(skip);
    if count > 0 && in_frame && in_leaf && in_volume { Ok(run) } else { Err(PageError::Bounds("run")) }
}
