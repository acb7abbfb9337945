//! Segment object: many sealed frames and a sealed directory of them.
//!
//! ```text
//! lead | sealed header | frame 0 | frame 1 | ... | sealed directory
//! ```
//!
//! Frames lie back to back from [`FRAMES_OFFSET`] on, so a frame's offset follows from the lengths of those before it. The
//! directory's plaintext is padded with zeros such that the whole object is a multiple of 64 KiB: a cloud sees neither how
//! many frames there are nor where they end. What a footer would say (where the directory is) stands in the sealed header.

use super::{
    location::{FRAME_BLOCKS_MAX, FRAME_OVERHEAD_BYTES},
    object::{self, Detail, PRELUDE_BYTES, SEAL_OVERHEAD_BYTES, SEGMENT_STEP_BYTES},
    reader::{ReadError, Reader, put_varint},
};
use crate::id::{BLOCK_LEN, BlockIndex, Epoch};

/// Byte offset of the first frame.
pub const FRAMES_OFFSET: u32 = 136;

/// Blocks a segment is filled up to. A window that is somewhat longer makes one longer segment, not one and a stub.
pub const SEGMENT_BLOCKS_TARGET: usize = 2048;

/// Blocks no segment exceeds.
pub const SEGMENT_BLOCKS_MAX: usize = 3 * SEGMENT_BLOCKS_TARGET;

/// Length no segment object exceeds: the most blocks, each in a frame of its own with its directory entry, and padding.
pub const SEGMENT_BYTES_MAX: usize = 28 << 20;

/// Fewest bytes of a directory entry.
const ENTRY_BYTES_MIN: usize = 18;

const _: () = assert!(PRELUDE_BYTES == 136);
const _: () = assert!(
    SEGMENT_BLOCKS_MAX * (BLOCK_LEN + SEAL_OVERHEAD_BYTES + 32) + PRELUDE_BYTES + 2 * SEGMENT_STEP_BYTES
        < SEGMENT_BYTES_MAX
);

/// What a segment's header says besides its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Frames in the segment.
    pub frames: u32,
    /// Byte offset of the sealed directory.
    pub directory_offset: u32,
    /// Length of the sealed directory in bytes; it ends where the object does.
    pub directory_bytes: u32,
}

/// One frame as the directory lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First block of the volume in the frame.
    pub start: BlockIndex,
    /// Blocks in the frame.
    pub blocks: u16,
    /// The sealed frame's tag: its last 16 bytes.
    pub tag: [u8; 16],
}

impl Entry {
    /// Length of the sealed frame.
    #[must_use]
    pub fn sealed_bytes(&self) -> u32 {
        u32::from(self.blocks) * 4096 + FRAME_OVERHEAD_BYTES
    }
}

impl Outline {
    /// The header's detail.
    #[must_use]
    pub fn to_detail(&self) -> Detail {
        object::detail(&[
            &self.epoch.0.to_le_bytes(),
            &self.frames.to_le_bytes(),
            &self.directory_offset.to_le_bytes(),
            &self.directory_bytes.to_le_bytes(),
        ])
    }

    /// Reads the header's detail.
    ///
    /// # Errors
    /// When the directory does not lie after the frames' start, or reserved bytes are in use.
    pub fn from_detail(detail: &Detail) -> Result<Self, ReadError> {
        let mut reader = Reader::new(detail);
        let outline = Self {
            epoch: Epoch(reader.u64()?),
            frames: reader.u32()?,
            directory_offset: reader.u32()?,
            directory_bytes: reader.u32()?,
        };
        reader.zeros("reserved")?;
        let end = u64::from(outline.directory_offset) + u64::from(outline.directory_bytes);
        if outline.directory_offset < FRAMES_OFFSET || usize::try_from(end).is_ok_and(|end| end > SEGMENT_BYTES_MAX) {
            return Err(ReadError::Field("directory offset"));
        }
        Ok(outline)
    }
}

/// The directory's plaintext for frames that end at `frames_end`: the entries, and zeros up to a whole number of steps.
#[must_use]
pub fn encode_directory(entries: &[Entry], frames_end: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * (ENTRY_BYTES_MIN + 4));
    let mut end = BlockIndex(0);
    for entry in entries {
        debug_assert!(entry.start >= end, "frames lie in block order");
        put_varint(&mut out, entry.start.0.saturating_sub(end.0));
        put_varint(&mut out, u64::from(entry.blocks));
        out.extend_from_slice(&entry.tag);
        end = BlockIndex(entry.start.0 + u64::from(entry.blocks));
    }
    let bare = frames_end + out.len() + SEAL_OVERHEAD_BYTES;
    out.resize(out.len() + bare.next_multiple_of(SEGMENT_STEP_BYTES) - bare, 0);
    out
}

