//! Ensembles: seeds that must be green, the same seed twice, and bugs that must be found.

use velum_sim::ensemble::{ALL, Bug, Recipe};

/// These take so many worlds that they are looked for with optimisation only, by `velum-sim planted`.
const RARE: [Bug; 6] = [
    Bug::AckAtOne,
    Bug::LeaseFromReply,
    Bug::UnlinkedAppend,
    Bug::BelievedVoidEnd,
    Bug::HealedBeforeOpen,
    Bug::InheritedDurable,
];

/// Enough for all others.
const SEEDS_MAX: u64 = 200;

#[test]
fn ensembles_keep_what_was_acked_through_everything() {
    for seed in 1..=120 {
        let run = Recipe::of(seed).run(None);
        assert!(run.failures.is_empty(), "seed {seed}: {:#?}", run.failures);
    }
}

#[test]
fn the_same_seed_makes_the_same_ensemble() {
    for seed in [3, 4] {
        let (first, second) = (Recipe::of(seed).run(None), Recipe::of(seed).run(None));
        assert_eq!((first.hash, first.events, first.tally), (second.hash, second.events, second.tally), "seed {seed}");
    }
}

#[test]
fn planted_bugs_are_found() {
    for bug in ALL.into_iter().filter(|bug| !RARE.contains(bug)) {
        let found = (1..=SEEDS_MAX).find(|seed| !Recipe::planted(*seed, bug).run(None).failures.is_empty());
        assert!(found.is_some(), "{bug:?} was not found in {SEEDS_MAX} seeds");
    }
}
