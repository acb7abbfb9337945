//! What one stored object says, opened with the cluster's keys and without the node's help.

use bytes::Bytes;
use velum_node::keyring::{KeySet, Keyring, ObjectId, ObjectKind};
use velum_protocol::{
    format::{
        bind::ObjectHeader,
        catalogue::Catalogue,
        checkpoint::{RootLink, Stub},
        claim::Claim,
        metadata::ObjectRef,
        object::{self, Header},
        page::{Payload, SegmentId},
        segment::Entry,
        sequence::{Body, Link},
    },
    id::{Hash, ObjectNumber, Seq, VolumeId},
};

/// An object that opened.
#[derive(Clone, Debug)]
pub enum Meaning {
    /// Sealed frames and their directory.
    Segment(Vec<Entry>),
    /// A link of a volume's sequence.
    Record(Record),
    /// A page of the extent map.
    Page(Payload),
    /// The top of a checkpoint.
    Root {
        /// What it is a checkpoint of.
        link: RootLink,
        /// Its pages.
        payload: Payload,
    },
    /// Names a root.
    Stub(Stub),
    /// Volumes, keys and clouds.
    Catalogue(Catalogue),
    /// The beginning of a life.
    Claim(Claim),
}

/// A sequence record.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its place.
    pub link: Link,
    /// What it says.
    pub body: Body,
    /// The chain hash at it.
    pub chain: Hash,
}

impl std::hash::Hash for Record {
    /// The chain covers all the rest.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.chain.hash(state);
    }
}

/// The longest object the simulator opens.
const BYTES_MAX: usize = 64 << 20;

const KINDS: [ObjectKind; 7] = [
    ObjectKind::Segment,
    ObjectKind::Page,
    ObjectKind::Root,
    ObjectKind::Stub,
    ObjectKind::Record,
    ObjectKind::Catalogue,
    ObjectKind::Claim,
];

/// Finds out from its bytes alone which object this is.
///
/// # Errors
/// When it is no object of the cluster.
pub fn identify(keyring: &Keyring, stored: &[u8]) -> Result<ObjectId, String> {
    let kind = KINDS.into_iter().find(|kind| kind.format().check(stored).is_ok());
    let kind = kind.ok_or("it is of no known kind")?;
    let parts = object::split(kind.format(), stored, BYTES_MAX).map_err(|error| error.to_string())?;
    let aad = ObjectHeader { cluster: keyring.cluster(), magic: kind.format().magic }.aad();
    let header = keyring.state().open(&aad, parts.sealed_header).map_err(|error| error.to_string())?;
    let header = Header::decode(&header).map_err(|error| error.to_string())?;
    Ok(ObjectId { kind, volume: header.volume, incarnation: header.incarnation, number: header.number })
}

/// Opens an object; `keys` are those of its volume.
///
/// # Errors
/// When it is damaged, or the volume's keys are needed and not known.
pub fn open(keyring: &Keyring, keys: Option<&KeySet>, id: &ObjectId, stored: &Bytes) -> Result<Meaning, String> {
    let words = |error: velum_node::keyring::ObjectFault| error.to_string();
    let volume = || keys.ok_or_else(|| "the keys of its volume are not known".to_owned());
    let numbered = (id.incarnation, ObjectNumber(id.number));
    let itself = ObjectRef {
        incarnation: id.incarnation,
        number: ObjectNumber(id.number),
        bytes: stored.len() as u64,
        hash: velum_protocol::checksum::hash(stored),
    };
    Ok(match id.kind {
        ObjectKind::Segment => Meaning::Segment(volume()?.verify_segment(numbered, stored).map_err(words)?),
        ObjectKind::Page => {
            let payload = volume()?.open_page(&itself, stored).map_err(words)?;
            Meaning::Page(Payload::decode(&payload).map_err(|error| error.to_string())?)
        }
        ObjectKind::Root => {
            let (link, payload) = volume()?.open_root(&itself, stored).map_err(words)?;
            Meaning::Root { link, payload: Payload::decode(&payload).map_err(|error| error.to_string())? }
        }
        ObjectKind::Stub => Meaning::Stub(volume()?.open_stub(id.incarnation, id.number, stored).map_err(words)?),
        ObjectKind::Record => {
            let record = volume()?.open_record((id.incarnation, Seq(id.number)), stored).map_err(words)?;
            Meaning::Record(Record { link: record.link, body: record.body, chain: record.hash })
        }
        ObjectKind::Catalogue => {
            Meaning::Catalogue(keyring.open_catalogue(id.incarnation, id.number, stored).map_err(words)?.0)
        }
        ObjectKind::Claim => Meaning::Claim(keyring.open_claim(id.incarnation, stored).map_err(words)?),
    })
}

impl Meaning {
    /// The objects it names, and the hashes of those it vouches for by hash.
    #[must_use]
    pub fn names(&self, volume: VolumeId) -> Vec<(ObjectId, Option<Hash>)> {
        let of = |kind: ObjectKind| {
            move |object: &ObjectRef| {
                let (incarnation, number) = (object.incarnation, object.number.0);
                (ObjectId { kind, volume, incarnation, number }, Some(object.hash))
            }
        };
        match self {
            Self::Record(record) => record.body.segments.iter().map(of(ObjectKind::Segment)).collect(),
            Self::Page(Payload::Leaf(leaf)) => {
                let segment = |segment: &SegmentId| {
                    let (incarnation, number) = (segment.incarnation, segment.number.0);
                    (ObjectId { kind: ObjectKind::Segment, volume, incarnation, number }, None)
                };
                leaf.segments.iter().map(segment).collect()
            }
            Self::Page(page @ Payload::Usage(_)) => page.objects().iter().map(of(ObjectKind::Segment)).collect(),
            Self::Page(page) => page.objects().iter().map(of(ObjectKind::Page)).collect(),
            Self::Root { payload, .. } => payload.objects().iter().map(of(ObjectKind::Page)).collect(),
            Self::Stub(stub) => vec![of(ObjectKind::Root)(&stub.checkpoint.root)],
            Self::Segment(_) | Self::Catalogue(_) | Self::Claim(_) => Vec::new(),
        }
    }
}
