//! Whole cloud objects: sealed header and sealed body put together and taken apart.
//!
//! A header is opened under the cluster-state key first; it names the object and the key epoch of the body, so that no key
//! is ever tried. What an object says it is, is compared with what was asked for: an object under another's name is
//! [`ObjectFault::Foreign`], one that does not open is damaged.

use std::collections::BTreeMap;

use velum_protocol::{
    codec::CodecError,
    format::{
        bind::ObjectHeader,
        metadata::WrappedVolumeKeys,
        object::{self, Detail, Header, ObjectError, PRELUDE_BYTES, Parts},
        page::PageError,
        reader::ReadError,
    },
    id::{ClusterId, Incarnation, KeyEpoch, VolumeId},
    version::{self, Format},
};

use super::{KeyError, Keyring, ObjectKind, OpenError, SealKey, VolumeKeys};

/// Names one object of a cluster, whichever clouds hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId {
    /// What it is.
    pub kind: ObjectKind,
    /// The volume; zero for an object of the cluster.
    pub volume: VolumeId,
    /// Cluster life that wrote it.
    pub incarnation: Incarnation,
    /// Its number among those of its kind.
    pub number: u64,
}

/// Why an object's bytes are not the object that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectFault {
    /// Not an object of the kind, or malformed inside.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Damaged or forged.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Authentic, but another object than the one asked for.
    #[error("the object is authentic, but it is number {number} of incarnation {incarnation} of volume {volume}")]
    Foreign {
        /// The volume it belongs to.
        volume: VolumeId,
        /// The life that wrote it.
        incarnation: Incarnation,
        /// Its number.
        number: u64,
    },
    /// Sealed under a key epoch that is not known.
    #[error("the object is sealed under key epoch {0}, which is not known")]
    NoKey(KeyEpoch),
    /// An encoded value inside does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The page inside does not decode.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The pieces inside do not fit each other.
    #[error("the object's {0} does not fit the rest of it")]
    Unfit(&'static str),
}

impl From<ReadError> for ObjectFault {
    fn from(error: ReadError) -> Self {
        Self::Object(error.into())
    }
}

impl ObjectKind {
    /// The lead of objects of this kind.
    #[must_use]
    pub const fn format(self) -> Format {
        match self {
            Self::Segment => version::SEGMENT,
            Self::Page => version::CHECKPOINT_PAGE,
            Self::Root => version::CHECKPOINT_ROOT,
            Self::Stub => version::CHECKPOINT_STUB,
            Self::Record => version::SEQUENCE_RECORD,
            Self::Catalogue => version::CATALOGUE,
            Self::Claim => version::CLAIM,
        }
    }
}

/// The opened keys of one volume, by key epoch. Cheap to clone; may cross threads.
#[derive(Clone, Debug)]
pub struct KeySet {
    cluster: ClusterId,
    volume: VolumeId,
    state: SealKey,
    keys: BTreeMap<KeyEpoch, VolumeKeys>,
}

impl Keyring {
    /// Where an object lies in every cloud.
    #[must_use]
    pub fn object_name(&self, id: &ObjectId) -> String {
        self.names().object(id.kind, id.volume, id.incarnation, id.number)
    }

    /// Opens the keys of a volume, all key epochs.
    ///
    /// # Errors
    /// When a key is damaged or was wrapped for something else.
    pub fn key_set(&self, volume: VolumeId, wrapped: &[WrappedVolumeKeys]) -> Result<KeySet, KeyError> {
        let keys = wrapped
            .iter()
            .map(|keys| Ok((keys.key_epoch, self.volume(volume, keys)?)))
            .collect::<Result<BTreeMap<_, _>, KeyError>>()?;
        Ok(KeySet { cluster: self.cluster(), volume, state: self.state().clone(), keys })
    }

    /// Opens the header of an object of the cluster or of any volume.
    ///
    /// # Errors
    /// When the object is damaged, or is not the one asked for.
    pub fn open_header<'a>(
        &self,
        id: &ObjectId,
        stored: &'a [u8],
        bytes_max: usize,
    ) -> Result<(Header, Parts<'a>), ObjectFault> {
        open_header(self.cluster(), self.state(), id, stored, bytes_max)
    }
}

