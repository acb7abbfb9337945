//! Joins raft and the links between nodes: what raft says goes out on the links, what comes in on them goes to raft.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use velum_protocol::{
    id::NodeId,
    peer::{Frame, agreement::Message},
};

use crate::{
    consensus::{Applier, Consensus, ConsensusError, Examined, Transport},
    env::{Credentials, Env, Local},
    journal::Journal,
    peer::{Links, Receiver},
};

/// A member of a group with its links.
pub struct Group {
    /// The way to raft.
    pub consensus: Consensus,
    /// The links; none yet.
    pub links: Links,
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

/// Starts raft with links to others. `hears` says whether a node is still one to listen to. Returns at once; see
/// [`Consensus::begin`].
///
/// # Errors
/// As [`Consensus::begin`].
pub async fn begin(
    env: &Env,
    credentials: Credentials,
    found: Found,
    hears: Rc<dyn Fn(NodeId) -> bool>,
) -> Result<Group, ConsensusError> {
    let ears = Rc::new(Ears { consensus: RefCell::default(), hears });
    let links = Links::new(env, credentials, ears.clone());
    let Found { examined, journal, applier } = found;
    let mouth = Rc::new(Mouth(links.clone()));
    let consensus = Consensus::begin(env, examined, journal, applier, mouth).await?;
    *ears.consensus.borrow_mut() = Some(consensus.clone());
    Ok(Group { consensus, links })
}

/// Hears for raft what links bring.
struct Ears {
    consensus: RefCell<Option<Consensus>>,
    hears: Rc<dyn Fn(NodeId) -> bool>,
}

impl Ears {
    fn consensus(&self) -> Option<Consensus> {
        self.consensus.borrow().clone()
    }
}

impl Receiver for Ears {
    fn hears(&self, node: NodeId) -> bool {
        (self.hears)(node)
    }

    fn receive(&self, from: NodeId, frame: Frame, state: Bytes) {
        // Before raft runs, what comes is lost, as if the link had come up later.
        if let Some(consensus) = self.consensus() {
            consensus.receive(from, frame, state);
        }
    }

    fn lost(&self, to: NodeId) {
        if let Some(consensus) = self.consensus() {
            consensus.unreachable(to);
        }
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
