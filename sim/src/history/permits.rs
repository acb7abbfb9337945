//! What an operator said about who may write in which region of a shared volume, and when it was in force.

use super::Step;

/// A permit that was given.
#[derive(Clone, Debug)]
struct Given {
    region: u64,
    holder: String,
    asked: Step,
    /// When the operator was told that it is in force; without that it may come into force at any later time.
    answered: Option<Step>,
}

/// All that were, in the order in which they were asked for, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Permits(Vec<Given>);

impl Permits {
    /// True when nobody ever asked for one.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An operator asks for a permit, whoever has one there.
    pub fn ask(&mut self, region: u64, holder: &str, asked: Step) {
        self.0.push(Given { region, holder: holder.to_owned(), asked, answered: None });
    }

    /// It is in force.
    pub fn answered(&mut self, step: Step) {
        if let Some(last) = self.0.last_mut() {
            last.answered = Some(step);
        }
    }

    /// It was refused: nothing has changed.
    pub fn refused(&mut self) {
        self.0.pop();
    }

    /// True when `holder` may have had the permit for `region` at some step of `from..=to`.
    #[must_use]
    pub fn may_hold(&self, region: u64, holder: &str, (from, to): (Step, Step)) -> bool {
        let of_region = || self.0.iter().filter(|given| given.region == region);
        of_region().filter(|given| given.holder == holder && given.asked <= to).any(|given| {
            let ends = of_region().filter(|next| next.asked > given.asked && next.holder != holder);
            let over = given.answered.and_then(|_| ends.filter_map(|next| next.answered).min());
            over.is_none_or(|over| over >= from)
        })
    }

    /// True when `holder` had the permit for `region` at every step of `from..=to`, as far as permits go.
    #[must_use]
    pub fn surely_holds(&self, region: u64, holder: &str, (from, to): (Step, Step)) -> bool {
        let begun = |given: &&Given| given.region == region && given.asked <= to;
        let mut latest = None;
        for given in self.0.iter().filter(begun) {
            match given.answered {
                // Whatever is under way may be the one that counts.
                None if given.holder != holder => return false,
                Some(answered) if given.holder == holder && answered < from => latest = Some(true),
                _ if given.holder != holder => latest = Some(false),
                _ => {}
            }
        }
        latest == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_lasts_until_another_one_is_in_force() {
        let mut permits = Permits::default();
        assert!(!permits.may_hold(0, "a", (1, 100)));
        permits.ask(0, "a", 10);
        permits.answered(12);
        permits.ask(0, "b", 20);
        assert!(permits.may_hold(0, "a", (99, 100)), "the next one is not in force yet");
        permits.answered(22);
        assert!(permits.may_hold(0, "a", (11, 11)) && permits.may_hold(0, "a", (22, 30)));
        assert!(!permits.may_hold(0, "a", (23, 30)) && !permits.may_hold(0, "a", (1, 9)));
        assert!(permits.may_hold(0, "b", (21, 21)) && !permits.may_hold(1, "b", (21, 21)), "regions stand alone");
    }

    #[test]
    fn one_without_an_answer_may_come_into_force_at_any_time() {
        let mut permits = Permits::default();
        permits.ask(0, "a", 10);
        permits.ask(0, "b", 20);
        permits.answered(22);
        assert!(permits.may_hold(0, "a", (90, 91)) && permits.may_hold(0, "b", (90, 91)));
        assert!(!permits.surely_holds(0, "b", (90, 91)));
    }

    #[test]
    fn a_holder_is_sure_of_it_between_the_answer_and_the_next_question() {
        let mut permits = Permits::default();
        permits.ask(0, "a", 10);
        permits.answered(12);
        assert!(permits.surely_holds(0, "a", (13, 30)) && !permits.surely_holds(0, "a", (12, 30)));
        permits.ask(0, "b", 20);
        permits.refused();
        assert!(permits.surely_holds(0, "a", (13, 30)));
        permits.ask(0, "b", 20);
        permits.answered(22);
        assert!(permits.surely_holds(0, "a", (13, 19)) && !permits.surely_holds(0, "a", (13, 20)));
        assert!(permits.surely_holds(0, "b", (23, 30)));
    }
}
