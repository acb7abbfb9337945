//! Attacks on the key slots, the identity and the wrapped keys: each must be found out before a key is used.

use std::cell::Cell;

use velum_protocol::{
    format::{
        metadata::WrappedVolumeKeys,
        slot::{Derivation, Slots},
    },
    id::{Incarnation, KeyEpoch, VolumeId},
};

use super::*;
use crate::env::Entropy;

/// Random bytes that are a counter: never the same twice, and known.
#[derive(Default)]
pub(super) struct Counting(Cell<u64>);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.set(self.0.get() + 1);
        blake3::Hasher::new().update(&self.0.get().to_le_bytes()).finalize_xof().fill(bytes);
    }
}

/// A random source that gives the same bytes for ever.
struct Stuck;

impl Entropy for Stuck {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0x5a);
    }
}

const VOLUME: VolumeId = VolumeId([3; 16]);
/// The weakest that is allowed; tests derive a few keys each.
const CHEAP: Derivation = Derivation::Passphrase { memory_kib: 64 << 10, passes: 1, lanes: 1 };

fn keyfile(byte: u8) -> ProviderSecret {
    let mut contents = vec![byte; 32];
    contents[0] = !byte;
    ProviderSecret::from_keyfile(0o600, contents).unwrap()
}

fn passphrase(text: &str) -> ProviderSecret {
    ProviderSecret::from_passphrase(text.to_owned()).unwrap()
}

fn cluster() -> NewCluster {
    create_cluster(&Counting::default(), &keyfile(1)).unwrap()
}

fn reopen(identity: &[u8], slots: &[u8], secret: &ProviderSecret) -> Result<Keyring, KeyError> {
    open_cluster(identity, slots, secret)
}

#[test]
fn a_cluster_reopens_with_the_same_keys() {
    let new = cluster();
    let opened = reopen(&new.identity_object, &new.slots_object, &keyfile(1)).unwrap();
    assert_eq!(opened.cluster(), new.keyring.cluster());
    let name = |keyring: &Keyring| keyring.names().object(ObjectKind::Segment, VOLUME, Incarnation(1), 7);
    assert_eq!(name(&opened), name(&new.keyring));
    let sealed = new.keyring.state().seal(&[1; 32], b"bound", b"text");
    assert_eq!(opened.state().open(b"bound", &sealed).unwrap(), b"text");
    let wrapped = new.keyring.new_volume_keys(&Counting::default(), VOLUME, KeyEpoch(1));
    let sealed = new.keyring.volume(VOLUME, &wrapped).unwrap().block.seal(&[1; 32], b"bound", b"text");
    assert_eq!(opened.volume(VOLUME, &wrapped).unwrap().block.open(b"bound", &sealed).unwrap(), b"text");
}

#[test]
fn a_passphrase_opens_its_slot_and_no_other_does() {
    let secret = passphrase("five words are quite enough");
    let new = create_cluster_with(&Counting::default(), &secret, CHEAP).unwrap();
    assert!(reopen(&new.identity_object, &new.slots_object, &secret).is_ok());
    let wrong = passphrase("five words are quite enougH");
    assert_eq!(reopen(&new.identity_object, &new.slots_object, &wrong).err(), Some(KeyError::WrongSecret));
    assert_eq!(reopen(&new.identity_object, &new.slots_object, &keyfile(1)).err(), Some(KeyError::WrongSecret));
}

#[test]
fn a_wrong_keyfile_is_told_apart_from_damage() {
    let new = cluster();
    assert_eq!(reopen(&new.identity_object, &new.slots_object, &keyfile(2)).err(), Some(KeyError::WrongSecret));
}

#[test]
fn a_flipped_bit_anywhere_in_either_object_is_found() {
    let new = cluster();
    for at in 0..new.slots_object.len() * 8 {
        let mut bad = new.slots_object.to_vec();
        bad[at / 8] ^= 1 << (at % 8);
        assert!(reopen(&new.identity_object, &bad, &keyfile(1)).is_err(), "slots, bit {at}");
    }
    for at in 0..new.identity_object.len() * 8 {
        let mut bad = new.identity_object.to_vec();
        bad[at / 8] ^= 1 << (at % 8);
        assert!(reopen(&bad, &new.slots_object, &keyfile(1)).is_err(), "identity, bit {at}");
    }
}

