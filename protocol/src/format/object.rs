//! What every cloud object with a keyed name has in common: a lead in the clear, a sealed header, a sealed body.
//!
//! The header is sealed under the cluster-state key and says which object this is and under which key epoch its body is
//! sealed. So a reader never tries keys, a cloud learns nothing but the kind, and an object found under another's name is
//! told apart from a damaged one. The header also carries what the body's associated data needs and no reader could know
//! beforehand (a record's window, a root's chain hash).

use super::reader::{ReadError, Reader};
use crate::{
    id::{Hash, Incarnation, KeyEpoch, VolumeId},
    version::{Format, LEAD_BYTES, LeadError},
};

/// Bytes by which a sealed thing is longer than its plaintext: nonce and tag.
pub const SEAL_OVERHEAD_BYTES: usize = 40;

/// Bytes of the header's part that differs by kind.
pub const DETAIL_BYTES: usize = 56;

/// Bytes of a header before it is sealed.
pub const HEADER_BYTES: usize = 32 + DETAIL_BYTES;

/// Bytes before the body: lead and sealed header.
pub const PRELUDE_BYTES: usize = LEAD_BYTES + HEADER_BYTES + SEAL_OVERHEAD_BYTES;

/// Metadata objects are padded to a multiple of this, so that their length tells a cloud little.
pub const METADATA_STEP_BYTES: usize = 1024;

/// Segments are padded to a multiple of this.
pub const SEGMENT_STEP_BYTES: usize = 64 << 10;

/// Bytes of the length before a padded payload.
const LENGTH_BYTES: usize = 4;

/// The part of a header that differs by kind.
pub type Detail = [u8; DETAIL_BYTES];

/// Which object this is and how its body is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume; all zero for an object of the cluster.
    pub volume: VolumeId,
    /// Cluster life that wrote it.
    pub incarnation: Incarnation,
    /// Key generation of the body; zero for an object of the cluster.
    pub key_epoch: KeyEpoch,
    /// Its number among the objects of its kind: object number, seq, checkpoint number or catalogue number.
    pub number: u64,
    /// What else its kind says here.
    pub detail: Detail,
}

/// Why an object's bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Magic or version.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// A layout inside.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Longer than any object of its kind is.
    #[error("{bytes} bytes are more than the {bytes_max} an object of this kind may have")]
    TooLong {
        /// Length found.
        bytes: usize,
        /// Length allowed.
        bytes_max: usize,
    },
}

impl Header {
    /// The bytes to seal.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&self.volume.0);
        bytes.extend_from_slice(&self.incarnation.0.to_le_bytes());
        bytes.extend_from_slice(&self.key_epoch.0.to_le_bytes());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.detail);
        bytes.try_into().expect("the fields add up to HEADER_BYTES")
    }

    /// Reads an opened header.
    ///
    /// # Errors
    /// When it is not [`HEADER_BYTES`] long.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(bytes);
        let header = Self {
            volume: VolumeId(reader.array()?),
            incarnation: Incarnation(reader.u32()?),
            key_epoch: KeyEpoch(reader.u32()?),
            number: reader.u64()?,
            detail: reader.array()?,
        };
        reader.end()?;
        Ok(header)
    }
}

/// Parts of a stored object, still sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// Lead and sealed header, as they stand: one side of the chain hash.
    pub prelude: &'a [u8],
    /// The sealed header.
    pub sealed_header: &'a [u8],
    /// The sealed body; for a segment the frames and the sealed directory.
    pub body: &'a [u8],
}

/// Checks the lead of a stored object and takes it apart.
///
/// # Errors
/// When the object is of another kind, of a newer version, too long or too short.
pub fn split(format: Format, bytes: &[u8], bytes_max: usize) -> Result<Parts<'_>, ObjectError> {
    if bytes.len() > bytes_max {
        return Err(ObjectError::TooLong { bytes: bytes.len(), bytes_max });
    }
    format.check(bytes)?;
    let (prelude, body) = bytes.split_at_checked(PRELUDE_BYTES).ok_or(ReadError::Truncated)?;
    let (_, sealed_header) = prelude.split_at_checked(LEAD_BYTES).ok_or(ReadError::Truncated)?;
    Ok(Parts { prelude, sealed_header, body })
}

/// The plaintext of a metadata object's body: the payload's length, the payload, and zeros such that the whole object's
/// length is a multiple of [`METADATA_STEP_BYTES`].
///
/// # Panics
/// When the payload is 4 GiB long or longer, which no kind allows.
#[must_use]
pub fn pad(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads are bounded far below 4 GiB");
    let bare = PRELUDE_BYTES + SEAL_OVERHEAD_BYTES + LENGTH_BYTES + payload.len();
    let padding = bare.next_multiple_of(METADATA_STEP_BYTES) - bare;
    let mut body = Vec::with_capacity(LENGTH_BYTES + payload.len() + padding);
    body.extend_from_slice(&length.to_le_bytes());
    body.extend_from_slice(payload);
    body.resize(body.len() + padding, 0);
    body
}

