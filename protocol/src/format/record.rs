//! The journal record of a guest's write: a header in the clear and a sealed body.
//!
//! The journal sees a record as opaque bytes and adds its own plain frame (file, offset, length, checksum). The header
//! here says which write it is; all of it but the previous link is bound when the body is sealed, and the previous link is
//! covered by the chain: each link is the hash of the header (which holds the link before) and of the sealed body's tag.
//! So a record can be sealed without knowing the tags before it, and a record that is missing, changed or out of place
//! breaks the chain of all that follow.

use crate::{
    checksum::hash_parts,
    format::bind,
    id::{BLOCK_BYTES, BlockCount, BlockIndex, ClusterId, Epoch, Hash, Jseq, KeyEpoch, Lineage, VolumeId},
    version::{JOURNAL_RECORD, LEAD_BYTES, LeadError},
};

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 96;

/// Bytes sealing adds: the nonce before the ciphertext and the tag after it.
pub const SEAL_BYTES: u64 = 40;

/// The most blocks with contents one record holds (1 MiB).
pub const WRITE_BLOCKS_MAX: u64 = 256;

/// The most blocks that a request on block bounds may concern for it to be one record whatever its kind, so that a crash
/// leaves all of it or nothing (64 KiB).
pub const ATOMIC_BLOCKS_MAX: u64 = 16;

/// The most blocks one record fills with zeros as data (8 MiB): replay gives each of them a place in the buffer.
pub const ZERO_DATA_BLOCKS_MAX: u64 = 2048;

/// The longest record, in bytes.
pub const RECORD_BYTES_MAX: u64 = HEADER_BYTES as u64 + SEAL_BYTES + WRITE_BLOCKS_MAX * BLOCK_BYTES;

/// Bytes of the tag at the end of the sealed body.
const TAG_BYTES: usize = 16;

/// What a record does to its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// Gives each block the contents in the body.
    Write = 1,
    /// Unmaps the blocks: they read as zeros and are a hole. The body is empty.
    Unmap = 2,
    /// Fills the blocks with zeros and keeps them as data. The body is empty.
    ZeroData = 3,
}

impl RecordKind {
    const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Write),
            2 => Some(Self::Unmap),
            3 => Some(Self::ZeroData),
            _ => None,
        }
    }

    /// The most blocks one record of this kind may concern.
    #[must_use]
    pub const fn blocks_max(self) -> u64 {
        match self {
            Self::Write => WRITE_BLOCKS_MAX,
            Self::Unmap => u64::MAX,
            Self::ZeroData => ZERO_DATA_BLOCKS_MAX,
        }
    }
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record does.
    pub kind: RecordKind,
    /// Key generation the body is sealed under.
    pub key_epoch: KeyEpoch,
    /// The record's position.
    pub jseq: Jseq,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The volume's lineage.
    pub lineage: Lineage,
    /// First block concerned.
    pub start: BlockIndex,
    /// Blocks concerned, at least one.
    pub count: BlockCount,
    /// Everything up to here was at d1 when this record was sealed: a journal that ends earlier is damaged, not short.
    pub durable: Jseq,
    /// The chain at the position before.
    pub prev: Hash,
}

/// Why bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The lead says it is something else, or newer.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// Shorter than a header.
    #[error("{0} bytes are too few for a journal record")]
    TooShort(usize),
    /// A field has a value no writer gives it.
    #[error("the journal record's header is malformed: {0}")]
    Malformed(&'static str),
    /// The body is not as long as the header says.
    #[error("the journal record's body has {found} bytes where {expected} belong")]
    BodyLength {
        /// Bytes found.
        found: u64,
        /// Bytes that belong there.
        expected: u64,
    },
}

impl RecordHeader {
    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let fields: [&[u8]; 10] = [
            &JOURNAL_RECORD.lead(),
            &[self.kind as u8, 0, 0, 0],
            &self.key_epoch.0.to_le_bytes(),
            &self.jseq.0.to_le_bytes(),
            &self.epoch.0.to_le_bytes(),
            &self.lineage.0.to_le_bytes(),
            &self.start.0.to_le_bytes(),
            &self.count.0.to_le_bytes(),
            &self.durable.0.to_le_bytes(),
            &self.prev.0,
        ];
        let mut rest = out.as_mut_slice();
        for field in fields {
            let (place, after) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = after;
        }
        assert!(rest.is_empty(), "the header's fields fill it");
        out
    }

    /// Splits a record into its header and its sealed body, whose length is as the header says.
    ///
    /// # Errors
    /// When the bytes are no record that this build writes.
    pub fn decode(record: &[u8]) -> Result<(Self, &[u8]), RecordError> {
        JOURNAL_RECORD.check(record)?;
        let Some((header, body)) = record.split_first_chunk::<HEADER_BYTES>() else {
            return Err(RecordError::TooShort(record.len()));
        };
        let mut fields = Fields(header.split_at(LEAD_BYTES).1);
        let [kind, reserved @ ..] = fields.take::<4>();
        let kind = RecordKind::of(kind).ok_or(RecordError::Malformed("unknown kind"))?;
        if reserved != [0; 3] {
            return Err(RecordError::Malformed("reserved bytes in use"));
        }
        let header = Self {
            kind,
            key_epoch: KeyEpoch(u32::from_le_bytes(fields.take())),
            jseq: Jseq(fields.number()),
            epoch: Epoch(fields.number()),
            lineage: Lineage(fields.number()),
            start: BlockIndex(fields.number()),
            count: BlockCount(fields.number()),
            durable: Jseq(fields.number()),
            prev: Hash(fields.take()),
        };
        header.check()?;
        let found = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let expected = header.body_bytes();
        if found != expected {
            return Err(RecordError::BodyLength { found, expected });
        }
        Ok((header, body))
    }

    /// What the body is bound to.
    #[must_use]
    pub const fn binding(&self, cluster: ClusterId, volume: VolumeId) -> bind::JournalRecord {
        bind::JournalRecord {
            cluster,
            volume,
            lineage: self.lineage,
            epoch: self.epoch,
            jseq: self.jseq,
            start: self.start,
            length: self.count.0,
            kind: self.kind as u8,
            key_epoch: self.key_epoch,
            durable: self.durable,
        }
    }

    /// Length of the sealed body in bytes.
    #[must_use]
    pub const fn body_bytes(&self) -> u64 {
        match self.kind {
            RecordKind::Write => SEAL_BYTES + self.count.0 * BLOCK_BYTES,
            RecordKind::Unmap | RecordKind::ZeroData => SEAL_BYTES,
        }
    }

    fn check(&self) -> Result<(), RecordError> {
        if self.count.0 == 0 || self.count.0 > self.kind.blocks_max() {
            return Err(RecordError::Malformed("block count out of bounds"));
        }
        if self.start.0.checked_add(self.count.0).is_none() {
            return Err(RecordError::Malformed("blocks beyond the address space"));
        }
        if self.jseq.0 == 0 || self.durable >= self.jseq {
            return Err(RecordError::Malformed("position out of order"));
        }
        Ok(())
    }
}

