//! Makes a failing world smaller: fewer troubles, less time, one volume, one connection. What is left is short enough to be
//! read, and to be kept as a scenario.

use std::time::Duration;

use crate::{plan, plan::Options, rng::Rng, world::Recipe};

/// A smaller world that still fails, and how it was come by.
#[derive(Clone, Debug)]
pub struct Minimised {
    /// The world.
    pub recipe: Recipe,
    /// Its first failure.
    pub failure: String,
    /// Worlds that were tried.
    pub tried: u32,
}

/// Minimises the world of `recipe` until nothing more can be left out or `spent` says that it took long enough. `None` when it
/// does not fail in the first place.
pub fn minimise(recipe: &Recipe, spent: &dyn Fn() -> Duration, limit: Duration) -> Option<Minimised> {
    let options = recipe.options.clone().unwrap_or_else(|| Options::of(recipe.seed, None));
    let events = recipe.events.clone().unwrap_or_else(|| plan::draw(&options, &Rng::new(recipe.seed, "plan")));
    let recipe = Recipe { options: Some(options), events: Some(events), ..recipe.clone() };
    let failure = first_failure(&recipe)?;
    let mut smallest = Minimised { recipe, failure, tried: 1 };
    let mut goes_on = true;
    while goes_on && spent() < limit {
        goes_on = false;
        for smaller in smaller(&smallest.recipe) {
            if spent() >= limit {
                break;
            }
            smallest.tried += 1;
            if let Some(failure) = first_failure(&smaller) {
                smallest = Minimised { recipe: smaller, failure, tried: smallest.tried };
                goes_on = true;
                break;
            }
        }
    }
    Some(smallest)
}

fn first_failure(recipe: &Recipe) -> Option<String> {
    recipe.clone().run(|| None).failures.first().cloned()
}

/// Worlds a little smaller than `recipe`, the most promising ones first.
fn smaller(recipe: &Recipe) -> Vec<Recipe> {
    let (Some(options), Some(events)) = (&recipe.options, &recipe.events) else { return Vec::new() };
    let with = |options: Options| Recipe { options: Some(options), ..recipe.clone() };
    let mut worlds = Vec::new();
    let mut step = events.len();
    while step > 0 {
        for from in (0..events.len()).step_by(step) {
            let mut fewer = events.clone();
            fewer.drain(from..(from + step).min(events.len()));
            worlds.push(Recipe { events: Some(fewer), ..recipe.clone() });
        }
        step /= 2;
    }
    let end_ms = events.last().map_or(0, |event| event.at_ms) + 1_000;
    if options.guests_ms > end_ms {
        worlds.push(with(Options { guests_ms: end_ms, ..options.clone() }));
    }
    if options.burns {
        worlds.push(with(Options { burns: false, ..options.clone() }));
    }
    if options.volume_blocks.len() > 1 {
        worlds.push(with(Options { volume_blocks: options.volume_blocks[..1].to_vec(), ..options.clone() }));
    }
    if options.load.connections > 1 {
        let mut fewer = options.clone();
        fewer.load.connections = 1;
        worlds.push(with(fewer));
    }
    if options.load.depth > 1 {
        let mut fewer = options.clone();
        fewer.load.depth /= 2;
        worlds.push(with(fewer));
    }
    worlds
}
