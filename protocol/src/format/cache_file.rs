//! A file of the disk cache: a header, a table of slots, the slots.
//!
//! Nothing here is trusted: a table entry says where a block may be found, and the block's seal, bound to file, offset and
//! location, says whether it is that block. Checksums only keep damage from costing reads. Nothing is ever synced.

use super::reader::{ReadError, Reader};
use crate::{
    checksum::{crc32c, crc32c_append},
    id::{BLOCK_LEN, ClusterId, Incarnation, NodeId, ObjectNumber, VolumeId},
    version::{CACHE_FILE, LEAD_BYTES, LeadError},
};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;

/// Where the table begins; the room up to here is zero.
pub const TABLE_OFFSET: u64 = 4096;

/// Bytes of one table entry.
pub const ENTRY_BYTES: usize = 48;

/// Bytes of one slot: a block with its nonce and tag.
pub const SLOT_BYTES: usize = BLOCK_LEN + 40;

/// Why a header is not accepted; the file is thrown away then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Another kind of file, or another version.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// Too short, reserved bytes in use.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The checksum does not match.
    #[error("the cache file's header is damaged")]
    Damaged,
}

/// Whose file it is and how it is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The file's number.
    pub file: u64,
    /// Slots in the file.
    pub slots: u32,
}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&CACHE_FILE.lead());
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.file.to_le_bytes());
        out.extend_from_slice(&self.slots.to_le_bytes());
        out.resize(HEADER_BYTES - 4, 0);
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out.try_into().expect("the fields and the reserved bytes make up the header")
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When `bytes` are not exactly one header of a version this program reads.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        CACHE_FILE.check(bytes)?;
        let (covered, crc) = bytes.split_last_chunk::<4>().ok_or(ReadError::Truncated)?;
        if bytes.len() != HEADER_BYTES || u32::from_le_bytes(*crc) != crc32c(covered) {
            return Err(HeaderError::Damaged);
        }
        let mut reader = Reader::new(covered);
        reader.take(LEAD_BYTES)?;
        let header = Self {
            cluster: ClusterId(reader.array()?),
            node: NodeId(reader.u64()?),
            file: reader.u64()?,
            slots: reader.u32()?,
        };
        reader.zeros("reserved")?;
        Ok(header)
    }
}

/// What a slot holds: one block, by its location in the clouds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotEntry {
    /// The volume.
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

impl SlotEntry {
    /// The entry's bytes in the table of `file`, at the place of `slot`.
    #[must_use]
    pub fn encode(&self, file: u64, slot: u32) -> [u8; ENTRY_BYTES] {
        let mut out = Vec::with_capacity(ENTRY_BYTES);
        out.extend_from_slice(&self.volume.0);
        out.extend_from_slice(&self.segment.0.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.frame.to_le_bytes());
        out.extend_from_slice(&self.block.to_le_bytes());
        out.resize(ENTRY_BYTES - 4, 0);
        out.extend_from_slice(&entry_crc(file, slot, &out).to_le_bytes());
        out.try_into().expect("the fields and the reserved bytes make up the entry")
    }

    /// Reads the entry of a slot; `None` when the slot is empty or the entry damaged, which comes to the same.
    #[must_use]
    pub fn decode(file: u64, slot: u32, bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let (covered, crc) = bytes.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*crc) != entry_crc(file, slot, covered) {
            return None;
        }
        let mut reader = Reader::new(covered);
        let volume = VolumeId(reader.array().ok()?);
        let segment = ObjectNumber(reader.u64().ok()?);
        let incarnation = Incarnation(reader.u32().ok()?);
        let frame = reader.u32().ok()?;
        let block = u16::from_le_bytes(reader.array().ok()?);
        reader.zeros("reserved").ok()?;
        Some(Self { volume, incarnation, segment, frame, block })
    }
}

/// Slots that fit a file of `bytes`.
#[must_use]
pub fn slots_in(bytes: u64) -> u32 {
    let slots = bytes.saturating_sub(TABLE_OFFSET) / (ENTRY_BYTES + SLOT_BYTES) as u64;
    u32::try_from(slots).unwrap_or(u32::MAX)
}

/// Byte offset of a slot's table entry.
#[must_use]
pub fn entry_offset(slot: u32) -> u64 {
    TABLE_OFFSET + u64::from(slot) * ENTRY_BYTES as u64
}

/// Byte offset of a slot in a file of `slots`.
#[must_use]
pub fn slot_offset(slots: u32, slot: u32) -> u64 {
    entry_offset(slots) + u64::from(slot) * SLOT_BYTES as u64
}

/// An entry copied to another place does not check out there. The checksum of zeros is not zero for it covers the place.
fn entry_crc(file: u64, slot: u32, covered: &[u8]) -> u32 {
    let place = crc32c_append(crc32c(b"VLdc"), &file.to_le_bytes());
    crc32c_append(crc32c_append(place, &slot.to_le_bytes()), covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { cluster: ClusterId([0xc1; 16]), node: NodeId(2), file: 3, slots: 15_000 }
    }

    fn entry() -> SlotEntry {
        SlotEntry {
            volume: VolumeId([0xf0; 16]),
            incarnation: Incarnation(4),
            segment: ObjectNumber(5),
            frame: 6,
            block: 7,
        }
    }

    #[test]
    fn a_header_reads_back_and_any_change_shows() {
        let bytes = header().encode();
        assert_eq!(Header::decode(&bytes), Ok(header()));
        for at in 0..bytes.len() {
            let mut changed = bytes;
            changed[at] ^= 0x10;
            assert!(Header::decode(&changed).is_err(), "byte {at}");
            assert!(Header::decode(&bytes[..at]).is_err(), "length {at}");
        }
    }

    #[test]
    fn an_entry_reads_back_in_its_own_place_only() {
        let bytes = entry().encode(3, 9);
        assert_eq!(SlotEntry::decode(3, 9, &bytes), Some(entry()));
        assert_eq!(SlotEntry::decode(3, 10, &bytes), None);
        assert_eq!(SlotEntry::decode(4, 9, &bytes), None);
        for at in 0..bytes.len() {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert_eq!(SlotEntry::decode(3, 9, &changed), None, "byte {at}");
        }
    }

    #[test]
    fn zeros_are_an_empty_slot_in_every_place() {
        for slot in 0..100_000 {
            assert_eq!(SlotEntry::decode(0, slot, &[0; ENTRY_BYTES]), None);
        }
    }

    #[test]
    fn the_layout_of_version_1_stays() {
        assert_eq!(&header().encode()[..12], b"VLdc\x01\0\0\0\xc1\xc1\xc1\xc1");
        assert_eq!(crc32c(&header().encode()), 0x48674bc7, "a header's checksum over itself is the CRC's residue");
        assert_eq!((slots_in(64 << 20), entry_offset(2), slot_offset(10, 1)), (16_038, 4192, 8712));
    }
}
