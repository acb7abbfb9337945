//! Who keeps a volume's journal besides its owner: the machines of the protocol that `docs/decisions/0015-ensembles.md` decides.
//!
//! A machine knows neither journals nor links; records are to it a position, an epoch and a chain. What is here so far is the
//! member's side.

mod batch;
mod member;

pub use batch::{BatchFault, Held};
pub use member::{Effect, Found, Input, Member};
