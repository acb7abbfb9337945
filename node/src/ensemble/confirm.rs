//! Whether a node is still the owner: a read is answered when enough members say, after it was done, that they have promised no
//! later epoch, or while they have granted leases.
//!
//! Enough is as many as keep a write: they share a member with every fence, so no later epoch was open when the first of them
//! was asked, and nothing that the read lacks had been acked by another owner then. One round of questions is for all
//! reads that were done before it began; no clock decides anything there. The answers to a round leave leases behind where they were
//! wanted: see [`lease`](super::lease).

use std::{collections::BTreeSet, time::Duration};

use velum_protocol::{
    id::{Epoch, NodeId, VolumeId},
    peer::{
        Frame,
        ensemble::{Confirm, Confirmed, Release},
    },
};

use super::lease::{COUNTED, Leases};
use crate::env::Instant;

/// What the machine is told.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// Somebody wants to know; leases are wanted for who asks later, or not.
    Ask {
        /// They are.
        wants_lease: bool,
    },
    /// Leases are used and end soon: they are to be granted anew, and nobody waits for that.
    Renew,
    /// A member has answered.
    Confirmed(NodeId, Confirmed),
    /// Nothing is answered by a lease that was granted so far.
    Release,
    /// Time to ask again those who have not answered.
    Tick,
}

/// What the shell is to do.
#[expect(missing_docs, reason = "a frame and whom it is for")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask a member; it may be this node.
    Send { to: NodeId, frame: Frame },
    /// A round begins: it is for everybody who has asked so far.
    Began,
    /// Everybody whom the round was for may go on.
    Confirmed,
    /// A member has promised a later epoch.
    Deposed(Epoch),
}

/// The machine.
#[derive(Clone, Debug, Hash)]
pub struct Confirming {
    volume: VolumeId,
    epoch: Epoch,
    members: Vec<NodeId>,
    /// The round under way, or the last one, and when it began: what is asked again counts from there.
    ticket: u64,
    began: Instant,
    running: bool,
    /// Somebody asked since it began.
    again: bool,
    answered: BTreeSet<NodeId>,
    wants_lease: bool,
    leases: Leases,
    /// Leases of rounds up to here are not used.
    released: u64,
    is_deposed: bool,
}

impl Confirming {
    /// For the owner of an epoch with these members.
    #[must_use]
    pub fn new(volume: VolumeId, epoch: Epoch, members: Vec<NodeId>) -> Self {
        Self {
            volume,
            epoch,
            members,
            ticket: 0,
            began: Instant::default(),
            running: false,
            again: false,
            answered: BTreeSet::new(),
            wants_lease: false,
            leases: Leases::default(),
            released: 0,
            is_deposed: false,
        }
    }

    /// For how long reads that are done may be answered without a question; zero when they may not. To be asked after a read was
    /// done.
    #[must_use]
    pub fn lease_left(&self, now: Instant) -> Duration {
        self.leases.left(self.needed(), now)
    }

    /// Whether so little is left that [`Input::Renew`] is due.
    #[must_use]
    pub fn is_soon_over(left: Duration) -> bool {
        left < COUNTED / 2
    }

