//! Who keeps a volume's journal besides its owner: the machines of the protocol that `docs/decisions/0015-ensembles.md` decides.
//!
//! A machine knows neither journals nor links; records are to it a position, an epoch and a chain.

pub mod batch;
pub mod confirm;
mod follower;
pub mod lease;
pub mod member;
pub mod owner;
pub mod takeover;

/// A machine in an actor, and how it is stepped: some have no use for the time.
macro_rules! in_actor {
    ($machine:ty, $module:ident, $step:expr) => {
        impl crate::actor::Machine for $machine {
            type Input = $module::Input;
            type Effect = $module::Effect;

            fn step(&mut self, now: crate::env::Instant, input: Self::Input, effects: &mut Vec<Self::Effect>) {
                $step(self, now, input, effects);
            }
        }
    };
}

in_actor!(owner::Owner, owner, |own: &mut Self, _, input, effects| own.step(input, effects));
in_actor!(takeover::Takeover, takeover, |own: &mut Self, _, input, effects| own.step(input, effects));
in_actor!(member::Member, member, Self::step);
in_actor!(confirm::Confirming, confirm, Self::step);
