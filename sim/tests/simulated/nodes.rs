//! Worlds of several whole nodes: seeds that must be green, and the same seed twice.

use velum_sim::{plan::Options, runtime::Run, scenario, world::Recipe};

/// A seed's own world of so many nodes.
fn world(seed: u64, nodes: usize) -> Run<()> {
    Recipe { options: Some(Options::of(seed, Some(nodes))), ..Recipe::of(seed) }.run(|| None)
}

#[test]
fn several_nodes_keep_every_promise() {
    for (seed, nodes) in [(1, 3), (2, 3), (4, 3), (5, 5), (6, 5)] {
        let run = world(seed, nodes);
        assert!(run.failures.is_empty(), "seed {seed}, {nodes} nodes: {:#?}", run.failures);
        assert!(run.tally.get("states compared").is_some_and(|states| *states > 10), "seed {seed}: {:?}", run.tally);
    }
}

#[test]
fn the_same_seed_makes_the_same_world_of_several_nodes() {
    for (seed, nodes) in [(2, 3), (8, 5)] {
        let (first, second) = (world(seed, nodes), world(seed, nodes));
        assert!(first.events > 1_000, "seed {seed} made {} events only", first.events);
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
    }
}

/// Of the worlds that seeds make, some have one node and others several.
#[test]
fn seeds_draw_how_many_nodes_there_are() {
    let drawn: Vec<_> = (0..200).map(|seed| Options::of(seed, None).nodes).collect();
    let share = |nodes| drawn.iter().filter(|drawn| **drawn == nodes).count();
    assert!(share(1) > 60 && share(3) > 50 && share(5) > 5, "{} {} {}", share(1), share(3), share(5));
}

/// Seeds of three nodes that once found something.
#[test]
fn seeds_that_found_something_stay_green() {
    // Volumes opened by what a node had heard in its life before; a failed sync on the way.
    for seed in [10, 27, 157] {
        let run = world(seed, 3);
        assert!(run.failures.is_empty(), "seed {seed}: {:#?}", run.failures);
    }
}

#[test]
fn every_scenario_of_several_nodes_keeps_every_promise() {
    for scenario in scenario::several() {
        let run = scenario.recipe.run(|| None);
        assert!(run.failures.is_empty(), "{}: {:#?}", scenario.name, run.failures);
    }
}