#[test]
fn truncated_extended_and_empty_objects_are_refused() {
    let new = cluster();
    for length in 0..new.slots_object.len() {
        assert!(reopen(&new.identity_object, &new.slots_object[..length], &keyfile(1)).is_err());
    }
    for length in 0..new.identity_object.len() {
        assert!(reopen(&new.identity_object[..length], &new.slots_object, &keyfile(1)).is_err());
    }
    let longer = [&new.slots_object[..], &[0]].concat();
    assert!(reopen(&new.identity_object, &longer, &keyfile(1)).is_err());
}

#[test]
fn objects_of_another_cluster_with_the_same_secret_are_refused() {
    let entropy = Counting::default();
    let (one, two) = (create_cluster(&entropy, &keyfile(1)).unwrap(), create_cluster(&entropy, &keyfile(1)).unwrap());
    let mixed = reopen(&one.identity_object, &two.slots_object, &keyfile(1));
    assert!(matches!(mixed, Err(KeyError::OtherCluster { .. })));

    // The cluster id moved over as well: the slots' own binding tells.
    let mut forged = two.slots_object.to_vec();
    forged[8..24].copy_from_slice(&one.keyring.cluster().0);
    assert_eq!(reopen(&one.identity_object, &forged, &keyfile(1)).err(), Some(KeyError::WrongSecret));
}

#[test]
fn a_slot_spliced_in_by_someone_else_is_found_by_the_check_value() {
    let entropy = Counting::default();
    let new = create_cluster(&entropy, &keyfile(1)).unwrap();
    let (_, rewrapped) = new
        .keyring
        .rewrap(&entropy, &[(&keyfile(1), Derivation::Keyfile), (&keyfile(2), Derivation::Keyfile)])
        .unwrap();
    let mut spliced = Slots::decode(&rewrapped).unwrap();
    spliced.slots.pop();
    let spliced = spliced.encode();
    assert_eq!(reopen(&new.identity_object, &spliced, &keyfile(1)).err(), Some(KeyError::NotAuthentic("slots")));
}

#[test]
fn an_older_generation_says_so() {
    let new = cluster();
    let (generation, object) = new.keyring.rewrap(&Counting::default(), &[(&keyfile(2), Derivation::Keyfile)]).unwrap();
    let opened = reopen(&new.identity_object, &object, &keyfile(2)).unwrap();
    assert_eq!((generation, opened.generation(), new.keyring.generation()), (2, 2, 1));
    assert_eq!(reopen(&new.identity_object, &object, &keyfile(1)).err(), Some(KeyError::WrongSecret));
}

#[test]
fn weakened_derivation_parameters_open_nothing() {
    let secret = passphrase("five words are quite enough");
    let stronger = Derivation::Passphrase { memory_kib: 64 << 10, passes: 2, lanes: 1 };
    let new = create_cluster_with(&Counting::default(), &secret, stronger).unwrap();
    let mut weakened = Slots::decode(&new.slots_object).unwrap();
    weakened.slots[0].parameters.derivation = CHEAP;
    assert_eq!(reopen(&new.identity_object, &weakened.encode(), &secret).err(), Some(KeyError::WrongSecret));
    for out_of_bounds in [(1 << 10, 1, 1), (u32::MAX, 16, 16)] {
        let (memory_kib, passes, lanes) = out_of_bounds;
        weakened.slots[0].parameters.derivation = Derivation::Passphrase { memory_kib, passes, lanes };
        let refused = reopen(&new.identity_object, &weakened.encode(), &secret);
        assert!(matches!(refused, Err(KeyError::Format { .. })));
    }
}

#[test]
fn wrapped_keys_open_for_their_volume_kind_and_epoch_only() {
    let entropy = Counting::default();
    let keyring = cluster().keyring;
    let wrapped = keyring.new_volume_keys(&entropy, VOLUME, KeyEpoch(1));
    assert!(keyring.volume(VOLUME, &wrapped).is_ok());
    assert!(keyring.volume(VolumeId([4; 16]), &wrapped).is_err());
    assert!(keyring.volume(VOLUME, &WrappedVolumeKeys { key_epoch: KeyEpoch(2), ..wrapped.clone() }).is_err());
    let swapped =
        WrappedVolumeKeys { data: wrapped.metadata.clone(), metadata: wrapped.data.clone(), ..wrapped.clone() };
    assert!(keyring.volume(VOLUME, &swapped).is_err());
    let other = create_cluster(&entropy, &keyfile(1)).unwrap().keyring;
    assert!(other.volume(VOLUME, &wrapped).is_err());
}

