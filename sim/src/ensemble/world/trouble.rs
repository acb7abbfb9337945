//! The keeper, who grants the volume, and what goes wrong.

use std::collections::BTreeSet;

use velum_node::metadata::Answer;
use velum_protocol::{format::metadata::Command, id::NodeId, peer::ensemble::Condition};

use super::{Event, World};
use crate::{
    ensemble::{
        bugs::{Bug, found},
        machine::{Machine, Role, VOLUME},
    },
    rng::Rng,
};

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    Kill,
    PowerLoss,
    AllLosePower,
    Stop,
    Break,
    BlockOneWay,
    Isolate,
    Pause,
    SlowLink,
    LostDisk,
    Rot,
    Grant,
}

/// All kinds, each as often as its weight says.
const KINDS: [(u32, Trouble); 11] = [
    (12, Trouble::Kill),
    (12, Trouble::PowerLoss),
    (3, Trouble::AllLosePower),
    (4, Trouble::Stop),
    (10, Trouble::Break),
    (10, Trouble::BlockOneWay),
    (8, Trouble::Isolate),
    (8, Trouble::Pause),
    (6, Trouble::SlowLink),
    (3, Trouble::LostDisk),
    (20, Trouble::Grant),
];

/// A takeover that has not come to its end by then, although it waits for nobody any more, is begun anew.
const LATE_MS: u64 = 40_000;

/// The kinds of a world. In a quarter of them journals are damaged, besides everything else; where damage is looked for alone,
/// nothing else is lost. Where answers are to come late, nothing else happens.
pub(super) fn draw(rng: &Rng, is_damaged: bool, is_late: bool) -> Vec<(u32, Trouble)> {
    let mut kinds: Vec<_> = KINDS.into_iter().filter(|_| rng.chance(600_000)).collect();
    kinds.push((6, Trouble::Grant));
    if rng.chance(250_000) || is_damaged {
        kinds.push((6, Trouble::Rot));
    }
    if is_late {
        kinds = vec![(2, Trouble::Pause), (2, Trouble::SlowLink), (1, Trouble::Grant)];
    }
    if is_damaged {
        kinds.retain(|(_, kind)| !matches!(kind, Trouble::PowerLoss | Trouble::AllLosePower | Trouble::LostDisk));
    }
    kinds
}

impl World {
    pub(super) fn keep(&mut self) {
        self.later(100, Event::Keep);
        let volume = &self.state.volumes[&VOLUME];
        let (owner, epoch) = (volume.owner, volume.epoch);
        let is_gone = owner.is_none_or(|owner| self.process(owner).is_none());
        let is_idle = owner.is_some_and(|owner| {
            let up = self.nodes.get(&owner).and_then(|machine| machine.up.as_ref());
            up.is_some_and(|up| matches!(up.role, Role::None))
        });
        let since_ms = self.now_ms - self.granted_ms;
        let is_late = self.ghost.open() < epoch && since_ms > LATE_MS;
        if owner.is_none() || ((is_gone || is_idle) && since_ms > 1_000) || is_late {
            self.grant();
        }
    }

    fn grant(&mut self) {
        let up: Vec<NodeId> = self.nodes.values().filter(|machine| machine.up.is_some()).map(|m| m.node).collect();
        if up.is_empty() {
            return;
        }
        let node = *self.rng.pick(&up);
        let mut members: BTreeSet<NodeId> = self.nodes.keys().copied().collect();
        // Now and then one node fewer.
        if members.len() > 2 && self.rng.chance(100_000) {
            let others: Vec<NodeId> = members.iter().copied().filter(|other| *other != node).collect();
            members.remove(self.rng.pick(&others));
        }
        let (before, after) = (self.state.volumes[&VOLUME].owner, self.state.volumes[&VOLUME].epoch);
        let members = members.into_iter().collect();
        match self.propose(Command::GrantEnsemble { volume: VOLUME, node, after, members }) {
            Ok(Answer::Epoch(epoch)) => {
                self.granted_ms = self.now_ms;
                let wait_ms = self.rng.between(1, 100);
                self.later(wait_ms, Event::Granted { node, epoch });
                // Whoever owned it so far hears of it soon, or from the members.
                if let Some(before) = before.filter(|before| *before != node && self.reads_rng.chance(500_000)) {
                    let wait_ms = self.reads_rng.between(1, 200);
                    self.later(wait_ms, Event::LetGo { node: before, granted: epoch });
                }
            }
            other => self.fail(format!("the keeper's grant was answered with {other:?}")),
        }
    }

