//! Keys: the hierarchy from a person's secret down to the key of each purpose, sealing and opening, and object names.
//!
//! The only module that holds secrets, and the only one that names a cipher. It does no I/O: objects come in and go out as
//! bytes. Nothing here prints, logs or serialises a key.
//!
//! ```text
//! keyfile | passphrase -> slot key -> cluster root key -> wrap key per (volume, kind, key epoch)
//!     volume data key     -> block
//!     volume metadata key -> segment directory, sequence record, checkpoint
//!     volume journal key  -> journal record, cache slot
//!     cluster keys        -> object names, cluster state, audit
//! ```

mod cipher;
mod cluster_object;
mod names;
mod object;
mod provider;
mod seal;
mod secret;
mod slot;
mod volume_object;
mod wrap;

use std::{fmt, sync::Arc};

pub use names::{IDENTITY_NAME, NameKey, ObjectKind, slots_name};
pub use object::{KeySet, ObjectFault, ObjectId};
pub use provider::{
    PASSPHRASE_BYTES_MAX, PASSPHRASE_CHARS_MIN, PASSPHRASE_WORDS_MIN, Passphrase, ProviderError, ProviderSecret,
    check_mode, new_keyfile,
};
pub use seal::{OpenError, SEAL_OVERHEAD_BYTES, SealKey};
pub use secret::Secret;
pub use slot::{DERIVATION_DEFAULT, KeyError, NewCluster, create_cluster, create_cluster_with, open_cluster};
use velum_protocol::{
    format::slot::ClusterKey,
    id::{ClusterId, NodeId},
};
pub use volume_object::{Examined, FramePlan, OpenedRecord, SealedRecord, SealedSegment};
pub use wrap::VolumeKeys;
use zeroize::Zeroizing;

use crate::env::Credentials;

/// The opened keys of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Keyring(Arc<Inner>);

struct Inner {
    cluster: ClusterId,
    root: Secret<32>,
    generation: u64,
    cluster_keys: Vec<ClusterKey>,
    names: NameKey,
    state: SealKey,
}

impl Keyring {
    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.0.cluster
    }

    /// Generation of the slots object that was opened.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation
    }

    /// The key of object names.
    #[must_use]
    pub fn names(&self) -> &NameKey {
        &self.0.names
    }

    /// With what `node` proves to its peers that it is a node of this cluster.
    #[must_use]
    pub fn credentials(&self, node: NodeId) -> Credentials {
        let authority = seal::expand(&self.0.root, &self.0.cluster.0, &[b"ca/v1/peers"], b"");
        Credentials { cluster: self.0.cluster, node, authority: Zeroizing::new(*authority.expose()) }
    }

    /// The cluster-state key: catalogue, claims, raft log and raft snapshot.
    #[must_use]
    pub fn state(&self) -> &SealKey {
        &self.0.state
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({})", self.0.cluster)
    }
}

#[cfg(test)]
mod object_tests;
#[cfg(test)]
mod tests;
