//! One command applied to the state: the answers, the rejections, and what a repeated proposal gets.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use velum_protocol::{
    codec,
    format::metadata::{Command, Proposal},
    id::{Epoch, NodeId, ObjectNumber, Seq, VolumeId},
    peer::ADDRESS_BYTES_MAX,
};

use super::{
    PROPOSAL_BYTES_MAX,
    attachments::{ATTACHMENTS_MAX, CONNECTIONS_MAX, PERMITS_MAX},
    ensembles::MEMBERS_MAX,
    state::{State, VolumeState},
};

/// How many answers are kept for repeated proposals. A proposer repeats within seconds; this is minutes of the highest rate.
const ANSWERS_MAX: usize = 4096;

/// What an applied command gives back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done, nothing to tell.
    Done,
    /// The epoch granted.
    Epoch(Epoch),
    /// Object numbers granted: the first, and how many.
    Objects(ObjectNumber, u64),
    /// The flush grant.
    Grant(u64),
    /// The number of the connection that begins.
    Connection(u64),
}

/// Why a command does not fit the state. The same on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// No such volume, or it is deleted.
    #[error("there is no such volume")]
    NoSuchVolume,
    /// The name is in use.
    #[error("a volume of this name exists already")]
    NameTaken,
    /// Names are `[a-z0-9._-]{1,63}`.
    #[error("a volume's name has 1 to 63 characters of a-z, 0-9, '.', '_' and '-'")]
    BadName,
    /// Size zero, not a multiple of 4 KiB, or above 64 TiB.
    #[error("a volume's size is a multiple of 4 KiB, at least 4 KiB and at most 64 TiB")]
    BadSize,
    /// A range that is empty, inverted, not on region bounds, or a malformed principal.
    #[error(
        "the ACL entry is malformed: ranges are not empty and lie on region bounds, principals have 1 to 128 characters"
    )]
    BadAcl,
    /// The proposer is not the owner any more.
    #[error("the epoch is over: the volume is at epoch {0}")]
    StaleEpoch(Epoch),
    /// The flush grant was revoked or never given.
    #[error("the flush grant does not stand")]
    NoGrant,
    /// The key epoch is not the newest.
    #[error("the key epoch is not the current one")]
    StaleKeyEpoch,
    /// The record does not follow the head.
    #[error("the record does not follow the head of the sequence, which is at {0}")]
    NotNext(Seq),
    /// The replicated state is full of records that no checkpoint covers yet.
    #[error("too many sequence records wait for a checkpoint; one must be stored in a quorum of clouds first")]
    RecordsFull,
    /// The checkpoint does not follow the one before, or covers records that are not there.
    #[error("the checkpoint does not fit the sequence")]
    CheckpointUnfit,
    /// A cursor may not pass the head or name an unknown cloud.
    #[error("the cursor does not fit the sequence")]
    CursorUnfit,
    /// A number is not condemned, or its checkpoint is not stored widely enough.
    #[error("the objects may not be reclaimed yet")]
    NotReclaimable,
    /// The volume still has objects in the clouds.
    #[error("the volume is not empty of objects yet")]
    NotEmpty,
    /// A catalogue number that does not follow.
    #[error("the catalogue record does not follow the head of the catalogue")]
    CatalogueUnfit,
    /// The entry is no proposal that this release knows.
    #[error("the entry is not a proposal this release understands")]
    Unreadable,
    /// Zero or absurdly many.
    #[error("the count is out of range")]
    BadCount,
    /// The number is, or was, another node's.
    #[error("node number {0} was used before; numbers are never used again")]
    NodeUsed(NodeId),
    /// No such node, or it is retired.
    #[error("there is no node {0}")]
    NoSuchNode(NodeId),
    /// Zero, or an address that is empty, long or holds what no address has.
    #[error("a node has a number above zero and an address of 1 to {ADDRESS_BYTES_MAX} printable characters")]
    BadNode,
    /// The replicated state has room for so many nodes, retired ones too.
    #[error("the cluster has had as many nodes as it can remember")]
    TooManyNodes,
    /// There is no such token, or another node has used it.
    #[error("the token is unknown, has expired or was used by another node")]
    NoOffer,
    /// The node still owns volumes, and nobody else can serve them.
    #[error("node {0} owns {1} volumes")]
    OwnsVolumes(NodeId, u64),
    /// Without the node there would be no cluster.
    #[error("node {0} is the last one; a cluster has at least one node")]
    LastNode(NodeId),
    /// What the proposer saw in a cloud was before the cloud began anew.
    #[error("the cloud has begun anew meanwhile")]
    BegunAnew,
    /// The members of an ensemble are not as they must be.
    #[error("an ensemble has 1 to {MEMBERS_MAX} nodes in rising order, the owner among them")]
    BadEnsemble,
    /// The volume's journal is kept by an ensemble: an owner is granted together with one.
    #[error(
        "the volume's journal is kept by several nodes; a node without `[peers]` in its settings cannot own it: put the table back"
    )]
    HasEnsemble,
    /// The volume's journal is kept by its owner alone, which no fence knows of: only that node may begin an ensemble.
    #[error("the volume's journal is kept by its owner alone; only that node can have others keep it too")]
    KeptAlone,
    /// Another epoch is the open one.
    #[error("the open epoch of the volume's journal is {0}")]
    NotOpen(Epoch),
    /// The end lies before what is in the sequence, or differs from it.
    #[error("the journal cannot end there: the sequence or an earlier end says otherwise")]
    CloseUnfit,
    /// Somebody is attached, and does not share or is not shared with.
    #[error("the volume is attached already")]
    Attached,
    /// There is no such attachment of the volume, or no more.
    #[error("there is no such attachment of the volume")]
    NotAttached,
    /// The proposer has drawn a handle that is in use.
    #[error("the handle is in use")]
    HandleUsed,
    /// The number of connections, or the host's name.
    #[error("an attachment has 1 to {CONNECTIONS_MAX} connections, and its host at most 63 printable characters")]
    BadAttachment,
    /// The volume has as many attachments as it can.
    #[error("a volume has at most {ATTACHMENTS_MAX} attachments")]
    TooManyAttachments,
    /// Permits are for shared attachments.
    #[error("the attachment is not a shared one of the volume: only those need permits")]
    NotShared,
    /// Another attachment has a permit for a part of the range.
    #[error("another attachment has a permit there")]
    Permitted,
    /// The range is empty or not on region bounds.
    #[error("a permit's range is not empty and lies on region bounds")]
    BadPermit,
    /// The volume has as many permits as it can.
    #[error("a volume has at most {PERMITS_MAX} permits")]
    TooManyPermits,
}

