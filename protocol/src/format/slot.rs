//! The identity object and the key-slot object: the two things in a cloud with names that can be read.
//!
//! Both are read before any key is known, so everything in them is bounded here and proven later: a check value under a key
//! that only the slots open stands at the end of each.

use crate::{
    format::bind::WrappedKind,
    id::{ClusterId, Hash},
    version::{self, LEAD_BYTES, LeadError},
};

/// Bytes of an identity object.
pub const IDENTITY_BYTES: usize = LEAD_BYTES + 16 + 32;
/// Bytes of a slot's parameters.
pub const PARAMETER_BYTES: usize = 48;
/// Bytes of a wrapped 32-byte key: nonce, ciphertext, tag.
pub const WRAPPED_BYTES: usize = 24 + 32 + 16;
/// Most slots in one object: each may cost its reader a full key derivation.
pub const SLOTS_MAX: usize = 8;
/// Most wrapped cluster keys in one object.
pub const KEYS_MAX: usize = 16;
/// No slots object is longer.
pub const SLOTS_OBJECT_BYTES_MAX: usize = HEAD_BYTES + SLOTS_MAX * SLOT_BYTES + KEYS_MAX * KEY_BYTES + CHECK_BYTES;

const CHECK_BYTES: usize = 32;
const HEAD_BYTES: usize = LEAD_BYTES + 16 + 8 + 2 + 2 + 4;
const SLOT_BYTES: usize = PARAMETER_BYTES + 32 + WRAPPED_BYTES;
const KEY_BYTES: usize = 4 + 32 + WRAPPED_BYTES;

/// Least and most memory of Argon2id, in KiB. Less is too weak; more is a way to exhaust the reader.
pub const ARGON2_MEMORY_KIB: (u32, u32) = (64 << 10, 4 << 20);
/// Least and most passes of Argon2id.
pub const ARGON2_PASSES: (u32, u32) = (1, 16);
/// Least and most lanes of Argon2id.
pub const ARGON2_LANES: (u32, u32) = (1, 16);

/// Why bytes are no identity or slots object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotFormatError {
    /// The lead says so.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// The length does not fit the counts.
    #[error("the object is {found} bytes long where its header calls for {expected}")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// A count is zero or beyond its bound.
    #[error("the object declares {0} slots or keys, which is out of bounds")]
    Count(u16),
    /// A kind is unknown.
    #[error("the object holds a slot or key of unknown kind {0}")]
    Kind(u8),
    /// Key derivation parameters out of bounds; refused before any memory is taken for them.
    #[error("slot parameters are out of bounds: {memory_kib} KiB, {passes} passes, {lanes} lanes")]
    Parameters {
        /// Memory asked for.
        memory_kib: u32,
        /// Passes asked for.
        passes: u32,
        /// Lanes asked for.
        lanes: u32,
    },
    /// Bytes that must be zero are not.
    #[error("reserved bytes are in use")]
    Reserved,
}

/// Says which cluster a cloud belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// Keyed hash over everything before it.
    pub check: Hash,
}

impl Identity {
    /// The bytes that `check` covers.
    #[must_use]
    pub fn covered(cluster: ClusterId) -> Vec<u8> {
        [&version::IDENTITY.lead()[..], &cluster.0].concat()
    }

    /// The object.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&Self::covered(self.cluster)[..], &self.check.0].concat()
    }

    /// Reads an object. The check value is not verified here, for that takes a key.
    ///
    /// # Errors
    /// When the bytes are no identity object.
    pub fn decode(bytes: &[u8]) -> Result<Self, SlotFormatError> {
        let (_, rest) = version::IDENTITY.check(bytes)?;
        let length = SlotFormatError::Length { found: bytes.len(), expected: IDENTITY_BYTES };
        let mut reader = Reader(rest);
        let identity = Self {
            cluster: ClusterId(reader.take().ok_or_else(|| length.clone())?),
            check: Hash(reader.take().ok_or_else(|| length.clone())?),
        };
        if reader.0.is_empty() { Ok(identity) } else { Err(length) }
    }
}