/// Length of the stored object for a payload of `payload_bytes`.
#[must_use]
pub const fn padded_object_bytes(payload_bytes: usize) -> usize {
    (PRELUDE_BYTES + SEAL_OVERHEAD_BYTES + LENGTH_BYTES + payload_bytes).next_multiple_of(METADATA_STEP_BYTES)
}

/// The payload in an opened body.
///
/// # Errors
/// When the length does not fit or the padding is not zero.
pub fn unpad(body: &[u8]) -> Result<&[u8], ReadError> {
    let mut reader = Reader::new(body);
    let length = usize::try_from(reader.u32()?).map_err(|_| ReadError::Field("payload length"))?;
    let payload = reader.take(length)?;
    reader.zeros("padding")?;
    Ok(payload)
}

/// Lays fields into a detail; what is left is zero.
pub(super) fn detail(fields: &[&[u8]]) -> Detail {
    let mut out = [0; DETAIL_BYTES];
    let mut places = out.iter_mut();
    for byte in fields.iter().flat_map(|field| field.iter()) {
        *places.next().expect("a kind's fields fit the detail") = *byte;
    }
    out
}

/// A detail that says nothing.
pub const NO_DETAIL: Detail = [0; DETAIL_BYTES];

/// The detail that holds one hash: a catalogue record's link to the one before.
#[must_use]
pub fn hash_detail(hash: Hash) -> Detail {
    detail(&[&hash.0])
}

/// Reads a detail that holds one hash.
///
/// # Errors
/// When bytes after it are in use.
pub fn hash_from_detail(detail: &Detail) -> Result<Hash, ReadError> {
    let mut reader = Reader::new(detail);
    let hash = reader.hash()?;
    reader.zeros("reserved")?;
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::version;

    fn sample() -> Header {
        Header {
            volume: VolumeId([7; 16]),
            incarnation: Incarnation(2),
            key_epoch: KeyEpoch(3),
            number: 0x0102_0304_0506_0708,
            detail: detail(&[&[9; 10], &[8; 4]]),
        }
    }

    #[test]
    fn a_header_has_its_golden_bytes() {
        let mut golden = vec![7; 16];
        golden.extend_from_slice(&[2, 0, 0, 0, 3, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        golden.extend_from_slice(&[9; 10]);
        golden.extend_from_slice(&[8; 4]);
        golden.resize(88, 0);
        assert_eq!(sample().encode().to_vec(), golden);
        assert_eq!(Header::decode(&golden), Ok(sample()));
    }

    #[test]
    fn a_header_of_another_length_is_refused() {
        let bytes = sample().encode();
        assert_eq!(Header::decode(&bytes[..87]), Err(ReadError::Truncated));
        assert_eq!(Header::decode(&[&bytes[..], &[0]].concat()), Err(ReadError::Trailing));
    }

    #[test]
    fn an_object_is_taken_apart_only_when_it_is_of_the_kind_and_long_enough() {
        let mut bytes = version::CLAIM.lead().to_vec();
        bytes.resize(PRELUDE_BYTES + 3, 5);
        let parts = split(version::CLAIM, &bytes, 1000).unwrap();
        assert_eq!((parts.prelude.len(), parts.sealed_header.len(), parts.body), (136, 128, &[5, 5, 5][..]));
        assert!(matches!(split(version::SEGMENT, &bytes, 1000), Err(ObjectError::Lead(_))));
        assert!(matches!(split(version::CLAIM, &bytes, 138), Err(ObjectError::TooLong { .. })));
        assert_eq!(split(version::CLAIM, &bytes[..135], 1000), Err(ObjectError::Read(ReadError::Truncated)));
    }

    #[test]
    fn padding_that_is_not_zero_is_refused() {
        let mut body = pad(b"abc");
        *body.last_mut().unwrap() = 1;
        assert_eq!(unpad(&body), Err(ReadError::Field("padding")));
    }

    proptest! {
        #[test]
        fn a_padded_payload_reads_back_and_fills_whole_steps(payload in prop::collection::vec(any::<u8>(), 0..5000)) {
            let body = pad(&payload);
            prop_assert_eq!((PRELUDE_BYTES + SEAL_OVERHEAD_BYTES + body.len()) % METADATA_STEP_BYTES, 0);
            prop_assert_eq!(PRELUDE_BYTES + SEAL_OVERHEAD_BYTES + body.len(), padded_object_bytes(payload.len()));
            prop_assert_eq!(unpad(&body), Ok(&payload[..]));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = split(version::SEGMENT, &bytes, 200);
            let _ = unpad(&bytes);
            let _ = Header::decode(&bytes);
        }
    }
}
