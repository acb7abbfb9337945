//! A node: a disk that is written in order, a page cache that a loss of power takes, and the machines of its process.

use std::collections::VecDeque;

use bytes::Bytes;
use velum_node::{
    ensemble::{
        batch::{Held, judge},
        member::{Found, Member, Noted},
        owner::{self, Owner},
        takeover::{self, Takeover},
    },
    metadata::{State, state::CloudEntry},
};
use velum_protocol::{
    format::{
        metadata::{CloudName, Command, WrappedKey, WrappedVolumeKeys},
        record::{RecordHeader, RecordKind, chain},
    },
    id::{BlockCount, BlockIndex, BootId, ClusterId, Epoch, Hash, Jseq, KeyEpoch, Lineage, NodeId, Seq, VolumeId},
    peer::{
        Frame,
        ensemble::{Condition, Life, Point, Verdict},
    },
};

use super::{
    bugs::{Bug, Chosen, lowest},
    clock::Clock,
    world::Reads,
};
use crate::rng::Rng;

/// The only volume.
pub(crate) const VOLUME: VolumeId = VolumeId([7; 16]);

/// Before the first record.
pub(crate) const START: Point = Point { at: Jseq(0), chain: Hash::ZERO };

/// What is stored beside a copy that is whole.
pub(crate) fn whole(epoch: Epoch, boot: BootId) -> Noted {
    Noted { epoch, whole_in: boot, is_damaged: false }
}

/// One write to the journal.
#[derive(Clone, Debug, Hash)]
pub(crate) enum Op {
    Keep(Bytes),
    Trim(Epoch, Jseq),
}

/// What a node has stored.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Disk {
    pub(crate) log: Vec<Op>,
    /// So many of them are on the medium.
    pub(crate) synced: usize,
    pub(crate) promise: Option<Noted>,
    /// Promises that are being stored, oldest first.
    pub(crate) storing: VecDeque<Noted>,
    /// What a start finds wrong with the journal.
    pub(crate) reads: Condition,
}

/// A node.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Machine {
    pub(crate) node: NodeId,
    pub(crate) boot: u8,
    pub(crate) processes: u64,
    pub(crate) stopped_cleanly: bool,
    pub(crate) disk: Disk,
    pub(crate) up: Option<Up>,
    pub(crate) paused_until_ms: u64,
    pub(crate) clock: Clock,
    /// When its journal lost what had been synced, until its copy was filled again.
    pub(crate) damaged_ms: Option<u64>,
}

/// A process.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Up {
    pub(crate) process: u64,
    pub(crate) member: Member,
    pub(crate) role: Role,
}

/// What else it does.
#[derive(Clone, Debug, Hash)]
pub(crate) enum Role {
    None,
    Taking { takeover: Box<Takeover>, epoch: Epoch, closes: Epoch, members: Vec<NodeId>, tails: Vec<Jseq> },
    Owning(Box<Owning>),
}

/// An owner and its writer.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Owning {
    pub(crate) owner: Owner,
    pub(crate) epoch: Epoch,
    pub(crate) closes: Epoch,
    pub(crate) members: Vec<NodeId>,
    pub(crate) end: Point,
    pub(crate) lineage_changes: bool,
    pub(crate) is_open: bool,
    pub(crate) is_closing: bool,
    pub(crate) last: Point,
    pub(crate) written: Point,
    pub(crate) durable: Jseq,
    /// The d1 mark that records tell.
    pub(crate) known: Jseq,
    /// Sequence records that raft has not answered yet, oldest first.
    pub(crate) sent: Vec<Sent>,
    pub(crate) began_ms: u64,
    pub(crate) reads: Reads,
}

/// A sequence record on its way to raft.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Sent {
    pub(crate) seq: Seq,
    pub(crate) hash: Hash,
    pub(crate) last: Point,
}

/// How an owner begins, beside what its takeover has chosen.
pub(crate) struct Beginning {
    pub(crate) node: NodeId,
    /// The last record that the sequence has.
    pub(crate) head: Jseq,
    pub(crate) lineage_changes: bool,
    pub(crate) began_ms: u64,
    pub(crate) bug: Option<Bug>,
}

impl Role {
    /// True when it takes over in that epoch: only then is it built upon what members tell of it.
    pub(crate) fn takes(&self, epoch: Epoch) -> bool {
        matches!(self, Self::Taking { epoch: taken, .. } if *taken == epoch)
    }

    /// Owns with what its takeover has chosen, and says what is to be done then. Nothing unless it takes over.
    pub(crate) fn own(&mut self, mut chosen: Chosen, beginning: &Beginning) -> Option<Vec<owner::Effect>> {
        let Self::Taking { epoch, closes, members, tails, .. } = self else { return None };
        let (epoch, closes) = (*epoch, *closes);
        let &Beginning { node, head, lineage_changes, began_ms, bug } = beginning;
        if bug == Some(Bug::LowestEnd) {
            chosen = lowest(chosen, tails, head);
        }
        let Chosen { base, records, end, durable } = chosen;
        let members = members.clone();
        let reads = Reads::new(epoch, members.clone());
        let opening = owner::Opening { volume: VOLUME, node, epoch, members: members.clone(), base, records, durable };
        let mut effects = Vec::new();
        let mut owner = Owner::new(opening, &mut effects);
        if bug == Some(Bug::HealedBeforeOpen) {
            owner.step(owner::Input::Opened, &mut effects);
        }
        owner.step(owner::Input::Sync, &mut effects);
        *self = Self::Owning(Box::new(Owning {
            owner,
            epoch,
            closes,
            members,
            end,
            lineage_changes,
            is_open: false,
            is_closing: false,
            last: end,
            written: base,
            durable: base.at,
            known: durable,
            sent: Vec::new(),
            began_ms,
            reads,
        }));
        Some(effects)
    }
}

