//! The record that a compaction would write which does not look at what guests have overwritten since it began.

use std::{cell::RefCell, collections::BTreeMap};

use bytes::Bytes;
use velum_node::keyring::{KeySet, Keyring, ObjectId, ObjectKind, OpenedRecord};
use velum_protocol::{
    checksum,
    format::{location::RunUpdate, sequence::Link},
    id::{Incarnation, Seq, VolumeId},
};

use super::keys;
use crate::ledger::meaning;

/// Puts a run that was overwritten into relocations, with the cluster's keys; the same one in every cloud.
pub(super) struct Staleness {
    secret: [u8; 32],
    /// What each record became, by its name.
    forged: RefCell<BTreeMap<String, Bytes>>,
}

impl Staleness {
    pub(super) fn new(secret: [u8; 32]) -> Self {
        Self { secret, forged: RefCell::default() }
    }

    /// `record` as a node with the bug would have written it, given what its cloud holds.
    pub(super) fn spoil(&self, name: &str, record: Bytes, held: &BTreeMap<String, Bytes>) -> Bytes {
        let known = self.forged.borrow().get(name).cloned();
        let spoilt = known.or_else(|| self.forge(&record, held)).unwrap_or(record);
        self.forged.borrow_mut().insert(name.to_owned(), spoilt.clone());
        spoilt
    }

    fn forge(&self, record: &Bytes, held: &BTreeMap<String, Bytes>) -> Option<Bytes> {
        let ledger = keys::learn(self.secret, held)?;
        let keyring = ledger.keyring()?;
        let id = meaning::identify(keyring, record).ok()?;
        let records = Records { keyring, keys: ledger.keys(id.volume)?, life: id.incarnation, held };
        let opened = records.keys.open_record((id.incarnation, Seq(id.number)), record).ok()?;
        if !opened.link.is_empty() {
            return None;
        }
        let stale = records.overwritten(id.volume, id.number, &opened)?;
        let mut body = opened.body;
        let place = body.updates.partition_point(|update| update.start < stale.start);
        body.updates.insert(place, stale);
        let fresh = checksum::hash(record).0;
        let link: Link = opened.link;
        let key = records.keys.newest()?;
        Some(records.keys.seal_record(&fresh, key, (id.incarnation, Seq(id.number)), &link, &body).stored)
    }
}

/// The records that one cloud holds of one life.
struct Records<'a> {
    keyring: &'a Keyring,
    keys: &'a KeySet,
    life: Incarnation,
    held: &'a BTreeMap<String, Bytes>,
}

impl Records<'_> {
    fn open(&self, volume: VolumeId, number: u64) -> Option<OpenedRecord> {
        let id = ObjectId { kind: ObjectKind::Record, volume, incarnation: self.life, number };
        let stored = self.held.get(&self.keyring.object_name(&id))?;
        self.keys.open_record((self.life, Seq(number)), stored).ok()
    }

    /// A block that a record before `number` overwrote, and where it lay before that.
    fn overwritten(&self, volume: VolumeId, number: u64, relocation: &OpenedRecord) -> Option<RunUpdate> {
        let covers = |record: &OpenedRecord, block: u64| -> Option<RunUpdate> {
            let mut updates = record.body.updates.iter();
            updates.find(|update| update.start.0 <= block && block < update.start.0 + update.count).copied()
        };
        let mut newer: Vec<OpenedRecord> = Vec::new();
        for number in (1..number).rev() {
            let record = self.open(volume, number)?;
            for update in &record.body.updates {
                let (block, Some(frame)) = (update.start, update.frame) else { continue };
                let is_overwritten = newer.iter().any(|newer| covers(newer, block.0).is_some());
                if is_overwritten && covers(relocation, block.0).is_none() {
                    return Some(RunUpdate { start: block, count: 1, frame: Some(frame) });
                }
            }
            newer.push(record);
        }
        None
    }
}