#[test]
fn damage_to_a_wrapped_key_is_found() {
    let keyring = cluster().keyring;
    let wrapped = keyring.new_volume_keys(&Counting::default(), VOLUME, KeyEpoch(1));
    for at in 0..wrapped.data.sealed.len() {
        let mut bad = wrapped.clone();
        let mut sealed = bad.data.sealed.to_vec();
        sealed[at] ^= 1;
        bad.data.sealed = sealed.into();
        assert!(keyring.volume(VOLUME, &bad).is_err(), "byte {at}");
    }
    for length in [0, 24, 71] {
        let mut bad = wrapped.clone();
        bad.metadata.sealed.truncate(length);
        assert!(keyring.volume(VOLUME, &bad).is_err(), "{length} bytes");
    }
    let mut bad = wrapped.clone();
    bad.journal.commitment.0[0] ^= 1;
    assert!(keyring.volume(VOLUME, &bad).is_err());
}

#[test]
fn the_keys_of_a_volume_are_all_different() {
    let keyring = cluster().keyring;
    let wrapped = keyring.new_volume_keys(&Counting::default(), VOLUME, KeyEpoch(1));
    let keys = keyring.volume(VOLUME, &wrapped).unwrap();
    let all =
        [&keys.block, &keys.segment, &keys.sequence, &keys.checkpoint, &keys.journal, &keys.cache, keyring.state()];
    for (at, key) in all.iter().enumerate() {
        let sealed = key.seal(&[1; 32], b"bound", b"text");
        for (other_at, other) in all.iter().enumerate() {
            assert_eq!(other.open(b"bound", &sealed).is_ok(), at == other_at, "{at} and {other_at}");
        }
    }
}

#[test]
fn a_stuck_random_source_at_creation_repeats_no_nonce_with_another_key() {
    // All keys are equal then, but each wrapped key has a binding of its own, and so a nonce of its own.
    let new = create_cluster(&Stuck, &keyfile(1)).unwrap();
    let wrapped = new.keyring.new_volume_keys(&Stuck, VOLUME, KeyEpoch(1));
    let mut nonces: Vec<Vec<u8>> =
        [&wrapped.data, &wrapped.metadata, &wrapped.journal].map(|key| key.sealed[..24].to_vec()).into();
    nonces.extend(Slots::decode(&new.slots_object).unwrap().keys.iter().map(|key| key.sealed[..24].to_vec()));
    let count = nonces.len();
    nonces.sort();
    nonces.dedup();
    assert_eq!(nonces.len(), count);
}

#[test]
fn nothing_printed_holds_a_key() {
    let keyring = cluster().keyring;
    let wrapped = keyring.new_volume_keys(&Counting::default(), VOLUME, KeyEpoch(1));
    let keys = keyring.volume(VOLUME, &wrapped).unwrap();
    let shown = format!("{keyring:?} {keys:?}");
    assert!(shown.contains("SealKey(..)"));
    assert!(shown.len() < 300, "{shown}");
}

#[test]
fn no_window_of_any_key_stands_in_what_is_stored() {
    let entropy = Counting::default();
    let secret = keyfile(1);
    let ProviderSecret::Keyfile(file_key) = &secret else { panic!("a keyfile was given") };
    let new = create_cluster(&entropy, &secret).unwrap();
    let wrapped = new.keyring.new_volume_keys(&entropy, VOLUME, KeyEpoch(1));
    let name = new.keyring.names().object(ObjectKind::Segment, VOLUME, Incarnation(1), 1);
    let mut stored = [&new.identity_object[..], &new.slots_object, name.as_bytes()].concat();
    for key in [&wrapped.data, &wrapped.metadata, &wrapped.journal] {
        stored.extend_from_slice(&key.sealed);
        stored.extend_from_slice(&key.commitment.0);
    }
    for key in [file_key, &new.keyring.0.root] {
        for window in key.expose().windows(16) {
            assert!(!stored.windows(16).any(|place| place == window));
        }
    }
}
