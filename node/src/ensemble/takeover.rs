//! Taking over: fence enough members of the open epoch's ensemble, read only then, and choose where that epoch ends. Bringing the
//! end to the new ensemble is an [`Owner`](super::owner::Owner)'s work.

use std::collections::BTreeMap;

use bytes::Bytes;
use velum_protocol::{
    id::{Epoch, Jseq, NodeId, VolumeId},
    peer::{
        Frame,
        ensemble::{Fence, Fenced, Point, ReadTail, Tail},
    },
};

use super::batch::judge;

/// What a takeover begins with, as the metadata has it.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The volume.
    pub volume: VolumeId,
    /// Who takes over.
    pub node: NodeId,
    /// The epoch granted.
    pub epoch: Epoch,
    /// The open epoch.
    pub closes: Epoch,
    /// Its ensemble; none when no epoch was ever open.
    pub fenced: Vec<NodeId>,
    /// Where the open epoch began; position zero for a volume that its owner kept alone.
    pub base: Point,
    /// Where the sequence stands.
    pub head: Point,
    /// d2, if the chain there is known: records up to it are not needed.
    pub durable: Option<Point>,
}

/// What the machine is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// A member's answer to the fence.
    Fenced(NodeId, Fenced),
    /// Records of a member.
    Tail(NodeId, Tail),
    /// What was sent to the member last may be lost.
    Lost(NodeId),
    /// [`TICK`](super::owner::TICK) has passed.
    Tick,
}

/// What the shell is to do, in order.
#[expect(missing_docs, reason = "each field is an id, a position or a frame; the variant says what for")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send; to the own member by loopback.
    Send { to: NodeId, frame: Frame },
    /// Chosen; the machine is done. `base`, `records` and `durable` are what the new epoch's owner opens with; at `end` the open
    /// epoch is to be closed.
    Chosen { base: Point, records: Vec<Bytes>, end: Point, durable: Jseq, lineage_changes: bool },
    /// A later epoch was granted: the machine has stopped for good.
    Overtaken(Epoch),
    /// It waits; told again every now and then while that lasts.
    Waiting(Reason),
}

/// Why a takeover waits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Too few members have answered.
    #[error("{answered} of the {needed} journals needed have answered; start {missing:?}")]
    TooFew {
        /// So many have.
        answered: usize,
        /// So many must.
        needed: usize,
        /// Who has not.
        missing: Vec<NodeId>,
    },
    /// What was synced is missing.
    #[error(
        "everything up to {durable} was synced on enough nodes, and those that answer hold it up to {end}; start the others"
    )]
    Damaged {
        /// d1.
        durable: Jseq,
        /// What is there.
        end: Jseq,
    },
}

/// Ticks that a takeover waits for a whole copy before it changes the lineage.
const GRACE_TICKS: u32 = 30;

/// Ticks between two complaints.
const COMPLAIN_TICKS: u32 = 20;

/// The machine.
#[derive(Debug)]
pub struct Takeover {
    opening: Opening,
    fenced: BTreeMap<NodeId, Fenced>,
    ticks: u32,
    reading: Option<Reading>,
    done: bool,
}

#[derive(Debug)]
struct Reading {
    from: NodeId,
    base: Point,
    at: Point,
    through: Jseq,
    records: Vec<Bytes>,
    durable: Jseq,
    lineage_changes: bool,
    asked: u32,
}

impl Takeover {
    /// A takeover that begins by fencing.
    #[must_use]
    pub fn new(opening: Opening, effects: &mut Vec<Effect>) -> Self {
        let mut own = Self { opening, fenced: BTreeMap::new(), ticks: 0, reading: None, done: false };
        own.fence(effects);
        own.choose(effects);
        own
    }

    /// Takes one input.
    pub fn step(&mut self, input: Input, effects: &mut Vec<Effect>) {
        if self.done {
            return;
        }
        match input {
            Input::Fenced(from, fenced) => self.fenced(from, fenced, effects),
            Input::Tail(from, tail) => self.tail(from, tail, effects),
            Input::Lost(_) => {}
            Input::Tick => {
                self.ticks += 1;
                match &mut self.reading {
                    Some(reading) => {
                        reading.asked += 1;
                        if reading.asked >= 10 {
                            self.reading = None;
                            self.fenced.clear();
                            self.fence(effects);
                        }
                    }
                    None => {
                        self.fence(effects);
                        self.choose(effects);
                    }
                }
            }
        }
    }

