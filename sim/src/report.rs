//! What many worlds came to, in a few lines.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::runtime::Run;

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
        }
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
        self.failed.extend(other.failed);
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
        write!(f, "failed seeds                {}", self.failed.len())
    }
}

/// The command that shows a failure again.
#[must_use]
pub fn reproduce(seed: u64) -> String {
    format!("cargo run --profile sim -p velum-sim -- run --seed {seed}")
}
