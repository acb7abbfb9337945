//! Taking over: fence enough members of the open epoch's ensemble, read only then, and choose where that epoch ends. Bringing the
//! end to the new ensemble is an [`Owner`](super::owner::Owner)'s work.
//!
//! ```text
//! fencing ── enough whole copies, or no more to wait for ──> reading ── up to the end ──> chosen
//!    ^                                                          │
//!    └── the copy is not any more what its member said ─────────┘        anywhere: a later promise ──> overtaken
//! ```
//!
//! The end is where the highest copy of the open epoch ends, and not before what raft knows: where that epoch began, and the head of the
//! sequence. A copy whose last record is of an earlier epoch missed the open one: what it holds beyond the beginning of that epoch
//! is another past, and it serves for what lies before only.
//!
//! A damaged copy may lack anything that its member answered for. It is no answer and no end; what it holds is read where it joins.

use bytes::Bytes;
use velum_protocol::{
    id::{Epoch, Jseq, NodeId, VolumeId},
    peer::{
        Frame,
        ensemble::{Condition, Fence, Fenced, Point, ReadTail, Tail},
    },
};

use super::batch::{Held, judge};

/// What a takeover begins with, as the metadata has it.
#[derive(Clone, Debug, Hash)]
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
    #[error("{answered} of the {needed} journals needed have answered; start {}", nodes(.missing))]
    TooFew {
        /// So many have.
        answered: usize,
        /// So many must.
        needed: usize,
        /// Who has not.
        missing: Vec<NodeId>,
    },
    /// Members have answered whose copies are damaged, and too few besides them.
    #[error(
        "{answered} of the {needed} journals needed have answered; the journal of {} is damaged and may lack what was synced; start {}",
        nodes(.damaged), nodes(.missing)
    )]
    TooDamaged {
        /// So many have whose copies are not damaged.
        answered: usize,
        /// So many must.
        needed: usize,
        /// Whose copies are.
        damaged: Vec<NodeId>,
        /// Who has not answered.
        missing: Vec<NodeId>,
    },
    /// What was synced, or closed in raft, is missing.
    #[error(
        "records up to {needed} were synced on enough nodes, and the journals that answered hold them up to {end}; start {}",
        nodes(.missing)
    )]
    Damaged {
        /// Up to where they must be there.
        needed: Jseq,
        /// Up to where they are.
        end: Jseq,
        /// Who has not answered.
        missing: Vec<NodeId>,
    },
    /// The copy that holds the end lacks what must come before.
    #[error("the journal of node {node} begins behind {begins}, and the sequence ends at {head} already; start {}", nodes(.missing))]
    BeginsLate {
        /// Whose.
        node: NodeId,
        /// What its first record follows.
        begins: Jseq,
        /// The head of the sequence.
        head: Jseq,
        /// Who has not answered.
        missing: Vec<NodeId>,
    },
}

fn nodes(missing: &[NodeId]) -> String {
    if missing.is_empty() {
        return "nothing more: all have answered, and what is missing is lost".to_owned();
    }
    let names: Vec<_> = missing.iter().map(|node| format!("node {node}")).collect();
    names.join(" and ")
}

/// Ticks to wait for a whole copy before the lineage changes for want of one. Long enough for a node that is cut off or starts
/// again to come back: with one machine's loss of power alone no acked write is lost.
const GRACE_TICKS: u32 = 300;

/// Ticks between two words about why it waits.
const WORD_TICKS: u32 = 10;

/// Ticks after which a question is asked again, at first and at most.
const PAUSE_MIN: u32 = 2;
const PAUSE_MAX: u32 = 10;

/// The machine.
#[derive(Clone, Debug, Hash)]
pub struct Takeover {
    opening: Opening,
    members: Vec<Asked>,
    /// Ticks since enough members have answered.
    grace: u32,
    ticks: u32,
    got: Option<Got>,
    reading: Option<Reading>,
    is_done: bool,
}

/// A member that is fenced.
#[derive(Clone, Debug, Hash)]
struct Asked {
    node: NodeId,
    said: Option<Fenced>,
    /// Its copy is not what it must be; it counts for nothing.
    is_wrong: bool,
    /// Its copy is another past, which it may be, and is not read from.
    is_past: bool,
    quiet: u32,
    pause: u32,
}

