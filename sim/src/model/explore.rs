//! Breadth first through all states of a system: what breaks a promise is shown by the shortest way to it.
//!
//! Of each state that was seen there is kept a fingerprint and where it was first come from; whole states are only of the two
//! layers that are being worked on. A way is found again by taking its steps anew.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
};

use velum_node::env::FixedMap;

/// Something that is explored.
pub trait System {
    /// One of its states.
    type State;
    /// Something that can happen in one.
    type Step;

    /// The state in which all begins.
    fn begin(&self) -> Self::State;
    /// All that can happen, in an order that the state alone decides.
    fn steps(&self, state: &Self::State) -> Vec<Self::Step>;
    /// What comes of it.
    fn take(&self, state: &Self::State, step: &Self::Step) -> Taken<Self::State>;
    /// By which the state is known again.
    fn print(&self, state: &Self::State) -> u128;
    /// The step, for people; `state` is the one in which it is taken.
    fn describe(&self, state: &Self::State, step: &Self::Step) -> String;
}

/// What came of a step.
#[derive(Debug)]
pub struct Taken<S> {
    /// The state behind it.
    pub state: S,
    /// What happened on the way that not every way has.
    pub reached: BTreeSet<&'static str>,
    /// The promise that was broken.
    pub broken: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Explored {
    /// Distinct states.
    pub states: u64,
    /// Steps taken.
    pub steps: u64,
    /// The longest of the shortest ways to a state.
    pub depth: u64,
    /// There are no further states within the bounds.
    pub is_whole: bool,
    /// What happened on some way.
    pub reached: BTreeSet<&'static str>,
    /// The shortest way on which a promise is broken.
    pub broken: Option<Counterexample>,
}

/// A way on which a promise is broken.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// What was broken.
    pub why: String,
    /// How it came to that.
    pub steps: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "BROKEN: {}", self.why)?;
        let mut steps = self.steps.iter().enumerate();
        steps.try_for_each(|(index, step)| writeln!(f, "{:>4}. {step}", index + 1))
    }
}

/// Where a state was first come from: the state before and which of its steps.
#[derive(Clone, Copy)]
struct Origin {
    before: u32,
    step: u16,
}

/// Explores a system until a promise is broken, nothing is left, `states_max` states are seen, or it is `over`.
pub fn explore<S: System>(system: &S, states_max: u64, over: impl Fn() -> bool) -> Explored {
    let mut found = Explored { states: 1, ..Explored::default() };
    let begin = system.begin();
    let mut seen = FixedMap::default();
    seen.insert(system.print(&begin), ());
    let mut origins = vec![Origin { before: 0, step: 0 }];
    let mut layer = VecDeque::from([(0_u32, begin)]);
    while !layer.is_empty() {
        let mut next = VecDeque::new();
        while let Some((number, state)) = layer.pop_front() {
            if found.states >= states_max || (number % 1024 == 0 && over()) {
                return found;
            }
            for (index, step) in system.steps(&state).iter().enumerate() {
                let origin = Origin { before: number, step: u16::try_from(index).expect("states have few steps") };
                let Taken { state, reached, broken } = system.take(&state, step);
                found.steps += 1;
                found.reached.extend(reached);
                if let Some(why) = broken {
                    found.broken = Some(Counterexample { why, steps: retrace(system, &origins, origin) });
                    return found;
                }
                if seen.insert(system.print(&state), ()).is_none() {
                    found.states += 1;
                    next.push_back((u32::try_from(origins.len()).expect("memory ends before"), state));
                    origins.push(origin);
                }
            }
        }
        found.depth += u64::from(!next.is_empty());
        layer = next;
    }
    found.is_whole = true;
    found
}

/// The steps up to and with the last one, for people.
fn retrace<S: System>(system: &S, origins: &[Origin], last: Origin) -> Vec<String> {
    let mut way = vec![last];
    while let Some(origin) = way.last().filter(|origin| origin.before > 0) {
        way.push(origins[origin.before as usize]);
    }
    let mut state = system.begin();
    let mut told = Vec::new();
    for origin in way.into_iter().rev() {
        let steps = system.steps(&state);
        let step = &steps[usize::from(origin.step)];
        told.push(system.describe(&state, step));
        state = system.take(&state, step).state;
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two counters up to a bound; both at `broken` breaks a promise.
    struct Counters {
        broken: u8,
    }

    impl System for Counters {
        type State = [u8; 2];
        type Step = usize;

        fn begin(&self) -> [u8; 2] {
            [0, 0]
        }

        fn steps(&self, state: &[u8; 2]) -> Vec<usize> {
            (0..2).filter(|which| state[*which] < 9).collect()
        }

        fn take(&self, state: &[u8; 2], step: &usize) -> Taken<[u8; 2]> {
            let mut state = *state;
            state[*step] += 1;
            let broken = (state == [self.broken; 2]).then(|| "both".to_owned());
            let reached = BTreeSet::from_iter((state[0] == 9).then_some("full"));
            Taken { state, reached, broken }
        }

        fn print(&self, state: &[u8; 2]) -> u128 {
            super::super::print::print_of(state)
        }

        fn describe(&self, state: &[u8; 2], step: &usize) -> String {
            format!("{step} from {}", state[*step])
        }
    }

    #[test]
    fn every_state_is_seen_once() {
        let found = explore(&Counters { broken: 10 }, u64::MAX, || false);
        assert_eq!((found.states, found.steps, found.depth, found.is_whole), (100, 180, 18, true));
        assert!(found.broken.is_none() && found.reached.contains("full"));
    }

    #[test]
    fn bounds_end_it() {
        let found = explore(&Counters { broken: 10 }, 50, || false);
        assert!((50..60).contains(&found.states) && !found.is_whole);
        assert!(!explore(&Counters { broken: 10 }, u64::MAX, || true).is_whole);
    }

    #[test]
    fn the_shortest_way_is_told() {
        let broken = explore(&Counters { broken: 2 }, u64::MAX, || false).broken.expect("both come to two");
        assert_eq!(broken.why, "both");
        assert_eq!(broken.steps, ["0 from 0", "0 from 1", "1 from 0", "1 from 1"]);
    }
}
