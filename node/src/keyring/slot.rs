//! Key slots: from a person's secret to the cluster root key, and from there to the cluster's keys.
//!
//! The slots object is read from clouds that may have changed it. So, in this order: the layout and every bound are checked
//! before any memory is taken; a slot is opened only when its commitment says that our secret is its secret (never by
//! trying); and the check value under the root key proves the object as a whole before anything of it is used.

use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, Version};
use bytes::Bytes;
use subtle::ConstantTimeEq;
use velum_protocol::{
    format::{
        bind::{SlotKey, WrappedKey as KeyBinding, WrappedKind},
        slot::{ClusterKey, Derivation, Identity, Parameters, Slot, SlotFormatError, Slots, WRAPPED_BYTES},
    },
    id::{ClusterId, Hash, KeyEpoch, VolumeId},
};

use super::{
    Inner, Keyring,
    names::NameKey,
    provider::ProviderSecret,
    seal::{SealKey, expand},
    secret::Secret,
    wrap::{self, WrapKey},
};
use crate::env::Entropy;

/// Argon2id as new slots use it: 256 MiB, three passes, four lanes; about a second of one core.
pub const DERIVATION_DEFAULT: Derivation = Derivation::Passphrase { memory_kib: 256 << 10, passes: 3, lanes: 4 };

/// Why keys cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The identity or slots object does not read.
    #[error("the {object} object does not read: {source}")]
    Format {
        /// Which of the two.
        object: &'static str,
        /// Why.
        source: SlotFormatError,
    },
    /// The two objects belong to different clusters.
    #[error("the identity object is of cluster {identity}, the key slots are of cluster {slots}")]
    OtherCluster {
        /// Cluster of the identity object.
        identity: ClusterId,
        /// Cluster of the slots object.
        slots: ClusterId,
    },
    /// No slot belongs to the secret.
    #[error("the secret opens none of the key slots: it is another cluster's, or mistyped, or the slots are damaged")]
    WrongSecret,
    /// A check value does not match: the object was changed by someone without the root key.
    #[error("the {0} object was changed: its check value does not match")]
    NotAuthentic(&'static str),
    /// A wrapped key is damaged or of another volume, kind or epoch.
    #[error("the wrapped {0:?} key is damaged or belongs elsewhere")]
    Wrapped(WrappedKind),
    /// A cluster key is missing from the slots object.
    #[error("the slots object holds no {0:?} key")]
    Missing(WrappedKind),
    /// Argon2id could not get its memory.
    #[error("the passphrase's key cannot be derived here: {0}")]
    Derivation(String),
}

/// A cluster just made, with the two objects to store in every cloud.
pub struct NewCluster {
    /// Its keys.
    pub keyring: Keyring,
    /// To be stored as [`super::IDENTITY_NAME`].
    pub identity_object: Bytes,
    /// To be stored as [`super::slots_name`]`(1)`.
    pub slots_object: Bytes,
}

/// Makes a cluster: a fresh id, fresh keys, and one slot for `secret`. Takes about a second for a passphrase.
///
/// # Errors
/// When the slot's key cannot be derived.
pub fn create_cluster(entropy: &dyn Entropy, secret: &ProviderSecret) -> Result<NewCluster, KeyError> {
    let derivation = match secret {
        ProviderSecret::Keyfile(_) => Derivation::Keyfile,
        ProviderSecret::Passphrase(_) => DERIVATION_DEFAULT,
    };
    create_cluster_with(entropy, secret, derivation)
}

/// Like [`create_cluster`], with a chosen derivation that fits the secret.
///
/// # Errors
/// When the derivation is out of bounds or of the other kind.
pub fn create_cluster_with(
    entropy: &dyn Entropy,
    secret: &ProviderSecret,
    derivation: Derivation,
) -> Result<NewCluster, KeyError> {
    let cluster = ClusterId(entropy.fresh16());
    let root = Secret::random(entropy);
    let cluster_keys = [WrappedKind::Names, WrappedKind::State, WrappedKind::Audit].map(|kind| {
        let key = Secret::random(entropy);
        wrap_cluster_key(entropy, &root, cluster, kind, &key)
    });
    let keys = cluster_keys.to_vec();
    let slots_object = write_slots(entropy, cluster, &root, 1, &[(secret, derivation)], keys.clone())?;
    let identity = Identity { cluster, check: check_value(&root, cluster, b"identity", &Identity::covered(cluster)) };
    let keyring = assemble(cluster, root, 1, keys)?;
    Ok(NewCluster { keyring, identity_object: identity.encode().into(), slots_object })
}