impl State {
    /// Applies one encoded proposal and encodes the answer.
    pub fn apply_encoded(&mut self, entry: &[u8]) -> Bytes {
        let answer = match codec::decode::<Proposal>(entry, PROPOSAL_BYTES_MAX) {
            Ok(proposal) => self.apply(&proposal),
            Err(_) => Err(Rejection::Unreadable),
        };
        codec::encode(&answer).into()
    }

    /// Applies one proposal; a repeated one gets the first answer and changes nothing.
    pub fn apply(&mut self, proposal: &Proposal) -> Result<Answer, Rejection> {
        if let Some((_, answer)) = self.answered.iter().rev().find(|(request, _)| *request == proposal.request) {
            return answer.clone();
        }
        let answer = self.apply_command(&proposal.command);
        self.answered.push_back((proposal.request, answer.clone()));
        if self.answered.len() > ANSWERS_MAX {
            self.answered.pop_front();
        }
        answer
    }

    fn apply_command(&mut self, command: &Command) -> Result<Answer, Rejection> {
        match command {
            Command::CreateVolume { .. }
            | Command::ResizeVolume { .. }
            | Command::DeleteVolume { .. }
            | Command::SetAcl { .. }
            | Command::ForgetVolume { .. }
            | Command::MoveCatalogue { .. } => self.apply_to_volumes(command),
            Command::GrantOwner { .. }
            | Command::GrantObjects { .. }
            | Command::GrantFlush { .. }
            | Command::RevokeFlush { .. }
            | Command::AppendSequence { .. }
            | Command::ChangeLineage { .. }
            | Command::MoveCursor { .. }
            | Command::AdvanceCursor { .. } => self.apply_to_sequence(command),
            Command::ResyncCloud { cloud } => self.resync_cloud(cloud),
            Command::CommitCheckpoint { .. }
            | Command::MoveCheckpointCursor { .. }
            | Command::AdvanceCheckpointCursor { .. }
            | Command::CommitReclaim { .. }
            | Command::FinishReclaim { .. }
            | Command::ForgetRange { .. } => self.apply_to_checkpoints(command),
            Command::AdmitNode { .. }
            | Command::MoveNode { .. }
            | Command::RetireNode { .. }
            | Command::OfferPlace { .. }
            | Command::WithdrawOffer { .. }
            | Command::TakePlace { .. }
            | Command::DismissNode { .. } => self.apply_to_nodes(command),
            Command::GrantEnsemble { .. } | Command::CloseEpoch { .. } => self.apply_to_ensembles(command),
            Command::Attach { .. }
            | Command::Detach { .. }
            | Command::Connect { .. }
            | Command::Disconnect { .. }
            | Command::SetPermit { .. } => self.apply_to_attachments(command),
        }
    }

    /// A volume that is there, deleted or not.
    pub(super) fn volume_mut(&mut self, volume: VolumeId) -> Result<&mut VolumeState, Rejection> {
        self.volumes.get_mut(&volume).ok_or(Rejection::NoSuchVolume)
    }

    /// A volume that is there and not deleted.
    pub(super) fn live_volume_mut(&mut self, volume: VolumeId) -> Result<&mut VolumeState, Rejection> {
        self.volume_mut(volume)
            .and_then(|volume| if volume.deleted { Err(Rejection::NoSuchVolume) } else { Ok(volume) })
    }
}

impl VolumeState {
    /// Refuses a proposer whose epoch is over.
    pub(super) fn expect_epoch(&self, epoch: Epoch) -> Result<(), Rejection> {
        if self.epoch == epoch { Ok(()) } else { Err(Rejection::StaleEpoch(self.epoch)) }
    }
}
