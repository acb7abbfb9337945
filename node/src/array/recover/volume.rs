//! One volume from the clouds: its newest readable checkpoint and the chain of records behind it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::future::join_all;
use velum_protocol::{
    format::{
        catalogue::CatalogueVolume,
        checkpoint::{ROOT_OBJECT_BYTES_MAX, STUB_BYTES_MAX, Stub},
        claim::{Claim, ClaimedHead},
        metadata::CloudName,
        page::RootPayload,
        sequence::RECORD_BYTES_MAX,
    },
    id::{Epoch, Incarnation, KeyEpoch, Lineage, Seq, VolumeId},
};

use super::{
    History, RecoverError, Standing, VolumeReport, lives,
    source::{Found, Sources},
};
use crate::{
    env::Env,
    keyring::{KeySet, Keyring, ObjectKind, OpenedRecord},
    metadata::state::{Head, RecordEntry, VolumeState},
};

/// Records asked for at once; each from every cloud.
const RECORDS_AT_ONCE: u64 = 16;

/// How far past a missing record is looked for a later one, which would make it a gap.
const PROBES: u64 = 64;

/// What the clouds know of one volume.
pub(super) struct FoundVolume {
    pub(super) keys: KeySet,
    pub(super) checkpoint: Option<(Stub, RootPayload)>,
    pub(super) records: BTreeMap<Seq, (Bytes, OpenedRecord, Incarnation)>,
    head: Head,
}

pub(super) async fn find(
    sources: &Sources,
    keyring: &Keyring,
    history: &History,
    entry: &CatalogueVolume,
    spare: usize,
) -> Result<FoundVolume, RecoverError> {
    let keys = keyring.key_set(entry.volume, &entry.keys)?;
    let search = Search { sources, keyring, history, entry, keys: &keys, spare };
    let (checkpoint, reached) = search.checkpoint().await?;
    let head = checkpoint.as_ref().map_or(Head::START, |(stub, _)| Head {
        seq: stub.checkpoint.seq,
        chain: stub.checkpoint.chain,
        last: stub.last,
        journal_chain: stub.journal_chain,
        epoch: stub.epoch,
    });
    let (head, records) = search.records(head).await?;
    if head.seq < reached {
        // A newer checkpoint than the one that can be read was complete once: so was the sequence up to it.
        return Err(RecoverError::NoRoot(entry.name.clone()));
    }
    Ok(FoundVolume { keys, checkpoint, records, head })
}

struct Search<'a> {
    sources: &'a Sources,
    keyring: &'a Keyring,
    history: &'a History,
    entry: &'a CatalogueVolume,
    keys: &'a KeySet,
    /// How many clouds may have lost something.
    spare: usize,
}

