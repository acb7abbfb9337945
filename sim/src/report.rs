//! What many worlds came to, in a few lines.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{phases::Crossings, runtime::Run};

/// Every kind of fault, as runs tally it at the moment it does something to a node. A kind that no world of a long soak had
/// is not tested, whatever the plans say.
pub const FAULTS: [&str; 39] = [
    "kills",
    "ends at an i/o",
    "power losses, all kept",
    "power losses, nothing kept",
    "power losses, pages",
    "power losses, torn",
    "clean restarts",
    "lost machines",
    "lost machines with a cloud",
    "poisoned journals",
    "failed sync",
    "failed write",
    "failed read",
    "slow disk",
    "disk full",
    "rot in the cache",
    "rot in the journal's end",
    "cloud away",
    "cloud stalls",
    "cloud denies",
    "cloud throttles",
    "cloud failure before effect",
    "cloud failure after effect",
    "cloud answer lost",
    "lies",
    "emptied clouds",
    "exchanged clouds",
    "cut connections",
    "stalled network",
    "isolated nodes",
    "split clusters",
    "ways blocked",
    "flapping ways",
    "slow ways",
    "links reset",
    "paused nodes",
    "leaders and owners lost",
    "volumes moved",
    "nodes replaced",
];

/// The sum of many runs.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Worlds run.
    pub seeds: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Events in all traces.
    pub events: u64,
    /// What happened how often.
    pub tally: BTreeMap<&'static str, u64>,
    /// In how many worlds it happened.
    pub worlds: BTreeMap<&'static str, u64>,
    /// Which faults came in which phases.
    pub crossings: Crossings,
    /// Seeds that failed, with their failures.
    pub failed: Vec<(u64, Vec<String>)>,
    /// Wall time.
    pub wall: Duration,
}

impl Summary {
    /// Adds one run.
    pub fn add<T>(&mut self, seed: u64, run: Run<T>) {
        self.seeds += 1;
        self.simulated_ms += run.simulated_ms;
        self.events += run.events;
        for (what, times) in run.tally {
            *self.tally.entry(what).or_default() += times;
            *self.worlds.entry(what).or_default() += u64::from(times > 0);
        }
        self.crossings.merge(run.crossings);
        if !run.failures.is_empty() {
            self.failed.push((seed, run.failures));
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.simulated_ms += other.simulated_ms;
        self.events += other.events;
        for (what, times) in other.tally {
            *self.tally.entry(what).or_default() += times;
        }
        for (what, worlds) in other.worlds {
            *self.worlds.entry(what).or_default() += worlds;
        }
        self.crossings.merge(other.crossings);
        self.failed.extend(other.failed);
    }

    /// Kinds of fault that no world had; those that only several nodes can have when `several` may have been drawn.
    #[must_use]
    pub fn faults_missing(&self, several: bool) -> Vec<&'static str> {
        let first_of_several = FAULTS.iter().position(|fault| *fault == "isolated nodes").unwrap_or(FAULTS.len());
        let wanted = if several { FAULTS.len() } else { first_of_several };
        let is_missing = |fault: &&str| self.worlds.get(fault).copied().unwrap_or_default() == 0;
        FAULTS.into_iter().take(wanted).filter(is_missing).collect()
    }

    /// Simulated time per wall time of all jobs together.
    #[must_use]
    pub fn speed(&self) -> u128 {
        u128::from(self.simulated_ms) / self.wall.as_millis().max(1)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.simulated_ms / 60_000;
        writeln!(f, "seeds                       {}", self.seeds)?;
        writeln!(f, "simulated hours             {}.{:02}", minutes / 60, minutes % 60 * 100 / 60)?;
        writeln!(f, "simulated time / wall time  {}", self.speed())?;
        writeln!(f, "events                      {}", self.events)?;
        for (what, times) in &self.tally {
            writeln!(f, "{what:<27} {times}")?;
        }
        let cells = FAULTS.map(|fault| format!("{fault} {}", self.worlds.get(fault).copied().unwrap_or_default()));
        writeln!(f, "worlds with each fault      {}", cells.join("; "))?;
        if !self.crossings.is_empty() {
            write!(f, "{}", self.crossings)?;
        }
        write!(f, "failed seeds                {}", self.failed.len())
    }
}

/// How much of something a soak should reach. The machine it runs on may be slow or busy, so less is said aloud only, but
/// a fraction of it proves nothing.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// What is counted.
    pub what: &'static str,
    /// How much there was.
    pub reached: u64,
    /// How much there should have been.
    pub wanted: u64,
}

impl Goal {
    /// Below this share of the goal a soak fails.
    const PERCENT_MIN: u64 = 20;
    /// Below this share it says so.
    const PERCENT_FAIR: u64 = 50;

    fn reaches(&self, percent: u64) -> bool {
        self.reached.saturating_mul(100) >= self.wanted.saturating_mul(percent)
    }

    /// False when so little was reached that the soak must not pass.
    #[must_use]
    pub fn is_far_enough(&self) -> bool {
        self.reaches(Self::PERCENT_MIN)
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.reaches(100), self.reaches(Self::PERCENT_FAIR), self.is_far_enough()) {
            (true, ..) => "reached",
            (_, true, _) => "not quite",
            (_, _, true) => "WARNING: not half of it",
            _ => "FAILED: not a fifth of it",
        };
        write!(f, "goal: {} {}, reached {}: {verdict}", self.wanted, self.what, self.reached)
    }
}

/// The command that shows a failure again.
#[must_use]
pub fn reproduce(seed: u64, nodes: Option<usize>) -> String {
    let nodes = nodes.map_or(String::new(), |nodes| format!(" --nodes {nodes}"));
    format!("cargo run --profile sim -p velum-sim -- run --seed {seed}{nodes}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(tally: &[&'static str]) -> Run<()> {
        let tally = tally.iter().map(|what| (*what, 2)).collect();
        let crossings = Crossings::default();
        Run { result: None, hash: 0, events: 0, simulated_ms: 1, failures: Vec::new(), tally, crossings }
    }

    #[test]
    fn a_fault_that_no_world_had_is_missed() {
        let mut total = Summary::default();
        total.add(1, run(&FAULTS[1..]));
        total.add(2, run(&FAULTS[2..]));
        assert_eq!(total.faults_missing(true), [FAULTS[0]]);
        assert_eq!(total.faults_missing(false), [FAULTS[0]]);
        assert_eq!((total.worlds.get(FAULTS[1]), total.worlds.get(FAULTS[2])), (Some(&1), Some(&2)));
        let mut other = Summary::default();
        other.add(3, run(&[FAULTS[0]]));
        total.merge(other);
        assert!(total.faults_missing(true).is_empty());
    }

    #[test]
    fn a_fifth_of_a_goal_is_far_enough() {
        for (reached, said, passes) in [
            (100, "reached", true),
            (99, "not quite", true),
            (50, "not quite", true),
            (49, "WARNING", true),
            (20, "WARNING", true),
            (19, "FAILED", false),
        ] {
            let goal = Goal { what: "worlds", reached, wanted: 100 };
            assert!(goal.to_string().contains(said) && goal.is_far_enough() == passes, "{goal}");
        }
    }
}
