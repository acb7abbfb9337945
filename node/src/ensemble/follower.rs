//! What an owner knows of one member: what it was sent, what it said, and when it is to be asked again.

use std::collections::VecDeque;

use velum_protocol::{
    id::{Jseq, NodeId},
    peer::ensemble::{Condition, Life, Marks},
};

use super::owner::MemberStanding;

/// Frames with records on the way to one member, which makes 2 MiB of full ones. A member that lags gets fewer and larger frames.
const FRAMES_MAX: usize = 8;

/// Ticks of silence after which a member that has something to say is asked, at first; twice as long each time.
const PAUSE_MIN: u32 = 2;

/// Ticks of silence after which a member is asked anyway.
const PAUSE_MAX: u32 = 10;

/// A member as its owner knows it.
#[derive(Clone, Debug, Hash)]
pub(super) struct Follower {
    pub(super) node: NodeId,
    life: Option<Life>,
    /// The life before: what is still heard of it counts for nothing.
    ended: Option<[u8; 16]>,
    pub(super) condition: Condition,
    conflicts: bool,
    /// The copy agrees up to here, as it has said in this life.
    pub(super) at: Jseq,
    pub(super) synced: Jseq,
    /// It lacks what was sent, or has not said yet; where it is asked.
    asking: Option<Jseq>,
    /// Sent up to here; what comes next follows this.
    pub(super) sent: Jseq,
    /// Where the frames end that are on the way.
    frames: VecDeque<Jseq>,
    /// A sync was asked for up to here.
    pub(super) sync_asked: Jseq,
    pub(super) heal_asked: bool,
    /// The marks it was told last.
    pub(super) marks: Option<Marks>,
    was_lost: bool,
    /// Ticks in which it is sent no records: it let some pass, for want of room.
    rest: u32,
    /// How long it rests the next time that it lacks what follows; zero for the first time, which may be a loss.
    rest_next: u32,
    /// Ticks since it was heard of.
    heard: u32,
    /// Ticks since it was sent something.
    quiet: u32,
    pause: u32,
}

impl Follower {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            life: None,
            ended: None,
            condition: Condition::Whole,
            conflicts: false,
            at: Jseq(0),
            synced: Jseq(0),
            asking: None,
            sent: Jseq(0),
            frames: VecDeque::new(),
            sync_asked: Jseq(0),
            heal_asked: false,
            marks: None,
            was_lost: false,
            rest: 0,
            rest_next: 0,
            heard: 0,
            quiet: 0,
            pause: PAUSE_MIN,
        }
    }

    pub(super) fn standing(&self) -> MemberStanding {
        let Self { node, at, synced, condition, heard, .. } = *self;
        MemberStanding { node, at, synced, condition, heard }
    }

    /// It counts: it has spoken, and holds nothing that cannot be.
    pub(super) fn is_heard(&self) -> bool {
        self.life.is_some() && !self.conflicts
    }

    pub(super) fn process(&self) -> Option<[u8; 16]> {
        self.life.map(|life| life.process)
    }

    /// Where it is asked, while it is not known what it holds.
    pub(super) fn asking(&self) -> Option<Jseq> {
        self.asking
    }

    /// From now on it is asked whether it agrees there.
    pub(super) fn ask(&mut self, at: Jseq) {
        self.asking = Some(at);
        self.sent = at;
        self.frames.clear();
    }

    /// True when it may be sent records.
    pub(super) fn takes_more(&self) -> bool {
        self.is_heard() && self.rest == 0 && self.asking.is_none() && self.frames.len() < FRAMES_MAX
    }

    /// True when a sync up to there was not asked for and everything was sent.
    pub(super) fn asks_sync(&self, wanted: Jseq) -> bool {
        self.asking.is_none() && self.sync_asked < wanted && self.sent >= wanted && self.synced < wanted
    }

    /// Records up to there were sent.
    pub(super) fn shipped(&mut self, end: Jseq, sync: bool) {
        self.frames.push_back(end);
        self.told(end, sync);
    }

    /// It was sent something that ends there.
    pub(super) fn told(&mut self, end: Jseq, sync: bool) {
        self.sent = end;
        if sync {
            self.sync_asked = self.sync_asked.max(end);
        }
        (self.quiet, self.was_lost) = (0, false);
    }

    /// It has said something in a life. False when that life is over.
    pub(super) fn hear(&mut self, life: &Life, condition: Condition) -> bool {
        if self.ended == Some(life.process) {
            return false;
        }
        if self.process() != Some(life.process) {
            self.ended = self.process();
            self.life = Some(*life);
            // What it said before is no more than what a loss of power may have left.
            (self.at, self.synced, self.sync_asked) = (Jseq(0), Jseq(0), Jseq(0));
            (self.conflicts, self.heal_asked) = (false, false);
        }
        // There is a word for each condition.
        self.heal_asked &= self.condition == condition;
        self.condition = condition;
        (self.heard, self.pause) = (0, PAUSE_MIN);
        true
    }

    /// It agrees up to there.
    pub(super) fn took(&mut self, at: Jseq, synced: Jseq) {
        if at > self.at {
            (self.rest, self.rest_next) = (0, 0);
        }
        self.at = self.at.max(at);
        self.synced = self.synced.max(synced);
        self.sent = if self.asking.take().is_some() { self.at } else { self.sent.max(self.at) };
        while self.frames.front().is_some_and(|end| *end <= self.at) {
            self.frames.pop_front();
        }
    }

    /// It lacks what it was sent. True when it is to be asked at `at` at once.
    ///
    /// Answers to what was sent before the question say the same again and again; they are let pass. A place above the question
    /// may be such an answer, or where the copy begins: it is tried with the next tick.
    pub(super) fn lacks(&mut self, at: Jseq) -> bool {
        if self.asking.is_none() && at <= self.at {
            // What follows was lost, or let pass for want of room. In that case, sent again at once it would be let pass again.
            if self.rest == 0 && self.rest_next == 0 {
                self.rest_next = 1;
                self.ask(self.at);
                return true;
            }
            if self.rest == 0 {
                self.rest = self.rest_next;
                self.rest_next = (self.rest_next * 2).min(PAUSE_MAX);
            }
            self.sent = self.at;
            self.frames.clear();
            return false;
        }
        let goes_back = self.asking.is_none_or(|asking| at < asking);
        let was_above = self.asking.is_some_and(|asking| at > asking);
        if goes_back || was_above {
            self.ask(at);
        }
        goes_back
    }

    /// It holds what cannot be. True when that is new.
    pub(super) fn conflict(&mut self) -> bool {
        !std::mem::replace(&mut self.conflicts, true)
    }

    pub(super) fn lost(&mut self) {
        self.was_lost = true;
    }

    /// Time passes. True when it is to be told something: because an answer is overdue, marks have moved, or for a sign of life.
    pub(super) fn tick(&mut self, is_behind: bool, marks: Marks) -> bool {
        self.heard = self.heard.saturating_add(1);
        self.rest = self.rest.saturating_sub(1);
        self.quiet = self.quiet.saturating_add(1);
        let is_due = self.was_lost || self.asking.is_some() || !self.frames.is_empty() || is_behind;
        if is_due && self.quiet >= self.pause {
            self.pause = (self.pause * 2).min(PAUSE_MAX);
            return true;
        }
        self.quiet >= PAUSE_MAX || (!is_due && self.marks != Some(marks))
    }
}
