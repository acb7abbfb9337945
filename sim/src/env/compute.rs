//! CPU-heavy jobs: run in place, answered after a while.

use std::{rc::Rc, time::Duration};

use velum_node::env::{Compute, Local, Urgency};

use crate::{rng::Rng, runtime::sleep};

/// The compute pool of one node.
pub struct NodeCompute {
    rng: Rc<Rng>,
    delay_ms_max: u64,
}

impl NodeCompute {
    /// Jobs take up to `delay_ms_max` milliseconds of simulated time.
    #[must_use]
    pub fn new(rng: Rc<Rng>, delay_ms_max: u64) -> Self {
        Self { rng, delay_ms_max }
    }
}

impl Compute for NodeCompute {
    fn run(&self, _: Urgency, job: Box<dyn FnOnce() + Send>) -> Local<()> {
        let delay_ms = self.rng.below(self.delay_ms_max + 1);
        Box::pin(async move {
            if delay_ms > 0 {
                sleep(Duration::from_millis(delay_ms)).await;
            }
            job();
        })
    }
}
