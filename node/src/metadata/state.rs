//! The shape of the replicated metadata, and its saved form.
//!
//! Saved form (the payload of a raft snapshot): magic, version, then the encoded state; drawn in `docs/format.md`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use velum_protocol::{
    codec::{self, CodecError},
    format::metadata::{AclEntry, CheckpointRef, CloudName, CondemnedObject, ObjectRef, RequestId, WrappedVolumeKeys},
    id::{ClusterId, Epoch, Hash, Incarnation, Jseq, Lineage, NodeId, ObjectNumber, Seq, VolumeId},
};

use super::{
    apply::{Answer, Rejection},
    attachments::Attachments,
};

/// Marks a saved state.
pub const STATE_MAGIC: [u8; 4] = *b"VMET";
/// Version of the saved form.
pub const STATE_VERSION: u16 = 6;
/// The first version, which ends before the nodes.
const STATE_WITHOUT_NODES: u16 = 1;
/// The second, which ends behind them.
const STATE_UP_TO_NODES: u16 = 2;
/// The third, which ends behind what clouds were left with.
const STATE_UP_TO_LEFT: u16 = 3;
/// The fourth, which ends behind the nodes that leave.
const STATE_UP_TO_LEAVING: u16 = 4;
/// The fifth, which ends behind the ensembles.
const STATE_UP_TO_ENSEMBLES: u16 = 5;
/// Longest saved state.
pub const STATE_BYTES_MAX: usize = codec::ENCODED_BYTES_MAX;
/// Bytes of sealed records the state takes in all; past that a volume has to make a checkpoint first. The rest of
/// [`STATE_BYTES_MAX`] is left to everything else.
pub const RECORD_BYTES_MAX: usize = STATE_BYTES_MAX / 4 * 3;

/// The change that makes a cluster: the catalogue shows that it has no volumes.
const CHANGE_FIRST: u64 = 1;

/// In the ledger of condemned objects this number stands for everything that an earlier life of the cluster left and nothing
/// refers to; objects are numbered from 1.
pub const LEAVINGS: ObjectNumber = ObjectNumber(0);

/// What states of earlier versions have no room for.
const NO_NODES: BTreeMap<NodeId, NodeEntry> = BTreeMap::new();
const NOTHING_LEFT: BTreeMap<(VolumeId, CloudName), Seq> = BTreeMap::new();
const NO_BEGINNINGS: BTreeMap<CloudName, u64> = BTreeMap::new();
const NO_OFFERS: BTreeMap<NodeId, Offer> = BTreeMap::new();
const NOBODY_LEAVES: BTreeSet<NodeId> = BTreeSet::new();
const NO_ENSEMBLES: BTreeMap<VolumeId, EnsembleState> = BTreeMap::new();
const NO_ATTACHMENTS: BTreeMap<VolumeId, Attachments> = BTreeMap::new();

/// The replicated metadata of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// Which life of it; a recovery from clouds alone starts the next.
    pub incarnation: Incarnation,
    /// The configured clouds, in the operator's order.
    pub clouds: Vec<CloudEntry>,
    /// How many clouds must hold something before it counts as stored (w).
    pub quorum: u32,
    /// Volumes by id, deleted ones until their objects are gone.
    pub volumes: BTreeMap<VolumeId, VolumeState>,
    /// Number and hash of the newest catalogue record; number 0 before the first.
    pub catalogue: (u64, Hash),
    /// Its sealed bytes, the same for every cloud; empty when it is of an earlier life.
    pub catalogue_record: Bytes,
    /// The change it shows.
    pub catalogue_shown: u64,
    /// Counts changes that the catalogue must show; it is behind while its record shows a lower one.
    pub catalogue_wanted: u64,
    /// Answers of the newest proposals, oldest first, so that a repeated one is applied once.
    pub answered: VecDeque<(RequestId, Result<Answer, Rejection>)>,
    /// Nodes by number, retired ones too: a number is never used again.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
    /// Where the cursor of a volume stood in a cloud when it began anew, until it is beyond that again: records up to there and
    /// a step beyond may still be in the cloud, and nothing else tells where.
    pub left: BTreeMap<(VolumeId, CloudName), Seq>,
    /// How often each cloud has begun anew; none for never.
    pub beginnings: BTreeMap<CloudName, u64>,
    /// Places that newcomers may take, by number, and who took them.
    pub offers: BTreeMap<NodeId, Offer>,
    /// Nodes that are to leave the group and have not yet.
    pub leaving: BTreeSet<NodeId>,
    /// Who keeps the journal of each volume that is not kept by its owner alone.
    pub ensembles: BTreeMap<VolumeId, EnsembleState>,
    /// Who is attached to each volume, if anybody is or was.
    pub attachments: BTreeMap<VolumeId, Attachments>,
}

