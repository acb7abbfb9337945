//! A member's side: which records it takes, what it promises, and what it says of its copy.
//!
//! Nothing of an epoch is answered for before the promise file names that epoch. A member that lost an unsynced copy with a loss of
//! power, and the knowledge that it had one, would say "empty" and be believed; and one that no longer knew the epoch it had taken
//! records of could be filled up, and be called whole, by an owner that was deposed before.
//!
//! A copy that may lack what was synced is *damaged*. It counts for nothing until an owner has filled it, from where the owner's
//! records begin to where earlier owners' ended, and that is synced; then it is amnesic, as after a loss of power.
//!
//! A member that has granted a lease promises a later epoch at once, and answers whoever takes over only when the lease has ended. After
//! a start it waits as if one had been granted just before, unless no promise was ever stored: only a stored one grants leases.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use velum_protocol::{
    id::{BootId, Epoch, Hash, Jseq, NodeId, VolumeId},
    peer::{
        Frame,
        ensemble::{
            Append, Appended, Condition, Confirm, Confirmed, Fence, Fenced, Life, Point, ReadTail, Release, Tail,
            Verdict,
        },
    },
};

use super::{
    batch::{Held, TAIL_BYTES, fitting, judge, position},
    lease::Granted,
};
use crate::env::Instant;

/// What is stored of a copy beside its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Noted {
    /// Nothing of an epoch below is taken.
    pub epoch: Epoch,
    /// The boot in which the copy was whole; zero for none.
    pub whole_in: BootId,
    /// The copy may lack what was synced.
    pub is_damaged: bool,
}

impl Noted {
    fn of(epoch: Epoch, condition: Condition, boot: BootId) -> Self {
        let whole_in = if condition == Condition::Whole { boot } else { BootId::ZERO };
        Self { epoch, whole_in, is_damaged: condition == Condition::Damaged }
    }
}

/// What a start found of the copy; all of it is synced.
#[derive(Clone, Debug)]
pub struct Found {
    /// The volume.
    pub volume: VolumeId,
    /// This life.
    pub life: Life,
    /// What was stored beside it.
    pub promise: Option<Noted>,
    /// Everything written is there, whatever the boot: after a clean stop.
    pub stopped_cleanly: bool,
    /// What the journal by itself says of the records.
    pub reads: Condition,
    /// What the first record follows.
    pub base: Point,
    /// The records.
    pub held: Vec<Held>,
}

impl Found {
    /// What the copy may lack of what was answered for.
    #[must_use]
    pub fn condition(&self) -> Condition {
        let Self { life, promise, stopped_cleanly, reads, held, .. } = self;
        let noted = match promise {
            None if held.is_empty() => return Condition::Whole,
            None => Condition::Amnesic,
            Some(noted) if noted.is_damaged => Condition::Damaged,
            Some(noted) if noted.whole_in == life.boot => Condition::Whole,
            // After a clean stop only a copy that was whole before is whole now: an amnesic one names no boot.
            Some(noted) if *stopped_cleanly && noted.whole_in != BootId::ZERO => Condition::Whole,
            Some(_) => Condition::Amnesic,
        };
        noted.max(*reads)
    }

    /// Has the promise say that the copy is not whole. True when it said otherwise: the promise is to be stored before anything
    /// else happens, or a later start finds nothing wrong, after a clean stop or in the same boot.
    pub fn note_condition(&mut self) -> bool {
        let condition = self.condition();
        let Some(noted) = self.promise.as_mut().filter(|_| condition != Condition::Whole) else { return false };
        let now = Noted::of(noted.epoch, condition, BootId::ZERO);
        std::mem::replace(noted, now) != now
    }
}

/// What the machine is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// An owner's records.
    Append(NodeId, Append),
    /// Somebody takes over.
    Fence(NodeId, Fence),
    /// Somebody who has fenced this member wants its records.
    ReadTail(NodeId, ReadTail),
    /// An owner wants to know whether it is one.
    Confirm(NodeId, Confirm),
    /// An owner reads by no lease any more.
    Release(NodeId, Release),
    /// Time has passed for which a fence was to wait.
    Wake,
    /// The sync asked for is done.
    Synced,
    /// The oldest promise that was to be stored is durable.
    Stored,
}