    pub(super) fn trouble(&mut self) {
        if self.is_healed {
            return;
        }
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        let (node, other) = (*self.rng.pick(&all), *self.rng.pick(&all));
        let trouble = *self.rng.weighted(&self.kinds.clone());
        let for_ms = self.rng.between(50, 3_000);
        self.note("trouble", node, &[trouble as u64]);
        match trouble {
            Trouble::Kill => self.down(node, for_ms, "kills", Machine::kill),
            Trouble::PowerLoss => self.down(node, for_ms, "power losses", Machine::lose_power),
            Trouble::AllLosePower => {
                all.iter().for_each(|node| self.down(*node, for_ms, "power losses of all", Machine::lose_power));
            }
            Trouble::Stop => self.down(node, for_ms, "clean stops", Machine::stop),
            Trouble::Break => {
                self.tally.count("broken links");
                self.break_link(node, other);
            }
            Trouble::BlockOneWay => self.block(node, other, for_ms),
            Trouble::Isolate => {
                for other in all.into_iter().filter(|other| *other != node) {
                    self.block(node, other, for_ms);
                    self.block(other, node, for_ms);
                }
            }
            Trouble::Pause => {
                self.tally.count("pauses");
                let until_ms = self.now_ms + for_ms;
                self.nodes.entry(node).and_modify(|machine| machine.paused_until_ms = until_ms);
                self.later(for_ms, Event::Resume { node });
            }
            Trouble::SlowLink => {
                self.tally.count("slow links");
                self.links.entry((node, other)).or_default().slow_ms = self.rng.below(500);
            }
            Trouble::LostDisk => self.lose_disk(node),
            Trouble::Rot => self.rot(node, for_ms),
            Trouble::Grant => self.grant(),
        }
        let wait_ms = self.rng.between(10, 800);
        self.later(wait_ms, Event::Trouble);
    }

    fn down(&mut self, node: NodeId, for_ms: u64, how: &'static str, end: fn(&mut Machine, &Rng)) {
        let rng = self.rng.fork("down");
        let Some(machine) = self.nodes.get_mut(&node).filter(|machine| machine.up.is_some()) else { return };
        end(machine, &rng);
        machine.paused_until_ms = 0;
        // All of it was for the process that has ended, but for what raft says.
        self.held.remove(&node);
        self.tally.count(how);
        self.note(how, node, &[]);
        let others: Vec<NodeId> = self.nodes.keys().copied().collect();
        for other in others {
            self.break_link(other, node);
            self.break_link(node, other);
        }
        self.later(for_ms, Event::Start { node });
    }

    fn block(&mut self, from: NodeId, to: NodeId, for_ms: u64) {
        if from != to {
            self.tally.count("cut links");
            self.break_link(from, to);
            self.links.entry((from, to)).or_default().is_blocked = true;
            self.later(for_ms, Event::Unblock { from, to });
        }
    }

    /// A machine goes for good, and another one comes under a new number; one at a time.
    fn lose_disk(&mut self, node: NodeId) {
        let is_kept = self.state.ensembles.get(&VOLUME).is_some_and(|ensemble| {
            ensemble.opened_members.len() > 2 && (!ensemble.opened_members.contains(&node) || self.lost.is_none())
        });
        if !is_kept || self.misses_a_copy() || self.state.volumes[&VOLUME].owner == Some(node) {
            return;
        }
        self.tally.count("lost disks");
        self.lost = Some(node);
        self.down(node, 0, "kills", Machine::kill);
        self.nodes.remove(&node);
        self.join();
    }

    /// One machine at a time may lack what it had synced: more than that nobody promises to bear.
    fn misses_a_copy(&self) -> bool {
        self.lost.is_some() || self.nodes.values().any(|machine| machine.damaged_ms.is_some())
    }

    /// A journal is damaged.
    fn rot(&mut self, node: NodeId, for_ms: u64) {
        if self.misses_a_copy() || self.process(node).is_none() {
            return;
        }
        let (now_ms, bug) = (self.now_ms, self.recipe.bug);
        let is_hidden = matches!(bug, Some(Bug::CutAtDamage | Bug::DamagedAsAmnesic));
        self.down(node, for_ms, "damaged journals", if is_hidden { Machine::rot_at_end } else { Machine::rot });
        let Some(machine) = self.nodes.get_mut(&node) else { return };
        machine.damaged_ms = (machine.disk.reads == Condition::Damaged).then_some(now_ms);
        machine.disk.reads = found(bug, machine.disk.reads);
    }

    pub(super) fn heal(&mut self) {
        self.is_healed = true;
        self.note("healed", NodeId(0), &[]);
        self.links.values_mut().for_each(|link| (link.is_blocked, link.slow_ms) = (false, 0));
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in all {
            self.nodes.entry(node).and_modify(|machine| machine.paused_until_ms = 0);
            self.resume(node);
            self.start(node);
        }
        self.grant();
    }
}