/// Opens a cluster's keys. Takes about a second for a passphrase.
///
/// # Errors
/// When an object is damaged, of another cluster, or does not belong to the secret.
pub fn open_cluster(identity: &[u8], slots: &[u8], secret: &ProviderSecret) -> Result<Keyring, KeyError> {
    let identity = Identity::decode(identity).map_err(|source| KeyError::Format { object: "identity", source })?;
    let slots = Slots::decode(slots).map_err(|source| KeyError::Format { object: "slots", source })?;
    if identity.cluster != slots.cluster {
        return Err(KeyError::OtherCluster { identity: identity.cluster, slots: slots.cluster });
    }
    let cluster = identity.cluster;
    let root = open_slots(cluster, &slots.slots, secret)?;
    let checks = [
        ("slots", slots.check, check_value(&root, cluster, b"slots", &slots.covered())),
        ("identity", identity.check, check_value(&root, cluster, b"identity", &Identity::covered(cluster))),
    ];
    for (object, stored, expected) in checks {
        if !bool::from(stored.0.ct_eq(&expected.0)) {
            return Err(KeyError::NotAuthentic(object));
        }
    }
    assemble(cluster, root, slots.generation, slots.keys)
}

impl Keyring {
    /// The slots object of the next generation, with one slot for each secret: for adding, replacing and dropping secrets.
    /// The cluster's keys stay what they are.
    ///
    /// # Errors
    /// When a slot's key cannot be derived.
    pub fn rewrap(
        &self,
        entropy: &dyn Entropy,
        secrets: &[(&ProviderSecret, Derivation)],
    ) -> Result<(u64, Bytes), KeyError> {
        let generation = self.0.generation + 1;
        let object =
            write_slots(entropy, self.0.cluster, &self.0.root, generation, secrets, self.0.cluster_keys.clone())?;
        Ok((generation, object))
    }
}

fn write_slots(
    entropy: &dyn Entropy,
    cluster: ClusterId,
    root: &Secret<32>,
    generation: u64,
    secrets: &[(&ProviderSecret, Derivation)],
    keys: Vec<ClusterKey>,
) -> Result<Bytes, KeyError> {
    let slots = secrets
        .iter()
        .map(|(secret, derivation)| {
            let parameters = Parameters { derivation: check(*derivation)?, salt: entropy.fresh32() };
            let key = slot_key(cluster, &parameters, secret)?.ok_or(KeyError::WrongSecret)?;
            let sealed = wrapped_bytes(&key.seal, entropy, &key.binding, root);
            Ok(Slot { parameters, commitment: Hash(key.commitment), sealed })
        })
        .collect::<Result<Vec<_>, KeyError>>()?;
    let mut object = Slots { cluster, generation, slots, keys, check: Hash([0; 32]) };
    object.check = check_value(root, cluster, b"slots", &object.covered());
    Ok(object.encode().into())
}

fn open_slots(cluster: ClusterId, slots: &[Slot], secret: &ProviderSecret) -> Result<Secret<32>, KeyError> {
    for slot in slots {
        let Some(key) = slot_key(cluster, &slot.parameters, secret)? else { continue };
        if !bool::from(slot.commitment.0.ct_eq(&key.commitment)) {
            continue;
        }
        let opened = key.seal.open(&key.binding, &slot.sealed).map_err(|_| KeyError::NotAuthentic("slots"))?;
        let mut opened = zeroize::Zeroizing::new(opened);
        return Secret::take_from(&mut opened).ok_or(KeyError::NotAuthentic("slots"));
    }
    Err(KeyError::WrongSecret)
}

struct DerivedSlotKey {
    seal: SealKey,
    commitment: [u8; 32],
    binding: [u8; 72],
}

