//! Commands of the replicated metadata, as they stand in the raft log.
//!
//! Never reorder or insert variants: new ones go to the end, under a new [`crate::version`] of the raft entry. Nonces, ids and
//! times are chosen by the proposer, so that applying is the same on every node.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{BlockIndex, Epoch, Handle, Hash, Incarnation, Jseq, KeyEpoch, NodeId, ObjectNumber, Seq, VolumeId};

/// A random number that names one proposal; a repeated proposal with the same number is applied once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub [u8; 16]);

/// One entry of the raft log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// For applying once.
    pub request: RequestId,
    /// What to do.
    pub command: Command,
}

/// A name an operator gave a cloud: `[a-z0-9._-]{1,63}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CloudName(pub String);

/// A sealed key with what is needed to unwrap it (crypto.md 4.1, 4.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// nonce || ciphertext || tag of the 32-byte key under its wrap key.
    pub sealed: Bytes,
    /// Commitment to the wrap key, compared before anything is opened with it.
    pub commitment: Hash,
}

/// The three independent keys of a volume in one key epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedVolumeKeys {
    /// The generation.
    pub key_epoch: KeyEpoch,
    /// Data private key (VDK).
    pub data: WrappedKey,
    /// Metadata private key (VMK).
    pub metadata: WrappedKey,
    /// Journal and cache key (VJK).
    pub journal: WrappedKey,
}

/// What a principal may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Right {
    /// Nothing, whatever wider entries say.
    None,
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// One line of a volume's ACL. The entry that stands last among those that match decides; without one, nothing is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclEntry {
    /// `anonymous`, `uid:1000`, or `*` for everyone.
    pub principal: String,
    /// Blocks it holds for, first and one past the last, on region bounds; `None` for the whole volume.
    pub range: Option<(BlockIndex, BlockIndex)>,
    /// What is allowed.
    pub right: Right,
}

/// A segment or checkpoint page named by a sequence record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Life of the cluster that wrote it.
    pub incarnation: Incarnation,
    /// Its number.
    pub number: ObjectNumber,
    /// Length in bytes as stored.
    pub bytes: u64,
    /// BLAKE3 of the stored bytes.
    pub hash: Hash,
}

/// What kind of numbered object something is; names in the clouds depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NumberedKind {
    /// A segment of frames.
    Segment,
    /// A checkpoint page.
    Page,
    /// A checkpoint root.
    Root,
}

/// An object that a checkpoint no longer references and the one before did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CondemnedObject {
    /// What it is.
    pub kind: NumberedKind,
    /// Which one. The hash may be zero where only the number is known.
    pub object: ObjectRef,
}

/// A checkpoint that is complete on w clouds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// Counts the volume's checkpoints in this incarnation, from 1; names the stub.
    pub number: u64,
    /// The sequence record it includes everything up to.
    pub seq: Seq,
    /// The chain hash at `seq`.
    pub chain: Hash,
    /// The root object.
    pub root: ObjectRef,
}

