//! Whether a node is still the owner, asked without clocks: a read is answered when enough members say, after it was done,
//! that they have promised no later epoch.
//!
//! Enough is as many as keep a write: they share a member with every fence, so no later epoch was open when the first of them
//! was asked, and nothing that the read lacks had been acked by another owner then. One round of questions is for all
//! reads that were done before it began.

use std::collections::BTreeSet;

use velum_protocol::{
    id::{Epoch, NodeId, VolumeId},
    peer::{
        Frame,
        ensemble::{Confirm, Confirmed},
    },
};

/// What the machine is told.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// Somebody wants to know.
    Ask,
    /// A member has answered.
    Confirmed(NodeId, Confirmed),
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
#[derive(Debug)]
pub struct Confirming {
    volume: VolumeId,
    epoch: Epoch,
    members: Vec<NodeId>,
    /// The round under way, or the last one.
    ticket: u64,
    running: bool,
    /// Somebody asked since it began.
    again: bool,
    answered: BTreeSet<NodeId>,
}

impl Confirming {
    /// For the owner of an epoch with these members.
    #[must_use]
    pub const fn new(volume: VolumeId, epoch: Epoch, members: Vec<NodeId>) -> Self {
        Self { volume, epoch, members, ticket: 0, running: false, again: false, answered: BTreeSet::new() }
    }

    /// Takes one input.
    pub fn step(&mut self, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Ask if self.running => self.again = true,
            Input::Ask => self.begin(effects),
            Input::Confirmed(from, answer) => self.answered(from, answer, effects),
            Input::Tick if self.running => self.ask(effects),
            Input::Tick => {}
        }
    }

    fn begin(&mut self, effects: &mut Vec<Effect>) {
        (self.running, self.again) = (true, false);
        self.ticket += 1;
        self.answered.clear();
        effects.push(Effect::Began);
        self.ask(effects);
    }

    fn ask(&self, effects: &mut Vec<Effect>) {
        let Self { volume, epoch, ticket, .. } = *self;
        let silent = self.members.iter().filter(|member| !self.answered.contains(member));
        effects.extend(
            silent.map(|to| Effect::Send { to: *to, frame: Frame::Confirm(Confirm { volume, epoch, ticket }) }),
        );
    }

    fn answered(&mut self, from: NodeId, answer: Confirmed, effects: &mut Vec<Effect>) {
        if answer.volume != self.volume || !self.members.contains(&from) {
            return;
        }
        if answer.promise > self.epoch {
            return effects.push(Effect::Deposed(answer.promise));
        }
        if !self.running || answer.ticket != self.ticket {
            return;
        }
        self.answered.insert(from);
        if self.answered.len() > self.members.len() / 2 {
            self.running = false;
            effects.push(Effect::Confirmed);
            if self.again {
                self.begin(effects);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([7; 16]);

    struct Bench(Confirming);

    impl Bench {
        fn new(members: &[u64]) -> Self {
            Self(Confirming::new(VOLUME, Epoch(5), members.iter().copied().map(NodeId).collect()))
        }

        /// Who is asked, and what else comes of it.
        fn step(&mut self, input: Input) -> (Vec<u64>, Vec<Effect>) {
            let mut effects = Vec::new();
            self.0.step(input, &mut effects);
            let (sent, rest): (Vec<_>, Vec<_>) =
                effects.into_iter().partition(|effect| matches!(effect, Effect::Send { .. }));
            let to = |effect| if let Effect::Send { to, .. } = effect { Some(to.0) } else { None };
            (sent.into_iter().filter_map(to).collect(), rest)
        }

        fn says(&mut self, from: u64, promise: u64, ticket: u64) -> (Vec<u64>, Vec<Effect>) {
            let answer = Confirmed { volume: VOLUME, promise: Epoch(promise), ticket };
            self.step(Input::Confirmed(NodeId(from), answer))
        }
    }

    #[test]
    fn enough_members_confirm_and_only_for_those_who_asked_before_the_round() {
        let mut bench = Bench::new(&[1, 2, 3]);
        assert_eq!(bench.step(Input::Ask), (vec![1, 2, 3], vec![Effect::Began]));
        assert_eq!(bench.step(Input::Ask), (vec![], vec![]), "for the next round");
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
        bench.step(Input::Ask);
        bench.says(1, 5, 1);
        assert_eq!(bench.says(2, 6, 1), (vec![], vec![Effect::Deposed(Epoch(6))]));
        assert_eq!(bench.says(2, 6, 0), (vec![], vec![Effect::Deposed(Epoch(6))]), "however late it comes");
    }

    #[test]
    fn one_that_keeps_a_journal_alone_asks_itself() {
        let mut bench = Bench::new(&[1]);
        assert_eq!(bench.step(Input::Ask), (vec![1], vec![Effect::Began]));
        assert_eq!(bench.says(1, 5, 1), (vec![], vec![Effect::Confirmed]));
    }
}