impl Machine {
    pub(crate) fn new(node: NodeId, clock: Clock) -> Self {
        let (boot, processes, stopped_cleanly, paused_until_ms) = (1, 0, false, 0);
        let (log, synced, promise) = (Vec::new(), 0, None);
        let disk = Disk { log, synced, promise, storing: VecDeque::new(), reads: Condition::Whole };
        Self { node, boot, processes, stopped_cleanly, disk, up: None, paused_until_ms, clock, damaged_ms: None }
    }

    pub(crate) fn start(&mut self, now_ms: u64) {
        self.processes += 1;
        // What a start has read it syncs before it answers for it.
        self.disk.synced = self.disk.log.len();
        let mut found = self.find();
        found.note_condition();
        self.disk.promise = found.promise;
        let member = Member::new(found, self.clock.at(now_ms));
        (self.disk.reads, self.stopped_cleanly) = (Condition::Whole, false);
        self.up = Some(Up { process: self.processes, member, role: Role::None });
    }

    pub(crate) fn find(&self) -> Found {
        let mut process = [0; 16];
        process[..8].copy_from_slice(&self.processes.to_le_bytes());
        process[8..].copy_from_slice(&self.node.0.to_le_bytes());
        let life = Life { process, boot: BootId([self.boot; 16]) };
        let (base, held) = self.disk.copy(self.disk.log.len());
        let (promise, stopped_cleanly, reads) = (self.disk.promise, self.stopped_cleanly, self.disk.reads);
        Found { volume: VOLUME, life, promise, stopped_cleanly, reads, base, held }
    }

    /// The process ends; promises on their way are stored or not.
    pub(crate) fn kill(&mut self, rng: &Rng) {
        self.up = None;
        while let Some(promise) = self.disk.storing.pop_front() {
            if rng.chance(500_000) {
                self.disk.storing.clear();
                break;
            }
            self.disk.promise = Some(promise);
        }
    }

    pub(crate) fn lose_power(&mut self, rng: &Rng) {
        self.kill(rng);
        self.boot += 1;
        let unsynced = self.disk.log.len() - self.disk.synced;
        let kept = match rng.below(3) {
            0 => unsynced,
            1 => 0,
            _ => rng.below(unsynced as u64 + 1) as usize,
        };
        self.disk.log.truncate(self.disk.synced + kept);
        if kept > 0 && rng.chance(200_000) && matches!(self.disk.log.pop(), Some(Op::Keep(_))) {
            self.disk.reads = Condition::Amnesic;
        }
    }

    /// The process ends, and the journal is damaged: its end is gone, or some of it. Within one boot it is known how much was synced,
    /// and of what was not synced nothing counts behind the damage.
    pub(crate) fn rot(&mut self, rng: &Rng) {
        self.kill(rng);
        let all = self.disk.log.len();
        let from = rng.below(all as u64 + 1) as usize;
        self.lose(from, if rng.chance(500_000) { all } else { from + 1 + rng.below(20) as usize });
    }

    /// As [`Self::rot`], and it is the end that is gone: where the copy begins nothing tells of it.
    pub(crate) fn rot_at_end(&mut self, rng: &Rng) {
        self.kill(rng);
        let all = self.disk.log.len();
        self.lose(rng.below(all as u64 + 1) as usize, all);
    }

    /// The writes to the journal from `from` to before `to` are gone; a process that has ended.
    pub(crate) fn lose(&mut self, from: usize, to: usize) {
        let synced = self.disk.synced;
        if to < synced {
            self.disk.log.drain(from..to);
            self.disk.synced -= to - from;
        } else {
            self.disk.log.truncate(from);
            self.disk.synced = synced.min(from);
        }
        self.disk.reads = if from < synced { Condition::Damaged } else { Condition::Amnesic };
    }

    /// True when it has synced the record at `point`, or had until damage took it at `since_ms` or later.
    pub(crate) fn had_synced(&self, point: Point, since_ms: u64) -> bool {
        self.damaged_ms.is_some_and(|at_ms| at_ms >= since_ms) || self.disk.has_synced(point)
    }

    /// Judges a promise that becomes durable: it does not say again that the copy lacks what was filled.
    pub(crate) fn judge_stored(&self, promise: &Noted) -> Result<(), String> {
        if promise.is_damaged && self.damaged_ms.is_none() {
            return Err(format!("LIV1: the copy of node {} was filled, and its promise takes that back", self.node));
        }
        Ok(())
    }

