//! Incarnation claim: who started the next life of a cluster from its clouds, and where each volume stood then.
//!
//! A claim is created, not replaced, on a quorum of clouds and read back from all of them, so that two recoveries at the
//! same time see each other's claim id. The heads in it make older lives' records above them void: a cloud that was away
//! during the recovery may still hold some, and they are not a fork.

use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, CodecError},
    id::{ClusterId, Epoch, Hash, Incarnation, Seq, VolumeId},
};

/// Length no claim object exceeds.
pub const CLAIM_BYTES_MAX: usize = 16 << 20;

/// The payload of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The cluster.
    pub cluster: ClusterId,
    /// The incarnation claimed.
    pub incarnation: Incarnation,
    /// A random number of the recovery that claims.
    pub claim: [u8; 16],
    /// The catalogue record it started from, with its chain hash.
    pub catalogue: (u64, Hash),
    /// Where each volume stood.
    pub heads: Vec<ClaimedHead>,
}

/// Where a volume stood when a life of the cluster began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimedHead {
    /// The volume.
    pub volume: VolumeId,
    /// Its last record; the new life's first is the next.
    pub seq: Seq,
    /// The chain hash there.
    pub chain: Hash,
    /// The number of its last checkpoint; the new life's first is the next.
    pub checkpoint: u64,
    /// The highest owner epoch seen; the new life's are above it.
    pub epoch: Epoch,
}

impl Claim {
    /// The payload's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// When it does not decode.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(bytes, CLAIM_BYTES_MAX)
    }

    /// Where a volume stood; `None` when the volume did not exist.
    #[must_use]
    pub fn head(&self, volume: VolumeId) -> Option<&ClaimedHead> {
        self.heads.iter().find(|head| head.volume == volume)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Claim {
        Claim {
            cluster: ClusterId([1; 16]),
            incarnation: Incarnation(2),
            claim: [3; 16],
            catalogue: (4, Hash([5; 32])),
            heads: vec![ClaimedHead {
                volume: VolumeId([6; 16]),
                seq: Seq(7),
                chain: Hash([8; 32]),
                checkpoint: 9,
                epoch: Epoch(10),
            }],
        }
    }

    #[test]
    fn the_claim_has_its_golden_bytes() {
        let mut golden = vec![1; 16];
        golden.push(2);
        golden.extend_from_slice(&[3; 16]);
        golden.push(4);
        golden.extend_from_slice(&[5; 32]);
        golden.push(1);
        golden.extend_from_slice(&[6; 16]);
        golden.push(7);
        golden.extend_from_slice(&[8; 32]);
        golden.extend_from_slice(&[9, 10]);
        assert_eq!(sample().encode(), golden);
        assert_eq!(Claim::decode(&golden), Ok(sample()));
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = sample().encode();
        for length in 0..bytes.len() {
            assert!(Claim::decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Claim::decode(&bytes);
        }
    }
}
