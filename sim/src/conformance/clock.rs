//! Time goes forward, and sleeping takes at least as long as asked.

use std::time::Duration;

use futures_util::future::join;
use velum_node::env::Env;

/// Runs the suite.
///
/// # Panics
/// When the clock breaks its contract.
pub async fn run(env: &Env) {
    time_never_goes_back(env);
    sleeping_takes_at_least_the_time_asked_for(env).await;
    the_shorter_of_two_sleeps_ends_first(env).await;
    a_sleep_of_no_time_ends(env).await;
    a_sleep_made_and_dropped_does_nothing(env).await;
}

fn time_never_goes_back(env: &Env) {
    let mut last = env.clock.now();
    for _ in 0..1000 {
        let now = env.clock.now();
        assert!(now >= last, "{now:?} came after {last:?}");
        last = now;
    }
}

async fn sleeping_takes_at_least_the_time_asked_for(env: &Env) {
    for millis in [1, 5, 20] {
        let before = env.clock.now();
        env.clock.sleep(Duration::from_millis(millis)).await;
        let passed = env.clock.now().since(before);
        assert!(passed >= Duration::from_millis(millis), "slept {passed:?} instead of {millis} ms");
    }
}

async fn the_shorter_of_two_sleeps_ends_first(env: &Env) {
    let ended = async |millis| {
        env.clock.sleep(Duration::from_millis(millis)).await;
        env.clock.now()
    };
    let (long, short) = join(ended(40), ended(10)).await;
    assert!(short < long, "40 ms ended at {long:?}, 10 ms at {short:?}");
}

async fn a_sleep_of_no_time_ends(env: &Env) {
    env.clock.sleep(Duration::ZERO).await;
}

async fn a_sleep_made_and_dropped_does_nothing(env: &Env) {
    let before = env.clock.now();
    drop(env.clock.sleep(Duration::from_hours(1)));
    env.clock.sleep(Duration::from_millis(1)).await;
    assert!(env.clock.now().since(before) < Duration::from_hours(1), "a dropped sleep was slept");
}
