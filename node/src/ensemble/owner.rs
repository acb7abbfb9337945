//! The owner's side: it ships its records to each member on its own, within a window, and counts how far they are kept.
//!
//! Records are held once, from d2 on. A member that is slow or gone holds up nothing but its own copy. Every frame follows what was
//! sent to that member before it, so whatever was lost shows at the next one, and only a member that lacks something is sent it
//! again. Nothing is counted that a member did not say in its present life.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use velum_protocol::{
    id::{Epoch, Jseq, NodeId, VolumeId},
    peer::{
        Frame,
        ensemble::{Append, Appended, Condition, Heal, Marks, Point, Verdict},
    },
};

use super::{
    batch::{FRAME_BYTES, Held, fitting, is_full, judge, judge_one, position},
    follower::Follower,
};

/// How often the machine wants to be told that time passes.
pub const TICK: Duration = Duration::from_millis(100);

/// What an owner begins with.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The volume.
    pub volume: VolumeId,
    /// The owner.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The epoch's ensemble, the owner among them.
    pub members: Vec<NodeId>,
    /// What the first record follows: d2.
    pub base: Point,
    /// Sealed records from there to the end, oldest first.
    pub records: Vec<Bytes>,
    /// The d1 mark known so far.
    pub durable: Jseq,
}

/// What the machine is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// Raft has opened the epoch. Until then no member's copy is called whole; a record that was made says it, too.
    Opened,
    /// The volume's next record, sealed.
    Made {
        /// It.
        record: Bytes,
    },
    /// A batch ends: what was made is shipped.
    Push,
    /// Somebody waits for d1 of everything made.
    Sync,
    /// d2 rose.
    Trimmed(Jseq),
    /// A member's answer.
    Appended(NodeId, Appended),
    /// What was sent to the member last may be lost.
    Lost(NodeId),
    /// [`TICK`] has passed.
    Tick,
}

/// What the shell is to do, in order.
#[expect(missing_docs, reason = "each field is an id, a position or a frame; the variant says what for")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send; to the own member by loopback.
    Send { to: NodeId, frame: Frame },
    /// d0 rose.
    Written(Point),
    /// d1 rose.
    Durable(Jseq),
    /// A member has promised a later epoch: the machine has stopped for good.
    Deposed(Epoch),
    /// The member holds what cannot be; it counts for nothing.
    Conflict(NodeId),
}

/// How a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberStanding {
    /// Which member.
    pub node: NodeId,
    /// Its copy agrees up to here.
    pub at: Jseq,
    /// Synced up to here.
    pub synced: Jseq,
    /// What its copy may lack: an amnesic one does not count for d0, a damaged one for nothing.
    pub condition: Condition,
    /// Ticks since it was heard of last.
    pub heard: u32,
}

/// The machine.
#[derive(Clone, Debug, Hash)]
pub struct Owner {
    volume: VolumeId,
    epoch: Epoch,
    members: Vec<Follower>,
    /// d2, as far as records were let go.
    base: Point,
    records: VecDeque<Held>,
    /// Bytes of them.
    bytes: u64,
    /// Where the records end that were there at the opening. Earlier owners may have acked them all.
    opened_with: Jseq,
    is_open: bool,
    /// The d1 mark of earlier owners: true, and yet it says nothing of this ensemble.
    known_durable: Jseq,
    /// d0 and d1 by the count of these members.
    written: Jseq,
    durable: Jseq,
    /// Somebody waits for d1 up to here.
    wanted: Jseq,
    is_over: bool,
}

