//! Associated data: what each sealed thing is bound to, so that it opens nowhere else.
//!
//! Every binding starts with an eight-byte label of its own and goes on with fixed-width little-endian fields, so no two
//! bindings, of one kind or of different kinds, ever have the same bytes. Nothing of a binding needs to be stored with the
//! sealed bytes: a reader knows from elsewhere what it is about to open, or reads it from a header in the clear and learns
//! from opening that the header is true.

use crate::id::{
    BlockIndex, ClusterId, Epoch, Hash, Incarnation, Jseq, KeyEpoch, Lineage, NodeId, ObjectNumber, Seq, VolumeId,
};

/// Bytes of the leading label.
const LABEL_BYTES: usize = 8;

/// Puts label and fields together; `N` is drawn in `docs/format.md` and checked here.
fn bind<const N: usize>(label: &[u8; LABEL_BYTES], fields: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    let (lead, mut rest) = out.split_at_mut(LABEL_BYTES);
    lead.copy_from_slice(label);
    for field in fields {
        let (place, after) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = after;
    }
    assert!(rest.is_empty(), "a binding's declared length is the sum of its fields");
    out
}

/// How a frame's plaintext is coded before it is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameCodec {
    /// As it is.
    Stored = 0,
}

/// A frame of data blocks, under the volume's block key. (`incarnation`, `segment`, `frame`) is the 128-bit block uid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFrame {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume that wrote the frame.
    pub volume: VolumeId,
    /// Key generation.
    pub key_epoch: KeyEpoch,
    /// Cluster life that wrote the segment.
    pub incarnation: Incarnation,
    /// The segment.
    pub segment: ObjectNumber,
    /// The frame's place in the segment.
    pub frame: u32,
    /// First block of the volume in the frame.
    pub start: BlockIndex,
    /// Blocks in the frame: the plaintext is 4,096 times as many bytes.
    pub blocks: u16,
    /// How the plaintext is coded.
    pub codec: FrameCodec,
}

impl BlockFrame {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 71] {
        bind(
            b"ca1.blk\0",
            &[
                &self.cluster.0,
                &self.volume.0,
                &self.key_epoch.0.to_le_bytes(),
                &self.incarnation.0.to_le_bytes(),
                &self.segment.0.to_le_bytes(),
                &self.frame.to_le_bytes(),
                &self.start.0.to_le_bytes(),
                &self.blocks.to_le_bytes(),
                &[self.codec as u8],
            ],
        )
    }
}

/// A segment's directory, under the volume's segment key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentDirectory {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// Key generation.
    pub key_epoch: KeyEpoch,
    /// Cluster life that wrote the segment.
    pub incarnation: Incarnation,
    /// The segment.
    pub segment: ObjectNumber,
    /// Frames in the segment.
    pub frames: u32,
    /// Length of the whole segment object in bytes.
    pub object_bytes: u64,
}

impl SegmentDirectory {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 68] {
        bind(
            b"ca1.seg\0",
            &[
                &self.cluster.0,
                &self.volume.0,
                &self.key_epoch.0.to_le_bytes(),
                &self.incarnation.0.to_le_bytes(),
                &self.segment.0.to_le_bytes(),
                &self.frames.to_le_bytes(),
                &self.object_bytes.to_le_bytes(),
            ],
        )
    }
}

/// A sequence record, under the volume's sequence key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRecord {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// Key generation.
    pub key_epoch: KeyEpoch,
    /// Cluster life the record belongs to.
    pub incarnation: Incarnation,
    /// Its place in the sequence.
    pub seq: Seq,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// First journal position of the window.
    pub first: Jseq,
    /// Last journal position of the window.
    pub last: Jseq,
    /// The chain hash of the record before.
    pub prev_hash: Hash,
}

impl SequenceRecord {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 112] {
        bind(
            b"ca1.seq\0",
            &[
                &self.cluster.0,
                &self.volume.0,
                &self.key_epoch.0.to_le_bytes(),
                &self.incarnation.0.to_le_bytes(),
                &self.seq.0.to_le_bytes(),
                &self.epoch.0.to_le_bytes(),
                &self.first.0.to_le_bytes(),
                &self.last.0.to_le_bytes(),
                &self.prev_hash.0,
            ],
        )
    }
}

