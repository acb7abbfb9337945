//! How much of the processors the threads behind the guests get.

use rustix::process;

/// The nice value of threads that no guest waits for. Against a thread of the usual priority one gets a tenth, and all there is
/// when guests are idle. A guest that waits because too much is dirty uses no processor, so these threads never starve.
const NICE: i32 = 10;

/// Lets the calling thread have what threads that guests wait for leave over.
pub(super) fn yield_to_guests() {
    // On Linux a nice value belongs to a thread, and nobody in particular is the caller.
    if let Err(error) = process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "a background thread keeps its priority; guests share the processors with it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::real::pool::Pool;

    #[tokio::test]
    async fn only_the_threads_that_ask_for_it_yield() {
        let of_this = || process::getpriority_process(None).unwrap();
        let before = of_this();
        let pool = Pool::start("test", 1, 1, yield_to_guests).unwrap();
        assert_eq!(pool.call(of_this).await, NICE);
        assert_eq!(of_this(), before);
    }
}
