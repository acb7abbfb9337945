//! Volume keys: drawn at random, wrapped under the cluster root key, opened into keys of one purpose each.

use bytes::Bytes;
use subtle::ConstantTimeEq;
use velum_protocol::{
    format::{
        bind::{WrappedKey as KeyBinding, WrappedKind},
        metadata::{WrappedKey, WrappedVolumeKeys},
        slot::WRAPPED_BYTES,
    },
    id::{Hash, KeyEpoch, VolumeId},
};
use zeroize::Zeroizing;

use super::{
    Keyring,
    seal::{SealKey, expand},
    secret::Secret,
    slot::KeyError,
};
use crate::env::Entropy;

/// The keys of a volume in one key epoch. Data and metadata keys are independent: neither can be had from the other.
#[derive(Clone, Debug)]
pub struct VolumeKeys {
    /// The generation.
    pub key_epoch: KeyEpoch,
    /// Frames of data blocks; of the data private key.
    pub block: SealKey,
    /// Segment directories; of the metadata private key.
    pub segment: SealKey,
    /// Sequence records; of the metadata private key.
    pub sequence: SealKey,
    /// Checkpoint pages, roots and stubs; of the metadata private key.
    pub checkpoint: SealKey,
    /// Journal records; of the journal key.
    pub journal: SealKey,
    /// Disk cache slots; of the journal key.
    pub cache: SealKey,
}

impl Keyring {
    /// Draws the three keys of a volume and wraps them.
    #[must_use]
    pub fn new_volume_keys(&self, entropy: &dyn Entropy, volume: VolumeId, key_epoch: KeyEpoch) -> WrappedVolumeKeys {
        let wrapped = |kind| {
            let wrap = WrapKey::derive(&self.0.root, self.volume_key(volume, kind, key_epoch));
            let key = Secret::<32>::random(entropy);
            let sealed = wrap.seal.seal(&entropy.fresh32(), &wrap.binding, key.expose());
            WrappedKey { sealed: Bytes::from(sealed), commitment: wrap.commitment }
        };
        WrappedVolumeKeys {
            key_epoch,
            data: wrapped(WrappedKind::Data),
            metadata: wrapped(WrappedKind::Metadata),
            journal: wrapped(WrappedKind::Journal),
        }
    }

    /// Opens the keys of a volume.
    ///
    /// # Errors
    /// When a key is damaged, or was wrapped for another volume, kind, epoch or cluster.
    pub fn volume(&self, volume: VolumeId, wrapped: &WrappedVolumeKeys) -> Result<VolumeKeys, KeyError> {
        let key_epoch = wrapped.key_epoch;
        let opened = |kind, key: &WrappedKey| {
            open(&self.0.root, self.volume_key(volume, kind, key_epoch), &key.sealed, key.commitment)
        };
        let data = opened(WrappedKind::Data, &wrapped.data)?;
        let metadata = opened(WrappedKind::Metadata, &wrapped.metadata)?;
        let journal = opened(WrappedKind::Journal, &wrapped.journal)?;
        let derive = |secret, label: &'static [u8]| SealKey::derive(secret, &self.0.cluster.0, &[label]);
        Ok(VolumeKeys {
            key_epoch,
            block: derive(&data, b"ca/v1/block"),
            segment: derive(&metadata, b"ca/v1/meta"),
            sequence: derive(&metadata, b"ca/v1/seq"),
            checkpoint: derive(&metadata, b"ca/v1/ckpt"),
            journal: derive(&journal, b"ca/v1/jnl"),
            cache: derive(&journal, b"ca/v1/cache"),
        })
    }

    fn volume_key(&self, volume: VolumeId, kind: WrappedKind, key_epoch: KeyEpoch) -> KeyBinding {
        KeyBinding { cluster: self.0.cluster, volume, kind, key_epoch }
    }
}

/// The key that wraps exactly one other key.
pub(super) struct WrapKey {
    pub(super) seal: SealKey,
    pub(super) commitment: Hash,
    pub(super) binding: [u8; 45],
}

impl WrapKey {
    pub(super) fn derive(root: &Secret<32>, key: KeyBinding) -> Self {
        let binding = key.aad();
        let salt = &key.cluster.0;
        let wrap =
            expand(root, salt, &[b"ca/v1/wrap", &key.volume.0, &[key.kind as u8], &key.key_epoch.0.to_le_bytes()], b"");
        Self {
            seal: SealKey::derive_wrapping(&wrap, salt, &[b"ca/v1/wrap"]),
            commitment: Hash(*expand(&wrap, salt, &[b"ca/v1/commit", &binding], b"").expose()),
            binding,
        }
    }
}

/// Opens a wrapped key: first its length, then the commitment, then the seal.
pub(super) fn open(
    root: &Secret<32>,
    key: KeyBinding,
    sealed: &[u8],
    commitment: Hash,
) -> Result<Secret<32>, KeyError> {
    let wrap = WrapKey::derive(root, key);
    let committed: bool = wrap.commitment.0.ct_eq(&commitment.0).into();
    if sealed.len() != WRAPPED_BYTES || !committed {
        return Err(KeyError::Wrapped(key.kind));
    }
    let opened = wrap.seal.open(&wrap.binding, sealed).map_err(|_| KeyError::Wrapped(key.kind))?;
    Secret::take_from(&mut Zeroizing::new(opened)).ok_or(KeyError::Wrapped(key.kind))
}