/// A place that a newcomer may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Hash of the token.
    pub token: Hash,
    /// Hash of the key of the node that took it.
    pub taken_by: Option<Hash>,
}

/// Who keeps a volume's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsembleState {
    /// The nodes of the volume's epoch, rising.
    pub members: Vec<NodeId>,
    /// The epoch that may make records, or was the last that did; below the volume's while that one takes over.
    pub opened: Epoch,
    /// The nodes of that epoch: who has to be fenced.
    pub opened_members: Vec<NodeId>,
    /// Where the open epoch began: the last position before it, and the journal's chain there.
    pub base: (Jseq, Hash),
}

/// A node as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Where its peers find it.
    pub address: String,
    /// It is gone for good.
    pub retired: bool,
}

/// A cloud as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudEntry {
    /// The operator's name for it.
    pub name: CloudName,
    /// Where it is, without credentials.
    pub url: String,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeState {
    /// The operator's name for it.
    pub name: String,
    /// Size in bytes, a multiple of the block size.
    pub size_bytes: u64,
    /// Who may do what; the last entry that matches decides.
    pub acl: Vec<AclEntry>,
    /// Counts changes of the ACL.
    pub acl_version: u64,
    /// The change of the catalogue that shows the volume as it is now. Nothing is flushed before enough clouds show it.
    pub described: u64,
    /// Wrapped keys of every key epoch, oldest first; the last one seals.
    pub keys: Vec<WrappedVolumeKeys>,
    /// The sequencing node.
    pub owner: Option<NodeId>,
    /// Its fencing number; zero before the first owner.
    pub epoch: Epoch,
    /// Changes only when acked writes may have been lost.
    pub lineage: Lineage,
    /// The next object number to hand out.
    pub next_object: ObjectNumber,
    /// Ranges of object numbers handed out, by first number, until every number is referenced or gone.
    pub ranges: BTreeMap<ObjectNumber, GrantedRange>,
    /// The flush grants that stand.
    pub grants: BTreeSet<u64>,
    /// The next flush grant.
    pub next_grant: u64,
    /// Where the sequence stands.
    pub head: Head,
    /// Sealed records since the newest checkpoint, and older ones that some cloud lacks, back to the checkpoint before.
    pub records: BTreeMap<Seq, RecordEntry>,
    /// The newest checkpoint that w clouds hold.
    pub checkpoint: Option<CheckpointRef>,
    /// The one before it.
    pub previous_checkpoint: Option<CheckpointRef>,
    /// Per cloud: it holds every record up to this one with all that they name. Zero when it begins anew; none when it never
    /// began, or nothing is known of it since a recovery.
    pub cursors: BTreeMap<CloudName, Seq>,
    /// Per cloud: it holds this checkpoint (by number) with all that it names.
    pub checkpoint_cursors: BTreeMap<CloudName, u64>,
    /// Objects nothing references any more, not yet gone from every cloud; under [`LEAVINGS`] all that a life left.
    pub condemned: BTreeMap<(Incarnation, ObjectNumber), Condemned>,
    /// The volume is deleted; what it left in the clouds is being reclaimed.
    pub deleted: bool,
}

/// Object numbers handed to one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedRange {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// How many numbers.
    pub count: u64,
}

/// The newest link of a volume's sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its place; zero before the first record.
    pub seq: Seq,
    /// Its chain hash; all zero before the first record.
    pub chain: Hash,
    /// The last journal position it covers.
    pub last: Jseq,
    /// The journal's chain hash there.
    pub journal_chain: Hash,
    /// The epoch that appended it.
    pub epoch: Epoch,
}