/// How a slot makes a key of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derivation {
    /// HKDF-SHA256 of a 32-byte secret.
    Keyfile,
    /// Argon2id of a passphrase.
    Passphrase {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
}

impl Derivation {
    /// Checks the parameters against the bounds.
    ///
    /// # Errors
    /// When one is out of bounds.
    pub fn check(self) -> Result<Self, SlotFormatError> {
        let within = |value: u32, (least, most): (u32, u32)| (least..=most).contains(&value);
        match self {
            Self::Passphrase { memory_kib, passes, lanes }
                if !(within(memory_kib, ARGON2_MEMORY_KIB)
                    && within(passes, ARGON2_PASSES)
                    && within(lanes, ARGON2_LANES)) =>
            {
                Err(SlotFormatError::Parameters { memory_kib, passes, lanes })
            }
            Self::Keyfile | Self::Passphrase { .. } => Ok(self),
        }
    }
}

/// The parameters of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// How the key is made.
    pub derivation: Derivation,
    /// Random salt of the derivation.
    pub salt: [u8; 32],
}

impl Parameters {
    /// As they stand in a slot, and are bound.
    #[must_use]
    pub fn encode(&self) -> [u8; PARAMETER_BYTES] {
        let (kind, memory_kib, passes, lanes) = match self.derivation {
            Derivation::Keyfile => (1, 0, 0, 0),
            Derivation::Passphrase { memory_kib, passes, lanes } => (2, memory_kib, passes, lanes),
        };
        let parts = [
            &[kind, 0, 0, 0][..],
            &u32::to_le_bytes(memory_kib),
            &u32::to_le_bytes(passes),
            &u32::to_le_bytes(lanes),
            &self.salt,
        ];
        parts.concat().try_into().expect("the parts are 4 + 3 * 4 + 32 bytes")
    }

    fn decode(bytes: [u8; PARAMETER_BYTES]) -> Result<Self, SlotFormatError> {
        let mut reader = Reader(&bytes);
        let [kind, reserved @ ..] = reader.take::<4>().expect("48 bytes hold four");
        let mut number = || u32::from_le_bytes(reader.take().expect("48 bytes hold three numbers after the kind"));
        let (memory_kib, passes, lanes) = (number(), number(), number());
        let salt = reader.take().expect("48 bytes hold the salt after the numbers");
        if reserved != [0; 3] || (kind == 1 && (memory_kib, passes, lanes) != (0, 0, 0)) {
            return Err(SlotFormatError::Reserved);
        }
        let derivation = match kind {
            1 => Derivation::Keyfile,
            2 => Derivation::Passphrase { memory_kib, passes, lanes }.check()?,
            other => return Err(SlotFormatError::Kind(other)),
        };
        Ok(Self { derivation, salt })
    }
}

/// One key slot: the cluster root key, wrapped under a key made of one secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// How to make the slot's key.
    pub parameters: Parameters,
    /// Commitment to the slot's key, compared before anything is opened.
    pub commitment: Hash,
    /// The cluster root key, sealed.
    pub sealed: [u8; WRAPPED_BYTES],
}

/// A cluster key, wrapped under the cluster root key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterKey {
    /// Which key.
    pub kind: WrappedKind,
    /// Commitment to the wrap key, compared before anything is opened.
    pub commitment: Hash,
    /// The key, sealed.
    pub sealed: [u8; WRAPPED_BYTES],
}

/// The key-slot object of one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// The cluster.
    pub cluster: ClusterId,
    /// Counts the changes of the slots, from 1; also in the object's name.
    pub generation: u64,
    /// Ways to the cluster root key, each independent.
    pub slots: Vec<Slot>,
    /// The keys of the whole cluster.
    pub keys: Vec<ClusterKey>,
    /// Keyed hash over everything before it.
    pub check: Hash,
}

