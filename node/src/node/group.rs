//! Joins raft and the links between nodes: what raft says goes out on the links, what comes in on them goes to raft, and to whoever
//! serves forwarded requests.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
};

use bytes::Bytes;
use velum_protocol::{
    id::{Incarnation, NodeId},
    peer::{Frame, Join, Verdict, agreement::Message},
};

use crate::{
    consensus::{Applier, Consensus, ConsensusError, Examined, Transport},
    env::{Credentials, Env, Local},
    journal::Journal,
    peer::{Links, Receiver},
    server::forward::Forwarding,
};

/// A member of a group with its links.
pub struct Group {
    /// The way to raft.
    pub consensus: Consensus,
    /// The links; none yet.
    pub links: Links,
    /// Hears what they bring.
    pub ears: Rc<Ears>,
}

/// Who is one of the group's, as far as this node knows, and what newcomers ask and are told.
pub trait Admission {
    /// Whether a node is still one to listen to.
    fn hears(&self, node: NodeId) -> bool;
    /// A newcomer wants to be let in.
    fn asked(&self, by: NodeId, join: Join) {
        tracing::debug!(%by, ?join, "nobody is let in here");
    }
    /// The life of the cluster that this node belongs to; zero while it does not know.
    fn incarnation(&self) -> Incarnation {
        Incarnation(0)
    }
    /// Whether this node takes part: before, what raft's members say is not for it.
    fn takes_part(&self) -> bool {
        true
    }
    /// A node says something that is not raft's.
    fn told(&self, by: NodeId, frame: Frame) {
        tracing::debug!(%by, kind = ?frame.kind(), "nobody listens to this here");
    }
    /// What was sent to a node last may be lost.
    fn lost(&self, to: NodeId) {
        tracing::trace!(%to, "a link broke");
    }
    /// A peer says whether this node is part of the cluster.
    fn judged(&self, verdict: Verdict) {
        tracing::error!(%verdict, "a peer says whether this node is part of the cluster, which it did not ask");
    }
}

/// A group that nobody joins by himself.
impl<F: Fn(NodeId) -> bool> Admission for F {
    fn hears(&self, node: NodeId) -> bool {
        self(node)
    }
}

/// What a member starts from.
pub struct Found {
    /// Raft's state.
    pub examined: Examined,
    /// The journal, begun since.
    pub journal: Rc<Journal>,
    /// The state machine.
    pub applier: Rc<RefCell<dyn Applier>>,
}

/// Starts raft with links to others. Returns at once; see [`Consensus::begin`].
///
/// # Errors
/// As [`Consensus::begin`].
pub async fn begin(
    env: &Env,
    credentials: Credentials,
    found: Found,
    admission: Rc<dyn Admission>,
) -> Result<Group, ConsensusError> {
    let ears = Rc::new(Ears { consensus: RefCell::default(), forwarding: RefCell::default(), admission });
    let links = Links::new(env, credentials, ears.clone());
    let Found { examined, journal, applier } = found;
    let mouth = Rc::new(Mouth(links.clone()));
    let consensus = Consensus::begin(env, examined, journal, applier, mouth).await?;
    *ears.consensus.borrow_mut() = Some(consensus.clone());
    Ok(Group { consensus, links, ears })
}

/// Hears for raft and for forwarded requests what links bring.
pub struct Ears {
    consensus: RefCell<Option<Consensus>>,
    /// Weak, for it speaks on the links, which hold this.
    forwarding: RefCell<Option<Weak<Forwarding>>>,
    admission: Rc<dyn Admission>,
}

impl Ears {
    fn consensus(&self) -> Option<Consensus> {
        self.consensus.borrow().clone()
    }

    /// From now on forwarded requests go there; before, they are lost.
    pub fn forward_to(&self, forwarding: &Rc<Forwarding>) {
        *self.forwarding.borrow_mut() = Some(Rc::downgrade(forwarding));
    }

    fn forwarding(&self) -> Option<Rc<Forwarding>> {
        self.forwarding.borrow().as_ref().and_then(Weak::upgrade)
    }
}

impl Receiver for Ears {
    fn hears(&self, node: NodeId) -> bool {
        self.admission.hears(node)
    }

    fn receive(&self, from: NodeId, frame: Frame, state: Bytes) {
        let frame = match frame {
            Frame::Join(join) => return self.admission.asked(from, join),
            Frame::Verdict(verdict) => return self.admission.judged(verdict),
            _ if !self.admission.takes_part() => return,
            frame @ (Frame::Append(_)
            | Frame::Appended(_)
            | Frame::Fence(_)
            | Frame::Fenced(_)
            | Frame::ReadTail(_)
            | Frame::Tail(_)
            | Frame::Confirm(_)
            | Frame::Confirmed(_)
            | Frame::Release(_)) => return self.admission.told(from, frame),
            Frame::Forward(frame) => {
                if let Some(forwarding) = self.forwarding() {
                    forwarding.receive(from, frame);
                }
                return;
            }
            other => other,
        };
        // Before raft runs, what comes is lost, as if the link had come up later.
        if let Some(consensus) = self.consensus() {
            consensus.receive(from, frame, state);
        }
    }

    fn lost(&self, to: NodeId) {
        if let Some(consensus) = self.consensus() {
            consensus.unreachable(to);
        }
        self.admission.lost(to);
        if let Some(forwarding) = self.forwarding() {
            forwarding.lost(to);
        }
    }

    fn parted(&self, from: NodeId) {
        if let Some(forwarding) = self.forwarding() {
            forwarding.parted(from);
        }
    }

    fn incarnation(&self) -> Incarnation {
        self.admission.incarnation()
    }

    fn refused(&self, verdict: Verdict) {
        self.admission.judged(verdict);
    }
}

/// Speaks for raft on the links.
struct Mouth(Links);

impl Transport for Mouth {
    fn send(&self, to: NodeId, frame: Frame) {
        self.0.send(to, frame);
    }

    fn send_snapshot(&self, to: NodeId, head: Message, state: Bytes) -> Local<bool> {
        self.0.send_snapshot(to, head, state)
    }
}
