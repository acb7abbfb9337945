//! Is the history of one cell that of an atomic register?
//!
//! Two deciders. Where every written value is unique, zones decide exactly in n log n (Gibbons and Korach, "Testing shared
//! memories"): all operations on a value form a cluster, a cluster whose operations cannot all overlap at one point holds
//! the register for a stretch of time, and two such stretches must not overlap. Where zeros are written, which look all the
//! same, the set of possible states is carried forward through the events.

use std::collections::{BTreeMap, BTreeSet};

use crate::{guest::pattern::Cell, history::Step};

/// One operation on the cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touch {
    pub(crate) value: Cell,
    pub(crate) is_read: bool,
    /// Asked.
    pub(crate) start: Step,
    /// Answered; for a change, the last step at which it may take effect.
    pub(crate) end: Step,
    /// A change that was not acked may also never take effect.
    pub(crate) must: bool,
}

/// Why a history is not that of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A read returned a value before it was written, or one that nobody wrote.
    FromNowhere(Cell),
    /// Both values would have had to be the newest one at the same time.
    Conflict(Cell, Cell),
    /// No order explains what was returned at this step.
    NoOrder(Step),
}

/// States carried before the decider gives a cell up as undecided.
const STATES_MAX: usize = 20_000;

/// Judges a cell that held `base` and was touched by `touches`, in the order of their starts.
pub(crate) fn judge(base: Cell, touches: &[Touch]) -> Result<(), Flaw> {
    let read: BTreeSet<Cell> = touches.iter().filter(|touch| touch.is_read).map(|touch| touch.value).collect();
    // A change that nobody saw and nobody was told of may as well never have happened.
    let touches: Vec<_> =
        touches.iter().filter(|touch| touch.is_read || touch.must || read.contains(&touch.value)).copied().collect();
    let mut written = BTreeSet::from([base]);
    let unique = touches.iter().filter(|touch| !touch.is_read).all(|touch| written.insert(touch.value));
    if unique { by_zones(base, &touches) } else { by_states(base, &touches) }
}

#[derive(Clone, Copy)]
struct Cluster {
    value: Cell,
    written: Step,
    first_end: Step,
    last_start: Step,
}

fn by_zones(base: Cell, touches: &[Touch]) -> Result<(), Flaw> {
    let mut clusters = BTreeMap::from([(base, Cluster { value: base, written: 0, first_end: 0, last_start: 0 })]);
    for touch in touches.iter().filter(|touch| !touch.is_read) {
        let cluster =
            Cluster { value: touch.value, written: touch.start, first_end: touch.end, last_start: touch.start };
        clusters.insert(touch.value, cluster);
    }
    for touch in touches.iter().filter(|touch| touch.is_read) {
        let cluster = clusters.get_mut(&touch.value).ok_or(Flaw::FromNowhere(touch.value))?;
        if touch.end < cluster.written {
            return Err(Flaw::FromNowhere(touch.value));
        }
        cluster.first_end = cluster.first_end.min(touch.end);
        cluster.last_start = cluster.last_start.max(touch.start);
    }
    // A cluster holds the register from its first end to its last start, if that comes later; else it needs but a point
    // somewhere between its last start and its first end.
    let mut holding: Vec<_> = clusters.values().filter(|cluster| cluster.first_end < cluster.last_start).collect();
    holding.sort_by_key(|cluster| cluster.first_end);
    for pair in holding.windows(2) {
        if pair[1].first_end < pair[0].last_start {
            return Err(Flaw::Conflict(pair[0].value, pair[1].value));
        }
    }
    for point in clusters.values().filter(|cluster| cluster.first_end >= cluster.last_start) {
        let before = holding.partition_point(|cluster| cluster.first_end < point.last_start);
        if let Some(around) = before.checked_sub(1).map(|at| holding[at])
            && point.first_end < around.last_start
        {
            return Err(Flaw::Conflict(around.value, point.value));
        }
    }
    Ok(())
}

/// What may be the case at one moment: the value, and which of the open operations have taken effect (a bit each).
type State = (Cell, u64);

struct Open {
    touch: Touch,
    bit: u64,
}