    /// Everything is synced, and then the process ends.
    pub(crate) fn stop(&mut self, rng: &Rng) {
        self.disk.synced = self.disk.log.len();
        self.kill(rng);
        self.stopped_cleanly = true;
    }
}

impl Disk {
    /// The copy that the first `count` writes make.
    pub(crate) fn copy(&self, count: usize) -> (Point, Vec<Held>) {
        let (mut base, mut held): (Point, Vec<Held>) = (START, Vec::new());
        for op in self.log.iter().take(count) {
            match op {
                Op::Keep(record) => {
                    let (header, _) = RecordHeader::decode(record).expect("members keep records");
                    let place = header.jseq.0.saturating_sub(base.at.0 + 1) as usize;
                    if header.jseq > base.at && place < held.len() {
                        held.truncate(place);
                    }
                    let end = held.last().map_or(base.chain, |held| held.chain);
                    if held.is_empty() || header.jseq <= base.at || place > held.len() || header.prev != end {
                        held.clear();
                        base = Point { at: Jseq(header.jseq.0 - 1), chain: header.prev };
                    }
                    let prev = held.last().map_or(base, |held| Point { at: base.at, chain: held.chain });
                    let prev = Point { at: Jseq(header.jseq.0 - 1), ..prev };
                    held.extend(judge(prev, Epoch(u64::MAX), std::slice::from_ref(record)).expect("it follows"));
                }
                Op::Trim(epoch, through) => {
                    while base.at < *through && held.first().is_some_and(|held| held.epoch <= *epoch) {
                        base = Point { at: base.at.next(), chain: held.remove(0).chain };
                    }
                }
            }
        }
        (base, held)
    }

    /// Judges what the node's member says, against what is durable of its promises. `is_built_on` says whether who is told may
    /// rely on a promise.
    pub(crate) fn judge_told(&self, frame: &Frame, is_built_on: impl Fn(Epoch) -> bool) -> Result<(), String> {
        let promise = self.promise.map_or(Epoch(0), |noted| noted.epoch);
        match frame {
            Frame::Appended(appended) if appended.verdict == Verdict::Took && appended.epoch < promise => {
                Err(format!("OWN2: a member took {:?} and has promised {promise:?}", appended.epoch))
            }
            Frame::Fenced(fenced) if fenced.promise > promise && is_built_on(fenced.promise) => {
                Err(format!("OWN2: a member told of {:?}, durable is {promise:?}", fenced.promise))
            }
            _ => Ok(()),
        }
    }

    /// True when the medium has the record at `point`, or one that was trimmed there.
    pub(crate) fn has_synced(&self, point: Point) -> bool {
        let (base, held) = self.copy(self.synced);
        let place = |at: Jseq| (at.0 - base.at.0 - 1) as usize;
        point.at <= base.at || held.get(place(point.at)).is_some_and(|held| held.chain == point.chain)
    }
}

/// The only cloud.
pub(crate) fn cloud() -> CloudName {
    CloudName("a".into())
}

/// The metadata of a cluster without nodes and volumes.
pub(crate) fn metadata() -> State {
    State::new(ClusterId([1; 16]), vec![CloudEntry { name: cloud(), url: "memory:///a".into() }], 1)
}

/// The command that makes the volume.
pub(crate) fn creation() -> Command {
    let key = WrappedKey { sealed: Bytes::from_static(b"wrapped"), commitment: Hash::ZERO };
    let keys = WrappedVolumeKeys { key_epoch: KeyEpoch(1), data: key.clone(), metadata: key.clone(), journal: key };
    Command::CreateVolume { volume: VOLUME, name: "demo".into(), size_bytes: 1 << 30, keys, acl: Vec::new() }
}

/// What whoever is granted `epoch` takes over with, as the metadata has it.
pub(crate) fn opening(state: &State, node: NodeId, epoch: Epoch) -> takeover::Opening {
    let (volume, ensemble) = (&state.volumes[&VOLUME], &state.ensembles[&VOLUME]);
    let head = Point { at: volume.head.last, chain: volume.head.journal_chain };
    takeover::Opening {
        volume: VOLUME,
        node,
        epoch,
        closes: ensemble.opened,
        fenced: ensemble.opened_members.clone(),
        base: Point { at: ensemble.base.0, chain: ensemble.base.1 },
        head,
        durable: (volume.durable_jseq(1) == head.at).then_some(head),
    }
}

/// A record as journals hold it, and the point at which it stands.
pub(crate) fn record(epoch: Epoch, lineage: Lineage, before: Point, durable: Jseq, salt: u64) -> (Bytes, Point) {
    let header = RecordHeader {
        kind: RecordKind::Unmap,
        key_epoch: KeyEpoch(1),
        jseq: before.at.next(),
        epoch,
        lineage,
        start: BlockIndex(0),
        count: BlockCount(1),
        durable,
        prev: before.chain,
    };
    let (lead, body) = (header.encode(), salt.to_le_bytes().repeat(5));
    let end = Point { at: header.jseq, chain: chain(&lead, &body) };
    ([&lead[..], &body].concat().into(), end)
}