/// A sealed sequence record with what each cloud needs before it may have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordEntry {
    /// The life of the cluster that sealed it; part of its name in the clouds.
    pub incarnation: Incarnation,
    /// The sealed bytes, the same for every cloud.
    pub record: Bytes,
    /// The chain hash at this record.
    pub hash: Hash,
    /// The segments it names.
    pub objects: Vec<ObjectRef>,
    /// First journal position of its window.
    pub first: Jseq,
    /// Last journal position of its window.
    pub last: Jseq,
    /// The epoch that appended it.
    pub epoch: Epoch,
}

/// An object nothing references any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// What and which.
    pub object: CondemnedObject,
    /// The checkpoint (by number) that is the first without it.
    pub checkpoint: u64,
    /// The seq of that checkpoint.
    pub at: Seq,
    /// Deletion is approved.
    pub committed: bool,
    /// Clouds it is gone from.
    pub gone_from: BTreeSet<CloudName>,
}

impl Head {
    /// Before the first record.
    pub const START: Self =
        Self { seq: Seq(0), chain: Hash::ZERO, last: Jseq(0), journal_chain: Hash::ZERO, epoch: Epoch(0) };
}

impl State {
    /// A new cluster without volumes.
    #[must_use]
    pub fn new(cluster: ClusterId, clouds: Vec<CloudEntry>, quorum: u32) -> Self {
        Self {
            cluster,
            incarnation: Incarnation(1),
            clouds,
            quorum,
            volumes: BTreeMap::new(),
            catalogue: (0, Hash::ZERO),
            catalogue_record: Bytes::new(),
            catalogue_shown: 0,
            catalogue_wanted: CHANGE_FIRST,
            answered: VecDeque::new(),
            nodes: BTreeMap::new(),
            left: BTreeMap::new(),
            beginnings: BTreeMap::new(),
            offers: BTreeMap::new(),
            leaving: BTreeSet::new(),
            ensembles: BTreeMap::new(),
            attachments: BTreeMap::new(),
        }
    }

    /// True while nothing has ever been asked of the cluster: no volume was made, not even one that is gone again.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.volumes.is_empty() && self.incarnation == Incarnation(1) && self.catalogue_wanted == CHANGE_FIRST
    }

    /// The volume of a name, if it is not deleted.
    #[must_use]
    pub fn volume_named(&self, name: &str) -> Option<(VolumeId, &VolumeState)> {
        self.volumes.iter().find(|(_, volume)| volume.name == name && !volume.deleted).map(|(id, volume)| (*id, volume))
    }

    /// True when some volume has come to lie in a cloud, as far as cursors say.
    #[must_use]
    pub fn is_in_use(&self, cloud: &CloudName) -> bool {
        self.volumes.values().any(|volume| {
            volume.cursors.get(cloud).is_some_and(|seq| seq.0 > 0)
                || volume.checkpoint_cursors.get(cloud).is_some_and(|number| *number > 0)
        })
    }

    /// How often a cloud has begun anew.
    #[must_use]
    pub fn beginning(&self, cloud: &CloudName) -> u64 {
        self.beginnings.get(cloud).copied().unwrap_or_default()
    }

    /// Bytes of sealed records the state holds.
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        self.volumes.values().flat_map(|volume| volume.records.values()).map(|entry| entry.record.len()).sum()
    }

    /// The saved form.
    #[must_use]
    pub fn save(&self) -> Bytes {
        let mut out = STATE_MAGIC.to_vec();
        out.extend_from_slice(&STATE_VERSION.to_le_bytes());
        out.extend_from_slice(&codec::encode(self));
        out.into()
    }

    /// Reads the saved form.
    ///
    /// # Errors
    /// When the bytes are not a saved state, or one of a newer version.
    pub fn load(bytes: &[u8]) -> Result<Self, LoadError> {
        let rest = bytes.strip_prefix(&STATE_MAGIC).ok_or(LoadError::NotAState)?;
        let (version, rest) = rest.split_first_chunk::<2>().ok_or(LoadError::NotAState)?;
        let without_ensembles = (NO_ENSEMBLES, NO_ATTACHMENTS);
        let without_left = (NO_BEGINNINGS, NO_OFFERS, NOBODY_LEAVES, without_ensembles.clone());
        let lacking = match u16::from_le_bytes(*version) {
            STATE_VERSION => return Ok(codec::decode(rest, STATE_BYTES_MAX)?),
            STATE_UP_TO_ENSEMBLES => codec::encode(&NO_ATTACHMENTS),
            STATE_UP_TO_LEAVING => codec::encode(&without_ensembles),
            STATE_UP_TO_LEFT => codec::encode(&without_left),
            STATE_UP_TO_NODES => codec::encode(&(NOTHING_LEFT, without_left)),
            STATE_WITHOUT_NODES => codec::encode(&(NO_NODES, NOTHING_LEFT, without_left)),
            version => return Err(LoadError::NewerVersion(version)),
        };
        Ok(codec::decode(&[rest, &lacking].concat(), STATE_BYTES_MAX)?)
    }
}