/// One link of the journal's chain: BLAKE3 over a label, the header (which holds the link before) and the body's tag.
///
/// # Panics
/// When `sealed` is shorter than a tag; sealing never gives that, and [`RecordHeader::decode`] refuses it.
#[must_use]
pub fn chain(header: &[u8; HEADER_BYTES], sealed: &[u8]) -> Hash {
    let tag = sealed.last_chunk::<TAG_BYTES>().expect("a sealed body ends with a tag");
    hash_parts(&[b"ca1.jchain", header, tag])
}

/// Takes fixed-width fields off the front of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().expect("the header's fields fill it");
        self.0 = rest;
        *field
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Write,
            key_epoch: KeyEpoch(0x0403_0201),
            jseq: Jseq(7),
            epoch: Epoch(5),
            lineage: Lineage(2),
            start: BlockIndex(0x1122_3344),
            count: BlockCount(2),
            durable: Jseq(6),
            prev: Hash([0xab; 32]),
        }
    }

    fn record(header: &RecordHeader) -> Vec<u8> {
        let mut bytes = header.encode().to_vec();
        bytes.resize(HEADER_BYTES + usize::try_from(header.body_bytes()).unwrap(), 0xcd);
        bytes
    }

    #[test]
    fn a_header_reads_back_and_its_layout_is_frozen() {
        let bytes = record(&header());
        let (read, body) = RecordHeader::decode(&bytes).unwrap();
        assert_eq!(read, header());
        assert_eq!(body.len(), 40 + 8192);
        let expected = [
            &b"VLjr\x01\0\0\0\x01\0\0\0\x01\x02\x03\x04"[..],
            &[7, 0, 0, 0, 0, 0, 0, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[6, 0, 0, 0, 0, 0, 0, 0],
            &[0xab; 32],
        ]
        .concat();
        assert_eq!(bytes[..HEADER_BYTES], expected);
    }

    #[test]
    fn every_shorter_or_longer_record_is_refused() {
        let bytes = record(&header());
        for length in (0..HEADER_BYTES + 2).chain([bytes.len() - 1]) {
            assert!(RecordHeader::decode(&bytes[..length]).is_err(), "{length}");
        }
        assert!(RecordHeader::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn impossible_fields_are_refused() {
        let change = |edit: fn(&mut RecordHeader)| {
            let mut changed = header();
            edit(&mut changed);
            let mut bytes = changed.encode().to_vec();
            bytes.resize(HEADER_BYTES + 40 + 2 * 4096, 0);
            RecordHeader::decode(&bytes).map(|(header, _)| header)
        };
        assert!(change(|_| ()).is_ok());
        assert!(change(|header| header.count = BlockCount(0)).is_err());
        assert!(change(|header| header.count = BlockCount(u64::MAX)).is_err());
        assert!(change(|header| header.start = BlockIndex(u64::MAX - 1)).is_err());
        assert!(change(|header| header.durable = Jseq(7)).is_err());
        assert!(change(|header| header.kind = RecordKind::Unmap).is_err(), "an unmap has no contents");
        let mut bytes = record(&header());
        for (place, byte) in [(8, 0), (8, 4), (9, 1), (0, 0), (4, 2), (6, 1)] {
            let before = std::mem::replace(&mut bytes[place], byte);
            assert!(RecordHeader::decode(&bytes).is_err(), "byte {place} = {byte}");
            bytes[place] = before;
        }
    }

    #[test]
    fn the_chain_covers_every_header_byte_and_the_tag() {
        let bytes = record(&header());
        let (head, sealed) = bytes.split_first_chunk::<HEADER_BYTES>().unwrap();
        let link = chain(head, sealed);
        for place in 0..HEADER_BYTES {
            let mut changed = *head;
            changed[place] ^= 1;
            assert_ne!(chain(&changed, sealed), link, "byte {place}");
        }
        let mut changed = sealed.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        assert_ne!(chain(head, &changed), link);
    }
}
