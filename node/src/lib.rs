//! The Velum host node: server, cache, cloud array application and consensus, as a library.
//!
//! Layers, imports strictly downwards: `node` > `server` > `volume`, `array`, `consensus`, `peer` > `ensemble` > `cache`, `journal`,
//! `cloud`, `metadata` > `keyring`, `extent`, `config` > `actor`, `env`, `limits`, `metrics`. Siblings meet through messages.

pub mod actor;
pub mod array;
pub mod audit;
pub mod cache;
pub mod cloud;
pub mod config;
pub mod consensus;
pub mod ensemble;
pub mod env;
pub mod extent;
pub mod journal;
pub mod keyring;
pub mod limits;
pub mod metadata;
pub mod metrics;
pub mod node;
pub mod peer;
pub mod server;
pub mod volume;
