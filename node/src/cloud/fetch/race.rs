//! One read from several clouds: a pure machine.
//!
//! The first cloud of the order is asked; the next one as soon as the last one asked has failed, is in doubt, or has not
//! answered within its patience. The first verified answer ends the race. When all have been asked and none is left to wait
//! for, everyone rests for a while and a new round begins. A round in which every cloud said that it does not have the
//! object, or gave back something else, is a lost one; after three lost rounds in a row the object is given up. A cloud that
//! is away may have it, so while one is away the race goes on for ever: a guest waits rather than reads wrong bytes.

use std::time::Duration;

use super::rank::Candidate;
use crate::{actor::Machine, env::Instant};

/// Lost rounds in a row after which an object is given up.
const LOST_ROUNDS_MAX: u32 = 3;
/// Rest after the first round; doubles.
const REST_MIN: Duration = Duration::from_millis(100);
/// Longest rest.
const REST_MAX: Duration = Duration::from_secs(5);

/// Why a cloud did not give a verified answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// No answer, or a passing fault.
    Away,
    /// It says that there is no such object.
    Missing,
    /// It gave back something else.
    Damaged,
}

/// What happens in a race.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A round begins with the clouds in this order.
    Begin {
        /// The clouds.
        order: Vec<Candidate>,
    },
    /// The patience with the `place`th cloud of the round has ended.
    Impatient {
        /// The round.
        round: u32,
        /// Its place in the order.
        place: usize,
    },
    /// A cloud gave the bytes, and they are what was stored.
    Verified,
    /// A cloud did not.
    Failed {
        /// Why.
        doubt: Doubt,
    },
}

/// What the shell is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask a cloud.
    Ask {
        /// Its place in the set.
        cloud: usize,
        /// The cloud that was slow or in doubt, if that is why.
        instead_of: Option<usize>,
    },
    /// Give [`Input::Impatient`] after a delay.
    WaitFor {
        /// The round.
        round: u32,
        /// Place in the order.
        place: usize,
        /// How long.
        patience: Duration,
    },
    /// Give [`Input::Begin`] with a new order after a delay.
    RestFor {
        /// How long.
        delay: Duration,
    },
    /// Hand the verified bytes over; everything else is dropped.
    Deliver,
    /// No cloud has the object.
    GiveUp {
        /// Clouds that said it is not there.
        missing: usize,
        /// Clouds that gave back something else.
        damaged: usize,
    },
}

/// The machine.
#[derive(Debug, Default)]
pub struct Race {
    order: Vec<Candidate>,
    round: u32,
    lost_rounds: u32,
    asked: usize,
    ended: usize,
    missing: usize,
    damaged: usize,
}

impl Machine for Race {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, _now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Begin { order } => {
                let (round, lost_rounds) = (self.round + 1, self.lost_rounds);
                *self = Self { order, round, lost_rounds, ..Self::default() };
                self.ask_next(effects);
                self.end_round(effects);
            }
            Input::Impatient { round, place } => {
                // Only the cloud asked last can run out of patience; the ones before have been passed over already.
                if round == self.round && place + 1 == self.asked {
                    self.ask_next(effects);
                }
            }
            Input::Verified => effects.push(Effect::Deliver),
            Input::Failed { doubt } => {
                self.ended += 1;
                match doubt {
                    Doubt::Away => {}
                    Doubt::Missing => self.missing += 1,
                    Doubt::Damaged => self.damaged += 1,
                }
                self.ask_next(effects);
                self.end_round(effects);
            }
        }
    }
}

impl Race {
    fn ask_next(&mut self, effects: &mut Vec<Effect>) {
        let Some(candidate) = self.order.get(self.asked) else { return };
        let place = self.asked;
        let before = place.checked_sub(1).and_then(|before| self.order.get(before));
        effects.push(Effect::Ask { cloud: candidate.cloud, instead_of: before.map(|before| before.cloud) });
        self.asked += 1;
        if self.asked < self.order.len() {
            effects.push(Effect::WaitFor { round: self.round, place, patience: candidate.patience });
        }
    }