/// What the shell is to do, in order.
#[expect(missing_docs, reason = "each field is an id, a position or a frame; the variant says what for")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Append to the journal, at the record's epoch and position.
    Keep { epoch: Epoch, at: Jseq, record: Bytes },
    /// Sync what was kept; then [`Input::Synced`].
    Sync,
    /// Make the promise durable; then [`Input::Stored`].
    Store(Noted),
    /// Send, once everything kept before is written.
    Send { to: NodeId, frame: Frame },
    /// Records up to here, the last one of this epoch, are needed no more.
    Trim { epoch: Epoch, through: Jseq },
    /// Nothing is missing any more that was synced: later starts need not find that it was.
    MadeUp,
    /// [`Input::Wake`] when so much time has passed, or later.
    WakeAfter(Duration),
}

/// Why a promise is being stored.
#[derive(Clone, Debug, Hash)]
enum Storing {
    Fence(NodeId, Epoch),
    /// Before anything of the epoch is answered for; what the owner has asked.
    First(NodeId, Append),
    Heal(NodeId, Epoch, Condition),
}

/// A damaged copy has been filled by an owner up to here, and is not synced so far yet.
#[derive(Clone, Copy, Debug, Hash)]
struct Filled {
    by: NodeId,
    epoch: Epoch,
    through: Jseq,
}

/// The machine.
#[derive(Clone, Debug, Hash)]
pub struct Member {
    volume: VolumeId,
    life: Life,
    promise: Epoch,
    /// The highest promise that is durable.
    stored: Epoch,
    /// The file says what the copy is in this boot.
    is_noted: bool,
    storing: VecDeque<Storing>,
    granted: Granted,
    /// Who has fenced, and is answered when what was granted has ended.
    fencing: BTreeSet<NodeId>,
    condition: Condition,
    filled: Option<Filled>,
    /// A record was found that cannot be.
    forked: bool,
    /// The owner's epoch and node that appended last.
    owner: Option<(Epoch, NodeId)>,
    /// Something of the copy agrees with that owner's.
    agrees: bool,
    base: Point,
    held: VecDeque<Held>,
    /// Up to here the copy agrees with that owner's.
    agreed: Jseq,
    synced: Jseq,
    syncing: Option<Jseq>,
    sync_again: bool,
    durable: Jseq,
}

impl Member {
    /// A member with what a start found, in a process that has started then.
    #[must_use]
    pub fn new(found: Found, started: Instant) -> Self {
        let condition = found.condition();
        let Found { volume, life, promise, base, held, .. } = found;
        let is_noted = promise.is_some_and(|noted| noted == Noted::of(noted.epoch, condition, life.boot));
        let stored = promise.map_or(Epoch(0), |noted| noted.epoch);
        let newest = held.last().map_or(Epoch(0), |last| last.epoch);
        let durable = held.iter().map(|held| held.durable).max().unwrap_or_default();
        let held = VecDeque::from(held);
        let synced = position(base.at, held.len());
        Self {
            volume,
            life,
            promise: stored.max(newest),
            stored,
            is_noted,
            storing: VecDeque::new(),
            granted: if promise.is_some() { Granted::before(started) } else { Granted::none() },
            fencing: BTreeSet::new(),
            condition,
            filled: None,
            forked: false,
            owner: None,
            agrees: false,
            base,
            held,
            agreed: Jseq(0),
            synced,
            syncing: None,
            sync_again: false,
            durable,
        }
    }