impl KeySet {
    /// The cluster.
    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The volume.
    #[must_use]
    pub const fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The keys that seal now; `None` only for a volume without keys, which the metadata never makes.
    #[must_use]
    pub fn newest(&self) -> Option<&VolumeKeys> {
        self.keys.values().next_back()
    }

    /// The keys of an epoch.
    #[must_use]
    pub fn epoch(&self, key_epoch: KeyEpoch) -> Option<&VolumeKeys> {
        self.keys.get(&key_epoch)
    }

    /// Names one of the volume's objects.
    #[must_use]
    pub const fn id(&self, kind: ObjectKind, incarnation: Incarnation, number: u64) -> ObjectId {
        ObjectId { kind, volume: self.volume, incarnation, number }
    }

    /// Lead and sealed header of an object whose body is sealed under `key_epoch`.
    pub(super) fn prelude(
        &self,
        fresh: &[u8; 32],
        id: &ObjectId,
        key_epoch: KeyEpoch,
        detail: Detail,
    ) -> [u8; PRELUDE_BYTES] {
        prelude(self.cluster, &self.state, fresh, id, key_epoch, detail)
    }

    /// Opens the header of an object whatever it says it is.
    pub(super) fn read_header(&self, kind: ObjectKind, stored: &[u8], bytes_max: usize) -> Result<Header, ObjectFault> {
        read_header(self.cluster, &self.state, kind, stored, bytes_max).map(|(header, _)| header)
    }

    /// Opens the header of one of the volume's objects and finds the keys of its body.
    pub(super) fn open_header<'a>(
        &self,
        id: &ObjectId,
        stored: &'a [u8],
        bytes_max: usize,
    ) -> Result<(Header, &VolumeKeys, Parts<'a>), ObjectFault> {
        let (header, parts) = open_header(self.cluster, &self.state, id, stored, bytes_max)?;
        let keys = self.epoch(header.key_epoch).ok_or(ObjectFault::NoKey(header.key_epoch))?;
        Ok((header, keys, parts))
    }
}

pub(super) fn prelude(
    cluster: ClusterId,
    state: &SealKey,
    fresh: &[u8; 32],
    id: &ObjectId,
    key_epoch: KeyEpoch,
    detail: Detail,
) -> [u8; PRELUDE_BYTES] {
    let format = id.kind.format();
    let header =
        Header { volume: id.volume, incarnation: id.incarnation, key_epoch, number: id.number, detail }.encode();
    let mut out = format.lead().to_vec();
    state.seal_into(fresh, &ObjectHeader { cluster, magic: format.magic }.aad(), &header, &mut out);
    out.try_into().expect("a lead and a sealed header make the prelude")
}

/// A whole metadata object: prelude, and the padded payload sealed under `key`.
pub(super) fn seal_metadata(
    prelude: &[u8; PRELUDE_BYTES],
    key: &SealKey,
    fresh: &[u8; 32],
    aad: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(object::padded_object_bytes(payload.len()));
    out.extend_from_slice(prelude);
    key.seal_into(fresh, aad, &object::pad(payload), &mut out);
    out
}

/// The payload of a metadata object's body.
pub(super) fn open_metadata(key: &SealKey, aad: &[u8], body: &[u8]) -> Result<Vec<u8>, ObjectFault> {
    let padded = key.open(aad, body)?;
    Ok(object::unpad(&padded)?.to_vec())
}

fn open_header<'a>(
    cluster: ClusterId,
    state: &SealKey,
    id: &ObjectId,
    stored: &'a [u8],
    bytes_max: usize,
) -> Result<(Header, Parts<'a>), ObjectFault> {
    let (header, parts) = read_header(cluster, state, id.kind, stored, bytes_max)?;
    if (header.volume, header.incarnation, header.number) != (id.volume, id.incarnation, id.number) {
        return Err(ObjectFault::Foreign {
            volume: header.volume,
            incarnation: header.incarnation,
            number: header.number,
        });
    }
    Ok((header, parts))
}

fn read_header<'a>(
    cluster: ClusterId,
    state: &SealKey,
    kind: ObjectKind,
    stored: &'a [u8],
    bytes_max: usize,
) -> Result<(Header, Parts<'a>), ObjectFault> {
    let format = kind.format();
    let parts = object::split(format, stored, bytes_max)?;
    let aad = ObjectHeader { cluster, magic: format.magic }.aad();
    let header = Header::decode(&state.open(&aad, parts.sealed_header)?)?;
    Ok((header, parts))
}