/// Reads an opened directory of `frames` frames.
///
/// # Errors
/// When there are fewer entries than `frames`, one is malformed, or the padding is not zero.
pub fn decode_directory(bytes: &[u8], frames: u32) -> Result<Vec<Entry>, ReadError> {
    let count = usize::try_from(frames).map_err(|_| ReadError::Field("frames"))?;
    if count > SEGMENT_BLOCKS_MAX || count.saturating_mul(ENTRY_BYTES_MIN) > bytes.len() {
        return Err(ReadError::Field("frames"));
    }
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::with_capacity(count);
    let mut end: u64 = 0;
    for _ in 0..count {
        let start = end.checked_add(reader.varint()?).ok_or(ReadError::Field("start"))?;
        let blocks = u16::try_from(reader.varint()?).map_err(|_| ReadError::Field("blocks"))?;
        if blocks == 0 || blocks > FRAME_BLOCKS_MAX {
            return Err(ReadError::Field("blocks"));
        }
        end = start.checked_add(u64::from(blocks)).ok_or(ReadError::Field("start"))?;
        entries.push(Entry { start: BlockIndex(start), blocks, tag: reader.array()? });
    }
    reader.zeros("padding")?;
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outline() -> Outline {
        Outline { epoch: Epoch(5), frames: 2, directory_offset: 8408, directory_bytes: 57_128 }
    }

    fn entries() -> Vec<Entry> {
        vec![
            Entry { start: BlockIndex(1), blocks: 1, tag: [0xaa; 16] },
            Entry { start: BlockIndex(300), blocks: 16, tag: [0xbb; 16] },
        ]
    }

    #[test]
    fn the_outline_has_its_golden_bytes() {
        let mut golden = [0; 56];
        golden[..20].copy_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0xd8, 0x20, 0, 0, 0x28, 0xdf, 0, 0]);
        assert_eq!(outline().to_detail(), golden);
        assert_eq!(Outline::from_detail(&golden), Ok(outline()));
    }

    #[test]
    fn the_directory_has_its_golden_bytes() {
        let bytes = encode_directory(&entries(), 136 + 4136 + 65_576);
        let mut golden = vec![1, 1];
        golden.extend_from_slice(&[0xaa; 16]);
        golden.extend_from_slice(&[0xaa, 0x02, 16]);
        golden.extend_from_slice(&[0xbb; 16]);
        assert_eq!(bytes[..golden.len()], golden);
        assert_eq!((136 + 4136 + 65_576 + bytes.len() + 40) % SEGMENT_STEP_BYTES, 0);
        assert_eq!(decode_directory(&bytes, 2), Ok(entries()));
    }

    #[test]
    fn a_directory_with_another_number_of_frames_is_refused() {
        let bytes = encode_directory(&entries(), 1000);
        assert_eq!(decode_directory(&bytes, 1), Err(ReadError::Field("padding")));
        assert!(decode_directory(&bytes, 3).is_err());
        assert_eq!(decode_directory(&bytes, u32::MAX), Err(ReadError::Field("frames")));
    }

    #[test]
    fn an_outline_that_points_outside_the_object_is_refused() {
        for bad in [
            Outline { directory_offset: 135, ..outline() },
            Outline { directory_offset: u32::MAX, ..outline() },
            Outline { directory_bytes: u32::MAX, ..outline() },
        ] {
            assert_eq!(Outline::from_detail(&bad.to_detail()), Err(ReadError::Field("directory offset")));
        }
    }

    #[test]
    fn frames_of_single_blocks_cost_less_than_two_per_cent_in_the_segment() {
        let entries: Vec<Entry> =
            (0..2048).map(|place| Entry { start: BlockIndex(place * 1000), blocks: 1, tag: [1; 16] }).collect();
        let frames_end = 136 + 2048 * 4136;
        let object = frames_end + encode_directory(&entries, frames_end).len() + SEAL_OVERHEAD_BYTES;
        assert!(object < (2048 * 4096) * 1025 / 1000, "{object}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), frames in 0_u32..20) {
            let _ = decode_directory(&bytes, frames);
            let detail: Detail = std::array::from_fn(|place| bytes.get(place).copied().unwrap_or(0));
            let _ = Outline::from_detail(&detail);
        }

        #[test]
        fn any_directory_reads_back(gaps in prop::collection::vec((0_u64..1 << 30, 1_u16..=16), 0..200)) {
            let mut end = 0;
            let entries: Vec<Entry> = gaps
                .into_iter()
                .map(|(gap, blocks)| {
                    let start = end + gap;
                    end = start + u64::from(blocks);
                    Entry { start: BlockIndex(start), blocks, tag: [3; 16] }
                })
                .collect();
            let bytes = encode_directory(&entries, 500);
            prop_assert_eq!(decode_directory(&bytes, u32::try_from(entries.len()).unwrap()), Ok(entries));
        }
    }
}