impl Owner {
    /// An owner with what it begins with; asks the members where they stand. Both marks begin at the base: how far the records
    /// behind it are kept by this ensemble is not known yet, whatever an earlier one kept.
    ///
    /// # Panics
    /// When the records do not follow the base, or are of a later epoch.
    #[must_use]
    pub fn new(opening: Opening, effects: &mut Vec<Effect>) -> Self {
        let Opening { volume, node, epoch, members, base, records, durable } = opening;
        assert!(members.contains(&node), "an owner is a member of its ensemble");
        // Its own member last: what others are to write is on its way while this node writes.
        let (own, others): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| *member == node);
        let records = judge(base, epoch, &records).expect("what an owner opens with was judged when it was read");
        let mut own = Self {
            volume,
            epoch,
            members: others.into_iter().chain(own).map(Follower::new).collect(),
            base,
            bytes: records.iter().map(length).sum(),
            records: records.into(),
            opened_with: Jseq(0),
            is_open: false,
            known_durable: Jseq(0),
            written: base.at,
            durable: base.at,
            wanted: Jseq(0),
            is_over: false,
        };
        own.opened_with = own.last();
        own.known_durable = durable.min(own.last());
        own.each(effects, |own, member, effects| {
            member.ask(own.last());
            own.tell(member, false, effects);
        });
        own
    }

    /// Bytes of the records that are held: those that are not in the clouds.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes one input.
    pub fn step(&mut self, input: Input, effects: &mut Vec<Effect>) {
        if self.is_over {
            return;
        }
        match input {
            Input::Opened => {
                self.is_open = true;
                self.each(effects, Self::heal);
            }
            Input::Made { record } => {
                let end = self.point(self.last()).expect("the end is held");
                let made = judge_one(end, (Epoch(0), self.epoch), record).expect("the volume makes records in order");
                self.bytes += length(&made);
                self.records.push_back(made);
                self.is_open = true;
            }
            Input::Push => self.each(effects, Self::ship),
            Input::Sync => {
                self.wanted = self.last();
                self.each(effects, |own, member, effects| {
                    own.ship(member, effects);
                    // What is on its way or waits for room in the window is asked for by the frame that ends there.
                    if member.asks_sync(own.wanted) {
                        own.tell(member, true, effects);
                    }
                });
            }
            Input::Trimmed(through) => self.trim(through, effects),
            Input::Appended(from, appended) => self.appended(from, &appended, effects),
            Input::Lost(to) => self.members.iter_mut().filter(|member| member.node == to).for_each(Follower::lost),
            Input::Tick => {
                let marks = self.marks();
                self.each(effects, |own, member, effects| {
                    let is_behind = member.synced < own.wanted || own.may_heal(member);
                    if member.tick(is_behind, marks) {
                        own.tell(member, member.synced < own.wanted, effects);
                    }
                });
            }
        }
    }

    /// How the members stand, by number.
    #[must_use]
    pub fn status(&self) -> Vec<MemberStanding> {
        let mut standings: Vec<_> = self.members.iter().map(Follower::standing).collect();
        standings.sort_by_key(|standing| standing.node);
        standings
    }

    fn each(&mut self, effects: &mut Vec<Effect>, mut act: impl FnMut(&Self, &mut Follower, &mut Vec<Effect>)) {
        let mut members = std::mem::take(&mut self.members);
        members.iter_mut().for_each(|member| act(self, member, effects));
        self.members = members;
    }

    /// Sends what the member was not sent, as much as the window takes. While it is full more gathers for the next frame.
    fn ship(&self, member: &mut Follower, effects: &mut Vec<Effect>) {
        while member.takes_more() && member.sent < self.last() {
            let from = member.sent.max(self.base.at);
            let behind = self.records.iter().skip(self.place(from)).map(|held| &held.record);
            let records: Vec<_> = fitting(behind, FRAME_BYTES).cloned().collect();
            let end = position(from, records.len());
            let sync = member.sync_asked < self.wanted && (end >= self.wanted || is_full(&records));
            self.send(member, from, records, sync, effects);
            member.shipped(end, sync);
        }
    }

    /// Tells the member the marks behind what it was sent last; whatever is missing there shows in the answer.
    fn tell(&self, member: &mut Follower, sync: bool, effects: &mut Vec<Effect>) {
        let at = member.asking().unwrap_or(member.sent).clamp(self.base.at, self.last());
        if member.asking().is_some() {
            member.ask(at);
        }
        self.send(member, at, Vec::new(), sync, effects);
        member.told(at, sync);
    }

    fn send(&self, member: &mut Follower, after: Jseq, records: Vec<Bytes>, sync: bool, effects: &mut Vec<Effect>) {
        let prev = self.point(after).expect("what is sent follows what is held");
        // The copy is in a better condition only with everything that was ever acked, or synced: what this owner acked, the member looks
        // at by the marks, and earlier ones by the end of the opening.
        let is_full = position(after, records.len()) >= self.opened_with;
        let to = self.next_condition(member).filter(|_| is_full);
        let heals = member.process().zip(to).map(|(process, to)| Heal { process, to });
        let (volume, epoch, marks) = (self.volume, self.epoch, self.marks());
        member.marks = Some(marks);
        let append = Append { volume, epoch, prev, marks, heals, sync, records };
        effects.push(Effect::Send { to: member.node, frame: Frame::Append(append) });
    }

    fn appended(&mut self, from: NodeId, appended: &Appended, effects: &mut Vec<Effect>) {
        if appended.volume != self.volume || appended.epoch != self.epoch || appended.at > self.most(appended) {
            return;
        }
        if !self.members.iter().any(|member| member.node == from) {
            return;
        }
        if appended.promise > self.epoch {
            self.is_over = true;
            return effects.push(Effect::Deposed(appended.promise));
        }
        self.each(effects, |own, member, effects| {
            if member.node != from || !member.hear(&appended.life, appended.condition) {
                return;
            }
            match appended.verdict {
                Verdict::Took => member.took(appended.at, appended.synced),
                Verdict::Lacks => {
                    if member.lacks(appended.at.clamp(own.base.at, own.last())) {
                        own.tell(member, false, effects);
                    }
                }
                Verdict::Conflict => effects.extend(member.conflict().then_some(Effect::Conflict(from))),
                // Of a later promise, which was looked at.
                Verdict::Stale => {}
            }
        });
        self.count(effects);
        self.each(effects, |own, member, effects| {
            if member.node == from {
                own.ship(member, effects);
                own.heal(member, effects);
                if member.asks_sync(own.wanted) {
                    own.tell(member, true, effects);
                }
            }
        });
    }

    /// How far an answer may speak of: nobody took what was not made, and what is lacked may be anywhere.
    fn most(&self, appended: &Appended) -> Jseq {
        if appended.verdict == Verdict::Took { self.last() } else { Jseq(u64::MAX) }
    }

    /// What a copy that holds enough is to be called next. Before raft has opened the epoch it is not known whether acked writes are
    /// lost, so none is called whole. What was synced is known: whatever is opened with has it.
    const fn next_condition(&self, member: &Follower) -> Option<Condition> {
        match member.condition {
            Condition::Damaged => Some(Condition::Amnesic),
            Condition::Amnesic if self.is_open => Some(Condition::Whole),
            Condition::Amnesic | Condition::Whole => None,
        }
    }

    /// True when all that keeps the copy from a better condition is that nobody has said so.
    fn may_heal(&self, member: &Follower) -> bool {
        let acked = if member.condition == Condition::Damaged { self.durable } else { self.written };
        let is_full = member.is_heard() && member.at >= acked.max(self.opened_with);
        is_full && self.next_condition(member).is_some()
    }

    fn heal(&self, member: &mut Follower, effects: &mut Vec<Effect>) {
        if self.may_heal(member) && !member.heal_asked {
            member.heal_asked = true;
            self.tell(member, false, effects);
        }
    }

    /// Counts again how far enough members are.
    fn count(&mut self, effects: &mut Vec<Effect>) {
        let quorum = self.members.len() / 2;
        let reached = |mut marks: Vec<Jseq>| {
            marks.sort_unstable_by(|left, right| right.cmp(left));
            marks.get(quorum).copied().unwrap_or_default()
        };
        let counting =
            |worst: Condition| self.members.iter().filter(move |member| member.is_heard() && member.condition <= worst);
        let synced = reached(counting(Condition::Amnesic).map(|member| member.synced).collect());
        let written = reached(counting(Condition::Whole).map(|member| member.at).collect());
        self.raise(written, synced, effects);
    }

    fn raise(&mut self, written: Jseq, durable: Jseq, effects: &mut Vec<Effect>) {
        let written = written.max(durable);
        if written > self.written {
            self.written = written;
            effects.push(Effect::Written(self.point(written).expect("members take only what was made")));
        }
        if durable > self.durable {
            self.durable = durable;
            effects.push(Effect::Durable(durable));
        }
    }

    /// What is in the clouds is let go.
    fn trim(&mut self, through: Jseq, effects: &mut Vec<Effect>) {
        let through = through.min(self.last());
        // In the clouds it is kept better than by any member.
        self.raise(through, through, effects);
        while self.base.at < through {
            let Some(held) = self.records.pop_front() else { break };
            self.bytes -= length(&held);
            self.base = Point { at: self.base.at.next(), chain: held.chain };
        }
        // A member that is behind begins anew here.
        self.members.iter_mut().for_each(|member| member.sent = member.sent.max(self.base.at));
    }

    /// What members are told. Until the epoch is open its own count says nothing: whoever takes over next fences the open epoch's
    /// ensemble, may find less, and would take what this one kept for damage.
    fn marks(&self) -> Marks {
        let (written, durable) = if self.is_open { (self.written, self.durable) } else { (self.base.at, self.base.at) };
        let durable = durable.max(self.known_durable);
        Marks { written: written.max(durable), durable, trimmed: self.base.at }
    }

    fn last(&self) -> Jseq {
        position(self.base.at, self.records.len())
    }

    fn place(&self, at: Jseq) -> usize {
        usize::try_from(at.0.saturating_sub(self.base.at.0)).unwrap_or(usize::MAX)
    }

    fn point(&self, at: Jseq) -> Option<Point> {
        if at == self.base.at {
            return Some(self.base);
        }
        let held = self.records.get(self.place(at).checked_sub(1)?)?;
        Some(Point { at, chain: held.chain })
    }
}

fn length(held: &Held) -> u64 {
    u64::try_from(held.record.len()).expect("a length in memory fits 64 bits")
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