    fn end_round(&mut self, effects: &mut Vec<Effect>) {
        if self.ended < self.order.len() {
            return;
        }
        let lost = self.missing + self.damaged == self.order.len();
        self.lost_rounds = if lost { self.lost_rounds + 1 } else { 0 };
        if self.lost_rounds >= LOST_ROUNDS_MAX {
            effects.push(Effect::GiveUp { missing: self.missing, damaged: self.damaged });
        } else {
            let doublings = self.round.saturating_sub(1).min(8);
            effects.push(Effect::RestFor { delay: REST_MAX.min(REST_MIN * 2_u32.pow(doublings)) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(clouds: &[usize]) -> Input {
        let candidate = |cloud: &usize| Candidate { cloud: *cloud, patience: Duration::from_millis(10) };
        Input::Begin { order: clouds.iter().map(candidate).collect() }
    }

    fn step(race: &mut Race, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        race.step(Instant(0), input, &mut effects);
        effects
    }

    fn failed(doubt: Doubt) -> Input {
        Input::Failed { doubt }
    }

    const fn wait(round: u32, place: usize) -> Effect {
        Effect::WaitFor { round, place, patience: Duration::from_millis(10) }
    }

    const fn ask(cloud: usize, instead_of: Option<usize>) -> Effect {
        Effect::Ask { cloud, instead_of }
    }

    #[test]
    fn a_fast_first_answer_asks_nobody_else() {
        let mut race = Race::default();
        assert_eq!(step(&mut race, order(&[2, 0, 1])), [ask(2, None), wait(1, 0)]);
        assert_eq!(step(&mut race, Input::Verified), [Effect::Deliver]);
    }

    #[test]
    fn a_slow_cloud_is_not_waited_for_alone() {
        let mut race = Race::default();
        step(&mut race, order(&[0, 1, 2]));
        assert_eq!(step(&mut race, Input::Impatient { round: 1, place: 0 }), [ask(1, Some(0)), wait(1, 1)]);
        assert_eq!(step(&mut race, Input::Impatient { round: 1, place: 0 }), [], "it was passed over already");
        assert_eq!(step(&mut race, Input::Impatient { round: 1, place: 1 }), [ask(2, Some(1))]);
        assert_eq!(step(&mut race, Input::Impatient { round: 1, place: 2 }), [], "nobody is left");
    }

    #[test]
    fn doubt_goes_on_to_the_next_cloud_at_once() {
        for doubt in [Doubt::Away, Doubt::Missing, Doubt::Damaged] {
            let mut race = Race::default();
            step(&mut race, order(&[0, 1]));
            assert_eq!(step(&mut race, failed(doubt)), [ask(1, Some(0))]);
            assert_eq!(step(&mut race, Input::Impatient { round: 1, place: 0 }), []);
            assert_eq!(step(&mut race, Input::Verified), [Effect::Deliver]);
        }
    }

    #[test]
    fn an_object_that_no_cloud_has_is_given_up_after_three_rounds() {
        let mut race = Race::default();
        for rest in [100, 200] {
            step(&mut race, order(&[0, 1]));
            step(&mut race, failed(Doubt::Missing));
            let delay = Duration::from_millis(rest);
            assert_eq!(step(&mut race, failed(Doubt::Damaged)), [Effect::RestFor { delay }]);
        }
        step(&mut race, order(&[0, 1]));
        step(&mut race, failed(Doubt::Missing));
        assert_eq!(step(&mut race, failed(Doubt::Damaged)), [Effect::GiveUp { missing: 1, damaged: 1 }]);
    }

    #[test]
    fn while_a_cloud_is_away_nothing_is_given_up() {
        let mut race = Race::default();
        let mut rests = Vec::new();
        for _ in 0..20 {
            step(&mut race, order(&[0, 1]));
            step(&mut race, failed(Doubt::Missing));
            let effects = step(&mut race, failed(Doubt::Away));
            let [Effect::RestFor { delay }] = effects[..] else { panic!("{effects:?}") };
            rests.push(delay);
        }
        assert_eq!((rests[0], rests[19]), (REST_MIN, REST_MAX));
    }

    #[test]
    fn impatience_of_an_earlier_round_is_ignored() {
        let mut race = Race::default();
        step(&mut race, order(&[0, 1]));
        step(&mut race, failed(Doubt::Away));
        step(&mut race, failed(Doubt::Away));
        step(&mut race, order(&[1, 0]));
        assert_eq!(step(&mut race, Input::Impatient { round: 1, place: 0 }), []);
    }

    #[test]
    fn without_clouds_there_is_nothing_to_find() {
        let mut race = Race::default();
        for _ in 0..2 {
            assert!(matches!(step(&mut race, order(&[]))[..], [Effect::RestFor { .. }]));
        }
        assert_eq!(step(&mut race, order(&[])), [Effect::GiveUp { missing: 0, damaged: 0 }]);
    }
}