fn by_states(base: Cell, touches: &[Touch]) -> Result<(), Flaw> {
    let mut events: Vec<(Step, bool, usize)> = Vec::with_capacity(touches.len() * 2);
    for (at, touch) in touches.iter().enumerate() {
        events.push((touch.start, false, at));
        if touch.end != Step::MAX {
            events.push((touch.end, true, at));
        }
    }
    events.sort_unstable();
    let mut states = BTreeSet::from([(base, 0)]);
    let mut open: BTreeMap<usize, Open> = BTreeMap::new();
    for (step, is_end, at) in events {
        if !is_end {
            let used = open.values().fold(0, |used, open| used | open.bit);
            if used == u64::MAX {
                return Ok(());
            }
            open.insert(at, Open { touch: touches[at], bit: 1 << used.trailing_ones() });
            continue;
        }
        if !grow(&mut states, &open) {
            return Ok(());
        }
        let ended = open.remove(&at).expect("an operation ends after it started");
        let survives = |state: &State| !ended.touch.must || state.1 & ended.bit != 0;
        states = states.into_iter().filter(survives).map(|(value, done)| (value, done & !ended.bit)).collect();
        if states.is_empty() {
            return Err(Flaw::NoOrder(step));
        }
    }
    Ok(())
}

/// Adds every state that open operations can lead to; `false` when there are too many.
fn grow(states: &mut BTreeSet<State>, open: &BTreeMap<usize, Open>) -> bool {
    let saw = |(value, done): State| {
        // A read that may return the present value may as well have done so: that loses nothing.
        let seen = open.values().filter(|open| open.touch.is_read && open.touch.value == value);
        (value, seen.fold(done, |done, open| done | open.bit))
    };
    let mut fresh: Vec<State> = std::mem::take(states).into_iter().map(saw).collect();
    while let Some(state) = fresh.pop() {
        if !states.insert(state) {
            continue;
        }
        if states.len() > STATES_MAX {
            return false;
        }
        for open in open.values().filter(|open| !open.touch.is_read && state.1 & open.bit == 0) {
            fresh.push(saw((open.touch.value, state.1 | open.bit)));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn write(value: u64, start: Step, end: Step) -> Touch {
        Touch { value: Cell::stamp(value, 0), is_read: false, start, end, must: true }
    }

    fn read(value: u64, start: Step, end: Step) -> Touch {
        Touch { is_read: true, ..write(value, start, end) }
    }

    fn both(base: u64, touches: &[Touch]) -> bool {
        let zones = by_zones(Cell::stamp(base, 0), touches).is_ok();
        let states = by_states(Cell::stamp(base, 0), touches).is_ok();
        assert_eq!(zones, states, "the two deciders differ on {touches:?}");
        zones
    }

    #[test]
    fn a_stale_read_is_rejected() {
        assert!(both(9, &[write(1, 1, 2), read(1, 3, 4)]));
        assert!(!both(9, &[write(1, 1, 2), read(9, 3, 4)]));
    }

    #[test]
    fn a_value_that_returns_after_its_successor_was_read_is_rejected() {
        assert!(!both(9, &[write(1, 1, 2), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8)]));
        assert!(both(9, &[write(1, 1, 10), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8)]));
    }

    #[test]
    fn the_deciders_agree_on_random_histories() {
        let (mut kept, mut broken) = (0, 0);
        for seed in 0..4_000 {
            let rng = Rng::new(seed, "linear");
            let mut touches = Vec::new();
            for value in 1..=rng.between(1, 4) {
                let start = rng.between(1, 30);
                touches.push(write(value, start * 2, (start + rng.between(1, 10)) * 2 + 1));
            }
            let writes = touches.len() as u64;
            for _ in 0..rng.between(1, 4) {
                let start = rng.between(1, 30);
                let value = rng.between(1, writes);
                touches.push(read(value, start * 2, (start + rng.between(1, 5)) * 2 + 1));
            }
            touches.sort_by_key(|touch| touch.start);
            if both(99, &touches) { kept += 1 } else { broken += 1 }
        }
        assert!(kept > 300 && broken > 300, "{kept} kept, {broken} broken");
    }
}
