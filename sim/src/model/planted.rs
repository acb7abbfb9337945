//! Bugs that the models must find, each within one scope. They are bugs of how the machines are used; nothing of them ships.

use super::journal::{Journal, SCOPES};
use crate::ensemble::Bug;

/// States in which a bug must be found.
pub const STATES_MAX: u64 = 1_000_000;

/// The bugs, and the scope in which each is looked for.
pub const PLANTED: [(Bug, &str); 11] = [
    (Bug::AckAtOne, "writes"),
    (Bug::SyncAtOwner, "power"),
    (Bug::UnstoredPromise, "race"),
    (Bug::ReadBeforeFence, "writes"),
    (Bug::LowestEnd, "writes"),
    (Bug::StaleEpoch, "writes"),
    (Bug::NoChainCheck, "any-order"),
    (Bug::CountedAmnesic, "power"),
    (Bug::KeptLineage, "power"),
    (Bug::OwnCopyTwice, "writes"),
    (Bug::StaleAppend, "flush"),
];

/// The model in which a bug is looked for; none for a bug that small scopes do not show.
#[must_use]
pub fn model(bug: Bug) -> Option<Journal> {
    let (_, name) = PLANTED.into_iter().find(|(planted, _)| *planted == bug)?;
    let scope = SCOPES.into_iter().find(|scope| scope.name == name)?;
    Some(Journal { scope, bug: Some(bug) })
}
