//! CPU-heavy jobs: sealing segments, opening frames, deriving keys.

use std::sync::{Arc, Mutex};

use super::Local;

/// Who waits for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A guest.
    Guest,
    /// Nobody: flushes, checkpoints, filling the disk cache. Such jobs get what guests leave of the processors.
    Background,
}

/// A pool for jobs that would hold up the node's thread.
pub trait Compute {
    /// Runs `job` elsewhere; completes when it has run.
    fn run(&self, urgency: Urgency, job: Box<dyn FnOnce() + Send>) -> Local<()>;
}

/// Runs a job that a guest waits for on `compute` and returns what it returns.
///
/// # Panics
/// When the job panicked on its thread, which stops the process anyway.
pub async fn call<T: Send + 'static>(compute: &dyn Compute, job: impl FnOnce() -> T + Send + 'static) -> T {
    returning(compute, Urgency::Guest, job).await
}

/// Runs a job that no guest waits for on `compute` and returns what it returns.
///
/// # Panics
/// When the job panicked on its thread, which stops the process anyway.
pub async fn call_background<T: Send + 'static>(compute: &dyn Compute, job: impl FnOnce() -> T + Send + 'static) -> T {
    returning(compute, Urgency::Background, job).await
}

async fn returning<T: Send + 'static>(
    compute: &dyn Compute,
    urgency: Urgency,
    job: impl FnOnce() -> T + Send + 'static,
) -> T {
    let slot = Arc::new(Mutex::new(None));
    let filled = Arc::clone(&slot);
    let filling = move || {
        let result = job();
        *filled.lock().expect("no job panics while it holds its slot") = Some(result);
    };
    compute.run(urgency, Box::new(filling)).await;
    let result = slot.lock().expect("no job panics while it holds its slot").take();
    result.expect("a finished job has filled its slot")
}
