//! Names of cloud objects: keyed hashes, so that a cloud learns from a name neither volume nor kind nor number.

use std::fmt::Write;

use velum_protocol::id::{Incarnation, VolumeId};

use super::secret::Secret;

/// Name of the identity object, the same in every cloud.
pub const IDENTITY_NAME: &str = "velum/identity";

/// Name of the key-slot object of a generation.
#[must_use]
pub fn slots_name(generation: u64) -> String {
    format!("velum/slots/{generation}")
}

/// What an object is; part of what its name is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ObjectKind {
    /// Segment.
    Segment = 1,
    /// Checkpoint page.
    Page = 2,
    /// Checkpoint root.
    Root = 3,
    /// Checkpoint stub.
    Stub = 4,
    /// Sequence record.
    Record = 5,
    /// Catalogue record; its volume is all zeros.
    Catalogue = 6,
    /// Incarnation claim; its volume is all zeros and its number zero.
    Claim = 7,
}

/// Bytes of the keyed hash kept in a name: by chance two names of 2^64 objects are the same once in 2^33 clusters.
const NAME_BYTES: usize = 20;

/// The key of object names. It survives a change of the root key, so objects are never renamed.
pub struct NameKey(Secret<32>);

impl NameKey {
    pub(super) fn new(secret: Secret<32>) -> Self {
        Self(secret)
    }

    /// The object's name: `velum/ab/abcd...`, sharded by its first byte because some stores keep directories.
    #[must_use]
    pub fn object(&self, kind: ObjectKind, volume: VolumeId, incarnation: Incarnation, number: u64) -> String {
        let mut hasher = blake3::Hasher::new_keyed(self.0.expose());
        hasher
            .update(b"ca1.name")
            .update(&[kind as u8])
            .update(&volume.0)
            .update(&incarnation.0.to_le_bytes())
            .update(&number.to_le_bytes());
        let mut digest = [0; NAME_BYTES];
        hasher.finalize_xof().fill(&mut digest);
        let mut hex = String::with_capacity(NAME_BYTES * 2);
        for byte in digest {
            write!(hex, "{byte:02x}").expect("writing to a string never fails");
        }
        let shard = hex.get(..2).expect("twenty bytes have a first one");
        format!("velum/{shard}/{hex}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> NameKey {
        NameKey::new(Secret::fill_with(|bytes| bytes.fill(byte)))
    }

    #[test]
    fn names_are_frozen() {
        let name = key(1).object(ObjectKind::Segment, VolumeId([2; 16]), Incarnation(3), 4);
        assert_eq!(name, "velum/49/49eba73ee1effc23abef71452f0039d77f2cefec");
    }

    #[test]
    fn everything_a_name_is_made_of_changes_it() {
        let base = key(1).object(ObjectKind::Segment, VolumeId([2; 16]), Incarnation(3), 4);
        assert_ne!(base, key(2).object(ObjectKind::Segment, VolumeId([2; 16]), Incarnation(3), 4));
        assert_ne!(base, key(1).object(ObjectKind::Page, VolumeId([2; 16]), Incarnation(3), 4));
        assert_ne!(base, key(1).object(ObjectKind::Segment, VolumeId([3; 16]), Incarnation(3), 4));
        assert_ne!(base, key(1).object(ObjectKind::Segment, VolumeId([2; 16]), Incarnation(4), 4));
        assert_ne!(base, key(1).object(ObjectKind::Segment, VolumeId([2; 16]), Incarnation(3), 5));
    }

    #[test]
    fn no_object_name_can_meet_a_readable_one() {
        let name = key(1).object(ObjectKind::Claim, VolumeId::ZERO, Incarnation(1), 0);
        let parts: Vec<&str> = name.split('/').collect();
        assert_eq!((parts.len(), parts[0], parts[1].len(), parts[2].len()), (3, "velum", 2, 40));
        assert!(parts[2].starts_with(parts[1]));
    }
}
