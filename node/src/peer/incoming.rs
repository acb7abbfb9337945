//! What comes in on one link, as a machine: who it is from, whether it may say this, and snapshots put together.

use bytes::Bytes;
use velum_protocol::{
    id::{ClusterId, Hash, Incarnation, NodeId},
    peer::{
        Frame, Hello, Piece, Verdict,
        agreement::{Message, SnapshotHead},
    },
};

use super::outgoing::{Objection, objection};
use crate::limits::PEER_SNAPSHOT_BYTES_MAX;

/// Bytes taken before the peer is told so without being asked.
const TELL_BYTES: u64 = 256 << 10;

/// Why a link is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The first frame is none.
    #[error("it did not begin with a greeting")]
    NoGreeting,
    /// The greeting is of another cluster.
    #[error("it is of another cluster")]
    OtherCluster,
    /// The greeting contradicts the certificate, or speaks another version.
    #[error("{0}")]
    Greeting(&'static str),
    /// The greeting is of an older life of the cluster.
    #[error("it belongs to an older life of the cluster, which was recovered since")]
    Outlived,
    /// The greeting is of a newer one.
    #[error("it belongs to a newer life of the cluster: this node's is over")]
    Outlives,
    /// A message that claims to be of another node, or is for another.
    #[error("a message names other nodes than the link's")]
    OtherNode,
    /// Something that is said once, or on the other side.
    #[error("it says what has no place here")]
    OutOfPlace,
    /// A snapshot longer than any.
    #[error("its snapshot is longer than any")]
    SnapshotTooLong,
    /// A piece that does not continue the snapshot at hand.
    #[error("a piece of a snapshot is out of order")]
    PieceOutOfOrder,
    /// A snapshot that is not what its head says.
    #[error("a snapshot's state is not the one its head names")]
    SnapshotDamaged,
}

/// What is to be done about a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The peer has said who it is: judge whether this is its newest link, and greet it.
    Greeted(Hello),
    /// Hand it on.
    Deliver(Frame, Bytes),
    /// Tell the peer how much was taken.
    Tell(u64),
}

/// A snapshot of which pieces are missing.
#[derive(Debug)]
struct Assembly {
    message: Box<Message>,
    head: SnapshotHead,
    state: Vec<u8>,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Machine {
    cluster: ClusterId,
    /// The life of the cluster that this node belongs to.
    incarnation: Incarnation,
    own: NodeId,
    /// By the transport's word.
    peer: NodeId,
    greeted: bool,
    taken_bytes: u64,
    told_bytes: u64,
    assembly: Option<Assembly>,
}

impl Machine {
    pub(super) fn new(cluster: ClusterId, incarnation: Incarnation, own: NodeId, peer: NodeId) -> Self {
        Self { cluster, incarnation, own, peer, greeted: false, taken_bytes: 0, told_bytes: 0, assembly: None }
    }

    /// Takes a frame of so many bytes.
    pub(super) fn take(&mut self, frame: Frame, frame_bytes: usize) -> Result<Vec<Step>, Refusal> {
        if !self.greeted {
            let Frame::Hello(hello) = frame else { return Err(Refusal::NoGreeting) };
            if hello.cluster != self.cluster {
                return Err(Refusal::OtherCluster);
            }
            match objection(&hello, self.incarnation, self.peer, self.own) {
                None => {}
                Some(Objection::Faulty(why)) => return Err(Refusal::Greeting(why)),
                Some(Objection::Outlived) => return Err(Refusal::Outlived),
                Some(Objection::Outlives) => return Err(Refusal::Outlives),
            }
            self.greeted = true;
            return Ok(vec![Step::Greeted(hello)]);
        }
        let mut steps = Vec::new();
        let mut is_beat = false;
        match frame {
            Frame::Hello(_) => return Err(Refusal::OutOfPlace),
            Frame::Beat(_) => is_beat = true,
            Frame::Raft(message) => {
                if (message.from, message.to) != (self.peer, self.own) {
                    return Err(Refusal::OtherNode);
                }
                match message.snapshot.clone() {
                    Some(head) => {
                        // A newer one takes the place of one that was not finished.
                        self.assembly = Some(Assembly::begin(message, head)?);
                        steps.extend(self.assembled()?);
                    }
                    None => steps.push(Step::Deliver(Frame::Raft(message), Bytes::new())),
                }
            }
            Frame::Piece(piece) => {
                let assembly = self.assembly.as_mut().ok_or(Refusal::PieceOutOfOrder)?;
                assembly.add(&piece)?;
                steps.extend(self.assembled()?);
            }
            // That a node is no part of the cluster is said on the other side of a link.
            Frame::Verdict(Verdict::Removed | Verdict::Outlived) => return Err(Refusal::OutOfPlace),
            frame => steps.push(Step::Deliver(frame, Bytes::new())),
        }
        self.taken_bytes += u64::try_from(frame_bytes).expect("a length in memory fits 64 bits");
        if is_beat || self.taken_bytes - self.told_bytes >= TELL_BYTES {
            self.told_bytes = self.taken_bytes;
            steps.push(Step::Tell(self.taken_bytes));
        }
        Ok(steps)
    }

    /// The snapshot at hand, if it is whole.
    fn assembled(&mut self) -> Result<Option<Step>, Refusal> {
        let Some(Assembly { message, head, state }) = self.assembly.take_if(|assembly| assembly.is_whole()) else {
            return Ok(None);
        };
        if Hash(*blake3::hash(&state).as_bytes()) != head.state_hash {
            return Err(Refusal::SnapshotDamaged);
        }
        Ok(Some(Step::Deliver(Frame::Raft(message), state.into())))
    }
}

impl Assembly {
    fn begin(message: Box<Message>, head: SnapshotHead) -> Result<Self, Refusal> {
        if head.state_bytes > PEER_SNAPSHOT_BYTES_MAX {
            return Err(Refusal::SnapshotTooLong);
        }
        // Memory grows with what comes, not with what is announced.
        Ok(Self { message, head, state: Vec::new() })
    }

    fn length(&self) -> u64 {
        u64::try_from(self.state.len()).expect("a length in memory fits 64 bits")
    }

    fn is_whole(&self) -> bool {
        self.length() == self.head.state_bytes
    }

    fn add(&mut self, piece: &Piece) -> Result<(), Refusal> {
        let more = u64::try_from(piece.bytes.len()).expect("a length in memory fits 64 bits");
        let continues = piece.index == self.head.index && piece.offset == self.length();
        if !continues || self.length() + more > self.head.state_bytes {
            return Err(Refusal::PieceOutOfOrder);
        }
        self.state.extend_from_slice(&piece.bytes);
        Ok(())
    }
}

#[cfg(test)]
#[path = "incoming_tests.rs"]
mod tests;
