//! Checkpoint objects around the extent map's pages: what a root's header binds, and the numbered stub that names a root.
//!
//! Pages and roots are metadata objects (see [`super::object`]) whose payloads [`super::page`] draws. A stub is small, has a
//! computable name (volume, incarnation, checkpoint number) and is never reclaimed, so the newest checkpoint is found by
//! galloping over stubs without listing anything. Its plaintext is fixed-width and its seal takes no fresh randomness but
//! the root's hash, so that any node makes the same bytes of the same checkpoint.

use super::{
    metadata::{CheckpointRef, ObjectRef},
    object::{self, Detail},
    reader::{ReadError, Reader},
};
use crate::id::{Epoch, Hash, Incarnation, Jseq, ObjectNumber, Seq};

/// Length no page object exceeds.
pub const PAGE_OBJECT_BYTES_MAX: usize = 256 << 10;

/// Length no root object exceeds.
pub const ROOT_OBJECT_BYTES_MAX: usize = 33 << 20;

/// Length of a stub's payload.
pub const STUB_BYTES: usize = 156;

/// Length no stub object exceeds.
pub const STUB_BYTES_MAX: usize = object::padded_object_bytes(STUB_BYTES);

/// What a root's header says besides its identity; bound to the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootLink {
    /// The sequence record the checkpoint includes everything up to.
    pub seq: Seq,
    /// The chain hash at `seq`.
    pub chain: Hash,
}

impl RootLink {
    /// The header's detail.
    #[must_use]
    pub fn to_detail(&self) -> Detail {
        object::detail(&[&self.seq.0.to_le_bytes(), &self.chain.0])
    }

    /// Reads the header's detail.
    ///
    /// # Errors
    /// When reserved bytes are in use.
    pub fn from_detail(detail: &Detail) -> Result<Self, ReadError> {
        let mut reader = Reader::new(detail);
        let link = Self { seq: Seq(reader.u64()?), chain: reader.hash()? };
        reader.zeros("reserved")?;
        Ok(link)
    }
}

/// The payload of a stub: a checkpoint, and where the journal stood at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stub {
    /// The checkpoint; its number is the stub's.
    pub checkpoint: CheckpointRef,
    /// The last journal position the checkpoint covers.
    pub last: Jseq,
    /// The journal's chain hash there.
    pub journal_chain: Hash,
    /// The epoch that appended the record at the checkpoint's seq.
    pub epoch: Epoch,
}

impl Stub {
    /// The payload's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(STUB_BYTES);
        let CheckpointRef { number, seq, chain, root } = &self.checkpoint;
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&seq.0.to_le_bytes());
        out.extend_from_slice(&chain.0);
        out.extend_from_slice(&root.incarnation.0.to_le_bytes());
        out.extend_from_slice(&root.number.0.to_le_bytes());
        out.extend_from_slice(&root.bytes.to_le_bytes());
        out.extend_from_slice(&root.hash.0);
        out.extend_from_slice(&self.last.0.to_le_bytes());
        out.extend_from_slice(&self.journal_chain.0);
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        assert_eq!(out.len(), STUB_BYTES, "the fields add up");
        out
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// When its length is another, the root is longer than any, or reserved bytes are in use.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReadError> {
        let mut reader = Reader::new(bytes);
        let stub = Self {
            checkpoint: CheckpointRef {
                number: reader.u64()?,
                seq: Seq(reader.u64()?),
                chain: reader.hash()?,
                root: ObjectRef {
                    incarnation: Incarnation(reader.u32()?),
                    number: ObjectNumber(reader.u64()?),
                    bytes: reader.u64()?,
                    hash: reader.hash()?,
                },
            },
            last: Jseq(reader.u64()?),
            journal_chain: reader.hash()?,
            epoch: Epoch(reader.u64()?),
        };
        if reader.array()? != [0_u8; 8] {
            return Err(ReadError::Field("reserved"));
        }
        reader.end()?;
        if usize::try_from(stub.checkpoint.root.bytes).is_ok_and(|bytes| bytes <= ROOT_OBJECT_BYTES_MAX) {
            Ok(stub)
        } else {
            Err(ReadError::Field("root length"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Stub {
        Stub {
            checkpoint: CheckpointRef {
                number: 1,
                seq: Seq(2),
                chain: Hash([3; 32]),
                root: ObjectRef { incarnation: Incarnation(4), number: ObjectNumber(5), bytes: 6, hash: Hash([7; 32]) },
            },
            last: Jseq(8),
            journal_chain: Hash([9; 32]),
            epoch: Epoch(10),
        }
    }

    #[test]
    fn the_stub_has_its_golden_bytes() {
        let mut golden = vec![1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        golden.extend_from_slice(&[3; 32]);
        golden.extend_from_slice(&[4, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[7; 32]);
        golden.extend_from_slice(&[8, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[9; 32]);
        golden.extend_from_slice(&[10, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[0; 8]);
        assert_eq!(sample().encode(), golden);
        assert_eq!(Stub::decode(&golden), Ok(sample()));
    }

    #[test]
    fn a_stub_of_another_length_is_refused() {
        let bytes = sample().encode();
        for length in 0..bytes.len() {
            assert_eq!(Stub::decode(&bytes[..length]), Err(ReadError::Truncated));
        }
        assert_eq!(Stub::decode(&[&bytes[..], &[0]].concat()), Err(ReadError::Trailing));
    }

    #[test]
    fn a_root_longer_than_any_is_refused() {
        let mut stub = sample();
        stub.checkpoint.root.bytes = u64::MAX;
        assert_eq!(Stub::decode(&stub.encode()), Err(ReadError::Field("root length")));
    }

    #[test]
    fn the_root_link_has_its_golden_bytes() {
        let link = RootLink { seq: Seq(1), chain: Hash([2; 32]) };
        let mut golden = [0; 56];
        golden[0] = 1;
        golden[8..40].copy_from_slice(&[2; 32]);
        assert_eq!(link.to_detail(), golden);
        assert_eq!(RootLink::from_detail(&golden), Ok(link));
        golden[40] = 1;
        assert_eq!(RootLink::from_detail(&golden), Err(ReadError::Field("reserved")));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Stub::decode(&bytes);
        }
    }
}
