//! Models: small scopes must be free of violations and reach what they are for, and bugs must be found.

use velum_sim::model::{
    Scope,
    planted::{self, Bug, STATES_MAX},
};

/// States of a scope that a test has time for.
const STATES: u64 = 20_000;

#[test]
fn small_scopes_keep_every_promise() {
    for scope in Scope::all() {
        let found = scope.explore(None, STATES, || false);
        assert!(found.broken.is_none(), "{}: {}", scope.name(), found.broken.unwrap());
        assert!(found.is_whole || found.states >= STATES, "{} ended early", scope.name());
    }
}

#[test]
fn a_small_scope_is_explored_to_its_end_and_reaches_what_it_is_for() {
    let race = Scope::named("race").expect("there is one");
    let found = race.explore(None, u64::MAX, || false);
    assert!(found.is_whole && found.broken.is_none());
    assert!(race.reaches().iter().all(|what| found.reached.contains(what)), "{:?}", found.reached);
}

#[test]
fn planted_bugs_are_found_by_a_short_way() {
    for name in [
        "unstored-promise",
        "read-before-fence",
        "lowest-end",
        "stale-epoch",
        "stale-append",
        "counted-amnesic",
        "too-few-clouds",
    ] {
        let bug = Bug::named(name).expect("small scopes show it");
        let scope = bug.scope().expect("it is looked for somewhere");
        let found = scope.explore(Some(bug), STATES_MAX, || false);
        let broken = found.broken.unwrap_or_else(|| panic!("{name} was not found in {} states", found.states));
        assert!((1..30).contains(&broken.steps.len()), "{name}: {broken}");
    }
}

#[test]
fn each_planted_bug_has_its_scope() {
    assert!(planted::all().into_iter().all(|(bug, _)| bug.scope().is_some() && Bug::named(&bug.name()) == Some(bug)));
}
