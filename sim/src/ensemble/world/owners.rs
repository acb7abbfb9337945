//! Who takes over, owns and writes, and what raft answers.

use velum_node::ensemble::{
    owner,
    takeover::{self, Takeover},
};
use velum_protocol::{
    format::metadata::Command,
    id::{Epoch, NodeId},
    peer::Frame,
};

use super::{Event, Told, World};
use crate::ensemble::{
    bugs::{Bug, Chosen, unfenced},
    machine::{Beginning, Role, Up, VOLUME, opening, record},
};

impl World {
    pub(super) fn take_over(&mut self, node: NodeId, epoch: Epoch) {
        let volume = &self.state.volumes[&VOLUME];
        if volume.epoch != epoch || volume.owner != Some(node) || self.process(node).is_none() {
            return;
        }
        let ensemble = &self.state.ensembles[&VOLUME];
        let opening = opening(&self.state, node, epoch);
        let (closes, members, fenced) = (ensemble.opened, ensemble.members.clone(), ensemble.opened_members.clone());
        let mut effects = Vec::new();
        let takeover = Box::new(Takeover::new(opening, &mut effects));
        let process = self.process(node).unwrap_or_default();
        if let Some(up) = self.up(node, process) {
            up.role = Role::Taking { takeover, epoch, closes, members, tails: Vec::new() };
        }
        self.note("takes over", node, &[epoch.0]);
        self.tally.count("takeovers");
        if self.has(Bug::ReadBeforeFence) {
            for other in fenced {
                self.peek(node, process, other, epoch);
            }
        }
        self.perform_takeover(node, process, effects);
    }

    /// What a member would say if it were fenced, before it is.
    fn peek(&mut self, node: NodeId, process: u64, other: NodeId, epoch: Epoch) {
        let machine = self.nodes.get(&other).filter(|machine| machine.up.is_some());
        if let Some(fenced) = machine.and_then(|machine| unfenced(machine, node, epoch)) {
            self.step_role(node, process, Told::Takeover(takeover::Input::Fenced(other, fenced)));
        }
    }

    pub(super) fn step_role(&mut self, node: NodeId, process: u64, told: Told) {
        let Some(up) = self.up(node, process) else { return };
        match (&mut up.role, told) {
            (Role::Taking { takeover, .. }, told) => {
                let input = match told {
                    Told::Tick => takeover::Input::Tick,
                    Told::Lost(to) => takeover::Input::Lost(to),
                    Told::Takeover(input) => input,
                    Told::Owner(_) | Told::Trimmed(_) => return,
                };
                let mut effects = Vec::new();
                takeover.step(input, &mut effects);
                self.perform_takeover(node, process, effects);
            }
            (Role::Owning(owning), told) => {
                let input = match told {
                    Told::Tick => owner::Input::Tick,
                    Told::Lost(to) => owner::Input::Lost(to),
                    Told::Trimmed(through) => owner::Input::Trimmed(through),
                    Told::Owner(input) => input,
                    Told::Takeover(_) => return,
                };
                let mut effects = Vec::new();
                owning.owner.step(input, &mut effects);
                self.perform_owner(node, process, effects);
            }
            (Role::None, _) => {}
        }
    }

    fn perform_takeover(&mut self, node: NodeId, process: u64, effects: Vec<takeover::Effect>) {
        for effect in effects {
            match effect {
                takeover::Effect::Send { to, frame } => {
                    if self.has(Bug::ReadBeforeFence) && matches!(frame, Frame::Fence(_)) {
                        // It comes too late for what was looked at.
                        self.links.entry((node, to)).or_default().busy_until_ms = self.now_ms + 80;
                    }
                    self.send(node, to, frame);
                }
                takeover::Effect::Chosen { base, records, end, durable, mut lineage_changes } => {
                    lineage_changes &= !self.has(Bug::KeptLineage);
                    self.own(node, process, Chosen { base, records, end, durable }, lineage_changes);
                }
                takeover::Effect::Overtaken(_) => {
                    if let Some(up) = self.up(node, process) {
                        up.role = Role::None;
                    }
                }
                takeover::Effect::Waiting(why) => {
                    self.trace.event(self.now_ms, "waits", &format!("n{node} {why}"), &[]);
                    if matches!(why, takeover::Reason::BeginsLate { .. }) {
                        self.fail(format!("SEQ4: {why}"));
                    }
                }
            }
        }
    }

    fn own(&mut self, node: NodeId, process: u64, chosen: Chosen, lineage_changes: bool) {
        let (bug, head, began_ms) = (self.recipe.bug, self.state.volumes[&VOLUME].head.last, self.now_ms);
        let Some(up) = self.up(node, process) else { return };
        let Some(effects) = up.role.own(chosen, &Beginning { node, head, lineage_changes, began_ms, bug }) else {
            return;
        };
        let Role::Owning(owning) = &up.role else { return };
        let numbers = [owning.epoch.0, owning.written.at.0, owning.end.at.0, u64::from(lineage_changes)];
        self.note("chosen", node, &numbers);
        self.perform_owner(node, process, effects);
        self.perhaps_close(node, process);
    }

