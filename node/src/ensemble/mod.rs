//! Who keeps a volume's journal besides its owner: the machines of the protocol that `docs/decisions/0015-ensembles.md` decides.
//!
//! A machine knows neither journals nor links; records are to it a position, an epoch and a chain. What is here so far is the
//! member's side.

pub mod batch;
pub mod confirm;
pub mod member;
pub mod owner;
pub mod takeover;
