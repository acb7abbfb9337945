//! CPU jobs on a fixed pool.

use std::io;

use super::pool::Pool;
use crate::env::{Compute, Local};

/// Jobs waiting; the callers hold their own bounds (a flush seals one segment at a time), so this is only a backstop.
const JOBS_MAX: usize = 256;

pub(super) struct RealCompute(Pool);

impl RealCompute {
    pub(super) fn start(threads: usize) -> io::Result<Self> {
        Ok(Self(Pool::start("compute", threads, JOBS_MAX)?))
    }
}

impl Compute for RealCompute {
    fn run(&self, job: Box<dyn FnOnce() + Send>) -> Local<()> {
        self.0.call(job)
    }
}
