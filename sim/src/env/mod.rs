//! The simulated environment: what a node asks of the world, answered under a seed.
//!
//! Nothing here knows what a node is for. Each part has its faults as plain settings that the plan turns while the node
//! runs, and each is bound to one [`Life`]: when that has ended, nothing it is asked for has any effect.

pub mod clock;
pub mod cloud;
pub mod compute;
pub mod disk;
pub mod entropy;
pub mod network;

use std::{collections::BTreeMap, rc::Rc};

use velum_node::env::Env;

use crate::{
    rng::Rng,
    runtime::{Life, Sim},
};

/// One machine of the world: what stays when its process ends.
pub struct Machine {
    /// Its name in the trace and on the network.
    pub name: Rc<str>,
    /// Its disk.
    pub medium: Rc<disk::Medium>,
    /// How long before the world its clock began.
    pub clock_offset_ms: u64,
    /// How much too fast its clock runs.
    pub clock_rate_ppm: i64,
    /// Draws the same random bytes in every life, like a machine restored from a snapshot again and again.
    pub repeats_entropy: bool,
    /// Longest that a CPU job takes.
    pub compute_ms_max: u64,
}

impl Machine {
    /// A machine with an empty disk, a true clock and instant CPUs.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            medium: Rc::default(),
            clock_offset_ms: 0,
            clock_rate_ppm: 0,
            repeats_entropy: false,
            compute_ms_max: 0,
        }
    }
}

/// What all machines of a world share.
#[derive(Clone)]
pub struct Surroundings {
    /// Time and trace.
    pub sim: Rc<Sim>,
    /// The network.
    pub wires: Rc<network::Wires>,
    /// The clouds, by URL.
    pub clouds: Rc<BTreeMap<String, Rc<cloud::SimCloud>>>,
}

/// The environment of the `number`th life of the process on `machine`.
#[must_use]
pub fn of(around: &Surroundings, machine: &Machine, life: &Rc<Life>, number: u64) -> Env {
    let sim = &around.sim;
    let stream = |what: &str| Rc::new(Rng::new(sim.seed(), &format!("{} {what} {number}", machine.name)));
    let entropy =
        if machine.repeats_entropy { Rc::new(Rng::new(sim.seed(), &machine.name)) } else { stream("entropy") };
    Env {
        clock: Rc::new(clock::NodeClock::new(Rc::clone(sim), machine.clock_offset_ms, machine.clock_rate_ppm)),
        entropy: Rc::new(entropy::NodeEntropy::new(entropy)),
        disk: Rc::new(disk::NodeDisk::new(
            Rc::clone(sim),
            Rc::clone(&machine.name),
            Rc::clone(&machine.medium),
            Rc::clone(life),
            stream("disk"),
        )),
        network: Rc::new(network::NodeNetwork::new(
            Rc::clone(&around.wires),
            Rc::clone(&machine.name),
            Rc::clone(life),
        )),
        clouds: Rc::new(cloud::NodeClouds::new(Rc::clone(&around.clouds), Rc::clone(life))),
        compute: Rc::new(compute::NodeCompute::new(stream("compute"), machine.compute_ms_max)),
    }
}
