//! The cluster's keys, as whoever holds its root key learns them from what one cloud holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use velum_node::keyring::{IDENTITY_NAME, ObjectKind};

use crate::ledger::{Ledger, meaning};

/// A ledger that knows the cluster's keys and, from the catalogue, those of its volumes, and nothing else.
pub(super) fn learn(secret: [u8; 32], held: &BTreeMap<String, Bytes>) -> Option<Ledger> {
    let mut ledger = Ledger::new(secret, &[String::new()]);
    let is_fixed = |name: &str| name == IDENTITY_NAME || name.starts_with("velum/slots/");
    for (name, body) in held.iter().filter(|(name, _)| is_fixed(name)) {
        ledger.stored("", name, body).ok()?;
    }
    let keyring = ledger.keyring()?.clone();
    for (name, body) in held.iter().filter(|(name, _)| !is_fixed(name)) {
        if meaning::identify(&keyring, body).is_ok_and(|id| id.kind == ObjectKind::Catalogue) {
            ledger.stored("", name, body).ok()?;
        }
    }
    Some(ledger)
}
