//! Bugs that the models must find, each within one scope. They are bugs of how the machines are used; nothing of them ships.

use super::{Scope, clouds};
use crate::ensemble;

/// States in which a bug must be found.
pub const STATES_MAX: u64 = 1_000_000;

/// A bug of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Of the journal.
    Journal(ensemble::Bug),
    /// Of clouds.
    Clouds(clouds::Bug),
}

/// The bugs of the journal that small scopes show, and the scope in which each is looked for.
const OF_JOURNAL: [(ensemble::Bug, &str); 17] = [
    (ensemble::Bug::AckAtOne, "writes"),
    (ensemble::Bug::SyncAtOwner, "absent"),
    (ensemble::Bug::UnstoredPromise, "race"),
    (ensemble::Bug::ReadBeforeFence, "writes"),
    (ensemble::Bug::LowestEnd, "writes"),
    (ensemble::Bug::StaleEpoch, "writes"),
    (ensemble::Bug::NoChainCheck, "any-order"),
    (ensemble::Bug::CountedAmnesic, "absent"),
    (ensemble::Bug::KeptLineage, "absent"),
    (ensemble::Bug::OwnCopyTwice, "writes"),
    (ensemble::Bug::LeaseFromReply, "lease"),
    (ensemble::Bug::NoLeaseWait, "lease"),
    (ensemble::Bug::ReadAfterLease, "lease"),
    (ensemble::Bug::StaleAppend, "flush"),
    (ensemble::Bug::CutAtDamage, "damage"),
    (ensemble::Bug::DamagedAsAmnesic, "damage"),
    (ensemble::Bug::FillTakenBack, "damage"),
];

/// All bugs, and the scope in which each is looked for.
#[must_use]
pub fn all() -> Vec<(Bug, &'static str)> {
    let journal = OF_JOURNAL.into_iter().map(|(bug, scope)| (Bug::Journal(bug), scope));
    journal.chain(clouds::BUGS.map(|bug| (Bug::Clouds(bug), "clouds"))).collect()
}

impl Bug {
    /// The bug of a name, if small scopes show it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        all().into_iter().map(|(bug, _)| bug).find(|bug| bug.name() == name)
    }

    /// What it is called.
    #[must_use]
    pub fn name(self) -> String {
        let value = match self {
            Self::Journal(bug) => clap::ValueEnum::to_possible_value(&bug),
            Self::Clouds(bug) => clap::ValueEnum::to_possible_value(&bug),
        };
        value.map_or(String::new(), |value| value.get_name().to_owned())
    }

    /// Where it is looked for.
    #[must_use]
    pub fn scope(self) -> Option<Scope> {
        let (_, name) = all().into_iter().find(|(bug, _)| *bug == self)?;
        Scope::named(name)
    }

    pub(super) const fn of_journal(self) -> Option<ensemble::Bug> {
        if let Self::Journal(bug) = self { Some(bug) } else { None }
    }

    pub(super) const fn of_clouds(self) -> Option<clouds::Bug> {
        if let Self::Clouds(bug) = self { Some(bug) } else { None }
    }
}