impl Slots {
    /// The bytes that `check` covers.
    ///
    /// # Panics
    /// When there are more slots or keys than the format allows.
    #[must_use]
    pub fn covered(&self) -> Vec<u8> {
        assert!((1..=SLOTS_MAX).contains(&self.slots.len()), "a slots object holds 1 to {SLOTS_MAX} slots");
        assert!((1..=KEYS_MAX).contains(&self.keys.len()), "a slots object holds 1 to {KEYS_MAX} keys");
        let count = |length: usize| u16::try_from(length).expect("bounded just above").to_le_bytes();
        let mut out = version::SLOTS.lead().to_vec();
        out.extend(self.cluster.0);
        out.extend(self.generation.to_le_bytes());
        out.extend(count(self.slots.len()));
        out.extend(count(self.keys.len()));
        out.extend([0; 4]);
        for slot in &self.slots {
            out.extend(slot.parameters.encode());
            out.extend(slot.commitment.0);
            out.extend(slot.sealed);
        }
        for key in &self.keys {
            out.extend([key.kind as u8, 0, 0, 0]);
            out.extend(key.commitment.0);
            out.extend(key.sealed);
        }
        out
    }

    /// The object.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.covered();
        out.extend(self.check.0);
        out
    }

    /// Reads an object. The check value is not verified here, for that takes a key.
    ///
    /// # Errors
    /// When the bytes are no slots object, or a slot's parameters are out of bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, SlotFormatError> {
        let (_, rest) = version::SLOTS.check(bytes)?;
        let short = SlotFormatError::Length { found: bytes.len(), expected: HEAD_BYTES };
        let mut reader = Reader(rest);
        let mut head = || {
            Some((
                ClusterId(reader.take()?),
                u64::from_le_bytes(reader.take()?),
                u16::from_le_bytes(reader.take()?),
                u16::from_le_bytes(reader.take()?),
                reader.take::<4>()?,
            ))
        };
        let (cluster, generation, slot_count, key_count, reserved) = head().ok_or(short)?;
        if reserved != [0; 4] {
            return Err(SlotFormatError::Reserved);
        }
        for (count, max) in [(slot_count, SLOTS_MAX), (key_count, KEYS_MAX)] {
            if count == 0 || usize::from(count) > max {
                return Err(SlotFormatError::Count(count));
            }
        }
        let expected =
            HEAD_BYTES + usize::from(slot_count) * SLOT_BYTES + usize::from(key_count) * KEY_BYTES + CHECK_BYTES;
        if bytes.len() != expected {
            return Err(SlotFormatError::Length { found: bytes.len(), expected });
        }
        let slots = (0..slot_count).map(|_| decode_slot(&mut reader)).collect::<Result<_, _>>()?;
        let keys = (0..key_count).map(|_| decode_key(&mut reader)).collect::<Result<_, _>>()?;
        Ok(Self { cluster, generation, slots, keys, check: Hash(reader.sure()) })
    }
}

fn decode_slot(reader: &mut Reader<'_>) -> Result<Slot, SlotFormatError> {
    Ok(Slot { parameters: Parameters::decode(reader.sure())?, commitment: Hash(reader.sure()), sealed: reader.sure() })
}

fn decode_key(reader: &mut Reader<'_>) -> Result<ClusterKey, SlotFormatError> {
    let [kind, reserved @ ..] = reader.sure::<4>();
    if reserved != [0; 3] {
        return Err(SlotFormatError::Reserved);
    }
    let kind = match kind {
        4 => WrappedKind::Names,
        5 => WrappedKind::State,
        6 => WrappedKind::Audit,
        other => return Err(SlotFormatError::Kind(other)),
    };
    Ok(ClusterKey { kind, commitment: Hash(reader.sure()), sealed: reader.sure() })
}