/// The key of a slot; `None` when the slot is for another kind of secret.
fn slot_key(
    cluster: ClusterId,
    parameters: &Parameters,
    secret: &ProviderSecret,
) -> Result<Option<DerivedSlotKey>, KeyError> {
    let derived = match (check(parameters.derivation)?, secret) {
        (Derivation::Keyfile, ProviderSecret::Keyfile(secret)) => {
            expand(secret, &parameters.salt, &[b"ca/v1/keyfile"], b"")
        }
        (Derivation::Passphrase { memory_kib, passes, lanes }, ProviderSecret::Passphrase(passphrase)) => {
            argon2id(passphrase.expose(), &parameters.salt, memory_kib, passes, lanes)?
        }
        (Derivation::Keyfile | Derivation::Passphrase { .. }, _) => return Ok(None),
    };
    let binding = SlotKey { cluster, parameters: &parameters.encode() }.aad();
    Ok(Some(DerivedSlotKey {
        seal: SealKey::derive_wrapping(&derived, &cluster.0, &[b"ca/v1/slot"]),
        commitment: *expand(&derived, &cluster.0, &[b"ca/v1/commit", &binding], b"").expose(),
        binding,
    }))
}

fn argon2id(
    passphrase: &[u8],
    salt: &[u8; 32],
    memory_kib: u32,
    passes: u32,
    lanes: u32,
) -> Result<Secret<32>, KeyError> {
    let failed = |error: argon2::Error| KeyError::Derivation(error.to_string());
    let parameters = Params::new(memory_kib, passes, lanes, Some(32)).map_err(failed)?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters);
    let mut outcome = Ok(());
    let secret = Secret::fill_with(|place| outcome = argon2.hash_password_into(passphrase, salt, place));
    outcome.map(|()| secret).map_err(failed)
}

fn check(derivation: Derivation) -> Result<Derivation, KeyError> {
    derivation.check().map_err(|source| KeyError::Format { object: "slots", source })
}

fn check_value(root: &Secret<32>, cluster: ClusterId, object: &[u8], covered: &[u8]) -> Hash {
    let key = expand(root, &cluster.0, &[b"ca/v1/check/", object], b"");
    Hash(*blake3::keyed_hash(key.expose(), covered).as_bytes())
}

fn wrap_cluster_key(
    entropy: &dyn Entropy,
    root: &Secret<32>,
    cluster: ClusterId,
    kind: WrappedKind,
    key: &Secret<32>,
) -> ClusterKey {
    let wrap = WrapKey::derive(root, cluster_key(cluster, kind));
    let sealed = wrapped_bytes(&wrap.seal, entropy, &wrap.binding, key);
    ClusterKey { kind, commitment: wrap.commitment, sealed }
}

fn wrapped_bytes(wrap: &SealKey, entropy: &dyn Entropy, binding: &[u8], key: &Secret<32>) -> [u8; WRAPPED_BYTES] {
    let sealed = wrap.seal(&entropy.fresh32(), binding, key.expose());
    sealed.try_into().expect("a wrapped key is 24 + 32 + 16 bytes")
}

fn cluster_key(cluster: ClusterId, kind: WrappedKind) -> KeyBinding {
    KeyBinding { cluster, volume: VolumeId::ZERO, kind, key_epoch: KeyEpoch(0) }
}

fn assemble(
    cluster: ClusterId,
    root: Secret<32>,
    generation: u64,
    cluster_keys: Vec<ClusterKey>,
) -> Result<Keyring, KeyError> {
    let open = |kind: WrappedKind| {
        let key = cluster_keys.iter().find(|key| key.kind == kind).ok_or(KeyError::Missing(kind))?;
        wrap::open(&root, cluster_key(cluster, kind), &key.sealed, key.commitment)
    };
    let names = NameKey::new(open(WrappedKind::Names)?);
    let state = SealKey::derive(&open(WrappedKind::State)?, &cluster.0, &[b"ca/v1/state"]);
    Ok(Keyring(Arc::new(Inner { cluster, root, generation, cluster_keys, names, state })))
}
