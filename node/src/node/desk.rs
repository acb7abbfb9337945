//! Where newcomers ask to be let in, and where this node hears whether it is part of the cluster.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::{Rc, Weak},
};

use tokio::sync::Notify;
use velum_protocol::{
    id::{Incarnation, NodeId},
    peer::{Frame, Join, Verdict},
};

use super::group::Admission;
use crate::{limits::PEERS_MAX, metadata::State};

/// See the module.
pub(super) struct Desk {
    state: Rc<RefCell<State>>,
    /// This node has a token and does not know yet whether it is let in. Until it does it takes no part in raft: its number may
    /// be another node's, which has voted.
    is_joining: Cell<bool>,
    /// What each newcomer asked last.
    asks: RefCell<BTreeMap<NodeId, Join>>,
    refused: Cell<Option<Verdict>>,
    told: Notify,
    /// The highest number that was offered here: two offers at once are of two numbers.
    highest: Cell<u64>,
    /// Who hears what is not raft's. Weak, for it speaks on the links, which hold this.
    ensembles: RefCell<Option<Weak<dyn Hearing>>>,
}

/// Hears what nodes say to each other about volumes.
pub(super) trait Hearing {
    /// A node says something.
    fn told(&self, by: NodeId, frame: Frame);
    /// What was sent to a node last may be lost.
    fn lost(&self, to: NodeId);
}

impl Desk {
    pub(super) fn new(state: Rc<RefCell<State>>, is_joining: bool) -> Self {
        Self {
            state,
            is_joining: Cell::new(is_joining),
            asks: RefCell::default(),
            refused: Cell::default(),
            told: Notify::default(),
            highest: Cell::default(),
            ensembles: RefCell::default(),
        }
    }

    /// Has somebody hear what is not raft's. Before that, it is lost, as if the link had come up later.
    pub(super) fn hear_with(&self, hearing: Weak<dyn Hearing>) {
        *self.ensembles.borrow_mut() = Some(hearing);
    }

    fn hearing(&self) -> Option<Rc<dyn Hearing>> {
        self.ensembles.borrow().as_ref().and_then(Weak::upgrade)
    }

    /// What newcomers have asked since the last time.
    pub(super) fn take_asks(&self) -> BTreeMap<NodeId, Join> {
        self.asks.take()
    }

    /// The highest number that was offered here.
    pub(super) fn highest(&self) -> u64 {
        self.highest.get()
    }

    /// A number is on its way to be offered.
    pub(super) fn offered(&self, node: NodeId) {
        self.highest.set(self.highest.get().max(node.0));
    }

    /// Completes when this node is no part of the cluster.
    pub(super) async fn refusal(&self) -> Verdict {
        loop {
            let told = self.told.notified();
            if let Some(why) = self.refused.get() {
                return why;
            }
            told.await;
        }
    }
}

impl Admission for Desk {
    fn hears(&self, node: NodeId) -> bool {
        self.state.borrow().hears(node)
    }

    fn asked(&self, by: NodeId, join: Join) {
        let mut asks = self.asks.borrow_mut();
        if asks.len() < PEERS_MAX || asks.contains_key(&by) {
            asks.insert(by, join);
        }
    }

    fn incarnation(&self) -> Incarnation {
        let state = self.state.borrow();
        // A newcomer's state is empty until the leader's snapshot takes its place; every other names clouds.
        if state.clouds.is_empty() { Incarnation(0) } else { state.incarnation }
    }

    fn takes_part(&self) -> bool {
        !self.is_joining.get()
    }

    fn told(&self, by: NodeId, frame: Frame) {
        if let Some(hearing) = self.hearing() {
            hearing.told(by, frame);
        }
    }

    fn lost(&self, to: NodeId) {
        if let Some(hearing) = self.hearing() {
            hearing.lost(to);
        }
    }

    fn judged(&self, verdict: Verdict) {
        match verdict {
            Verdict::Welcome => return self.is_joining.set(false),
            // A place that is taken is not asked for any more; late answers do not matter.
            Verdict::NoPlace if !self.is_joining.get() => return,
            Verdict::NoPlace | Verdict::Removed | Verdict::Outlived => {}
        }
        self.refused.set(Some(verdict));
        self.told.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use velum_protocol::{format::metadata::CloudName, id::ClusterId};

    use super::*;
    use crate::metadata::state::CloudEntry;

    fn desk(is_joining: bool) -> Desk {
        Desk::new(Rc::new(RefCell::new(State::new(ClusterId([1; 16]), Vec::new(), 2))), is_joining)
    }

    /// A second node with a used token once voted under the number of the first one, which was down.
    #[test]
    fn a_newcomer_takes_part_when_it_is_welcome_and_not_before() {
        let newcomer = desk(true);
        assert!(!newcomer.takes_part());
        newcomer.judged(Verdict::Welcome);
        assert!(newcomer.takes_part());
        newcomer.judged(Verdict::NoPlace);
        assert_eq!(newcomer.refusal().now_or_never(), None, "it has its place");
        newcomer.judged(Verdict::Removed);
        assert_eq!(newcomer.refusal().now_or_never(), Some(Verdict::Removed));
        let late = desk(true);
        late.judged(Verdict::NoPlace);
        assert_eq!(late.refusal().now_or_never(), Some(Verdict::NoPlace));
        assert!(!late.takes_part());
        assert!(desk(false).takes_part());
    }

    #[test]
    fn a_newcomer_knows_of_no_life_before_it_has_learned_what_the_cluster_is() {
        let newcomer = desk(true);
        assert_eq!(newcomer.incarnation(), Incarnation(0));
        let clouds = vec![CloudEntry { name: CloudName("a".into()), url: "memory:///".into() }];
        *newcomer.state.borrow_mut() =
            State { incarnation: Incarnation(3), ..State::new(ClusterId([1; 16]), clouds, 1) };
        assert_eq!(newcomer.incarnation(), Incarnation(3));
        newcomer.judged(Verdict::Outlived);
        assert_eq!(newcomer.refusal().now_or_never(), Some(Verdict::Outlived));
    }
}
