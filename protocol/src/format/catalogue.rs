//! Catalogue record: the whole of what a recovery must know before it can read a volume.
//!
//! Every record holds the full state, so only the newest is needed; each names the hash of the one before, and the numbers
//! have no gaps, so the newest is found by galloping. Sealed under the cluster-state key.

use serde::{Deserialize, Serialize};

use super::metadata::{AclEntry, CloudName, WrappedVolumeKeys};
use crate::{
    codec::{self, CodecError},
    id::{ClusterId, Epoch, Hash, Incarnation, Lineage, VolumeId},
};

/// Length no catalogue object exceeds: some thousands of volumes.
pub const CATALOGUE_BYTES_MAX: usize = 16 << 20;

/// The payload of a catalogue record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    /// The cluster.
    pub cluster: ClusterId,
    /// Cluster life that wrote it.
    pub incarnation: Incarnation,
    /// Its place in the chain, from 1; goes on across incarnations.
    pub number: u64,
    /// Chain hash of the record before; all zero for the first.
    pub prev_hash: Hash,
    /// Which change of the replicated metadata it shows.
    pub change: u64,
    /// The configured clouds, in the operator's order.
    pub clouds: Vec<CatalogueCloud>,
    /// How many clouds must hold something before it counts as stored.
    pub quorum: u32,
    /// The volumes, by id; none that is deleted.
    pub volumes: Vec<CatalogueVolume>,
}

/// A cloud in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueCloud {
    /// The operator's name for it.
    pub name: CloudName,
    /// Where it is, without credentials.
    pub url: String,
}

/// A volume in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueVolume {
    /// Its id.
    pub volume: VolumeId,
    /// The operator's name for it.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Who may do what.
    pub acl: Vec<AclEntry>,
    /// Counts changes of the ACL.
    pub acl_version: u64,
    /// Wrapped keys of every key epoch, oldest first.
    pub keys: Vec<WrappedVolumeKeys>,
    /// The owner's epoch when the record was made; a recovery starts above it.
    pub epoch: Epoch,
    /// The lineage.
    pub lineage: Lineage,
}

impl Catalogue {
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
        codec::decode(bytes, CATALOGUE_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        format::metadata::{Right, WrappedKey},
        id::KeyEpoch,
    };

    fn sample() -> Catalogue {
        let key = |fill| WrappedKey { sealed: Bytes::from(vec![fill; 2]), commitment: Hash([fill; 32]) };
        Catalogue {
            cluster: ClusterId([1; 16]),
            incarnation: Incarnation(2),
            number: 3,
            prev_hash: Hash([4; 32]),
            change: 5,
            clouds: vec![CatalogueCloud { name: CloudName("a".into()), url: "file:///a".into() }],
            quorum: 1,
            volumes: vec![CatalogueVolume {
                volume: VolumeId([6; 16]),
                name: "demo".into(),
                size_bytes: 4096,
                acl: vec![AclEntry { principal: "*".into(), range: None, right: Right::Write }],
                acl_version: 7,
                keys: vec![WrappedVolumeKeys {
                    key_epoch: KeyEpoch(1),
                    data: key(8),
                    metadata: key(9),
                    journal: key(10),
                }],
                epoch: Epoch(11),
                lineage: Lineage(12),
            }],
        }
    }

    #[test]
    fn the_catalogue_has_its_golden_bytes() {
        let mut golden = vec![1; 16];
        golden.extend_from_slice(&[2, 3]);
        golden.extend_from_slice(&[4; 32]);
        golden.extend_from_slice(&[5, 1, 1, b'a', 9]);
        golden.extend_from_slice(b"file:///a");
        golden.extend_from_slice(&[1, 1]);
        golden.extend_from_slice(&[6; 16]);
        golden.extend_from_slice(&[4, b'd', b'e', b'm', b'o', 251, 0, 16, 1, 1, b'*', 0, 2, 7, 1, 1]);
        for fill in [8, 9, 10] {
            golden.extend_from_slice(&[2, fill, fill]);
            golden.extend_from_slice(&[fill; 32]);
        }
        golden.extend_from_slice(&[11, 12]);
        assert_eq!(sample().encode(), golden);
        assert_eq!(Catalogue::decode(&golden), Ok(sample()));
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = sample().encode();
        for length in 0..bytes.len() {
            assert!(Catalogue::decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Catalogue::decode(&bytes);
        }
    }
}
