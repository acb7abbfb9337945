//! Groups of raft members: seeds that must be green, the same seed twice, and bugs that must be found.

use velum_sim::{
    group::Recipe,
    planted::{Planted, world},
};

#[test]
fn groups_keep_what_they_agree_through_everything() {
    let (mut replaced, mut installed) = (0, 0);
    for seed in 1..=12 {
        let run = Recipe::of(seed).run(|| None);
        assert!(run.failures.is_empty() && run.result.is_some(), "seed {seed}: {:#?}\n{:?}", run.failures, run.tally);
        replaced += run.tally.get("members replaced").copied().unwrap_or(0);
        installed += run.tally.get("snapshots installed").copied().unwrap_or(0);
    }
    assert!(replaced > 0, "no seed replaced a member");
    // Each newcomer needs one; there must be others.
    assert!(installed > 12 * 3, "{installed} snapshots were installed only");
}

#[test]
fn the_same_seed_makes_the_same_group() {
    for seed in [3, 4] {
        let (first, second) = (Recipe::of(seed).run(|| None), Recipe::of(seed).run(|| None));
        assert!(first.events > 1_000, "seed {seed} made {} events only", first.events);
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
    }
}

fn finds(bug: Planted) {
    let found = (1..=40).find(|seed| {
        let run = Recipe { planted: Some(bug), ..Recipe::of(*seed) }.run(|| None);
        !run.failures.is_empty()
    });
    assert!(found.is_some(), "{bug:?} was not found in 40 seeds");
}

/// Votes and acks that leave before what they promise is durable, and entries applied before the hard state is.
#[test]
fn promises_before_the_sync_are_found() {
    finds(Planted::BarrierBeforeSync);
}

#[test]
fn promises_without_a_sync_are_found() {
    finds(Planted::BarrierWithoutSync);
}

/// A snapshot that is in place for the process and not for the disk.
#[test]
fn a_snapshot_that_is_not_in_place_is_found() {
    finds(Planted::UnsyncedNames);
}

/// Bugs that are looked for in groups alone.
#[test]
fn bugs_of_groups_are_found() {
    for bug in [Planted::VotesAfterLoss, Planted::SnapshotInPlace, Planted::HashOrder] {
        let is_found = |seed: &u64| {
            let fails = !world(*seed, bug).run(|| None).failures.is_empty();
            fails && world(*seed, bug).without_bug().run(|| None).failures.is_empty()
        };
        assert!((1..=40).any(|seed| is_found(&seed)), "{bug:?} was not found in 40 seeds");
    }
}

#[test]
fn a_lost_disk_takes_nothing_that_was_agreed() {
    let mut lost = 0;
    for seed in 1..=8 {
        let run = world(seed, Planted::VotesAfterLoss).without_bug().run(|| None);
        assert!(run.failures.is_empty(), "seed {seed}: {:#?}", run.failures);
        lost += run.tally.get("disks lost").copied().unwrap_or(0);
    }
    assert!(lost >= 8, "{lost} disks were lost only");
}
