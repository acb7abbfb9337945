//! A node: a disk that is written in order, a page cache that a loss of power takes, and the machines of its process.

use std::collections::VecDeque;

use bytes::Bytes;
use velum_node::ensemble::{
    batch::{Held, judge},
    member::{Found, Member, Noted},
    owner::Owner,
    takeover::Takeover,
};
use velum_protocol::{
    format::record::RecordHeader,
    id::{BootId, Epoch, Hash, Jseq, NodeId, Seq, VolumeId},
    peer::ensemble::{Condition, Life, Point},
};

use super::{clock::Clock, world::Reads};
use crate::rng::Rng;

/// The only volume.
pub(super) const VOLUME: VolumeId = VolumeId([7; 16]);

/// Before the first record.
pub(super) const START: Point = Point { at: Jseq(0), chain: Hash::ZERO };

/// What is stored beside a copy that is whole.
pub(super) fn whole(epoch: Epoch, boot: BootId) -> Noted {
    Noted { epoch, whole_in: boot, is_damaged: false }
}

/// One write to the journal.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Keep(Bytes),
    Trim(Epoch, Jseq),
}

/// What a node has stored.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) log: Vec<Op>,
    /// So many of them are on the medium.
    pub(super) synced: usize,
    pub(super) promise: Option<Noted>,
    /// Promises that are being stored, oldest first.
    pub(super) storing: VecDeque<Noted>,
    /// What a start finds wrong with the journal.
    pub(super) reads: Condition,
}

/// A node.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) node: NodeId,
    pub(super) boot: u8,
    pub(super) processes: u64,
    pub(super) stopped_cleanly: bool,
    pub(super) disk: Disk,
    pub(super) up: Option<Up>,
    pub(super) paused_until_ms: u64,
    pub(super) clock: Clock,
    /// When its journal lost what had been synced, until its copy was filled again.
    pub(super) damaged_ms: Option<u64>,
}

/// A process.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) process: u64,
    pub(super) member: Member,
    pub(super) role: Role,
}

/// What else it does.
#[derive(Debug)]
pub(super) enum Role {
    None,
    Taking { takeover: Box<Takeover>, epoch: Epoch, closes: Epoch, members: Vec<NodeId>, tails: Vec<Jseq> },
    Owning(Box<Owning>),
}

/// An owner and its writer.
#[derive(Debug)]
pub(super) struct Owning {
    pub(super) owner: Owner,
    pub(super) epoch: Epoch,
    pub(super) closes: Epoch,
    pub(super) members: Vec<NodeId>,
    pub(super) end: Point,
    pub(super) lineage_changes: bool,
    pub(super) is_open: bool,
    pub(super) is_closing: bool,
    pub(super) last: Point,
    pub(super) written: Point,
    pub(super) durable: Jseq,
    /// The d1 mark that records tell.
    pub(super) known: Jseq,
    /// Sequence records that raft has not answered yet, oldest first.
    pub(super) sent: Vec<Sent>,
    pub(super) began_ms: u64,
    pub(super) reads: Reads,
}

/// A sequence record on its way to raft.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) seq: Seq,
    pub(super) hash: Hash,
    pub(super) last: Point,
}

impl Machine {
    pub(super) fn new(node: NodeId, clock: Clock) -> Self {
        let (boot, processes, stopped_cleanly, paused_until_ms) = (1, 0, false, 0);
        let (log, synced, promise) = (Vec::new(), 0, None);
        let disk = Disk { log, synced, promise, storing: VecDeque::new(), reads: Condition::Whole };
        Self { node, boot, processes, stopped_cleanly, disk, up: None, paused_until_ms, clock, damaged_ms: None }
    }

    pub(super) fn start(&mut self, now_ms: u64) {
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

    pub(super) fn find(&self) -> Found {
        let mut process = [0; 16];
        process[..8].copy_from_slice(&self.processes.to_le_bytes());
        process[8..].copy_from_slice(&self.node.0.to_le_bytes());
        let life = Life { process, boot: BootId([self.boot; 16]) };
        let (base, held) = self.disk.copy(self.disk.log.len());
        let (promise, stopped_cleanly, reads) = (self.disk.promise, self.stopped_cleanly, self.disk.reads);
        Found { volume: VOLUME, life, promise, stopped_cleanly, reads, base, held }
    }

    /// The process ends; promises on their way are stored or not.
    pub(super) fn kill(&mut self, rng: &Rng) {
        self.up = None;
        while let Some(promise) = self.disk.storing.pop_front() {
            if rng.chance(500_000) {
                self.disk.storing.clear();
                break;
            }
            self.disk.promise = Some(promise);
        }
    }

    pub(super) fn lose_power(&mut self, rng: &Rng) {
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
    pub(super) fn rot(&mut self, rng: &Rng) {
        self.kill(rng);
        let all = self.disk.log.len();
        let from = rng.below(all as u64 + 1) as usize;
        self.lose(from, if rng.chance(500_000) { all } else { from + 1 + rng.below(20) as usize });
    }

    /// As [`Self::rot`], and it is the end that is gone: where the copy begins nothing tells of it.
    pub(super) fn rot_at_end(&mut self, rng: &Rng) {
        self.kill(rng);
        let all = self.disk.log.len();
        self.lose(rng.below(all as u64 + 1) as usize, all);
    }

    fn lose(&mut self, from: usize, to: usize) {
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

    /// Everything is synced, and then the process ends.
    pub(super) fn stop(&mut self, rng: &Rng) {
        self.disk.synced = self.disk.log.len();
        self.kill(rng);
        self.stopped_cleanly = true;
    }
}

impl Disk {
    /// The copy that the first `count` writes make.
    pub(super) fn copy(&self, count: usize) -> (Point, Vec<Held>) {
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

    /// True when the medium has the record at `point`, or one that was trimmed there.
    pub(super) fn has_synced(&self, point: Point) -> bool {
        let (base, held) = self.copy(self.synced);
        let place = |at: Jseq| (at.0 - base.at.0 - 1) as usize;
        point.at <= base.at || held.get(place(point.at)).is_some_and(|held| held.chain == point.chain)
    }
}
