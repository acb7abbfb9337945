//! Small clouds told object by object, for the checkers' own tests.

use std::rc::Rc;

use velum_node::keyring::{ObjectId, ObjectKind};
use velum_protocol::{
    checksum,
    format::{
        checkpoint::{RootLink, Stub},
        claim::Claim,
        metadata::{CheckpointRef, ObjectRef},
        page::{Cut, Payload, RootPayload, SegmentUsage, UsageIndex, UsagePayload, UsageRef},
        sequence::{Body, Link},
    },
    id::{ClusterId, Epoch, Hash, Incarnation, Jseq, ObjectNumber, Seq, VolumeId},
};

use super::{Known, Ledger, Meaning, Record};

/// The volume that is told of.
pub(crate) const VOLUME: VolumeId = VolumeId([1; 16]);

/// An object of the volume.
pub(crate) fn id(kind: ObjectKind, number: u64) -> ObjectId {
    ObjectId { kind, volume: VOLUME, incarnation: Incarnation(1), number }
}

/// The hash of its bytes.
pub(crate) fn hash(kind: ObjectKind, number: u64) -> Hash {
    checksum::hash(format!("{kind:?} {number}").as_bytes())
}

fn object(kind: ObjectKind, number: u64) -> ObjectRef {
    ObjectRef { incarnation: Incarnation(1), number: ObjectNumber(number), bytes: 1, hash: hash(kind, number) }
}

/// A segment with nothing in it.
pub(crate) fn segment() -> Meaning {
    Meaning::Segment(Vec::new())
}

/// A record that names segments.
pub(crate) fn record(segments: &[u64]) -> Meaning {
    Meaning::Record(Record {
        link: Link { epoch: Epoch(1), first: Jseq(1), last: Jseq(1), prev_hash: Hash::ZERO },
        body: Body {
            journal_chain: Hash::ZERO,
            segments: segments.iter().map(|number| object(ObjectKind::Segment, *number)).collect(),
            updates: Vec::new(),
        },
        chain: Hash::ZERO,
    })
}

/// A page that counts the blocks of segments.
pub(crate) fn page(segments: &[u64]) -> Meaning {
    let usage = |number: &u64| SegmentUsage { object: object(ObjectKind::Segment, *number), live_blocks: 1 };
    let index = UsageIndex { incarnation: Incarnation(1), index: 0 };
    Meaning::Page(Payload::Usage(UsagePayload { index, segments: segments.iter().map(usage).collect() }))
}

/// A root at `seq` that names a page.
pub(crate) fn root(seq: u64, page: u64) -> Meaning {
    let (seq, chain, index) = (Seq(seq), Hash::ZERO, UsageIndex { incarnation: Incarnation(1), index: 0 });
    let cut = Cut { seq, chain, epoch: Epoch(1), last: Jseq(seq.0), journal_chain: Hash::ZERO };
    let usage = vec![UsageRef { index, page: object(ObjectKind::Page, page) }];
    let payload = RootPayload { cut, size_blocks: 1, mapped_blocks: 1, level: 1, children: Vec::new(), usage };
    Meaning::Root { link: RootLink { seq, chain }, payload: Payload::Root(payload) }
}

/// The stub of checkpoint `number` at `seq` that names a root.
pub(crate) fn stub(number: u64, seq: u64, root: u64) -> Meaning {
    let root = object(ObjectKind::Root, root);
    let checkpoint = CheckpointRef { number, seq: Seq(seq), chain: Hash::ZERO, root };
    Meaning::Stub(Stub { checkpoint, last: Jseq(seq), journal_chain: Hash::ZERO, epoch: Epoch(1) })
}

impl Ledger {
    /// `cloud` has stored an object that means `meaning`.
    pub(crate) fn tell(&mut self, cloud: &str, kind: ObjectKind, number: u64, meaning: Meaning) -> ObjectId {
        let (id, hash) = (id(kind, number), hash(kind, number));
        let names = meaning.names(VOLUME);
        self.known.insert(hash, Known { id, meaning: Rc::new(meaning) });
        self.first.insert(id, hash);
        self.first_lives.insert(VOLUME, Incarnation(1));
        self.holdings.entry(cloud.to_owned()).or_default().put(id, hash, names);
        id
    }

    /// `cloud` has stored the claim of a life that took nothing over.
    pub(crate) fn tell_claim(&mut self, cloud: &str, life: u32) {
        let incarnation = Incarnation(life);
        let id = ObjectId { kind: ObjectKind::Claim, volume: VolumeId::ZERO, incarnation, number: 0 };
        let hash = checksum::hash(format!("claim {life}").as_bytes());
        let (cluster, catalogue) = (ClusterId([0; 16]), (0, Hash::ZERO));
        let claim = Claim { cluster, incarnation, claim: [0; 16], catalogue, heads: Vec::new() };
        self.known.insert(hash, Known { id, meaning: Rc::new(Meaning::Claim(claim)) });
        self.holdings.entry(cloud.to_owned()).or_default().put(id, hash, Vec::new());
    }

    /// `cloud` has deleted an object.
    pub(crate) fn tell_gone(&mut self, cloud: &str, id: &ObjectId) {
        self.holdings.entry(cloud.to_owned()).or_default().delete(id);
    }
}