    fn perform_owner(&mut self, node: NodeId, process: u64, effects: Vec<owner::Effect>) {
        for effect in effects {
            let Some(Up { role: Role::Owning(owning), .. }) = self.up(node, process) else { return };
            let (epoch, is_open) = (owning.epoch, owning.is_open);
            match effect {
                owner::Effect::Send { to, frame } => self.send(node, to, frame),
                owner::Effect::Written(point) => {
                    owning.written = point;
                    if is_open {
                        let verdict = self.ghost.acked(epoch, node, point);
                        self.judge(verdict);
                    }
                }
                owner::Effect::Durable(at) => {
                    owning.durable = at;
                    owning.known = owning.known.max(at);
                    if is_open {
                        let verdict = self.ghost.synced(epoch, node, at);
                        self.judge(verdict);
                        self.tally.count("barriers");
                    }
                    self.perhaps_close(node, process);
                }
                owner::Effect::Deposed(_) => self.depose(node, process),
                owner::Effect::Conflict(member) => {
                    self.fail(format!("OWN3: {member} holds what cannot be beside node {node}'s records"));
                }
            }
        }
    }

    /// Has raft close the open epoch once its end is at d1 of the new ensemble.
    fn perhaps_close(&mut self, node: NodeId, process: u64) {
        let inherits = self.has(Bug::InheritedDurable);
        let wait_ms = self.rng.between(1, 60);
        let Some(Up { role: Role::Owning(owning), .. }) = self.up(node, process) else { return };
        let durable = if inherits { owning.known } else { owning.durable };
        if !owning.is_closing && durable >= owning.end.at {
            owning.is_closing = true;
            let epoch = owning.epoch;
            self.later(wait_ms, Event::Close { node, process, epoch });
        }
    }

    pub(super) fn close(&mut self, node: NodeId, process: u64, epoch: Epoch) {
        let Some(Up { role: Role::Owning(owning), .. }) = self.up(node, process) else { return };
        if owning.epoch != epoch {
            return;
        }
        let (closes, end, began_ms) = (owning.closes, owning.end, owning.began_ms);
        let (lineage_changes, members) = (owning.lineage_changes, owning.members.clone());
        let command =
            Command::CloseEpoch { volume: VOLUME, epoch, closes, last: end.at, chain: end.chain, lineage_changes };
        let is_done = self.propose(command).is_ok();
        if is_done {
            self.note("opened", node, &[epoch.0, end.at.0, u64::from(lineage_changes)]);
            self.tally.count("epochs opened");
            self.tally.0.entry("lineages changed").and_modify(|n| *n += u64::from(lineage_changes)).or_insert(0);
            let verdict = self.ghost.close(epoch, end, lineage_changes);
            self.judge(verdict);
            // What was lost since with a disk, or to damage, was there.
            let holds = |node: &NodeId| self.nodes.get(node).is_none_or(|machine| machine.had_synced(end, began_ms));
            let copies = members.iter().filter(|node| holds(node)).count();
            let in_clouds = self.state.volumes[&VOLUME].head.last;
            if copies < members.len() / 2 + 1 && end.at > in_clouds {
                self.fail(format!("VIS4: {epoch:?} opened with {copies} synced copies of {:?}", end.at));
            }
            if self.lost.is_some_and(|lost| !members.contains(&lost)) {
                self.lost = None;
            }
        }
        let wait_ms = self.rng.between(1, 40);
        self.later(wait_ms, Event::Closed { node, process, epoch, is_done });
    }

    pub(super) fn closed(&mut self, node: NodeId, process: u64, epoch: Epoch, is_done: bool) {
        let Some(up) = self.up(node, process) else { return };
        let Role::Owning(owning) = &mut up.role else { return };
        if owning.epoch != epoch {
            return;
        }
        if !is_done {
            up.role = Role::None;
            return;
        }
        owning.is_open = true;
        let mut effects = Vec::new();
        owning.owner.step(owner::Input::Opened, &mut effects);
        self.perform_owner(node, process, effects);
        self.later(1, Event::Write { node, process });
        self.later(1, Event::Read { node, process });
        self.later(50, Event::Sequence { node, process });
    }

    /// A guest writes for a while, and asks for a barrier now and then.
    pub(super) fn write(&mut self, node: NodeId, process: u64) {
        let count = self.rng.below(6);
        let (salt, wants_sync, wait_ms) = (self.rng.next(), self.rng.chance(200_000), self.rng.between(1, 40));
        let lineage = self.state.volumes[&VOLUME].lineage;
        let Some(Up { role: Role::Owning(owning), .. }) = self.up(node, process) else { return };
        if !owning.is_open {
            return;
        }
        let epoch = owning.epoch;
        // Guests wait for their acks.
        let count = if owning.last.at.0 - owning.written.at.0 > 200 { 0 } else { count };
        let (mut effects, mut made) = (Vec::new(), Vec::new());
        for number in 0..count {
            let (record, end) = record(epoch, lineage, owning.last, owning.known.min(owning.last.at), salt ^ number);
            owning.last = end;
            owning.owner.step(owner::Input::Made { record }, &mut effects);
            made.push(end);
        }
        owning.owner.step(owner::Input::Push, &mut effects);
        if wants_sync {
            owning.owner.step(owner::Input::Sync, &mut effects);
        }
        for end in made {
            self.tally.count("records made");
            let verdict = self.ghost.made(epoch, end);
            self.judge(verdict);
        }
        self.perform_owner(node, process, effects);
        self.later(wait_ms, Event::Write { node, process });
    }
}