    /// Takes one input.
    pub fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Ask { wants_lease } => {
                self.wants_lease = wants_lease;
                if self.running { self.again = true } else { self.begin(now, effects) }
            }
            Input::Renew if !self.running && !self.is_deposed => {
                self.wants_lease = true;
                self.begin(now, effects);
            }
            Input::Renew => {}
            Input::Confirmed(from, answer) => self.answered(now, from, answer, effects),
            Input::Release => self.release(effects),
            Input::Tick if self.running => self.ask(effects),
            Input::Tick => {}
        }
    }

    const fn needed(&self) -> usize {
        self.members.len() / 2 + 1
    }

    fn begin(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        (self.running, self.again) = (true, false);
        (self.ticket, self.began) = (self.ticket + 1, now);
        self.answered.clear();
        effects.push(Effect::Began);
        self.ask(effects);
    }

    fn ask(&self, effects: &mut Vec<Effect>) {
        let Self { volume, epoch, ticket, .. } = *self;
        let wants_lease = self.wants_lease && !self.is_deposed;
        let silent = self.members.iter().filter(|member| !self.answered.contains(member));
        effects.extend(silent.map(|to| {
            let frame = Frame::Confirm(Confirm { volume, epoch, ticket, wants_lease });
            Effect::Send { to: *to, frame }
        }));
    }

    fn answered(&mut self, now: Instant, from: NodeId, answer: Confirmed, effects: &mut Vec<Effect>) {
        if answer.volume != self.volume || !self.members.contains(&from) {
            return;
        }
        if answer.promise > self.epoch {
            self.is_deposed = true;
            self.release(effects);
            return effects.push(Effect::Deposed(answer.promise));
        }
        if answer.ticket != self.ticket {
            return;
        }
        // However late: the round's answers are as good as its beginning.
        if answer.is_leased && answer.ticket > self.released {
            self.leases.granted(from, self.began);
        }
        if !self.running {
            return;
        }
        self.answered.insert(from);
        if self.answered.len() >= self.needed() {
            self.running = false;
            effects.push(Effect::Confirmed);
            if self.again {
                self.begin(now, effects);
            }
        }
    }

    /// Has the members know that they need not wait. A word that is lost costs time only.
    fn release(&mut self, effects: &mut Vec<Effect>) {
        self.leases.forget();
        if !self.wants_lease || self.released == self.ticket {
            return;
        }
        self.released = self.ticket;
        let release = Release { volume: self.volume, epoch: self.epoch, ticket: self.ticket };
        effects.extend(self.members.iter().map(|to| Effect::Send { to: *to, frame: Frame::Release(release) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([7; 16]);

    const ASK: Input = Input::Ask { wants_lease: false };
    const ASK_LEASE: Input = Input::Ask { wants_lease: true };

    struct Bench(Confirming, Instant);

    impl Bench {
        fn new(members: &[u64]) -> Self {
            Self(Confirming::new(VOLUME, Epoch(5), members.iter().copied().map(NodeId).collect()), Instant(0))
        }

        /// Who is asked, and what else comes of it.
        fn step(&mut self, input: Input) -> (Vec<u64>, Vec<Effect>) {
            let mut effects = Vec::new();
            self.0.step(self.1, input, &mut effects);
            let (sent, rest): (Vec<_>, Vec<_>) =
                effects.into_iter().partition(|effect| matches!(effect, Effect::Send { .. }));
            let to = |effect| if let Effect::Send { to, .. } = effect { Some(to.0) } else { None };
            (sent.into_iter().filter_map(to).collect(), rest)
        }

        fn says(&mut self, from: u64, promise: u64, ticket: u64) -> (Vec<u64>, Vec<Effect>) {
            let answer = Confirmed { volume: VOLUME, promise: Epoch(promise), ticket, is_leased: false };
            self.step(Input::Confirmed(NodeId(from), answer))
        }

        fn grants(&mut self, from: u64, ticket: u64) -> (Vec<u64>, Vec<Effect>) {
            let answer = Confirmed { volume: VOLUME, promise: Epoch(5), ticket, is_leased: true };
            self.step(Input::Confirmed(NodeId(from), answer))
        }

        fn at(&mut self, ms: u64) -> &mut Self {
            self.1 = Instant(ms * 1_000);
            self
        }

        fn left_ms(&self) -> u128 {
            self.0.lease_left(self.1).as_millis()
        }
    }

    #[test]
    fn enough_members_confirm_and_only_for_those_who_asked_before_the_round() {
        let mut bench = Bench::new(&[1, 2, 3]);
        assert_eq!(bench.step(ASK), (vec![1, 2, 3], vec![Effect::Began]));
        assert_eq!(bench.step(ASK), (vec![], vec![]), "for the next round");
        assert_eq!(bench.says(1, 5, 1), (vec![], vec![]));
        assert_eq!(bench.says(1, 5, 1), (vec![], vec![]), "one member counts once");
        assert_eq!(bench.says(9, 5, 1), (vec![], vec![]), "a stranger does not");
        assert_eq!(bench.says(3, 0, 1), (vec![1, 2, 3], vec![Effect::Confirmed, Effect::Began]));
        assert_eq!(bench.says(2, 5, 1), (vec![], vec![]), "an answer to the round before");
        assert_eq!(bench.says(1, 5, 2), (vec![], vec![]));
        assert_eq!(bench.step(Input::Tick), (vec![2, 3], vec![]));
        assert_eq!(bench.says(2, 5, 2), (vec![], vec![Effect::Confirmed]));
        assert_eq!(bench.step(Input::Tick), (vec![], vec![]));
    }

    #[test]
    fn a_later_promise_is_told_and_confirms_nothing() {
        let mut bench = Bench::new(&[1, 2, 3]);
        bench.step(ASK);
        bench.says(1, 5, 1);
        assert_eq!(bench.says(2, 6, 1), (vec![], vec![Effect::Deposed(Epoch(6))]));
        assert_eq!(bench.says(2, 6, 0), (vec![], vec![Effect::Deposed(Epoch(6))]), "however late it comes");
    }

    #[test]
    fn one_that_keeps_a_journal_alone_asks_itself() {
        let mut bench = Bench::new(&[1]);
        assert_eq!(bench.step(ASK), (vec![1], vec![Effect::Began]));
        assert_eq!(bench.says(1, 5, 1), (vec![], vec![Effect::Confirmed]));
    }
    #[test]
    fn answers_leave_a_lease_behind_that_counts_from_when_the_round_began() {
        let mut bench = Bench::new(&[1, 2, 3]);
        bench.at(1_000).step(ASK_LEASE);
        bench.at(1_300).grants(1, 1);
        assert_eq!(bench.left_ms(), 0, "one of three");
        // What is asked again may be answered by who was asked at first.
        assert_eq!(bench.at(1_400).step(Input::Tick), (vec![2, 3], vec![]));
        assert_eq!(bench.at(1_500).grants(2, 1), (vec![], vec![Effect::Confirmed]));
        assert_eq!(bench.left_ms(), 400);
        assert_eq!(bench.at(1_899).left_ms(), 1);
        assert_eq!(bench.at(1_900).left_ms(), 0);
        assert_eq!(bench.at(1_900).grants(3, 1), (vec![], vec![]));
        assert_eq!(bench.left_ms(), 0, "a late answer is as old as its round");
    }

    #[test]
    fn a_lease_is_renewed_by_nobody_who_waits() {
        let mut bench = Bench::new(&[1, 2, 3]);
        bench.at(0).step(ASK_LEASE);
        bench.grants(1, 1);
        bench.grants(2, 1);
        assert_eq!(bench.at(600).step(Input::Renew), (vec![1, 2, 3], vec![Effect::Began]));
        assert_eq!(bench.step(Input::Renew), (vec![], vec![]), "it is under way");
        assert_eq!(bench.left_ms(), 300, "the one before counts meanwhile");
        bench.grants(1, 2);
        assert_eq!(bench.grants(3, 2), (vec![], vec![Effect::Confirmed]));
        assert_eq!(bench.left_ms(), 900);
        assert!(
            [(449, true), (450, false)]
                .iter()
                .all(|(ms, soon)| Confirming::is_soon_over(Duration::from_millis(*ms)) == *soon)
        );
    }

    #[test]
    fn a_round_that_wants_no_lease_is_not_taken_for_one() {
        let mut bench = Bench::new(&[1, 2, 3]);
        bench.step(ASK);
        bench.says(1, 5, 1);
        assert_eq!(bench.says(2, 5, 1), (vec![], vec![Effect::Confirmed]));
        assert_eq!(bench.left_ms(), 0);
        assert_eq!(bench.step(Input::Release), (vec![], vec![]), "nothing is released that was never wanted");
    }

    #[test]
    fn what_is_released_is_used_no_more_and_the_next_question_brings_another_one() {
        let mut bench = Bench::new(&[1, 2, 3]);
        bench.step(ASK_LEASE);
        bench.grants(1, 1);
        bench.grants(2, 1);
        assert_eq!(bench.left_ms(), 900);
        assert_eq!(bench.step(Input::Release).0, vec![1, 2, 3]);
        assert_eq!(bench.step(Input::Release).0, Vec::<u64>::new(), "once is enough");
        bench.grants(3, 1);
        bench.grants(2, 1);
        assert_eq!(bench.left_ms(), 0, "what was on its way is released, too");
        bench.step(ASK_LEASE);
        bench.grants(1, 2);
        bench.grants(2, 2);
        assert_eq!(bench.left_ms(), 900);
    }

    #[test]
    fn a_later_promise_ends_the_lease() {
        let mut bench = Bench::new(&[1, 2, 3]);
        bench.step(ASK_LEASE);
        bench.grants(1, 1);
        bench.grants(2, 1);
        assert_eq!(bench.says(3, 6, 1), (vec![1, 2, 3], vec![Effect::Deposed(Epoch(6))]));
        assert_eq!(bench.left_ms(), 0);
        assert_eq!(bench.step(Input::Renew), (vec![], vec![]));
    }
}