    fn fence(&self, effects: &mut Vec<Effect>) {
        let Opening { volume, epoch, .. } = self.opening;
        let silent = self.opening.fenced.iter().filter(|member| !self.fenced.contains_key(member));
        effects.extend(silent.map(|to| Effect::Send { to: *to, frame: Frame::Fence(Fence { volume, epoch }) }));
    }

    fn fenced(&mut self, from: NodeId, fenced: Fenced, effects: &mut Vec<Effect>) {
        if fenced.volume != self.opening.volume || !self.opening.fenced.contains(&from) {
            return;
        }
        if fenced.promise > self.opening.epoch {
            self.done = true;
            return effects.push(Effect::Overtaken(fenced.promise));
        }
        if fenced.promise == self.opening.epoch {
            self.fenced.insert(from, fenced);
            self.choose(effects);
        }
    }

    /// Up to where the copy counts.
    fn end(&self, fenced: &Fenced) -> Point {
        if fenced.tail_epoch < self.opening.closes && fenced.tail.at > self.opening.base.at {
            self.opening.base
        } else {
            fenced.tail
        }
    }

    fn choose(&mut self, effects: &mut Vec<Effect>) {
        if self.reading.is_some() || self.done {
            return;
        }
        let members = self.opening.fenced.len();
        let needed = if members == 0 { 0 } else { members - members / 2 };
        let whole = self.fenced.values().filter(|fenced| !fenced.amnesic).count();
        let answered = self.fenced.len();
        if answered < needed || (whole < needed && answered < members && self.ticks < GRACE_TICKS) {
            if self.ticks % COMPLAIN_TICKS == COMPLAIN_TICKS - 1 {
                let missing =
                    self.opening.fenced.iter().filter(|node| !self.fenced.contains_key(node)).copied().collect();
                effects.push(Effect::Waiting(Reason::TooFew { answered, needed, missing }));
            }
            return;
        }
        let lineage_changes = whole < needed;
        let head = self.opening.head;
        let best = self.fenced.iter().max_by_key(|(node, fenced)| (self.end(fenced).at, **node == self.opening.node));
        let durable = self.fenced.values().map(|fenced| fenced.durable).max().unwrap_or_default().max(head.at);
        let Some((from, fenced)) = best.filter(|(_, fenced)| self.end(fenced).at > head.at || fenced.base.at < head.at)
        else {
            self.done = true;
            return effects.push(Effect::Chosen {
                base: head,
                records: Vec::new(),
                end: head,
                durable: head.at,
                lineage_changes,
            });
        };
        let end = self.end(fenced);
        if durable > end.at.max(head.at) {
            if self.ticks % COMPLAIN_TICKS == COMPLAIN_TICKS - 1 {
                effects.push(Effect::Waiting(Reason::Damaged { durable, end: end.at }));
            }
            return;
        }
        if end.at < head.at || end.at == fenced.base.at {
            self.done = true;
            let end = if end.at < head.at { head } else { end };
            return effects.push(Effect::Chosen { base: end, records: Vec::new(), end, durable, lineage_changes });
        }
        let (from, base) = (*from, fenced.base);
        let reading =
            Reading { from, base, at: base, through: end.at, records: Vec::new(), durable, lineage_changes, asked: 0 };
        self.reading = Some(reading);
        self.ask(effects);
    }

    fn ask(&self, effects: &mut Vec<Effect>) {
        let Some(reading) = &self.reading else { return };
        let (volume, epoch) = (self.opening.volume, self.opening.epoch);
        let read = ReadTail { volume, epoch, after: reading.at.at, through: reading.through };
        effects.push(Effect::Send { to: reading.from, frame: Frame::ReadTail(read) });
    }

    fn tail(&mut self, from: NodeId, tail: Tail, effects: &mut Vec<Effect>) {
        let Some(reading) = self.reading.as_mut().filter(|reading| reading.from == from && reading.at == tail.prev)
        else {
            return;
        };
        if tail.volume != self.opening.volume || tail.records.is_empty() {
            return;
        }
        let Ok(held) = judge(tail.prev, self.opening.closes, &tail.records) else { return };
        for held in held {
            if reading.at.at < reading.through {
                reading.at = Point { at: reading.at.at.next(), chain: held.chain };
                reading.records.push(held.record);
            }
        }
        reading.asked = 0;
        if reading.at.at < reading.through {
            return self.ask(effects);
        }
        let Some(Reading { base, at, records, durable, lineage_changes, .. }) = self.reading.take() else { return };
        self.done = true;
        effects.push(Effect::Chosen { base, records, end: at, durable, lineage_changes });
    }
}