    /// Takes one input.
    pub fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Append(from, append) if append.volume == self.volume => self.append(from, &append, effects),
            Input::Fence(from, fence) if fence.volume == self.volume => self.fence(now, from, fence, effects),
            Input::ReadTail(from, read) if read.volume == self.volume => self.read(from, read, effects),
            Input::Confirm(from, confirm) if confirm.volume == self.volume => {
                self.confirm(now, from, confirm, effects);
            }
            Input::Release(from, release) if release.volume == self.volume => {
                self.granted.release(release.epoch, from, release.ticket);
                self.wake(now, effects);
            }
            Input::Confirm(..) | Input::Append(..) | Input::Fence(..) | Input::ReadTail(..) | Input::Release(..) => {}
            Input::Synced => self.synced(effects),
            Input::Stored => self.stored(now, effects),
            Input::Wake => self.wake(now, effects),
        }
    }

    fn append(&mut self, from: NodeId, append: &Append, effects: &mut Vec<Effect>) {
        let answer = |member: &Self, verdict, at| member.answer(from, append.epoch, verdict, at);
        if append.epoch < self.promise {
            return effects.push(answer(self, Verdict::Stale, self.last()));
        }
        if self.forked {
            return effects.push(answer(self, Verdict::Conflict, self.last()));
        }
        self.promise = append.epoch;
        if self.owner.is_none_or(|(epoch, _)| epoch < append.epoch) {
            (self.agreed, self.agrees, self.filled) = (Jseq(0), false, None);
        }
        self.owner = Some((append.epoch, from));
        if !self.is_noted || append.epoch > self.stored {
            return self.promise_first(from, append, effects);
        }
        // What cannot be is not answered: whoever sent it is not to believe that it arrived.
        let Ok(records) = judge(append.prev, append.epoch, &append.records) else { return };
        let (verdict, at) = self.take(append, records, effects);
        if verdict == Verdict::Took {
            self.durable = self.durable.max(append.marks.durable);
            self.trim(append.marks.trimmed, effects);
            if let Some(heal) = append.heals.filter(|heal| heal.process == self.life.process) {
                self.heal(from, append, heal.to, effects);
            }
        }
        effects.push(answer(self, verdict, at));
        if append.sync && verdict == Verdict::Took {
            self.sync(effects);
        }
    }

    /// Makes the promise of an owner's epoch durable; then it is told how the copy stands to where it asked. What it sent besides it
    /// sends again.
    fn promise_first(&mut self, from: NodeId, append: &Append, effects: &mut Vec<Effect>) {
        let is_under_way =
            |storing: &Storing| matches!(storing, Storing::First(_, first) if first.epoch == append.epoch);
        if !self.storing.iter().any(is_under_way) {
            let asked = Append { heals: None, sync: false, records: Vec::new(), ..*append };
            self.store(Storing::First(from, asked), effects);
        }
    }

    /// The owner says what the copy is with all that was sent. What is said for what was damaged is synced before it is stored: a
    /// loss of power after that takes nothing of it.
    fn heal(&mut self, by: NodeId, append: &Append, to: Condition, effects: &mut Vec<Effect>) {
        let Append { epoch, marks, .. } = *append;
        if self.storing.iter().any(|storing| matches!(storing, Storing::Heal(..))) {
            return;
        }
        match (self.condition, to) {
            (Condition::Amnesic, Condition::Whole) if self.agreed >= marks.written => {
                self.store(Storing::Heal(by, epoch, to), effects);
            }
            (Condition::Damaged, Condition::Amnesic) if self.agreed >= marks.durable => {
                self.filled.get_or_insert(Filled { by, epoch, through: self.agreed });
                self.sync(effects);
                self.note_filled(effects);
            }
            _ => {}
        }
    }

    /// Stores that the copy is filled once that is synced.
    fn note_filled(&mut self, effects: &mut Vec<Effect>) {
        let is_synced = |filled: &mut Filled| filled.epoch == self.promise && filled.through <= self.synced;
        if let Some(Filled { by, epoch, .. }) = self.filled.take_if(is_synced) {
            self.store(Storing::Heal(by, epoch, Condition::Amnesic), effects);
        }
    }

    /// Keeps what is new of the records.
    fn take(&mut self, append: &Append, records: Vec<Held>, effects: &mut Vec<Effect>) -> (Verdict, Jseq) {
        let (prev, trimmed) = (append.prev, append.marks.trimmed);
        // What stood before the first record may have been synced: such a copy is filled from where the owner's records begin.
        let is_cut_off = self.condition == Condition::Damaged && !self.agrees && self.base.at > trimmed;
        if is_cut_off || self.chain_at(prev.at) != Some(prev.chain) {
            // Behind what the clouds hold a copy may begin anew; what it held is another past, or needed no more.
            if prev.at != trimmed || (prev.at < self.base.at && !is_cut_off) {
                return (Verdict::Lacks, if is_cut_off { trimmed } else { self.before(prev.at) });
            }
            let last = self.last();
            let past = self.held.back().filter(|_| !is_cut_off);
            effects.extend(past.map(|held| Effect::Trim { epoch: held.epoch, through: last }));
            self.base = prev;
            self.held.clear();
            self.synced = prev.at;
            // A sync under way covers nothing of what comes.
            self.syncing = self.syncing.map(|_| prev.at);
        }
        let mut at = prev.at;
        for record in records {
            at = at.next();
            match self.held_at(at).map(|held| (held.epoch, held.chain)) {
                Some((_, chain)) if chain == record.chain => continue,
                Some((epoch, _)) if record.epoch <= epoch => {
                    self.forked = true;
                    return (Verdict::Conflict, self.last());
                }
                Some(_) => self.void_from(at),
                None => {}
            }
            self.durable = self.durable.max(record.durable);
            effects.push(Effect::Keep { epoch: record.epoch, at, record: record.record.clone() });
            self.held.push_back(record);
        }
        (self.agreed, self.agrees) = (self.agreed.max(at), true);
        (Verdict::Took, self.agreed)
    }

    /// Behind which position the owner is to try next, when the copy does not agree at `at`: where the records of that epoch
    /// begin, so that few tries find the place.
    fn before(&self, at: Jseq) -> Jseq {
        if at > self.last() {
            return self.last();
        }
        let Some(epoch) = self.held_at(at).map(|held| held.epoch) else {
            return if at < self.base.at { self.base.at } else { Jseq(at.0.saturating_sub(1)) };
        };
        let earlier = self.held.iter().take_while(|held| held.epoch < epoch).count();
        position(self.base.at, earlier)
    }

    fn confirm(&mut self, now: Instant, from: NodeId, confirm: Confirm, effects: &mut Vec<Effect>) {
        let Confirm { volume, epoch, ticket, wants_lease } = confirm;
        let is_leased = wants_lease && epoch == self.promise && epoch == self.stored;
        if is_leased {
            self.granted.grant(now, epoch, from, ticket);
        }
        let frame = Frame::Confirmed(Confirmed { volume, promise: self.promise, ticket, is_leased });
        effects.push(Effect::Send { to: from, frame });
    }

    fn fence(&mut self, now: Instant, from: NodeId, fence: Fence, effects: &mut Vec<Effect>) {
        self.promise = self.promise.max(fence.epoch);
        self.granted.takes_over(from, fence.epoch);
        if self.promise > self.stored {
            return self.store(Storing::Fence(from, self.promise), effects);
        }
        // Promised already; or somebody with a later epoch was first, who is told by it. What is told is durable either way: who
        // asked for less may by now be the one that was granted more.
        self.answer_fence(now, from, effects);
    }

    /// Tells the promise, which is durable, once nobody reads by a lease of an earlier epoch.
    fn answer_fence(&mut self, now: Instant, to: NodeId, effects: &mut Vec<Effect>) {
        let wait = self.granted.wait(now, self.promise);
        if wait.is_zero() {
            return effects.push(self.fenced(to));
        }
        effects.extend(self.fencing.is_empty().then_some(Effect::WakeAfter(wait)));
        self.fencing.insert(to);
    }

    fn wake(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        // A later one is on its way to the disk: they are told that one, and not before it is there.
        if self.promise > self.stored {
            return;
        }
        for to in std::mem::take(&mut self.fencing) {
            self.answer_fence(now, to, effects);
        }
    }

    fn read(&self, from: NodeId, read: ReadTail, effects: &mut Vec<Effect>) {
        let may = read.epoch == self.promise && read.epoch <= self.stored && read.through <= self.last();
        let (prev, records) = match self.chain_at(read.after).filter(|_| may) {
            Some(chain) => (Point { at: read.after, chain }, self.records(read.after, read.through)),
            // None at all says that it may not, or cannot.
            None => (self.base, Vec::new()),
        };
        let tail = Tail { volume: self.volume, epoch: read.epoch, prev, records };
        effects.push(Effect::Send { to: from, frame: Frame::Tail(tail) });
    }

    /// The records behind `after` up to `through`, as many as a frame is to carry.
    fn records(&self, after: Jseq, through: Jseq) -> Vec<Bytes> {
        let count = |from: Jseq, to: Jseq| usize::try_from(to.0.saturating_sub(from.0)).unwrap_or(usize::MAX);
        let behind = self.held.iter().skip(count(self.base.at, after));
        fitting(behind.take(count(after, through)).map(|held| &held.record), TAIL_BYTES).cloned().collect()
    }

    fn sync(&mut self, effects: &mut Vec<Effect>) {
        if self.syncing.is_some() {
            self.sync_again = true;
        } else if self.synced < self.last() {
            self.syncing = Some(self.last());
            effects.push(Effect::Sync);
        }
    }

    fn synced(&mut self, effects: &mut Vec<Effect>) {
        if let Some(through) = self.syncing.take() {
            self.synced = self.synced.max(through);
        }
        self.note_filled(effects);
        if let Some((epoch, owner)) = self.owner.filter(|(epoch, _)| *epoch == self.promise) {
            effects.push(self.answer(owner, epoch, Verdict::Took, self.agreed));
        }
        if std::mem::take(&mut self.sync_again) {
            self.sync(effects);
        }
    }

    fn store(&mut self, storing: Storing, effects: &mut Vec<Effect>) {
        self.storing.push_back(storing);
        // What is on its way to the file stays true of the copy: a promise made meanwhile is not to take it back.
        let heals = |storing: &Storing| if let Storing::Heal(.., to) = storing { Some(*to) } else { None };
        let condition = self.storing.iter().rev().find_map(heals).unwrap_or(self.condition);
        effects.push(Effect::Store(Noted::of(self.promise, condition, self.life.boot)));
    }

    fn stored(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let Some(storing) = self.storing.pop_front() else { return };
        self.is_noted = true;
        // Whoever was overtaken meanwhile is told so when he asks again.
        match storing {
            Storing::Fence(to, epoch) => {
                self.stored = self.stored.max(epoch);
                self.wake(now, effects);
                if epoch == self.promise {
                    self.answer_fence(now, to, effects);
                }
            }
            Storing::First(owner, asked) => {
                self.stored = self.stored.max(asked.epoch);
                self.wake(now, effects);
                self.append(owner, &asked, effects);
            }
            Storing::Heal(by, epoch, to) => {
                effects.extend((self.condition == Condition::Damaged).then_some(Effect::MadeUp));
                self.condition = to;
                effects.extend((epoch == self.promise).then(|| self.answer(by, epoch, Verdict::Took, self.agreed)));
            }
        }
    }

    /// What is held from `at` on was never acked.
    fn void_from(&mut self, at: Jseq) {
        let before = Jseq(at.0.saturating_sub(1));
        self.held.truncate(usize::try_from(before.0.saturating_sub(self.base.at.0)).unwrap_or(usize::MAX));
        self.synced = self.synced.min(before);
        self.syncing = self.syncing.map(|through| through.min(before));
    }

    fn trim(&mut self, trimmed: Jseq, effects: &mut Vec<Effect>) {
        // Not beyond what agrees: the rest may be another past, whose records say nothing of what the clouds hold.
        let through = trimmed.min(self.agreed);
        let mut last = None;
        while self.base.at < through {
            let Some(held) = self.held.pop_front() else { break };
            self.base = Point { at: self.base.at.next(), chain: held.chain };
            last = Some(held.epoch);
        }
        effects.extend(last.map(|epoch| Effect::Trim { epoch, through: self.base.at }));
    }

    fn last(&self) -> Jseq {
        position(self.base.at, self.held.len())
    }

    fn held_at(&self, at: Jseq) -> Option<&Held> {
        let place = at.0.checked_sub(self.base.at.0)?.checked_sub(1)?;
        self.held.get(usize::try_from(place).ok()?)
    }

    fn chain_at(&self, at: Jseq) -> Option<Hash> {
        if at == self.base.at { Some(self.base.chain) } else { self.held_at(at).map(|held| held.chain) }
    }

    fn answer(&self, to: NodeId, epoch: Epoch, verdict: Verdict, at: Jseq) -> Effect {
        let synced = self.synced.min(self.agreed).min(at);
        let (volume, promise, life, condition) = (self.volume, self.promise, self.life, self.condition);
        let appended = Appended { volume, epoch, promise, life, verdict, condition, at, synced };
        Effect::Send { to, frame: Frame::Appended(appended) }
    }

    fn fenced(&self, to: NodeId) -> Effect {
        let (volume, promise, life) = (self.volume, self.promise, self.life);
        let condition = if self.forked { self.condition.max(Condition::Amnesic) } else { self.condition };
        let tail_epoch = self.held.back().map_or(Epoch(0), |last| last.epoch);
        let chain = self.held.back().map_or(self.base.chain, |last| last.chain);
        let (base, tail) = (self.base, Point { at: self.last(), chain });
        let fenced = Fenced { volume, promise, life, condition, base, tail, tail_epoch, durable: self.durable };
        Effect::Send { to, frame: Frame::Fenced(fenced) }
    }
}

#[cfg(test)]
#[path = "member_tests.rs"]
pub(crate) mod tests;
