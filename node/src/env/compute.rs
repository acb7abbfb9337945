//! CPU-heavy jobs: sealing segments, opening frames, deriving keys.

use std::sync::{Arc, Mutex};

use super::Local;

/// A pool for jobs that would hold up the node's thread.
pub trait Compute {
    /// Runs `job` elsewhere; completes when it has run.
    fn run(&self, job: Box<dyn FnOnce() + Send>) -> Local<()>;
}

/// Runs `job` on `compute` and returns what it returns.
///
/// # Panics
/// When the job panicked on its thread, which stops the process anyway.
pub async fn call<T: Send + 'static>(compute: &dyn Compute, job: impl FnOnce() -> T + Send + 'static) -> T {
    let slot = Arc::new(Mutex::new(None));
    let filled = Arc::clone(&slot);
    compute
        .run(Box::new(move || {
            let result = job();
            *filled.lock().expect("no job panics while it holds its slot") = Some(result);
        }))
        .await;
    let result = slot.lock().expect("no job panics while it holds its slot").take();
    result.expect("a finished job has filled its slot")
}