impl VolumeState {
    /// A new, empty volume that a change of the catalogue describes.
    #[must_use]
    pub fn new(name: String, size_bytes: u64, keys: WrappedVolumeKeys, acl: Vec<AclEntry>, described: u64) -> Self {
        Self {
            name,
            size_bytes,
            acl,
            acl_version: 1,
            described,
            keys: vec![keys],
            owner: None,
            epoch: Epoch(0),
            lineage: Lineage(1),
            next_object: ObjectNumber(1),
            ranges: BTreeMap::new(),
            grants: BTreeSet::new(),
            next_grant: 1,
            head: Head::START,
            records: BTreeMap::new(),
            checkpoint: None,
            previous_checkpoint: None,
            cursors: BTreeMap::new(),
            checkpoint_cursors: BTreeMap::new(),
            condemned: BTreeMap::new(),
            deleted: false,
        }
    }

    /// True when a recovery began `life` with this volume, which earlier lives may have left things of: only then is the
    /// lineage one of that life.
    #[must_use]
    pub fn was_recovered(&self, life: Incarnation) -> bool {
        life > Incarnation(1) && self.lineage >= Lineage::first_of(life)
    }

    /// True when no checkpoint of `life` is committed yet.
    #[must_use]
    pub fn lacks_checkpoint_of(&self, life: Incarnation) -> bool {
        self.checkpoint.as_ref().is_none_or(|checkpoint| checkpoint.root.incarnation < life)
    }

    /// True when what earlier lives left is condemned and not yet gone from a cloud.
    #[must_use]
    pub fn has_leavings_in(&self, cloud: &CloudName) -> bool {
        let leavings = self.condemned.iter().filter(|((_, number), _)| *number == LEAVINGS);
        leavings.map(|(_, condemned)| condemned).any(|condemned| !condemned.gone_from.contains(cloud))
    }

    /// The highest seq that `quorum` clouds have passed: everything up to it is at d2.
    #[must_use]
    pub fn durable_seq(&self, quorum: u32) -> Seq {
        let mut cursors: Vec<Seq> = self.cursors.values().copied().collect();
        cursors.sort_unstable_by(|left, right| right.cmp(left));
        let place = usize::try_from(quorum).unwrap_or(usize::MAX).saturating_sub(1);
        cursors.get(place).copied().unwrap_or_default()
    }

    /// The last journal position of everything up to `seq`, as far as it is known here: records that a checkpoint covers are
    /// gone, and where they ended is told by the first one left.
    #[must_use]
    pub fn last_position(&self, seq: Seq) -> Jseq {
        if seq >= self.head.seq {
            return self.head.last;
        }
        if let Some((_, record)) = self.records.range(..=seq).next_back() {
            return record.last;
        }
        let left = self.records.first_key_value().filter(|(first, _)| **first == seq.next());
        left.map_or(Jseq(0), |(_, record)| Jseq(record.first.0.saturating_sub(1)))
    }

    /// The last journal position that is known to be at d2.
    #[must_use]
    pub fn durable_jseq(&self, quorum: u32) -> Jseq {
        self.last_position(self.durable_seq(quorum))
    }
}

/// Why saved metadata could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The magic is missing.
    #[error("this is not saved cluster metadata")]
    NotAState,
    /// Written by a newer release.
    #[error("the metadata has format version {0}, this release knows up to {STATE_VERSION}; use the newer release")]
    NewerVersion(u16),
    /// The body does not decode.
    #[error("the saved metadata does not decode: {0}")]
    Body(#[from] CodecError),
}
