//! The one place that names bincode: serde values to bytes and back.
//!
//! The encoding carries no names, no version and no check of its own, so it never stands alone in storage: a header written
//! by hand (see [`crate::version`]) goes before it, and a checksum or an authentication tag around it. Released types never
//! change; a new version is a new type.

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use serde::{Serialize, de::DeserializeOwned};

/// No encoded value is longer than this, whatever limit the caller names; also bounds what one decode may allocate.
pub const ENCODED_BYTES_MAX: usize = 64 << 20;

/// Frozen: other settings would read other bytes.
const CONFIG: Configuration<LittleEndian, Varint, Limit<ENCODED_BYTES_MAX>> =
    config::standard().with_limit::<ENCODED_BYTES_MAX>();

/// Why bytes do not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than the caller is ready to read.
    #[error("{length} encoded bytes where at most {limit} are allowed")]
    TooLong {
        /// Bytes given.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The bytes are not an encoding of the type.
    #[error("the bytes are no encoding of the expected type: {0}")]
    Malformed(String),
    /// A value was read and bytes are left over.
    #[error("{0} bytes are left over after the value")]
    Trailing(usize),
}

/// Encodes a value.
///
/// # Panics
/// When the value is not encodable (a map without length, an untagged enum) or longer than [`ENCODED_BYTES_MAX`]: both are
/// mistakes in the type, not in the data.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let bytes = bincode::serde::encode_to_vec(value, CONFIG)
        .expect("the protocol's types are all encodable in bincode's model");
    assert!(bytes.len() <= ENCODED_BYTES_MAX, "an encoded value of {} bytes could not be read again", bytes.len());
    bytes
}

/// Decodes a value from all of `bytes`, which are at most `limit` long.
///
/// # Errors
/// When there are too many bytes, when they do not decode, or when some are left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CodecError> {
    let limit = limit.min(ENCODED_BYTES_MAX);
    if bytes.len() > limit {
        return Err(CodecError::TooLong { length: bytes.len(), limit });
    }
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|error| CodecError::Malformed(error.to_string()))?;
    match bytes.len().saturating_sub(used) {
        0 => Ok(value),
        left => Err(CodecError::Trailing(left)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::{format::location::RunUpdate, format::metadata::Proposal, id::BlockIndex};

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Sample {
        number: u64,
        text: String,
        list: Vec<Option<u16>>,
    }

    fn sample() -> Sample {
        Sample { number: 300, text: "ab".into(), list: vec![None, Some(7)] }
    }

    #[test]
    fn the_encoding_is_frozen() {
        assert_eq!(encode(&sample()), [251, 44, 1, 2, b'a', b'b', 2, 0, 1, 7]);
    }

    #[test]
    fn a_value_reads_back() {
        let update = RunUpdate { start: BlockIndex(9), count: 1 << 40, frame: None };
        assert_eq!(decode::<RunUpdate>(&encode(&update), 100), Ok(update));
    }

    #[test]
    fn leftover_bytes_are_refused() {
        let mut bytes = encode(&sample());
        bytes.push(0);
        assert_eq!(decode::<Sample>(&bytes, 100), Err(CodecError::Trailing(1)));
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = encode(&sample());
        for length in 0..bytes.len() {
            assert!(decode::<Sample>(&bytes[..length], 100).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn more_bytes_than_the_limit_are_refused_before_decoding() {
        let bytes = encode(&sample());
        let limit = bytes.len() - 1;
        assert_eq!(decode::<Sample>(&bytes, limit), Err(CodecError::TooLong { length: bytes.len(), limit }));
    }

    #[test]
    fn a_huge_length_prefix_is_refused_without_allocating_for_it() {
        let hostile = [253, 255, 255, 255, 255, 255, 255, 255, 127];
        assert!(decode::<Vec<u64>>(&hostile, 100).is_err());
        assert!(decode::<String>(&hostile, 100).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Proposal>(&bytes, 200);
            let _ = decode::<Sample>(&bytes, 200);
        }
    }
}
