//! What one volume has in the clouds: windows stored and appended, records brought to each cloud, checkpoints, and what is
//! reclaimed, around the shipped metadata and the shipped machine of reclaim.
//!
//! Each window writes the volume's only block, so the newest segment is all that is live. The owner changes at any time; the one
//! before goes on until raft refuses it, and knows of raft only what it last looked at. There are two clouds, of which one is
//! enough: the other one lags as long as it likes. Who keeps the journal is the business of [`super::journal`].

mod acting;
mod world;

use world::World;

use super::explore::{System, Taken};

/// A bug of every owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// 18: a record is brought to a cloud before its segment.
    RecordBeforeSegment,
    /// 19: a window is appended with one copy fewer than enough.
    TooFewClouds,
    /// 25: a cloud that lags is swept.
    SweptLagging,
    /// Segments are deleted before what refers to them.
    SegmentsFirst,
    /// What a checkpoint refers to is condemned with it, because the head does not refer to it any more.
    CondemnedByHead,
}

/// All of them.
pub const BUGS: [Bug; 5] =
    [Bug::RecordBeforeSegment, Bug::TooFewClouds, Bug::SweptLagging, Bug::SegmentsFirst, Bug::CondemnedByHead];

/// Bounds of what may happen.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// What it is called.
    pub name: &'static str,
    /// What must have happened on some way when all of it was explored.
    pub reaches: &'static [&'static str],
    /// How often each thing may happen.
    pub at_most: Left,
}

/// How many clouds there are, and how often each thing may still happen.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Left {
    /// Clouds, two at most.
    pub clouds: u8,
    /// Windows that are flushed.
    pub flushes: u8,
    /// Checkpoints that are begun.
    pub checkpoints: u8,
    /// Changes of the owner.
    pub grants: u8,
}

/// The scopes that are explored, the smaller one first.
pub const SCOPES: [Bounds; 2] = [
    Bounds {
        name: "clouds",
        reaches: &["a cloud jumps", "an object is reclaimed"],
        at_most: Left { clouds: 2, flushes: 2, checkpoints: 2, grants: 0 },
    },
    Bounds {
        name: "owners",
        reaches: &["a stale record is refused", "an object is reclaimed", "an orphan is reclaimed"],
        at_most: Left { clouds: 1, flushes: 2, checkpoints: 2, grants: 1 },
    },
];

/// What is explored.
#[derive(Clone, Copy, Debug)]
pub struct Clouds {
    /// Within these bounds.
    pub bounds: Bounds,
    /// With this bug.
    pub bug: Option<Bug>,
}

/// Something that can happen. Owners are named by their place, clouds by theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Raft comes to what was proposed.
    Agree(usize),
    /// An owner looks at what raft has come to.
    Learn(usize),
    /// The volume is granted to the other node.
    Grant,
    /// A window is cut off under a grant.
    Flush(usize),
    /// Its segment is stored in a cloud.
    Store(usize, usize),
    /// Its record is proposed.
    Append(usize),
    /// A cloud is brought the next that it lacks: of the sequence, or of the newest checkpoint.
    Bring(usize, usize),
    /// A checkpoint is begun.
    Draft(usize),
    /// Its root is stored in a cloud.
    Root(usize, usize),
    /// It is proposed.
    Commit(usize),
    /// The ledger of what is condemned is looked at.
    Survey(usize),
    /// A cloud is rid of the next thing.
    Sweep(usize, usize),
}

/// A state.
#[derive(Clone, Debug)]
pub struct State(World);

impl System for Clouds {
    type State = State;
    type Step = Step;

    fn begin(&self) -> State {
        State(World::new(self.bounds.at_most))
    }

    fn steps(&self, state: &State) -> Vec<Step> {
        state.0.steps(self.bug)
    }

    fn take(&self, state: &State, step: &Step) -> Taken<State> {
        let Taken { state, reached, broken } = state.0.act(*step, self.bug);
        Taken { state: State(state), reached, broken }
    }

    fn print(&self, state: &State) -> u128 {
        state.0.print()
    }

    fn describe(&self, state: &State, step: &Step) -> String {
        state.0.describe(*step)
    }
}