impl Search<'_> {
    /// The newest checkpoint whose root can be read: of the last life that made one, or an older one. With it, how far the
    /// newest one reached whose stub was found.
    async fn checkpoint(&self) -> Result<(Option<(Stub, RootPayload)>, Seq), RecoverError> {
        let mut reached = None;
        for life in (1..=self.history.incarnation.0).rev().map(Incarnation) {
            let before = self.started(life).map_or(0, |head| head.checkpoint);
            let mut end = self.last_checkpoint(life);
            while end > before {
                let open = async |number| self.stub(life, number).await.map(|stub| (number, stub));
                let Some((number, stub)) = lives::last(before, end, open).await else { break };
                let reached = *reached.get_or_insert(stub.checkpoint.seq);
                if let Some(root) = self.root(&stub).await {
                    return Ok((Some((stub, root)), reached));
                }
                end = number - 1;
            }
        }
        if reached.is_some() { Err(RecoverError::NoRoot(self.entry.name.clone())) } else { Ok((None, Seq(0))) }
    }

    async fn stub(&self, life: Incarnation, number: u64) -> Option<Stub> {
        let id = self.keys.id(ObjectKind::Stub, life, number);
        let open = |stored: &Bytes| self.keys.open_stub(life, number, stored);
        let answers = self.sources.ask(self.keyring, id, STUB_BYTES_MAX, open).await;
        answers.into_iter().find_map(|(_, found)| found.authentic())
    }

    async fn root(&self, stub: &Stub) -> Option<RootPayload> {
        let root = &stub.checkpoint.root;
        let id = self.keys.id(ObjectKind::Root, root.incarnation, root.number.0);
        let open = |stored: &Bytes| self.keys.open_root(root, stored);
        let answers = self.sources.ask(self.keyring, id, ROOT_OBJECT_BYTES_MAX, open).await;
        let (_, payload) = answers.into_iter().find_map(|(_, found)| found.authentic())?;
        RootPayload::decode(&payload).ok()
    }

    /// Follows the chain from `head` as far as any cloud can show the next link.
    async fn records(
        &self,
        mut head: Head,
    ) -> Result<(Head, BTreeMap<Seq, (Bytes, OpenedRecord, Incarnation)>), RecoverError> {
        let mut records = BTreeMap::new();
        loop {
            let seqs: Vec<Seq> = (1..=RECORDS_AT_ONCE).map(|step| Seq(head.seq.0 + step)).collect();
            let answers = join_all(seqs.iter().map(|seq| self.ask_record(*seq))).await;
            for (seq, copies) in seqs.into_iter().zip(answers) {
                let Some((stored, record)) = self.next_link(&head, seq, copies)? else {
                    self.expect_end(seq).await?;
                    return Ok((head, records));
                };
                head = Head {
                    seq,
                    chain: record.hash,
                    last: record.link.last,
                    journal_chain: record.body.journal_chain,
                    epoch: record.link.epoch,
                };
                records.insert(seq, (stored, record, self.life_of(seq)));
            }
        }
    }

    async fn ask_record(&self, seq: Seq) -> Vec<(String, Option<(Bytes, OpenedRecord)>)> {
        let life = self.life_of(seq);
        let id = self.keys.id(ObjectKind::Record, life, seq.0);
        let open = |stored: &Bytes| Ok((stored.clone(), self.keys.open_record((life, seq), stored)?));
        let answers = self.sources.ask(self.keyring, id, RECORD_BYTES_MAX, open).await;
        answers.into_iter().map(|(source, found): (_, Found<_>)| (source.name.0.clone(), found.authentic())).collect()
    }

    /// The record that follows `head` among the copies the clouds gave; all authentic ones must be the same.
    fn next_link(
        &self,
        head: &Head,
        seq: Seq,
        copies: Vec<(String, Option<(Bytes, OpenedRecord)>)>,
    ) -> Result<Option<(Bytes, OpenedRecord)>, RecoverError> {
        let mut next: Option<(String, Bytes, OpenedRecord)> = None;
        for (cloud, copy) in copies {
            let Some((stored, record)) = copy else { continue };
            match &next {
                Some((left, _, first)) if first.hash != record.hash => {
                    let (volume, left) = (self.entry.name.clone(), left.clone());
                    return Err(RecoverError::Fork { volume, seq: seq.0, left, right: cloud });
                }
                Some(_) => {}
                None => next = Some((cloud, stored, record)),
            }
        }
        let follows =
            |record: &OpenedRecord| record.link.prev_hash == head.chain && record.link.first == head.last.next();
        match next {
            Some((_, stored, record)) if follows(&record) => Ok(Some((stored, record))),
            Some((cloud, ..)) => {
                let (volume, left) = (self.entry.name.clone(), "the checkpoint's".to_owned());
                Err(RecoverError::Fork { volume, seq: seq.0, left, right: cloud })
            }
            None => Ok(None),
        }
    }

    /// Nobody has record `seq`: then nobody should have a later one either. A cloud that does has lost a record, for it
    /// got them in order; what is d2 is on enough clouds that have not.
    async fn expect_end(&self, seq: Seq) -> Result<(), RecoverError> {
        let later = (1..=PROBES).map(|step| Seq(seq.0 + step));
        let answers = join_all(later.map(|later| async move { (later, self.ask_record(later).await) })).await;
        let holders = answers.iter().flat_map(|(_, copies)| copies.iter().filter(|(_, copy)| copy.is_some()));
        // One that is known to be faulty has its place among those that may be.
        let is_good = |cloud: &&String| self.sources.standing(&CloudName((*cloud).clone())).0 == Standing::Good;
        let holders: BTreeSet<&String> = holders.map(|(cloud, _)| cloud).filter(is_good).collect();
        let first = answers.iter().find(|(_, copies)| copies.iter().any(|(_, copy)| copy.is_some()));
        match first {
            Some((later, _)) if holders.len() > self.spare => {
                Err(RecoverError::Gap { volume: self.entry.name.clone(), seq: seq.0, later: later.0 })
            }
            _ => Ok(()),
        }
    }

    /// Where the volume stood when a life began; `None` when it did not exist.
    fn started(&self, life: Incarnation) -> Option<&ClaimedHead> {
        self.history.claims.get(&life).and_then(|claim| claim.head(self.entry.volume))
    }

    /// The last checkpoint of a life that counts.
    fn last_checkpoint(&self, life: Incarnation) -> u64 {
        let began = |claim: &Claim| claim.head(self.entry.volume).map_or(0, |head| head.checkpoint);
        lives::end_of(&self.history.claims, life, began)
    }

    /// The life that wrote record `seq`: the last one that started before it.
    fn life_of(&self, seq: Seq) -> Incarnation {
        (2..=self.history.incarnation.0)
            .rev()
            .map(Incarnation)
            .find(|life| {
                let existed = self.history.claims.contains_key(life);
                existed && self.started(*life).map_or(0, |head| head.seq.0) < seq.0
            })
            .unwrap_or(Incarnation(1))
    }
}