/// A change of the replicated metadata.
#[expect(
    missing_docs,
    reason = "each field is an id or quantity whose type says what it is; the variant says what for"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A new volume; refused when the name is taken.
    CreateVolume { volume: VolumeId, name: String, size_bytes: u64, keys: WrappedVolumeKeys, acl: Vec<AclEntry> },
    /// A new size, a multiple of the block size.
    ResizeVolume { volume: VolumeId, size_bytes: u64 },
    /// Ends a volume; its objects become reclaimable.
    DeleteVolume { volume: VolumeId },
    /// Adds an ACL entry at the end, dropping earlier ones of the same principal and range.
    SetAcl { volume: VolumeId, entry: AclEntry },
    /// Makes `node` the owner in epoch `after.next()`; refused when the epoch is not `after`.
    GrantOwner { volume: VolumeId, node: NodeId, after: Epoch },
    /// Hands out `count` object numbers to the owner of `epoch`.
    GrantObjects { volume: VolumeId, epoch: Epoch, count: u64 },
    /// Gate 3: approves one flush of the owner of `epoch` under `key_epoch`.
    GrantFlush { volume: VolumeId, epoch: Epoch, key_epoch: KeyEpoch },
    /// Takes back every flush grant of a volume that is not used yet.
    RevokeFlush { volume: VolumeId },
    /// Appends a sealed sequence record; refused unless the epoch is the owner's, the grant stands, `seq` is the next one,
    /// `prev_hash` is the head's, and the window follows the last one.
    AppendSequence {
        volume: VolumeId,
        epoch: Epoch,
        grant: u64,
        seq: Seq,
        prev_hash: Hash,
        hash: Hash,
        first: Jseq,
        last: Jseq,
        journal_chain: Hash,
        record: Bytes,
        objects: Vec<ObjectRef>,
    },
    /// A cloud holds all records up to `seq` and what they name. Never moves back. Of logs from before several nodes.
    MoveCursor { volume: VolumeId, cloud: CloudName, seq: Seq },
    /// A checkpoint is complete on w clouds; records up to its seq leave the raft state. `condemned` are the objects that
    /// the checkpoint no longer references and the one before did.
    CommitCheckpoint { volume: VolumeId, epoch: Epoch, checkpoint: CheckpointRef, condemned: Vec<CondemnedObject> },
    /// A cloud holds checkpoint `number` with everything it names. Never moves back. Of logs from before several nodes.
    MoveCheckpointCursor { volume: VolumeId, cloud: CloudName, number: u64 },
    /// Approves the deletion of condemned objects; refused unless the epoch is the owner's.
    CommitReclaim { volume: VolumeId, epoch: Epoch, numbers: Vec<(Incarnation, ObjectNumber)> },
    /// The objects are gone from `cloud`.
    FinishReclaim { volume: VolumeId, cloud: CloudName, numbers: Vec<(Incarnation, ObjectNumber)> },
    /// The next record of the catalogue, sealed: every cloud is given these bytes. It shows everything up to `change`.
    MoveCatalogue { number: u64, hash: Hash, change: u64, record: Bytes },
    /// All objects of a deleted volume are gone; forget it.
    ForgetVolume { volume: VolumeId },
    /// Every number of the range that starts at `first`, granted in an epoch that is over, is referenced or gone.
    ForgetRange { volume: VolumeId, first: ObjectNumber },
    /// Acked writes of the volume may have been lost: its lineage changes. Refused unless the epoch is the owner's.
    ChangeLineage { volume: VolumeId, epoch: Epoch },
    /// Nothing is believed to be in a cloud any more: its cursors start over, of every volume. The node that proposes it has no
    /// command under way that moves one of them; those of other nodes are refused from then on.
    ResyncCloud { cloud: CloudName },
    /// A node may join, found at `address`. Refused when its number was ever used.
    AdmitNode { node: NodeId, address: String },
    /// A node is found elsewhere.
    MoveNode { node: NodeId, address: String },
    /// A node is not listened to any more, for ever; its number stays used.
    RetireNode { node: NodeId },
    /// As [`Command::MoveCursor`], of the owner of `epoch`. Refused when another owns the volume, or when the cloud has begun
    /// anew since its `beginning`: what the cursor tells of may be gone then.
    AdvanceCursor { volume: VolumeId, epoch: Epoch, cloud: CloudName, beginning: u64, seq: Seq },
    /// As [`Command::MoveCheckpointCursor`], refused like [`Command::AdvanceCursor`].
    AdvanceCheckpointCursor { volume: VolumeId, epoch: Epoch, cloud: CloudName, beginning: u64, number: u64 },
    /// Keeps the number of a node that may join with the token of this hash. Refused when the number was ever used.
    OfferPlace { node: NodeId, token: Hash },
    /// Takes an offer back that nobody has taken.
    WithdrawOffer { node: NodeId },
    /// A newcomer takes the place offered, and is a node from then on. `key` is the hash of a key of its own: the same one may
    /// ask again, another one is refused.
    TakePlace { node: NodeId, token: Hash, key: Hash, address: String },
    /// A node is to leave the group, and will be retired when it has. Refused while it owns volumes.
    DismissNode { node: NodeId },
    /// As `GrantOwner`, with the nodes that keep the journal, rising, `node` among them. The epoch is not open yet.
    GrantEnsemble { volume: VolumeId, node: NodeId, after: Epoch, members: Vec<NodeId> },
    /// Fixes where the records of `closes`, the open epoch, end, and opens `epoch`. Refused unless `epoch` is the owner's and
    /// not open yet. With `lineage_changes`, acked writes may be missing before that end.
    CloseEpoch { volume: VolumeId, epoch: Epoch, closes: Epoch, last: Jseq, chain: Hash, lineage_changes: bool },
    /// A new attachment of a volume. Refused while there are others, unless all of them and this one are shared; with `steal`
    /// the others end.
    Attach { volume: VolumeId, handle: Handle, attaching: Attaching, steal: bool },
    /// An attachment ends, with its permits and connections.
    Detach { volume: VolumeId, handle: Handle },
    /// A connection begins on an attachment; the oldest one ends when there were as many as it allows.
    Connect { volume: VolumeId, handle: Handle },
    /// A connection is over.
    Disconnect { volume: VolumeId, handle: Handle, connection: u64 },
    /// Blocks `first` to `end` (one past the last), on region bounds, may be written by `holder` only among the shared
    /// attachments; by none with no holder. Refused while another one has a permit there, unless `steal`.
    SetPermit { volume: VolumeId, first: BlockIndex, end: BlockIndex, holder: Option<Handle>, steal: bool },
}

/// What an attachment is made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attaching {
    /// Others that are shared may be there, too; what it writes takes a permit.
    pub shared: bool,
    /// Connections at a time: 1 to 16.
    pub connections_max: u32,
    /// On whose behalf, as the operator names it: 0 to 63 printable characters.
    pub host: String,
}
