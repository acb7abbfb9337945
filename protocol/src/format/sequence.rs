//! Sequence record: one link of a volume's agreed chain of metadata updates.
//!
//! A record says which window of the journal it covers, which segments hold it, and how the extent map changes. Runs lie
//! in block order and disjoint, and the frames of a flush are written in that same order, so almost every run is two or
//! three small numbers: the gap to the run before, its length, and "the next frame". [`put_updates`] draws the forms.

use super::{
    location::{FRAME_BLOCKS_MAX, FRAME_OVERHEAD_BYTES, Frame, RunUpdate},
    metadata::ObjectRef,
    object::{self, Detail},
    reader::{ReadError, Reader, put_varint},
    segment::{FRAMES_OFFSET, SEGMENT_BYTES_MAX},
};
use crate::id::{BlockIndex, Epoch, Hash, Incarnation, Jseq, KeyEpoch, ObjectNumber, VOLUME_BYTES_MAX};

/// Length no sealed record exceeds; a flush freezes windows small enough for it.
pub const RECORD_BYTES_MAX: usize = 512 << 10;

/// Most segments one record names.
pub const SEGMENTS_MAX: usize = 1024;

/// Blocks of the largest volume: no run ends beyond.
const BLOCKS_MAX: u64 = VOLUME_BYTES_MAX / 4096;

/// Fewest bytes of one encoded update.
const UPDATE_BYTES_MIN: usize = 2;

/// Bytes of one encoded segment reference.
const SEGMENT_REF_BYTES: usize = 52;

/// What a record's header says besides its identity; all of it is bound to the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// First journal position of the window.
    pub first: Jseq,
    /// Last journal position of the window; one below `first` in an empty window, whose record only moves blocks.
    pub last: Jseq,
    /// The chain hash of the record before; all zero for a volume's first.
    pub prev_hash: Hash,
}

/// A record's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The journal's chain hash at the window's end.
    pub journal_chain: Hash,
    /// The segments that hold the window, in block order.
    pub segments: Vec<ObjectRef>,
    /// The extent map's changes, in block order, disjoint.
    pub updates: Vec<RunUpdate>,
}

/// How an update says where its run lies: the two lowest bits beside its length.
mod form {
    /// The run is unmapped.
    pub(super) const UNMAP: u64 = 0;
    /// The next frame of the segment at hand; the run is all of it.
    pub(super) const NEXT_FRAME: u64 = 1;
    /// The first frame of the next segment; the run is all of it.
    pub(super) const NEXT_SEGMENT: u64 = 2;
    /// A frame spelt out.
    pub(super) const SPELT: u64 = 3;
}

/// Where the next frame of a flush lies, as writer and reader of a record both reckon it.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Index of the segment at hand plus one; zero before the first.
    segments_begun: usize,
    frame: u32,
    offset: u32,
}

impl Place {
    const START: Self = Self { segments_begun: 0, frame: 0, offset: FRAMES_OFFSET };

    const fn next_segment(self) -> Self {
        Self { segments_begun: self.segments_begun + 1, ..Self::START }
    }

    /// The frame of `start..start + blocks` here; `None` when no segment is begun or the list of segments ends before.
    fn frame(self, segments: &[ObjectRef], key_epoch: KeyEpoch, start: BlockIndex, blocks: u16) -> Option<Frame> {
        let segment = segments.get(self.segments_begun.checked_sub(1)?)?;
        Some(Frame {
            incarnation: segment.incarnation,
            segment: segment.number,
            frame: self.frame,
            offset: self.offset,
            key_epoch,
            start,
            blocks,
        })
    }

    /// The place after a frame of `blocks`; `None` beyond the largest segment.
    fn after(self, blocks: u16) -> Option<Self> {
        let offset = self.offset.checked_add(u32::from(blocks) * 4096 + FRAME_OVERHEAD_BYTES)?;
        let fits = usize::try_from(offset).is_ok_and(|offset| offset <= SEGMENT_BYTES_MAX);
        fits.then_some(Self { frame: self.frame + 1, offset, ..self })
    }
}

