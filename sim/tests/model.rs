//! Models: small scopes must be free of violations and reach what they are for, and bugs must be found.

use velum_sim::model::{
    explore::explore,
    journal::{Journal, SCOPES},
    planted::{PLANTED, STATES_MAX, model},
};

/// States of a scope that a test has time for.
const STATES: u64 = 20_000;

#[test]
fn small_scopes_keep_every_promise() {
    for scope in SCOPES {
        let found = explore(&Journal { scope, bug: None }, STATES, || false);
        assert!(found.broken.is_none(), "{}: {}", scope.name, found.broken.unwrap());
        assert!(found.is_whole || found.states >= STATES, "{} is smaller than it says", scope.name);
    }
}

#[test]
fn the_smallest_scope_is_explored_to_its_end_and_reaches_what_it_is_for() {
    let found = explore(&Journal { scope: SCOPES[0], bug: None }, u64::MAX, || false);
    assert!(found.is_whole && found.broken.is_none());
    assert!(SCOPES[0].reaches.iter().all(|what| found.reached.contains(what)), "{:?}", found.reached);
}

#[test]
fn planted_bugs_are_found_by_a_short_way() {
    use velum_sim::ensemble::Bug;
    for bug in [Bug::UnstoredPromise, Bug::ReadBeforeFence, Bug::StaleEpoch, Bug::StaleAppend] {
        let found = explore(&model(bug).expect("a scope is made for it"), STATES_MAX, || false);
        let broken = found.broken.unwrap_or_else(|| panic!("{bug:?} was not found in {} states", found.states));
        assert!((1..30).contains(&broken.steps.len()), "{bug:?}: {broken}");
    }
}

#[test]
fn each_planted_bug_has_its_scope() {
    assert!(PLANTED.iter().all(|(bug, _)| model(*bug).is_some()));
}
