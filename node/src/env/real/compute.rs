//! CPU jobs on fixed pools, one for each urgency.

use std::io;

use super::{pool::Pool, priority};
use crate::env::{Compute, Local, Urgency};

/// Jobs waiting; the callers hold their own bounds (a flush seals one segment at a time), so this is only a backstop.
const JOBS_MAX: usize = 256;

pub(super) struct RealCompute {
    guest: Pool,
    background: Pool,
}

impl RealCompute {
    pub(super) fn start(threads: usize) -> io::Result<Self> {
        Ok(Self {
            guest: Pool::start("compute", threads, JOBS_MAX, || ())?,
            background: Pool::start("background", threads, JOBS_MAX, priority::yield_to_guests)?,
        })
    }
}

impl Compute for RealCompute {
    fn run(&self, urgency: Urgency, job: Box<dyn FnOnce() + Send>) -> Local<()> {
        match urgency {
            Urgency::Guest => self.guest.call(job),
            Urgency::Background => self.background.call(job),
        }
    }
}
