//! `velum-sim model`: explores, and says what was found.

use std::time::{Duration, Instant};

use clap::Args;
use velum_sim::model::{
    Scope,
    explore::Explored,
    planted::{self, Bug, STATES_MAX},
};

use crate::{ElapsedNow, now, say};

#[derive(Args)]
pub(crate) struct Model {
    /// So many distinct states at least, in all scopes together.
    #[arg(long, default_value_t = 5_000_000)]
    states: u64,
    /// Wall time to spend at most; it fails when less than a fifth of the states was reached by then.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Only this scope.
    #[arg(long, value_parser = scope_name)]
    scope: Option<Scope>,
    /// Plant a bug, and show the shortest way on which it breaks a promise.
    #[arg(long, conflicts_with = "planted_all", value_parser = bug_name)]
    planted: Option<Bug>,
    /// Find every bug that small scopes show.
    #[arg(long)]
    planted_all: bool,
}

fn scope_name(name: &str) -> Result<Scope, String> {
    let names = || Scope::all().iter().map(Scope::name).collect::<Vec<_>>().join(", ");
    Scope::named(name).ok_or_else(|| format!("there are {}", names()))
}

fn bug_name(name: &str) -> Result<Bug, String> {
    let names = || planted::all().into_iter().map(|(bug, _)| bug.name()).collect::<Vec<_>>().join(", ");
    Bug::named(name).ok_or_else(|| format!("small scopes show {}", names()))
}

impl Model {
    pub(crate) fn run(&self) -> bool {
        match self.planted {
            Some(bug) => look_for(bug, true),
            None if self.planted_all => {
                say("bug of the model         states  depth  wall s  found by");
                planted::all().into_iter().fold(true, |found, (bug, _)| look_for(bug, false) & found)
            }
            None => self.explore(),
        }
    }

    /// Explores the scopes, smallest first: what one leaves of its share goes to the others. A busy machine is given time for the small
    /// ones to come to their ends, and still some for each that follows.
    fn explore(&self) -> bool {
        let (began, limit) = (now(), Duration::from_secs(self.minutes * 60));
        let scopes: Vec<Scope> = self.scope.map_or_else(Scope::all, |scope| vec![scope]);
        say("scope           states      steps  depth  wall s  states/s");
        let (mut states, mut is_fine) = (0, true);
        let mut others = u32::try_from(scopes.len()).unwrap_or(u32::MAX);
        let kept_for_each = limit / (2 * others);
        for scope in &scopes {
            let share = self.states.saturating_sub(states).div_ceil(others.into());
            others -= 1;
            let (since, until) = (now(), limit.saturating_sub(kept_for_each * others));
            let found = scope.explore(None, share, || began.elapsed_now() >= until);
            states += found.states;
            is_fine &= tell(scope, &found, since);
        }
        let wall = began.elapsed_now();
        say(&format!("{states} distinct states of {} wanted, in {:.0} s", self.states, wall.as_secs_f64()));
        // A scope that was asked for and has an end may have fewer.
        is_fine & (self.scope.is_some() || states >= self.states / 5)
    }
}

/// Says what was found; false when a promise is broken, or when the scope shows less than it is meant to.
fn tell(scope: &Scope, found: &Explored, since: Instant) -> bool {
    let Explored { states, steps, depth, is_whole, reached, broken } = found;
    let wall = since.elapsed_now().as_secs_f64();
    let missing: Vec<_> = scope.reaches().iter().copied().filter(|what| !reached.contains(what)).collect();
    let end = match (is_whole, missing.is_empty()) {
        (true, true) => "all of it".to_owned(),
        (false, true) => "in part".to_owned(),
        (true, false) => format!("all of it, and never: {}", missing.join(", ")),
        (false, false) => format!("in part, and not yet: {}", missing.join(", ")),
    };
    let rate = *states as f64 / wall.max(0.001);
    say(&format!("{:<11} {states:>10} {steps:>10} {depth:>6} {wall:>7.1} {rate:>9.0}  {end}", scope.name()));
    if let Some(broken) = broken {
        say(&broken.to_string());
    }
    broken.is_none() && (!is_whole || missing.is_empty())
}

/// Looks for a planted bug; true when it was found.
fn look_for(bug: Bug, is_shown: bool) -> bool {
    let Some(scope) = bug.scope() else { return false };
    let (name, since) = (bug.name(), now());
    let found = scope.explore(Some(bug), STATES_MAX, || false);
    let why = found.broken.as_ref().map_or("NOT FOUND", |broken| &broken.why);
    let (states, steps) = (found.states, found.broken.as_ref().map_or(0, |broken| broken.steps.len()));
    let wall = since.elapsed_now().as_secs_f64();
    say(&format!("{name:<20} {states:>10} {steps:>6} {wall:>7.1}  {}", why.chars().take(100).collect::<String>()));
    if let Some(broken) = found.broken.as_ref().filter(|_| is_shown) {
        say(&broken.to_string());
    }
    found.broken.is_some()
}