/// What was read.
#[derive(Clone, Debug, Hash)]
struct Got {
    base: Point,
    held: Vec<Held>,
    at: Point,
}

/// A question for records.
#[derive(Clone, Copy, Debug, Hash)]
struct Reading {
    from: NodeId,
    /// What its copy holds in all, when it was asked.
    tail: Point,
    quiet: u32,
}

impl Takeover {
    /// A takeover that begins by fencing.
    #[must_use]
    pub fn new(opening: Opening, effects: &mut Vec<Effect>) -> Self {
        let asked = |node: &NodeId| Asked {
            node: *node,
            said: None,
            is_wrong: false,
            is_past: false,
            quiet: 0,
            pause: PAUSE_MIN,
        };
        let members = opening.fenced.iter().map(asked).collect();
        let mut own = Self { opening, members, grace: 0, ticks: 0, got: None, reading: None, is_done: false };
        for node in own.missing() {
            own.fence(node, effects);
        }
        own.go_on(effects);
        own
    }

    /// Takes one input.
    pub fn step(&mut self, input: Input, effects: &mut Vec<Effect>) {
        if self.is_done {
            return;
        }
        match input {
            Input::Fenced(from, fenced) if fenced.volume == self.opening.volume => self.fenced(from, fenced, effects),
            Input::Tail(from, tail) if tail.volume == self.opening.volume && tail.epoch == self.opening.epoch => {
                self.tail(from, &tail, effects);
            }
            Input::Fenced(..) | Input::Tail(..) => {}
            Input::Lost(to) => self.lost(to),
            Input::Tick => self.tick(effects),
        }
    }

    fn fenced(&mut self, from: NodeId, fenced: Fenced, effects: &mut Vec<Effect>) {
        let Some(member) = self.members.iter_mut().find(|member| member.node == from) else { return };
        if fenced.promise > self.opening.epoch {
            self.is_done = true;
            return effects.push(Effect::Overtaken(fenced.promise));
        }
        if fenced.promise < self.opening.epoch {
            return;
        }
        member.said = Some(fenced);
        self.go_on(effects);
    }

    fn lost(&mut self, to: NodeId) {
        // Asked again with the next tick, and no sooner.
        if let Some(reading) = self.reading.as_mut().filter(|reading| reading.from == to) {
            reading.quiet = PAUSE_MAX;
        }
    }

    fn tick(&mut self, effects: &mut Vec<Effect>) {
        self.ticks += 1;
        // Nobody answers for it now; maybe it does when it is back, or others suffice.
        let silent = self.reading.as_mut().and_then(|reading| {
            reading.quiet += 1;
            (reading.quiet > PAUSE_MAX).then_some(reading.from)
        });
        silent.into_iter().for_each(|node| self.forget(node));
        for node in self.missing() {
            let member = self.members.iter_mut().find(|member| member.node == node);
            let is_due = member.is_some_and(|member| {
                member.quiet += 1;
                member.quiet >= member.pause
            });
            if is_due {
                self.fence(node, effects);
            }
        }
        self.grace += u32::from(self.counting().count() >= self.needed());
        let waits = self.go_on(effects);
        if !self.is_done && self.ticks.is_multiple_of(WORD_TICKS) {
            effects.extend(waits.map(Effect::Waiting));
        }
    }

    fn fence(&mut self, node: NodeId, effects: &mut Vec<Effect>) {
        let Opening { volume, epoch, .. } = self.opening;
        effects.push(Effect::Send { to: node, frame: Frame::Fence(Fence { volume, epoch }) });
        if let Some(member) = self.members.iter_mut().find(|member| member.node == node) {
            (member.quiet, member.pause) = (0, (member.pause * 2).min(PAUSE_MAX));
        }
    }

    /// The member is fenced as if it had not been: its copy may have changed with its life.
    fn forget(&mut self, node: NodeId) {
        self.reading = None;
        for member in self.members.iter_mut().filter(|member| member.node == node) {
            (member.said, member.quiet, member.pause) = (None, PAUSE_MAX, PAUSE_MIN);
        }
    }

    /// The copy is not the past that raft knows, and what was read may be of it. One that missed the open epoch may be so: it
    /// still holds all that its member answered for.
    fn distrust(&mut self, node: NodeId) {
        (self.reading, self.got) = (None, None);
        let (closes, alone) = (self.opening.closes, self.was_kept_alone());
        for member in self.members.iter_mut().filter(|member| member.node == node) {
            let missed = !alone && member.said.is_some_and(|said| said.tail_epoch < closes);
            (member.is_past, member.is_wrong) = (true, !missed);
        }
    }