impl Link {
    /// The header's detail.
    #[must_use]
    pub fn to_detail(&self) -> Detail {
        object::detail(&[
            &self.epoch.0.to_le_bytes(),
            &self.first.0.to_le_bytes(),
            &self.last.0.to_le_bytes(),
            &self.prev_hash.0,
        ])
    }

    /// Reads the header's detail.
    ///
    /// # Errors
    /// When the window is inverted, by more than makes it empty.
    pub fn from_detail(detail: &Detail) -> Result<Self, ReadError> {
        let mut reader = Reader::new(detail);
        let link = Self {
            epoch: Epoch(reader.u64()?),
            first: Jseq(reader.u64()?),
            last: Jseq(reader.u64()?),
            prev_hash: reader.hash()?,
        };
        reader.zeros("reserved")?;
        if link.first.0 > link.last.0.saturating_add(1) { Err(ReadError::Field("window")) } else { Ok(link) }
    }

    /// True when the record covers no writes: it is a relocation, by which no contents change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first > self.last
    }
}

impl Body {
    /// The payload's bytes. Frames sealed under `key_epoch`, the record's own, are told in a few bytes.
    #[must_use]
    pub fn encode(&self, key_epoch: KeyEpoch) -> Vec<u8> {
        let mut out = self.journal_chain.0.to_vec();
        put_varint(&mut out, count(self.segments.len()));
        for segment in &self.segments {
            out.extend_from_slice(&segment.incarnation.0.to_le_bytes());
            out.extend_from_slice(&segment.number.0.to_le_bytes());
            out.extend_from_slice(&segment.bytes.to_le_bytes());
            out.extend_from_slice(&segment.hash.0);
        }
        put_updates(&mut out, &self.segments, &self.updates, key_epoch);
        out
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// When it is malformed: runs out of order or beyond the largest volume, frames that no segment of that length holds,
    /// counts that the bytes cannot hold.
    pub fn decode(bytes: &[u8], key_epoch: KeyEpoch) -> Result<Self, ReadError> {
        let mut reader = Reader::new(bytes);
        let journal_chain = reader.hash()?;
        let segments = bounded(&mut reader, SEGMENT_REF_BYTES, "segments")?;
        if segments > SEGMENTS_MAX {
            return Err(ReadError::Field("segments"));
        }
        let segments = (0..segments).map(|_| read_segment(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        let updates = read_updates(&mut reader, &segments, key_epoch)?;
        reader.end()?;
        Ok(Self { journal_chain, segments, updates })
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).expect("a length in memory fits 64 bits")
}

/// Reads a count and checks that so many items of at least `item_bytes` can follow.
fn bounded(reader: &mut Reader<'_>, item_bytes: usize, field: &'static str) -> Result<usize, ReadError> {
    let items = usize::try_from(reader.varint()?).map_err(|_| ReadError::Field(field))?;
    if items.checked_mul(item_bytes).is_none_or(|bytes| bytes > reader.left()) {
        return Err(ReadError::Truncated);
    }
    Ok(items)
}

fn read_segment(reader: &mut Reader<'_>) -> Result<ObjectRef, ReadError> {
    let segment = ObjectRef {
        incarnation: Incarnation(reader.u32()?),
        number: ObjectNumber(reader.u64()?),
        bytes: reader.u64()?,
        hash: reader.hash()?,
    };
    let fits = usize::try_from(segment.bytes).is_ok_and(|bytes| bytes <= SEGMENT_BYTES_MAX);
    if fits { Ok(segment) } else { Err(ReadError::Field("segment length")) }
}

/// Writes the number of updates, then for each: the gap between its start and the end of the one before; its length minus
/// one, shifted left by two, with the form in the two lowest bits; and for a spelt frame its incarnation, segment, place,
/// offset, key epoch, the run's distance from the frame's start, and the frame's blocks.
fn put_updates(out: &mut Vec<u8>, segments: &[ObjectRef], updates: &[RunUpdate], key_epoch: KeyEpoch) {
    put_varint(out, count(updates.len()));
    let mut end: u64 = 0;
    let mut place = Place::START;
    for update in updates {
        debug_assert!(update.start.0 >= end && update.count > 0, "updates lie in block order, disjoint, not empty");
        let (form, next) = form_of(update, place, segments, key_epoch);
        place = next;
        put_varint(out, update.start.0.saturating_sub(end));
        put_varint(out, (update.count.saturating_sub(1) << 2) | form);
        if let (form::SPELT, Some(frame)) = (form, &update.frame) {
            put_varint(out, u64::from(frame.incarnation.0));
            put_varint(out, frame.segment.0);
            put_varint(out, u64::from(frame.frame));
            put_varint(out, u64::from(frame.offset));
            put_varint(out, u64::from(frame.key_epoch.0));
            put_varint(out, update.start.0.saturating_sub(frame.start.0));
            put_varint(out, u64::from(frame.blocks));
        }
        end = update.start.0 + update.count;
    }
}

/// The shortest form that tells the update, and the place after it.
fn form_of(update: &RunUpdate, place: Place, segments: &[ObjectRef], key_epoch: KeyEpoch) -> (u64, Place) {
    let Some(frame) = update.frame else { return (form::UNMAP, place) };
    let whole = update.start == frame.start && update.count == u64::from(frame.blocks);
    for (form, at) in [(form::NEXT_FRAME, place), (form::NEXT_SEGMENT, place.next_segment())] {
        let expected = at.frame(segments, key_epoch, frame.start, frame.blocks);
        if let (true, true, Some(next)) = (whole, expected == Some(frame), at.after(frame.blocks)) {
            return (form, next);
        }
    }
    (form::SPELT, place)
}

fn read_updates(
    reader: &mut Reader<'_>,
    segments: &[ObjectRef],
    key_epoch: KeyEpoch,
) -> Result<Vec<RunUpdate>, ReadError> {
    let updates = bounded(reader, UPDATE_BYTES_MIN, "updates")?;
    let mut out = Vec::with_capacity(updates);
    let mut end: u64 = 0;
    let mut place = Place::START;
    for _ in 0..updates {
        let start = end.checked_add(reader.varint()?).ok_or(ReadError::Field("start"))?;
        let word = reader.varint()?;
        let count = (word >> 2) + 1;
        end = start.checked_add(count).filter(|end| *end <= BLOCKS_MAX).ok_or(ReadError::Field("run"))?;
        let start = BlockIndex(start);
        let frame = match word & 3 {
            form::UNMAP => None,
            form::SPELT => Some(read_frame(reader, start, count)?),
            next => {
                let at = if next == form::NEXT_SEGMENT { place.next_segment() } else { place };
                let blocks = u16::try_from(count).ok().filter(|blocks| *blocks <= FRAME_BLOCKS_MAX);
                let blocks = blocks.ok_or(ReadError::Field("run"))?;
                place = at.after(blocks).ok_or(ReadError::Field("frame"))?;
                Some(at.frame(segments, key_epoch, start, blocks).ok_or(ReadError::Field("segment"))?)
            }
        };
        out.push(RunUpdate { start, count, frame });
    }
    Ok(out)
}

fn read_frame(reader: &mut Reader<'_>, start: BlockIndex, count: u64) -> Result<Frame, ReadError> {
    let incarnation = Incarnation(reader.varint32("incarnation")?);
    let segment = ObjectNumber(reader.varint()?);
    let frame = reader.varint32("frame")?;
    let offset = reader.varint32("offset")?;
    let key_epoch = KeyEpoch(reader.varint32("key epoch")?);
    let into = reader.varint()?;
    let blocks = u16::try_from(reader.varint()?).map_err(|_| ReadError::Field("blocks"))?;
    let inside = into.checked_add(count).is_some_and(|end| end <= u64::from(blocks));
    let frame_start = start.0.checked_sub(into).ok_or(ReadError::Field("frame start"))?;
    if !inside || blocks > FRAME_BLOCKS_MAX || offset < FRAMES_OFFSET {
        return Err(ReadError::Field("frame"));
    }
    Ok(Frame { incarnation, segment, frame, offset, key_epoch, start: BlockIndex(frame_start), blocks })
}

#[cfg(test)]
#[path = "sequence_tests.rs"]
mod tests;
