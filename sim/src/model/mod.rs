//! Small-scope models: every way in which the shipped machines can come through a few writes, grants and crashes, not some of
//! them under a seed.
//!
//! A system is made of machines that ship, stepped as their shells step them, and of what lies around them in its simplest
//! form: frames on their way, a disk that loses what was not synced, clouds, raft as one log. [`explore`] takes it through all of its
//! states. A [`Scope`] bounds how often each thing may happen, so that there is an end to them.

pub mod clouds;
pub mod explore;
pub mod journal;
pub mod planted;
pub mod print;

use clouds::{Bounds, Clouds};
use explore::{Explored, explore};
use journal::Journal;

/// So many scopes of the journal have fewer states than those of clouds.
const SMALLER_THAN_CLOUDS: usize = 5;

/// A system within its bounds.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// Of a volume's journal.
    Journal(journal::Scope),
    /// Of what it has in the clouds.
    Clouds(Bounds),
}

impl Scope {
    /// All scopes, about the smallest first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut scopes: Vec<Self> = journal::SCOPES.map(Self::Journal).into();
        scopes.splice(SMALLER_THAN_CLOUDS..SMALLER_THAN_CLOUDS, clouds::SCOPES.map(Self::Clouds));
        scopes
    }

    /// The scope of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|scope| scope.name() == name)
    }

    /// What it is called.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Journal(scope) => scope.name,
            Self::Clouds(bounds) => bounds.name,
        }
    }

    /// What must have happened on some way when all of it was explored: otherwise it shows less than it says.
    #[must_use]
    pub const fn reaches(&self) -> &'static [&'static str] {
        match self {
            Self::Journal(scope) => scope.reaches,
            Self::Clouds(bounds) => bounds.reaches,
        }
    }

    /// Explores it, as [`explore`] does, with or without a bug.
    pub fn explore(&self, planted: Option<planted::Bug>, states_max: u64, over: impl Fn() -> bool) -> Explored {
        match *self {
            Self::Journal(scope) => {
                let bug = planted.and_then(planted::Bug::of_journal);
                explore(&Journal { scope, bug }, states_max, over)
            }
            Self::Clouds(bounds) => {
                let bug = planted.and_then(planted::Bug::of_clouds);
                explore(&Clouds { bounds, bug }, states_max, over)
            }
        }
    }
}
