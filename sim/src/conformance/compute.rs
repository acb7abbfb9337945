//! Jobs run, all of them, and give back what they return.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures_util::future::join_all;
use velum_node::env::{Env, compute};

/// Runs the suite.
///
/// # Panics
/// When the pool breaks its contract.
pub async fn run(env: &Env) {
    a_job_gives_back_its_result(env).await;
    many_jobs_at_once_all_run_once(env).await;
}

async fn a_job_gives_back_its_result(env: &Env) {
    assert_eq!(compute::call(&*env.compute, || 6 * 7).await, 42);
}

async fn many_jobs_at_once_all_run_once(env: &Env) {
    let sum = Arc::new(AtomicU64::new(0));
    let jobs = (1..=1000_u64).map(|number| {
        let sum = Arc::clone(&sum);
        compute::call(&*env.compute, move || {
            sum.fetch_add(number, Ordering::Relaxed);
            number
        })
    });
    let results = join_all(jobs).await;
    assert_eq!(results, (1..=1000).collect::<Vec<_>>(), "a job gave back another job's result");
    assert_eq!(sum.load(Ordering::Relaxed), 500_500, "a job ran not at all or twice");
}
