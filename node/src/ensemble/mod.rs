//! Who keeps a volume's journal besides its owner: the machines of the protocol that `docs/decisions/0015-ensembles.md` decides.
//!
//! A machine knows neither journals nor links; records are to it a position, an epoch and a chain.

pub mod batch;
pub mod confirm;
mod follower;
pub mod member;
pub mod owner;
pub mod takeover;
