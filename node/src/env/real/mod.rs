//! The environment on this machine.
//!
//! The only place with threads: workers for disk I/O, syncs and CPU jobs, and a tokio runtime for the clouds. What they do
//! comes back to the node's thread as the completion of a local future. Clock and network lean on the tokio runtime that the
//! node's own thread runs in; the other futures do not care where they are polled.

mod certificate;
mod clock;
mod clouds;
mod compute;
mod disk;
mod entropy;
mod network;
mod peers;
mod pool;
mod priority;

use std::{io, num::NonZero, rc::Rc, thread};

use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::Env;

/// What can be chosen about the real environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RealSettings {
    /// Threads for CPU jobs; by default as many as the machine runs at once.
    pub compute_threads: Option<NonZero<usize>>,
}

/// Makes the environment of one node.
///
/// # Errors
/// When threads cannot be started.
pub fn real_env(settings: RealSettings) -> io::Result<Env> {
    let compute_threads = match settings.compute_threads {
        Some(threads) => threads.get(),
        None => thread::available_parallelism().map_or(1, NonZero::get),
    };
    Ok(Env {
        clock: Rc::new(clock::RealClock::start()),
        entropy: Rc::new(entropy::RealEntropy),
        disk: Rc::new(disk::RealDisk::start()?),
        network: Rc::new(network::RealNetwork),
        clouds: Rc::new(clouds::RealClouds::start()?),
        compute: Rc::new(compute::RealCompute::start(compute_threads)?),
    })
}

/// Keeps this process's memory, and with it every key, out of core files and away from other processes of the same user.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_memory_private() -> io::Result<()> {
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
