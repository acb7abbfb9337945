//! Who keeps a volume's journal besides its owner: the machines of the protocol that `docs/decisions/0015-ensembles.md` decides.
//!
//! A machine knows neither journals nor links; records are to it a position, an epoch and a chain.

pub mod batch;
pub mod confirm;
mod follower;
pub mod member;
pub mod owner;
pub mod takeover;

/// A machine that has no use for the time in an actor.
macro_rules! in_actor {
    ($machine:ty, $module:ident) => {
        impl crate::actor::Machine for $machine {
            type Input = $module::Input;
            type Effect = $module::Effect;

            fn step(&mut self, _now: crate::env::Instant, input: Self::Input, effects: &mut Vec<Self::Effect>) {
                self.step(input, effects);
            }
        }
    };
}

in_actor!(owner::Owner, owner);
in_actor!(takeover::Takeover, takeover);
in_actor!(member::Member, member);
in_actor!(confirm::Confirming, confirm);