/// Takes fixed-width fields from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    /// Like `take`, after the total length has been checked.
    fn sure<const N: usize>(&mut self) -> [u8; N] {
        self.take().expect("the object's length was checked against its counts")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ARGON2: Derivation = Derivation::Passphrase { memory_kib: 262_144, passes: 3, lanes: 4 };

    fn slots() -> Slots {
        let slot = |derivation, byte| Slot {
            parameters: Parameters { derivation, salt: [byte; 32] },
            commitment: Hash([byte + 1; 32]),
            sealed: [byte + 2; WRAPPED_BYTES],
        };
        let key = |kind, byte| ClusterKey { kind, commitment: Hash([byte; 32]), sealed: [byte + 1; WRAPPED_BYTES] };
        Slots {
            cluster: ClusterId([1; 16]),
            generation: 7,
            slots: vec![slot(Derivation::Keyfile, 0x10), slot(ARGON2, 0x20)],
            keys: vec![key(WrappedKind::Names, 0x30), key(WrappedKind::State, 0x40), key(WrappedKind::Audit, 0x50)],
            check: Hash([0x60; 32]),
        }
    }

    #[test]
    fn the_layouts_are_frozen() {
        let identity = Identity { cluster: ClusterId([1; 16]), check: Hash([2; 32]) };
        assert_eq!(identity.encode(), [&b"VLid\x01\0\0\0"[..], &[1; 16], &[2; 32]].concat());
        let golden = [
            &b"VLks\x01\0\0\0"[..],
            &[1; 16],
            &[7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x10; 32],
            &[0x11; 32],
            &[0x12; 72],
            &[2, 0, 0, 0, 0, 0, 4, 0, 3, 0, 0, 0, 4, 0, 0, 0],
            &[0x20; 32],
            &[0x21; 32],
            &[0x22; 72],
            &[4, 0, 0, 0],
            &[0x30; 32],
            &[0x31; 72],
            &[5, 0, 0, 0],
            &[0x40; 32],
            &[0x41; 72],
            &[6, 0, 0, 0],
            &[0x50; 32],
            &[0x51; 72],
            &[0x60; 32],
        ]
        .concat();
        assert_eq!(slots().encode(), golden);
    }

    #[test]
    fn objects_read_back() {
        let identity = Identity { cluster: ClusterId([1; 16]), check: Hash([2; 32]) };
        assert_eq!(Identity::decode(&identity.encode()), Ok(identity));
        assert_eq!(Slots::decode(&slots().encode()), Ok(slots()));
    }

    #[test]
    fn every_other_length_is_refused() {
        let identity = Identity { cluster: ClusterId([1; 16]), check: Hash([2; 32]) }.encode();
        let slots = slots().encode();
        for length in 0..identity.len() {
            assert!(Identity::decode(&identity[..length]).is_err(), "{length} bytes");
        }
        for length in 0..slots.len() {
            assert!(Slots::decode(&slots[..length]).is_err(), "{length} bytes");
        }
        assert!(Identity::decode(&[&identity[..], &[0]].concat()).is_err());
        assert!(Slots::decode(&[&slots[..], &[0]].concat()).is_err());
    }

    #[test]
    fn parameters_out_of_bounds_are_refused() {
        for (memory_kib, passes, lanes) in [
            (65_535, 3, 4),
            (4_194_305, 3, 4),
            (u32::MAX, 1, 1),
            (262_144, 0, 4),
            (262_144, 17, 4),
            (262_144, 3, 0),
            (262_144, 3, 17),
        ] {
            let mut bad = slots();
            bad.slots[1].parameters.derivation = Derivation::Passphrase { memory_kib, passes, lanes };
            let expected = SlotFormatError::Parameters { memory_kib, passes, lanes };
            assert_eq!(Slots::decode(&bad.encode()), Err(expected));
        }
    }

    #[test]
    fn counts_out_of_bounds_are_refused() {
        let good = slots().encode();
        for (at, count) in [(32, 0_u16), (32, 9), (32, u16::MAX), (34, 0), (34, 17), (34, u16::MAX)] {
            let mut bad = good.clone();
            bad[at..at + 2].copy_from_slice(&count.to_le_bytes());
            assert_eq!(Slots::decode(&bad), Err(SlotFormatError::Count(count)));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..700), slots in any::<bool>()) {
            let lead = if slots { version::SLOTS.lead() } else { version::IDENTITY.lead() };
            if let Some(start) = bytes.first_chunk_mut() {
                *start = lead;
            }
            let _ = Identity::decode(&bytes);
            let _ = Slots::decode(&bytes);
        }
    }
}
