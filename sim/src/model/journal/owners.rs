//! Owners and takeovers, and what raft does for them.

use bytes::Bytes;
use velum_node::{
    ensemble::{
        owner,
        takeover::{self, Takeover},
    },
    metadata::Answer,
};
use velum_protocol::{
    format::{
        metadata::Command,
        sequence::{Body, Link},
    },
    id::{Hash, Jseq, KeyEpoch, NodeId},
    peer::ensemble::{Appended, Condition, Point},
};

use super::{
    acting::Acting,
    world::{Flying, NODES, News, number},
};
use crate::{
    ensemble::{
        Bug,
        bugs::{Chosen, unfenced},
        machine::{Beginning, Owning, Role, VOLUME, opening, record},
    },
    ledger::Record,
};

/// Ticks within which an owner says something to everybody.
const TICKS_UNTIL_WORDS: usize = 11;

/// Ticks within which a takeover has stopped waiting for whole copies.
const TICKS_UNTIL_CHANGE: usize = 301;

impl Acting<'_> {
    pub(super) fn grant(&mut self) {
        let Some(node) = self.scope.grants.get(usize::from(self.world.left.granted)).copied() else { return };
        self.world.left.granted += 1;
        self.grant_to(node);
    }

    pub(super) fn grant_to(&mut self, node: usize) {
        let state = &self.world.raft.state;
        let after = state.volumes[&VOLUME].epoch;
        let members: Vec<NodeId> = (0..NODES).map(number).collect();
        let node = number(node);
        let grant = Command::GrantEnsemble { volume: VOLUME, node, after, members: members.clone() };
        match self.propose(grant) {
            Ok(Answer::Epoch(epoch)) => {
                let opening = Box::new(opening(&self.world.raft.state, node, epoch));
                self.node_mut(node).news.push_back(News::Granted { opening, members });
            }
            other => self.judge(Err(format!("a grant was answered with {other:?}"))),
        }
    }

    pub(super) fn hear(&mut self, node: NodeId) {
        let Some(news) = self.node_mut(node).news.pop_front() else { return };
        match news {
            News::Granted { opening, members } => self.take_over(node, *opening, members),
            News::Closed { epoch, is_done } => {
                let Some(role) = self.role(node) else { return };
                let Role::Owning(owning) = role else { return };
                if owning.epoch != epoch {
                    return;
                }
                if !is_done {
                    *role = Role::None;
                    return;
                }
                owning.is_open = true;
                self.step_owner(node, owner::Input::Opened);
            }
            News::Trimmed { through } => self.step_owner(node, owner::Input::Trimmed(through)),
        }
    }

    fn take_over(&mut self, node: NodeId, opening: takeover::Opening, members: Vec<NodeId>) {
        let (epoch, closes, fenced) = (opening.epoch, opening.closes, opening.fenced.clone());
        let mut effects = Vec::new();
        let takeover = Box::new(Takeover::new(opening, &mut effects));
        if let Some(role) = self.role(node) {
            *role = Role::Taking { takeover, epoch, closes, members, tails: Vec::new() };
        }
        if self.bug == Some(Bug::ReadBeforeFence) {
            for other in fenced {
                if let Some(fenced) = unfenced(&self.node(other).machine, node, epoch) {
                    self.step_takeover(node, takeover::Input::Fenced(other, fenced));
                }
            }
        }
        self.perform_takeover(node, effects);
    }

    pub(super) fn step_takeover(&mut self, node: NodeId, mut input: takeover::Input) {
        let (is_counted, is_believed) = (self.bug == Some(Bug::CountedAmnesic), self.bug == Some(Bug::BelievedVoidEnd));
        let Some(Role::Taking { takeover, tails, closes, .. }) = self.role(node) else { return };
        if let takeover::Input::Fenced(_, fenced) = &mut input {
            tails.push(fenced.tail.at);
            if is_counted {
                fenced.condition = Condition::Whole;
            }
            if is_believed && fenced.tail_epoch.0 > 0 {
                fenced.tail_epoch = *closes;
            }
        }
        let mut effects = Vec::new();
        takeover.step(input, &mut effects);
        self.perform_takeover(node, effects);
    }

    /// Time passes until the takeover does not wait for whole copies any more.
    pub(super) fn wait(&mut self, node: NodeId) {
        for _ in 0..TICKS_UNTIL_CHANGE {
            self.step_takeover(node, takeover::Input::Tick);
        }
    }

    fn perform_takeover(&mut self, node: NodeId, effects: Vec<takeover::Effect>) {
        for effect in effects {
            match effect {
                takeover::Effect::Send { to, frame } => self.send(Flying::frame(node, to, frame)),
                takeover::Effect::Chosen { base, records, end, durable, lineage_changes } => {
                    let lineage_changes = lineage_changes && self.bug != Some(Bug::KeptLineage);
                    self.own(node, Chosen { base, records, end, durable }, lineage_changes);
                }
                takeover::Effect::Overtaken(_) => {
                    self.reach_if(true, "a takeover is overtaken");
                    self.role(node).into_iter().for_each(|role| *role = Role::None);
                }
                takeover::Effect::Waiting(why @ takeover::Reason::BeginsLate { .. }) => {
                    self.judge(Err(format!("SEQ4: {why}")));
                }
                takeover::Effect::Waiting(_) => {}
            }
        }
    }

    fn own(&mut self, node: NodeId, chosen: Chosen, lineage_changes: bool) {
        let (bug, head) = (self.bug, self.world.raft.state.volumes[&VOLUME].head.last);
        let began_ms = self.next_damage();
        let has_tail = chosen.end.at > head;
        let Some(role) = self.role(node) else { return };
        let Some(effects) = role.own(chosen, &Beginning { node, head, lineage_changes, began_ms, bug }) else { return };
        self.reach_if(has_tail, "a takeover finds a tail");
        self.perform_owner(node, effects);
        self.perhaps_close(node);
    }

    pub(super) fn appended(&mut self, from: NodeId, to: NodeId, mut appended: Appended) {
        if self.bug == Some(Bug::SyncAtOwner) && from != to {
            appended.synced = appended.at;
        }
        let copies = match self.bug {
            Some(Bug::OwnCopyTwice) => 2,
            Some(Bug::AckAtOne) => NODES,
            _ => 1,
        };
        // As if others had said it, in a life that is nobody's.
        let others = (0..NODES).map(number).filter(|node| *node != from && from == to);
        for other in others.take(copies - 1) {
            let mut twin = appended;
            twin.life.process[15] ^= 0x80;
            twin.synced = if copies == 2 { twin.synced } else { Jseq(0) };
            self.step_owner(to, owner::Input::Appended(other, twin));
        }
        self.step_owner(to, owner::Input::Appended(from, appended));
    }

    pub(super) fn step_owner(&mut self, node: NodeId, input: owner::Input) {
        let Some(Role::Owning(owning)) = self.role(node) else { return };
        let mut effects = Vec::new();
        owning.owner.step(input, &mut effects);
        self.perform_owner(node, effects);
    }

    /// Time passes until the owner says something.
    pub(super) fn tick(&mut self, node: NodeId) {
        let Some(Role::Owning(owning)) = self.role(node) else { return };
        let mut effects = Vec::new();
        for _ in 0..TICKS_UNTIL_WORDS {
            owning.owner.step(owner::Input::Tick, &mut effects);
            if !effects.is_empty() {
                break;
            }
        }
        self.perform_owner(node, effects);
    }

    fn perform_owner(&mut self, node: NodeId, effects: Vec<owner::Effect>) {
        for effect in effects {
            let Some(role) = self.role(node) else { return };
            let Role::Owning(owning) = role else { return };
            let (epoch, is_open) = (owning.epoch, owning.is_open);
            match effect {
                owner::Effect::Send { to, frame } => self.send(Flying::frame(node, to, frame)),
                owner::Effect::Written(point) => {
                    owning.written = point;
                    if is_open {
                        let verdict = self.world.ghost.edit().acked(epoch, node, point);
                        self.judge(verdict);
                        self.reach_if(epoch.0 > 1, "a later owner acks a write");
                    }
                }
                owner::Effect::Durable(at) => {
                    owning.durable = at;
                    owning.known = owning.known.max(at);
                    if is_open {
                        let verdict = self.world.ghost.edit().synced(epoch, node, at);
                        self.judge(verdict);
                        self.reach_if(true, "a barrier is acked");
                    }
                    self.perhaps_close(node);
                }
                owner::Effect::Deposed(_) => {
                    *role = Role::None;
                    self.reach_if(true, "an owner is deposed");
                }
                owner::Effect::Conflict(member) => {
                    self.judge(Err(format!("OWN3: {member} holds what cannot be beside node {node}'s records")));
                }
            }
        }
    }

    /// Has raft close the open epoch once its end is at d1 of the new ensemble.
    fn perhaps_close(&mut self, node: NodeId) {
        let inherits = self.bug == Some(Bug::InheritedDurable);
        let Some(Role::Owning(owning)) = self.role(node) else { return };
        let durable = if inherits { owning.known } else { owning.durable };
        if owning.is_closing || durable < owning.end.at {
            return;
        }
        owning.is_closing = true;
        let Owning { epoch, closes, end, lineage_changes, .. } = **owning;
        let close =
            Command::CloseEpoch { volume: VOLUME, epoch, closes, last: end.at, chain: end.chain, lineage_changes };
        self.send(Flying::proposal(node, close));
    }

    /// Raft comes to what a node has proposed.
    pub(super) fn agree(&mut self, node: NodeId, command: Command) {
        match command {
            Command::CloseEpoch { epoch, last, chain, lineage_changes, .. } => {
                let end = Point { at: last, chain };
                // What damage took since was there; who has proposed it may have ended meanwhile.
                let began_ms = match self.role(node) {
                    Some(Role::Owning(owning)) if owning.epoch == epoch => owning.began_ms,
                    _ => 0,
                };
                let is_done = self.propose(command).is_ok();
                if is_done {
                    let verdict = self.world.ghost.edit().close(epoch, end, lineage_changes);
                    self.judge(verdict);
                    self.reach_if(lineage_changes, "the lineage changes");
                    let copies = self.world.nodes.iter().filter(|node| node.machine.had_synced(end, began_ms)).count();
                    let in_clouds = self.world.raft.state.volumes[&VOLUME].head.last;
                    if copies < NODES / 2 + 1 && end.at > in_clouds {
                        self.judge(Err(format!("VIS4: {epoch:?} opened with {copies} synced copies of {:?}", end.at)));
                    }
                }
                self.node_mut(node).news.push_back(News::Closed { epoch, is_done });
            }
            Command::AppendSequence { epoch, prev_hash, hash, first, last, journal_chain, .. } => {
                let is_taken = if self.bug == Some(Bug::StaleAppend) {
                    self.append_in_any_epoch(command)
                } else {
                    self.propose(command).is_ok()
                };
                if !is_taken {
                    return self.reach_if(true, "a record of the sequence is refused");
                }
                let link = Link { epoch, first, last, prev_hash };
                let body = Body { journal_chain, segments: Vec::new(), updates: Vec::new() };
                let verdict = self.world.ghost.edit().sequenced(Record { link, body, chain: hash });
                self.judge(verdict);
            }
            _ => unreachable!("nodes propose nothing else"),
        }
    }

    /// As metadata would apply it that does not look at the epoch.
    fn append_in_any_epoch(&mut self, append: Command) -> bool {
        let Command::AppendSequence { epoch, grant, .. } = &append else { return false };
        let (epoch, grant) = (*epoch, *grant);
        let mut swap = |epochs| {
            let state = &mut self.world.raft.edit().state;
            let volume = state.volumes.get_mut(&VOLUME).expect("there is one volume");
            let ensemble = state.ensembles.get_mut(&VOLUME).expect("it has an ensemble");
            let (granted, opened) = epochs;
            (std::mem::replace(&mut volume.epoch, granted), std::mem::replace(&mut ensemble.opened, opened))
        };
        let epochs = swap((epoch, epoch));
        let volumes = &mut self.world.raft.edit().state.volumes;
        volumes.get_mut(&VOLUME).expect("there is one volume").grants.insert(grant);
        let is_taken = self.propose(append).is_ok();
        let mut swap = |epochs: (_, _)| {
            let state = &mut self.world.raft.edit().state;
            state.volumes.get_mut(&VOLUME).expect("there is one volume").epoch = epochs.0;
            state.ensembles.get_mut(&VOLUME).expect("it has an ensemble").opened = epochs.1;
        };
        swap(epochs);
        is_taken
    }

    pub(super) fn write(&mut self, node: NodeId) {
        let lineage = self.world.raft.state.volumes[&VOLUME].lineage;
        let Some(Role::Owning(owning)) = self.role(node) else { return };
        let (epoch, mut effects) = (owning.epoch, Vec::new());
        let (record, end) = record(epoch, lineage, owning.last, owning.known.min(owning.last.at), 0);
        owning.last = end;
        owning.owner.step(owner::Input::Made { record }, &mut effects);
        owning.owner.step(owner::Input::Push, &mut effects);
        let verdict = self.world.ghost.edit().made(epoch, end);
        self.judge(verdict);
        self.perform_owner(node, effects);
    }

    /// The owner has what is at d0 appended to the sequence, under a grant.
    pub(super) fn flush(&mut self, node: NodeId) {
        let head = self.world.raft.state.volumes[&VOLUME].head;
        let Some(Role::Owning(owning)) = self.role(node) else { return };
        let (epoch, last) = (owning.epoch, owning.written);
        let grant = Command::GrantFlush { volume: VOLUME, epoch, key_epoch: KeyEpoch(1) };
        let Ok(Answer::Grant(grant)) = self.propose(grant) else { return };
        // No two sealings are alike.
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&head.seq.next().0.to_le_bytes());
        hash[8] = self.world.left.flushes;
        hash[9] = u8::MAX;
        let append = Command::AppendSequence {
            volume: VOLUME,
            epoch,
            grant,
            seq: head.seq.next(),
            prev_hash: head.chain,
            hash: Hash(hash),
            first: head.last.next(),
            last: last.at,
            journal_chain: last.chain,
            record: Bytes::from_static(b"sealed"),
            objects: Vec::new(),
        };
        self.send(Flying::proposal(node, append));
    }

    /// The cloud has all that is in the sequence, and the owner hears of it.
    pub(super) fn advance(&mut self) {
        let volume = &self.world.raft.state.volumes[&VOLUME];
        let (epoch, seq, owner) = (volume.epoch, volume.head.seq, volume.owner);
        let cloud = crate::ensemble::machine::cloud();
        let advance = Command::AdvanceCursor { volume: VOLUME, epoch, cloud, beginning: 0, seq };
        if self.propose(advance).is_err() {
            return;
        }
        let through = self.world.raft.state.volumes[&VOLUME].durable_jseq(1);
        owner.into_iter().for_each(|node| self.node_mut(node).news.push_back(News::Trimmed { through }));
    }
}