    /// So many members are a fence: any so many that kept a record share one with them.
    fn needed(&self) -> usize {
        self.members.len() - self.members.len() / 2
    }

    fn said(&self) -> impl Iterator<Item = (NodeId, &Fenced)> {
        let trusted = self.members.iter().filter(|member| !member.is_wrong);
        trusted.filter_map(|member| Some((member.node, member.said.as_ref()?)))
    }

    /// Copies that have all that was synced with their members.
    fn counting(&self) -> impl Iterator<Item = (NodeId, &Fenced)> {
        self.said().filter(|(_, fenced)| fenced.condition != Condition::Damaged)
    }

    fn damaged(&self) -> Vec<NodeId> {
        let damaged = self.said().filter(|(_, fenced)| fenced.condition == Condition::Damaged);
        damaged.map(|(node, _)| node).collect()
    }

    fn missing(&self) -> Vec<NodeId> {
        self.members.iter().filter(|member| member.said.is_none()).map(|member| member.node).collect()
    }

    /// Kept by one node alone before, in whatever epochs: its copy is the only past there is.
    fn was_kept_alone(&self) -> bool {
        self.members.len() == 1 && self.opening.base.at == Jseq(0)
    }

    /// Where a copy ends that counts.
    fn end_of(&self, fenced: &Fenced) -> Point {
        let is_of_open_epoch = fenced.tail_epoch == self.opening.closes || self.was_kept_alone();
        if is_of_open_epoch || fenced.tail.at < self.opening.base.at { fenced.tail } else { self.opening.base }
    }

    /// Up to where records or the clouds must have everything, as raft knows.
    fn floor(&self) -> Point {
        let Opening { base, head, .. } = self.opening;
        if base.at > head.at { base } else { head }
    }

    /// Does what can be done now; why nothing can, otherwise.
    fn go_on(&mut self, effects: &mut Vec<Effect>) -> Option<Reason> {
        let (answered, needed, missing) = (self.counting().count(), self.needed(), self.missing());
        if answered < needed {
            let damaged = self.damaged();
            return Some(if damaged.is_empty() {
                Reason::TooFew { answered, needed, missing }
            } else {
                Reason::TooDamaged { answered, needed, damaged, missing }
            });
        }
        if self.whole() < needed && !missing.is_empty() && self.grace < GRACE_TICKS {
            return Some(Reason::TooFew { answered: self.whole(), needed, missing });
        }
        let ends = self.counting().map(|(_, fenced)| self.end_of(fenced));
        let end = ends.chain([self.floor()]).max_by_key(|end| end.at).unwrap_or(self.opening.head);
        let durable = self.durable();
        if durable > end.at {
            return Some(Reason::Damaged { needed: durable, end: end.at, missing });
        }
        if let Some(base) = self.opening.durable.filter(|durable| durable.at >= end.at) {
            self.choose(Got { base, held: Vec::new(), at: base }, effects);
            return None;
        }
        let begins = self.said().filter(|(_, said)| self.end_of(said).at >= end.at).map(|(_, said)| said.base.at);
        // Whoever could go on is gone, and who is left begins later: read anew, as far back as its copy goes.
        if let (Some(got), Some(begins)) = (&self.got, begins.min())
            && begins > got.at.at
        {
            self.got = None;
        }
        match self.source(end) {
            Ok(Some((node, fenced))) => self.read(node, fenced, end, effects),
            // Nobody holds what raft and the clouds have; nothing else is needed.
            Ok(None) => {
                let head = self.opening.head;
                self.choose(Got { base: head, held: Vec::new(), at: head }, effects);
            }
            Err(reason) => return Some(reason),
        }
        None
    }

    fn whole(&self) -> usize {
        self.said().filter(|(_, fenced)| fenced.condition == Condition::Whole).count()
    }

    fn durable(&self) -> Jseq {
        self.said().map(|(_, fenced)| fenced.durable).max().unwrap_or_default()
    }

