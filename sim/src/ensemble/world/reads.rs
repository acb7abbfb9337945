//! Guests read from owners, by lease and by question.
//!
//! What a read finds it finds at once, in the owner's memory; whether it may be answered is found out after that. So a read that is
//! answered is judged by whether another owner had acked anything in a later epoch when it was done.

use std::time::Duration;

use velum_node::{
    ensemble::confirm::{Confirming, Effect, Input},
    env::Instant,
};
use velum_protocol::id::{Epoch, NodeId};

use super::{Event, World};
use crate::ensemble::{
    bugs::Bug,
    machine::{Role, Up, VOLUME},
};

/// An owner's reads.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Reads {
    asker: Confirming,
    /// Reads that wait for the next round, and those that the round under way is for: whether each had missed something.
    waiting: Vec<bool>,
    asked: Vec<bool>,
    /// When the last round began, and how long the last one took that was answered.
    began: Instant,
    took: Duration,
}

impl Reads {
    pub(crate) fn new(epoch: Epoch, members: Vec<NodeId>) -> Self {
        let asker = Confirming::new(VOLUME, epoch, members);
        Self { asker, waiting: Vec::new(), asked: Vec::new(), began: Instant::default(), took: Duration::ZERO }
    }

    /// What is left of the lease, as the owner counts; one with a bug looks at it as if it were earlier.
    pub(crate) fn left(&self, now: Instant, bug: Option<Bug>) -> Duration {
        let seen = match bug {
            Some(Bug::LeaseFromReply) => {
                Instant(now.0.saturating_sub(u64::try_from(self.took.as_micros()).unwrap_or(0)))
            }
            Some(Bug::ReadAfterLease) => self.began,
            _ => now,
        };
        self.asker.lease_left(seen)
    }

    /// The asker's step, of which is remembered what a bug goes by.
    pub(crate) fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        self.asker.step(now, input, effects);
        for effect in effects {
            match effect {
                Effect::Began => self.began = now,
                Effect::Confirmed => self.took = now.since(self.began),
                Effect::Send { .. } | Effect::Deposed(_) => {}
            }
        }
    }
}

impl World {
    /// A guest reads for a while.
    pub(super) fn read(&mut self, node: NodeId, process: u64) {
        let (wait_ms, leases) = (self.reads_rng.between(1, 30), self.leases);
        let (now, bug) = (self.now_of(node), self.recipe.bug);
        let Some(Up { role: Role::Owning(owning), .. }) = self.nodes.get_mut(&node).and_then(|node| node.up.as_mut())
        else {
            return;
        };
        if !owning.is_open {
            return;
        }
        let epoch = owning.epoch;
        let is_late = self.ghost.is_superseded(epoch);
        let left = owning.reads.left(now, bug);
        if leases && !left.is_zero() {
            self.answer(node, epoch, is_late, "reads by lease");
            if Confirming::is_soon_over(left) {
                self.step_asker(node, process, Input::Renew);
            }
        } else {
            owning.reads.waiting.push(is_late);
            self.step_asker(node, process, Input::Ask { wants_lease: leases });
        }
        self.later(wait_ms, Event::Read { node, process });
    }

    fn answer(&mut self, node: NodeId, epoch: Epoch, is_late: bool, how: &'static str) {
        self.tally.count(how);
        if is_late {
            self.fail(format!(
                "OWN5: {how}: node {node} answers in {epoch:?} what misses a later epoch's acked writes"
            ));
        }
    }

    pub(super) fn step_asker(&mut self, node: NodeId, process: u64, input: Input) {
        let now = self.now_of(node);
        let Some(Up { role: Role::Owning(owning), .. }) = self.up(node, process) else { return };
        let mut effects = Vec::new();
        owning.reads.step(now, input, &mut effects);
        for effect in effects {
            let Some(Up { role: Role::Owning(owning), .. }) = self.up(node, process) else { return };
            let (epoch, reads) = (owning.epoch, &mut owning.reads);
            match effect {
                Effect::Send { to, frame } => self.send(node, to, frame),
                Effect::Began => reads.asked.append(&mut reads.waiting),
                Effect::Confirmed => {
                    for is_late in std::mem::take(&mut reads.asked) {
                        self.answer(node, epoch, is_late, "reads by question");
                    }
                }
                Effect::Deposed(_) => self.depose(node, process),
            }
        }
    }

    /// The node is not the owner any more, and knows it.
    pub(super) fn depose(&mut self, node: NodeId, process: u64) {
        self.step_asker(node, process, Input::Release);
        let Some(up) = self.up(node, process) else { return };
        let Role::Owning(owning) = &up.role else { return };
        let epoch = owning.epoch;
        up.role = Role::None;
        self.note("deposed", node, &[epoch.0]);
        self.tally.count("deposed owners");
    }

    /// Raft's word that the volume is another node's has come.
    pub(super) fn let_go(&mut self, node: NodeId, granted: Epoch) {
        let Some(process) = self.process(node) else { return };
        let Some(Up { role: Role::Owning(owning), .. }) = self.up(node, process) else { return };
        if owning.epoch < granted {
            self.depose(node, process);
        }
    }

    /// Now, by the node's clock.
    pub(super) fn now_of(&self, node: NodeId) -> Instant {
        self.nodes.get(&node).map_or(Instant::default(), |machine| machine.clock.at(self.now_ms))
    }
}
