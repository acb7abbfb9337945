//! Reads, and the leases by which owners answer them while time passes.

use std::time::Duration;

use velum_node::{
    ensemble::{confirm, lease, member},
    env::Instant,
};
use velum_protocol::id::NodeId;

use super::{
    acting::Acting,
    world::{Flying, NODES, number},
};
use crate::ensemble::machine::Role;

/// When everything begins: whatever a start has to wait for it has waited for long ago.
const BEGIN: Instant = Instant(1 << 40);

impl Acting<'_> {
    pub(super) fn now(&self) -> Instant {
        BEGIN + lease::TTL / 2 * self.world.halves
    }

    /// Time has passed; who waits for that looks whether it is enough.
    pub(super) fn pass(&mut self) {
        self.world.halves += 1;
        (0..NODES).for_each(|node| self.step_member(number(node), member::Input::Wake));
    }

    pub(super) fn read(&mut self, node: NodeId) {
        let (now, bug) = (self.now(), self.bug);
        let Some(Role::Owning(owning)) = self.role(node) else { return };
        let (epoch, left) = (owning.epoch, owning.reads.left(now, bug));
        if left == Duration::ZERO {
            return self.step_asker(node, confirm::Input::Ask { wants_lease: true });
        }
        self.reach_if(true, "a read is answered by a lease");
        if self.world.ghost.is_superseded(epoch) {
            self.judge(Err(format!("OWN5: node {node} reads in {epoch:?} what misses a later epoch's acked writes")));
        }
    }

    pub(super) fn step_asker(&mut self, node: NodeId, input: confirm::Input) {
        let now = self.now();
        let Some(Role::Owning(owning)) = self.role(node) else { return };
        let mut effects = Vec::new();
        owning.reads.step(now, input, &mut effects);
        for effect in effects {
            match effect {
                confirm::Effect::Send { to, frame } => self.send(Flying::frame(node, to, frame)),
                confirm::Effect::Deposed(_) => self.role(node).into_iter().for_each(|role| *role = Role::None),
                confirm::Effect::Began | confirm::Effect::Confirmed => {}
            }
        }
    }
}
