//! The ways to volumes at other nodes, as those see them who send requests there.

use std::rc::{Rc, Weak};

use velum_protocol::id::{Lineage, NodeId, SessionId, VolumeId};

use crate::volume::messages::{Entrant, Replies, Reply, Request};

/// The way to a volume at another node. What comes of it comes to [`Near`].
pub trait Afar {
    /// A session wants in, if the lineage is still the one it began under. Nothing is submitted before [`Near::attached`].
    fn attach(&self, session: SessionId, entrant: &Entrant, lineage: Option<Lineage>);
    /// As [`Door::submit`](crate::volume::messages::Door::submit).
    fn submit(&self, request: Request);
    /// As [`Door::end_burst`](crate::volume::messages::Door::end_burst).
    fn end_burst(&self);
    /// As [`Door::detach`](crate::volume::messages::Door::detach).
    fn detach(&self, session: SessionId);
}

/// Hears from another node about sessions of this one.
pub trait Near {
    /// A session was let in.
    fn attached(&self, session: SessionId, lineage: Lineage);
    /// A request is answered.
    fn reply(&self, reply: Reply);
    /// A session is over there.
    fn ended(&self, session: SessionId, end: End);
}

/// How a session is over at another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// To ask again would not help.
    ForGood,
    /// What is under way may be done or not.
    Unknown,
    /// What is under way was never begun, and never will be there: it may be asked of the next owner.
    Undone,
}

/// A session of another node's guest.
pub trait Visitor: Replies {
    /// The volume goes, and the session is over: what it asked and was not answered was never begun.
    fn send_away(&self);
}

/// Knows the ways to other nodes.
pub trait Roads {
    /// The way to a volume at a node.
    fn to(&self, node: NodeId, volume: VolumeId, near: Weak<dyn Near>) -> Rc<dyn Afar>;
}