impl FoundVolume {
    pub(super) fn report(&self, entry: &CatalogueVolume, lost: Vec<String>) -> VolumeReport {
        VolumeReport {
            name: entry.name.clone(),
            size_bytes: entry.size_bytes,
            seq: self.head.seq.0,
            checkpoint: self.checkpoint.as_ref().map_or(0, |(stub, _)| stub.checkpoint.number),
            lost,
        }
    }

    pub(super) fn volume(&self) -> VolumeId {
        self.keys.volume()
    }

    /// The volume's metadata in the next life. What each cloud holds is not believed but looked at again: their cursors
    /// start at nothing. Old nodes may still hold the old keys, so a new key epoch begins; acked writes may be missing, so
    /// the lineage changes. Neither number can have been used in an earlier life, the last changes of which may be unknown
    /// to the clouds that answered. `life` is the next one, and `change` the one of the catalogue that will tell of all this.
    pub(super) fn into_state(
        self,
        env: &Env,
        keyring: &Keyring,
        entry: &CatalogueVolume,
        (life, change): (Incarnation, u64),
    ) -> VolumeState {
        let key_epoch =
            entry.keys.last().map_or(KeyEpoch(0), |keys| keys.key_epoch).next().max(KeyEpoch::first_of(life));
        let fresh = keyring.new_volume_keys(&*env.entropy, self.volume(), key_epoch);
        let mut state = VolumeState::new(entry.name.clone(), entry.size_bytes, fresh, entry.acl.clone(), change);
        state.keys.splice(..0, entry.keys.iter().cloned());
        state.acl_version = entry.acl_version;
        state.epoch = self.highest_epoch(entry);
        state.lineage = Lineage::first_of(life);
        state.head = self.head;
        state.checkpoint = self.checkpoint.map(|(stub, _)| stub.checkpoint);
        let retained = |(stored, record, incarnation): (Bytes, OpenedRecord, Incarnation)| RecordEntry {
            incarnation,
            record: stored,
            hash: record.hash,
            objects: record.body.segments,
            first: record.link.first,
            last: record.link.last,
            epoch: record.link.epoch,
        };
        state.records = self.records.into_iter().map(|(seq, record)| (seq, retained(record))).collect();
        state
    }

    fn highest_epoch(&self, entry: &CatalogueVolume) -> Epoch {
        let records = self.records.values().map(|(_, record, _)| record.link.epoch);
        records.chain([entry.epoch, self.head.epoch]).max().unwrap_or_default()
    }
}
