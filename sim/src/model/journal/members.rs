//! Members: what they keep, sync, store and say; and what crashes leave of it.

use velum_node::{
    ensemble::{
        lease,
        member::{self, Noted},
    },
    env::Instant,
};
use velum_protocol::{
    format::record::RecordHeader,
    id::{Jseq, NodeId},
    peer::{
        Frame,
        ensemble::{Append, Condition},
    },
};

use super::{
    acting::Acting,
    world::{Flying, Node, number, place},
};
use crate::ensemble::{
    Bug,
    bugs::{found, is_filled, stores},
    machine::Op,
};

impl Acting<'_> {
    pub(super) fn append(&mut self, from: NodeId, to: NodeId, append: Append) {
        let node = self.node(to);
        let bent = self.bug.and_then(|bug| bug.bent(&node.machine, &append, self.now()));
        if let (Some(member), Some(up)) = (bent, &mut self.node_mut(to).machine.up) {
            up.member = member;
        }
        self.step_member(to, member::Input::Append(from, append));
    }

    pub(super) fn step_member(&mut self, node: NodeId, input: member::Input) {
        self.step_member_at(node, self.now(), input);
    }

    fn step_member_at(&mut self, node: NodeId, now: Instant, input: member::Input) {
        let Some(up) = &mut self.node_mut(node).machine.up else { return };
        let mut effects = Vec::new();
        up.member.step(now, input, &mut effects);
        effects.into_iter().for_each(|effect| self.perform_member(node, effect));
    }

    fn perform_member(&mut self, node: NodeId, effect: member::Effect) {
        let bug = self.bug;
        let machine = &mut self.node_mut(node).machine;
        let disk = &mut machine.disk;
        match effect {
            member::Effect::Keep { at, record, .. } => {
                let is_void = disk.log.iter().any(|op| kept(op).is_some_and(|kept| kept >= at));
                disk.log.push(Op::Keep(record));
                self.reach_if(is_void, "an end is void");
            }
            member::Effect::Trim { epoch, through } => {
                disk.log.push(Op::Trim(epoch, through));
                self.reach_if(true, "records are trimmed");
            }
            // Nothing of the damage is left in these journals.
            member::Effect::MadeUp => {}
            member::Effect::WakeAfter(_) if bug == Some(Bug::NoLeaseWait) => {
                self.step_member_at(node, self.now() + lease::TTL, member::Input::Wake);
            }
            // It is woken whenever time passes.
            member::Effect::WakeAfter(_) => self.reach_if(true, "a fence waits for a lease"),
            member::Effect::Sync => {
                let through = disk.log.len();
                self.node_mut(node).syncing = Some(through);
            }
            member::Effect::Store(noted) => {
                let noted = stores(bug, machine, noted);
                machine.disk.storing.push_back(noted);
                if bug == Some(Bug::UnstoredPromise) {
                    self.step_member(node, member::Input::Stored);
                }
            }
            member::Effect::Send { to, frame } => {
                let told = |epoch| self.node(to).machine.up.as_ref().is_some_and(|up| up.role.takes(epoch));
                let verdict = self.node(node).machine.disk.judge_told(&frame, told);
                self.judge(verdict);
                if let Frame::Fenced(fenced) = &frame {
                    self.reach_if(fenced.condition == Condition::Amnesic, "an amnesic copy answers a fence");
                    self.reach_if(fenced.condition == Condition::Damaged, "a damaged copy answers a fence");
                }
                self.send(Flying::frame(node, to, frame));
            }
        }
    }

    pub(super) fn synced(&mut self, node: NodeId) {
        let state = self.node_mut(node);
        let Some(through) = state.syncing.take() else { return };
        state.machine.disk.synced = state.machine.disk.synced.max(through);
        self.step_member(node, member::Input::Synced);
    }

    pub(super) fn stored(&mut self, node: NodeId) {
        let bug = self.bug;
        let state = self.node_mut(node);
        let was_damaged = state.machine.damaged_ms.is_some();
        if let Some(promise) = state.machine.disk.storing.pop_front() {
            let verdict = state.machine.judge_stored(&promise);
            state.note(promise, bug);
            let is_filled = was_damaged && state.machine.damaged_ms.is_none();
            self.judge(verdict);
            self.reach_if(is_filled, "a damaged copy is filled");
        }
        if self.bug != Some(Bug::UnstoredPromise) {
            self.step_member(node, member::Input::Stored);
        }
    }

    /// A process ends and another one starts. What was on its way to it is lost with its connections.
    pub(super) fn kill(&mut self, node: usize, stored: usize) {
        let bug = self.bug;
        self.node_mut(number(node)).end(stored, bug);
        self.restart(node);
    }

    /// The same of a machine, which `keeps` what was not synced, or does not.
    pub(super) fn lose_power(&mut self, node: usize, stored: usize, keeps: bool) {
        let bug = self.bug;
        let state = self.node_mut(number(node));
        state.end(stored, bug);
        state.machine.boot += 1;
        if !keeps {
            state.machine.disk.log.truncate(state.machine.disk.synced);
        }
        self.restart(node);
    }

    /// The same of a process, and a part of its journal is gone with it.
    pub(super) fn damage(&mut self, node: usize, stored: usize, part: (usize, usize), damage: u64) {
        let bug = self.bug;
        let state = self.node_mut(number(node));
        state.end(stored, bug);
        state.machine.lose(part.0, part.1);
        state.machine.damaged_ms = Some(damage);
        state.machine.disk.reads = found(bug, state.machine.disk.reads);
        self.restart(node);
    }

    fn restart(&mut self, node: usize) {
        self.world.nodes[node].edit().machine.start(0);
        self.world.flying.retain(|flying| flying.to.0 == 0 || place(flying.to) != node);
    }
}

impl Node {
    fn end(&mut self, stored: usize, bug: Option<Bug>) {
        (self.syncing, self.machine.up) = (None, None);
        let storing = std::mem::take(&mut self.machine.disk.storing);
        storing.into_iter().take(stored).for_each(|promise| self.note(promise, bug));
    }

    /// A promise is durable. It may say that what damage took is there again.
    fn note(&mut self, promise: Noted, bug: Option<Bug>) {
        self.machine.disk.promise = Some(promise);
        self.machine.damaged_ms = self.machine.damaged_ms.filter(|_| !is_filled(bug, &promise));
    }
}

/// The position of a record in a log.
fn kept(op: &Op) -> Option<Jseq> {
    match op {
        Op::Keep(record) => RecordHeader::decode(record).ok().map(|(header, _)| header.jseq),
        Op::Trim(..) => None,
    }
}
