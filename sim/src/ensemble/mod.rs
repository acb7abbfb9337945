//! Ensembles under one seed: the shipped machines of members, owners and takeovers, stepped directly, around the shipped metadata.
//!
//! Nodes have disks that lose what was not synced, links that delay, lose and are cut one way, boots that a loss of power
//! ends, and clocks of their own. Guests write, and read by lease or by question. A keeper grants the volume to others whenever it likes; deposed owners go on until they are told. Each frame passes its
//! wire form. In the end all heals, and an owner must open and bring a barrier to d1.

pub(crate) mod bugs;
pub(crate) mod clock;
pub(crate) mod ghost;
pub(crate) mod machine;
pub(crate) mod world;

use std::collections::BTreeMap;

pub use bugs::{ALL, Bug};

use crate::{
    runtime::Run,
    trace::{Printer, Trace},
};

/// Worlds in which a planted bug is looked for, at most.
pub const SEEDS_MAX: u64 = 2_000;

/// A world to be made.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// Decides everything else.
    pub seed: u64,
    /// Nodes of the cluster, and of the ensemble unless the keeper chooses fewer.
    pub members: u64,
    /// How long trouble goes on.
    pub trouble_ms: u64,
    /// A bug of every node.
    pub bug: Option<Bug>,
    /// Journals are damaged, and nothing else is lost. Otherwise the seed decides whether they are, besides everything else.
    pub is_damaged: bool,
}

impl Recipe {
    /// The world of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            members: if seed.is_multiple_of(4) { 5 } else { 3 },
            trouble_ms: 20_000,
            bug: None,
            is_damaged: false,
        }
    }

    /// The world of a seed in which a bug is looked for.
    #[must_use]
    pub fn planted(seed: u64, bug: Bug) -> Self {
        let is_damaged = matches!(bug, Bug::CutAtDamage | Bug::DamagedAsAmnesic | Bug::FillTakenBack);
        Self { bug: Some(bug), is_damaged, ..Self::of(seed) }
    }

    /// Runs it.
    #[must_use]
    pub fn run(self, printer: Option<Printer>) -> Run<()> {
        let mut world = world::World::new(self, Trace::printing(printer));
        world.live();
        world.into_run()
    }
}

/// What happened how often.
#[derive(Debug, Default)]
struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}
