//! Many Velum nodes, clouds, disks, guests and an adversary in one thread under one seed.
//!
//! A seed decides everything: the options of the world, the plan of faults, every delay, every byte a guest writes. The
//! node that runs here is the shipped node; what it asks of the world through `velum_node::env` is answered by [`env`].
//! Guests write blocks that carry unique numbers, so that a [`checker`] per promise can judge from the history and from the
//! pristine contents of the clouds whether the promise was kept. `docs/simulator.md` says how to run it.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a panic in the simulator fails the run with its seed, which is what a broken assumption should do"
)]

pub mod checker;
pub mod conformance;
pub mod ensemble;
pub mod env;
pub mod group;
pub mod guest;
pub mod history;
pub mod ledger;
pub mod minimise;
pub mod model;
pub mod phases;
pub mod plan;
pub mod planted;
pub mod report;
pub mod rng;
pub mod runtime;
pub mod scenario;
pub mod trace;
pub mod world;