/// A page of the extent map, under the volume's checkpoint key. Pages outlive checkpoints (an unchanged page is named again
/// by the next root), so no seq is bound here; the parent names a page by number and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointPage {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// Key generation.
    pub key_epoch: KeyEpoch,
    /// Cluster life that wrote the page.
    pub incarnation: Incarnation,
    /// The page's object number.
    pub number: ObjectNumber,
}

impl CheckpointPage {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 56] {
        bind(
            b"ca1.ckp\0",
            &[
                &self.cluster.0,
                &self.volume.0,
                &self.key_epoch.0.to_le_bytes(),
                &self.incarnation.0.to_le_bytes(),
                &self.number.0.to_le_bytes(),
            ],
        )
    }
}

/// The root of a checkpoint, under the volume's checkpoint key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointRoot {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// Key generation.
    pub key_epoch: KeyEpoch,
    /// Cluster life that wrote the root.
    pub incarnation: Incarnation,
    /// The root's object number.
    pub number: ObjectNumber,
    /// The sequence record it includes everything up to.
    pub seq: Seq,
    /// The chain hash at `seq`.
    pub chain: Hash,
}

impl CheckpointRoot {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 96] {
        bind(
            b"ca1.ckr\0",
            &[
                &self.cluster.0,
                &self.volume.0,
                &self.key_epoch.0.to_le_bytes(),
                &self.incarnation.0.to_le_bytes(),
                &self.number.0.to_le_bytes(),
                &self.seq.0.to_le_bytes(),
                &self.chain.0,
            ],
        )
    }
}

/// The numbered stub that names a checkpoint's root, under the volume's checkpoint key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointStub {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// Key generation.
    pub key_epoch: KeyEpoch,
    /// Cluster life the stub belongs to.
    pub incarnation: Incarnation,
    /// Counts the volume's checkpoints in this incarnation, from 1.
    pub checkpoint: u64,
}

impl CheckpointStub {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 56] {
        bind(
            b"ca1.cks\0",
            &[
                &self.cluster.0,
                &self.volume.0,
                &self.key_epoch.0.to_le_bytes(),
                &self.incarnation.0.to_le_bytes(),
                &self.checkpoint.to_le_bytes(),
            ],
        )
    }
}

/// A guest write in the journal, under the volume's journal key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalRecord {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// The volume's lineage.
    pub lineage: Lineage,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The position.
    pub jseq: Jseq,
    /// First block concerned.
    pub start: BlockIndex,
    /// Blocks concerned.
    pub length: u64,
    /// What the record does, as the journal record's header says it.
    pub kind: u8,
    /// Key generation.
    pub key_epoch: KeyEpoch,
    /// The position up to which everything was at d1 when the record was sealed.
    pub durable: Jseq,
}

impl JournalRecord {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 93] {
        bind(
            b"ca1.jnl\0",
            &[
                &self.cluster.0,
                &self.volume.0,
                &self.lineage.0.to_le_bytes(),
                &self.epoch.0.to_le_bytes(),
                &self.jseq.0.to_le_bytes(),
                &self.start.0.to_le_bytes(),
                &self.length.to_le_bytes(),
                &[self.kind],
                &self.key_epoch.0.to_le_bytes(),
                &self.durable.0.to_le_bytes(),
            ],
        )
    }
}

/// A clean block in a slot of the disk cache, under the volume's cache key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSlot {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node whose disk it is.
    pub node: NodeId,
    /// The cache file.
    pub file: u64,
    /// Byte offset of the slot in the file.
    pub offset: u64,
    /// The volume.
    pub volume: VolumeId,
    /// Cluster life that wrote the segment the block came from.
    pub incarnation: Incarnation,
    /// The segment.
    pub segment: ObjectNumber,
    /// The frame in the segment.
    pub frame: u32,
    /// The block in the frame.
    pub block: u16,
}

