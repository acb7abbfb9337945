//! Short worlds: each scenario, a few fresh seeds, and the same seed twice.

use velum_sim::{plan::Options, rng::Rng, runtime::Run, scenario, world::Recipe};

/// A seed's own world, cut short.
fn short(seed: u64) -> Run<()> {
    let options = Options { guests_ms: 4_000, ..Options::draw(&Rng::new(seed, "options")) };
    Recipe { options: Some(options), ..Recipe::of(seed) }.run(|| None)
}

#[test]
fn every_scenario_keeps_every_promise() {
    for scenario in scenario::all() {
        let run = scenario.recipe.run(|| None);
        assert!(run.failures.is_empty(), "{}: {:#?}", scenario.name, run.failures);
    }
}

#[test]
fn a_few_seeds_keep_every_promise() {
    for seed in 1..=6 {
        let run = short(seed);
        assert!(run.failures.is_empty(), "seed {seed}: {:#?}", run.failures);
    }
}

#[test]
fn the_same_seed_makes_the_same_world() {
    for seed in [11, 13] {
        let (first, second) = (short(seed), short(seed));
        assert!(first.events > 1_000, "seed {seed} made {} events only", first.events);
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
    }
}

#[test]
fn different_seeds_make_different_worlds() {
    assert_ne!(short(11).hash, short(12).hash);
}