    /// From whom what is missing up to `end` is read. None when nobody has it and nobody needs to.
    fn source(&self, end: Point) -> Result<Option<(NodeId, Fenced)>, Reason> {
        let head = self.opening.head;
        let begun = self.got.as_ref().map_or(head.at, |got| got.at.at);
        let is_past = |node| self.members.iter().any(|member| member.node == node && member.is_past);
        let reach = || self.said().filter(|(node, said)| self.end_of(said).at >= end.at && !is_past(*node));
        let is_at_it = |node: NodeId| self.reading.is_some_and(|reading| reading.from == node);
        let fit = reach().filter(|(_, fenced)| fenced.base.at <= begun);
        // Whoever is being read from goes on; the own copy is nearest.
        let rank = |(node, said): &(NodeId, &Fenced)| {
            (is_at_it(*node), said.condition != Condition::Damaged, *node == self.opening.node)
        };
        let best = fit.max_by_key(rank);
        if best.is_some() || end.at <= head.at {
            return Ok(best.map(|(node, fenced)| (node, *fenced)));
        }
        let missing = self.missing();
        Err(match reach().next() {
            Some((node, late)) => Reason::BeginsLate { node, begins: late.base.at, head: head.at, missing },
            None => {
                let held = self.said().map(|(_, fenced)| self.end_of(fenced).at).max().unwrap_or_default();
                Reason::Damaged { needed: end.at, end: held, missing }
            }
        })
    }

    /// Reads on from `node` up to `end`, unless that is under way.
    fn read(&mut self, node: NodeId, fenced: Fenced, end: Point, effects: &mut Vec<Effect>) {
        let skipped = self.opening.durable.filter(|durable| durable.at >= fenced.base.at);
        let base = skipped.unwrap_or(fenced.base);
        let at = self.got.get_or_insert(Got { base, held: Vec::new(), at: base }).at;
        if at.at >= end.at {
            if at.chain != end.chain {
                self.distrust(node);
                return drop(self.go_on(effects));
            }
            let got = self.got.take().expect("it was put there above");
            return self.choose(got, effects);
        }
        if self.reading.is_some_and(|reading| reading.from == node && reading.tail == fenced.tail) {
            return;
        }
        self.reading = Some(Reading { from: node, tail: fenced.tail, quiet: 0 });
        let (volume, epoch) = (self.opening.volume, self.opening.epoch);
        let read = ReadTail { volume, epoch, after: at.at, through: end.at };
        effects.push(Effect::Send { to: node, frame: Frame::ReadTail(read) });
    }

    fn tail(&mut self, from: NodeId, tail: &Tail, effects: &mut Vec<Effect>) {
        if self.reading.is_none_or(|reading| reading.from != from) {
            return;
        }
        let Some(at) = self.got.as_ref().map(|got| got.at) else { return };
        if tail.records.is_empty() {
            // Its copy is not what it was when it was fenced: it has begun another life.
            self.forget(from);
        } else if tail.prev.at != at.at {
            // Said before.
            return;
        } else if tail.prev == at && self.take(tail) {
            self.reading = None;
        } else {
            self.distrust(from);
        }
        self.go_on(effects);
    }

    /// Takes what was read, if it is what it must be.
    fn take(&mut self, tail: &Tail) -> bool {
        let (closes, alone) = (self.opening.closes, self.was_kept_alone());
        let known = [Some(self.opening.base).filter(|_| !alone), Some(self.opening.head), self.opening.durable];
        let began = if alone { Jseq(u64::MAX) } else { self.opening.base.at };
        let (Ok(records), Some(got)) = (judge(tail.prev, closes, &tail.records), self.got.as_mut()) else {
            return false;
        };
        for held in records {
            let at = Point { at: got.at.at.next(), chain: held.chain };
            let differs = known.iter().flatten().any(|known| known.at == at.at && known.chain != at.chain);
            if differs || (at.at > began && held.epoch != closes) {
                return false;
            }
            got.at = at;
            got.held.push(held);
        }
        true
    }

    fn choose(&mut self, got: Got, effects: &mut Vec<Effect>) {
        self.is_done = true;
        let told = got.held.iter().map(|held| held.durable).max().unwrap_or_default();
        let durable = self.durable().max(told).min(got.at.at);
        let lineage_changes = self.whole() < self.needed();
        let records = got.held.into_iter().map(|held| held.record).collect();
        effects.push(Effect::Chosen { base: got.base, records, end: got.at, durable, lineage_changes });
    }
}

#[cfg(test)]
#[path = "takeover_tests.rs"]
mod tests;