impl CacheSlot {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 82] {
        bind(
            b"ca1.cch\0",
            &[
                &self.cluster.0,
                &self.node.0.to_le_bytes(),
                &self.file.to_le_bytes(),
                &self.offset.to_le_bytes(),
                &self.volume.0,
                &self.incarnation.0.to_le_bytes(),
                &self.segment.0.to_le_bytes(),
                &self.frame.to_le_bytes(),
                &self.block.to_le_bytes(),
            ],
        )
    }
}

/// What of raft's state a sealed record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RaftKind {
    /// A log entry.
    Entry = 1,
    /// The hard state (term, vote, commit).
    HardState = 2,
    /// A snapshot of the replicated metadata.
    Snapshot = 3,
}

/// Raft's state on a node's disk, under the cluster-state key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftRecord {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node whose disk it is.
    pub node: NodeId,
    /// What it is.
    pub kind: RaftKind,
    /// The raft term.
    pub term: u64,
    /// The raft index.
    pub index: u64,
}

impl RaftRecord {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 49] {
        bind(
            b"ca1.rft\0",
            &[
                &self.cluster.0,
                &self.node.0.to_le_bytes(),
                &[self.kind as u8],
                &self.term.to_le_bytes(),
                &self.index.to_le_bytes(),
            ],
        )
    }
}

/// A record of the catalogue chain, under the cluster-state key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Catalogue {
    /// The cluster.
    pub cluster: ClusterId,
    /// Cluster life that wrote it.
    pub incarnation: Incarnation,
    /// Its place in the chain.
    pub number: u64,
    /// The chain hash of the record before.
    pub prev_hash: Hash,
}

impl Catalogue {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 68] {
        bind(
            b"ca1.cat\0",
            &[&self.cluster.0, &self.incarnation.0.to_le_bytes(), &self.number.to_le_bytes(), &self.prev_hash.0],
        )
    }
}

/// The claim of an incarnation, under the cluster-state key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The cluster.
    pub cluster: ClusterId,
    /// The incarnation claimed.
    pub incarnation: Incarnation,
}

impl Claim {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 28] {
        bind(b"ca1.clm\0", &[&self.cluster.0, &self.incarnation.0.to_le_bytes()])
    }
}

/// The header of a cloud object, under the cluster-state key. The header itself says which object it belongs to, and its
/// reader compares; so an object under another's name is known for what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectHeader {
    /// The cluster.
    pub cluster: ClusterId,
    /// Magic of the object's kind.
    pub magic: [u8; 4],
}

impl ObjectHeader {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 28] {
        bind(b"ca1.hdr\0", &[&self.cluster.0, &self.magic])
    }
}

/// Which key a wrapped key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum WrappedKind {
    /// A volume's data private key (VDK).
    Data = 1,
    /// A volume's metadata private key (VMK).
    Metadata = 2,
    /// A volume's journal and cache key (VJK).
    Journal = 3,
    /// The cluster's key for object names.
    Names = 4,
    /// The cluster-state key.
    State = 5,
    /// The cluster's audit key.
    Audit = 6,
}

/// A key wrapped under the cluster root key. Cluster keys have the volume of all zeros and key epoch zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume, or zero.
    pub volume: VolumeId,
    /// Which key.
    pub kind: WrappedKind,
    /// Key generation.
    pub key_epoch: KeyEpoch,
}

impl WrappedKey {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 45] {
        bind(b"ca1.key\0", &[&self.cluster.0, &self.volume.0, &[self.kind as u8], &self.key_epoch.0.to_le_bytes()])
    }
}

/// The cluster root key in a key slot, under the slot's key. The slot's parameters are bound so that they cannot be
/// weakened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotKey<'a> {
    /// The cluster.
    pub cluster: ClusterId,
    /// The slot's parameters as they stand in the slot, byte for byte.
    pub parameters: &'a [u8; 48],
}

impl SlotKey<'_> {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; 72] {
        bind(b"ca1.slt\0", &[&self.cluster.0, self.parameters])
    }
}

#[cfg(test)]
#[path = "bind_tests.rs"]
mod tests;
