//! The journal of one volume on three nodes: owners, members and takeovers around the shipped metadata.
//!
//! Left out is what does not bear on safety: time passes only where a scope lets somebody wait, a crash and the start after it
//! are one step, and a frame that is never delivered is one that was lost. All nodes have one clock.

mod acting;
mod leases;
mod members;
mod owners;
mod scope;
mod show;
mod world;

pub use scope::{Before, Left, Order, SCOPES, Scope};
use world::World;

use super::explore::{System, Taken};
use crate::ensemble::Bug;

/// Something that can happen. Nodes are named by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A message comes to whom it is for.
    Deliver(usize),
    /// The same, and it will come again.
    Repeat(usize),
    /// The link breaks on which it is, with all that is there, and the sender hears of it.
    Break(usize),
    /// A member's sync ends.
    Synced(usize),
    /// A member's oldest promise that was being stored is durable.
    Stored(usize),
    /// A node comes to what raft has for it.
    Hear(usize),
    /// The owner makes a record of a guest's write.
    Write(usize),
    /// A guest of the owner wants a barrier.
    Barrier(usize),
    /// The owner makes a record of the sequence, of what is at d0.
    Flush(usize),
    /// The cloud has all that is in the sequence.
    Advance,
    /// Raft grants the volume to the next one of the scope.
    Grant,
    /// Time passes at an owner until it says something.
    Tick(usize),
    /// Time passes at a node that takes over until it does not wait for whole copies any more.
    Wait(usize),
    /// A guest of the owner reads: by a lease, or it is asked whether the node is the owner still.
    Read(usize),
    /// Half the time for which leases are granted passes everywhere.
    Pass,
    /// A process ends, and so many of the promises that were being stored are durable; another one starts.
    Kill {
        /// Where.
        node: usize,
        /// So many.
        stored: usize,
    },
    /// The same of a machine. What was not synced is there afterwards, or it is not.
    LosePower {
        /// Where.
        node: usize,
        /// So many promises.
        stored: usize,
        /// What was not synced is there.
        keeps: bool,
    },
    /// The same of a process, and of its journal the writes from `from` to before `to` are gone, synced ones among them.
    Damage {
        /// Where.
        node: usize,
        /// So many promises.
        stored: usize,
        /// The first that is gone.
        from: usize,
        /// The first behind them.
        to: usize,
    },
}

/// A scope of this model, with or without a bug.
#[derive(Clone, Copy, Debug)]
pub struct Journal {
    /// Its bounds.
    pub scope: Scope,
    /// A bug of every node.
    pub bug: Option<Bug>,
}

/// A state; what it is made of is the model's own business.
#[derive(Clone, Debug)]
pub struct State(World);

impl System for Journal {
    type State = State;
    type Step = Step;

    fn begin(&self) -> State {
        State(self.opened())
    }

    fn steps(&self, state: &State) -> Vec<Step> {
        self.scope.steps(&state.0)
    }

    fn take(&self, state: &State, step: &Step) -> Taken<State> {
        let Taken { state, reached, broken } = self.act(&state.0, *step);
        Taken { state: State(state), reached, broken }
    }

    fn print(&self, state: &State) -> u128 {
        state.0.print()
    }

    fn describe(&self, state: &State, step: &Step) -> String {
        show::step(&state.0, *step)
    }
}
