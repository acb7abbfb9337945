//! Sealing journal records and opening them again.

use std::rc::Rc;

use bytes::Bytes;
use velum_protocol::{
    format::record::{self, HEADER_BYTES, RecordHeader},
    id::{ClusterId, Epoch, Hash, KeyEpoch, Lineage, VolumeId},
};

use super::machine::Record;
use crate::{
    env::Entropy,
    keyring::{KeySet, OpenError, VolumeKeys},
};

/// In whose name records are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The volume's lineage.
    pub lineage: Lineage,
}

/// Seals the records of one owner, in order, and keeps their chain.
pub struct Sealer {
    cluster: ClusterId,
    volume: VolumeId,
    owner: Owner,
    keys: VolumeKeys,
    entropy: Rc<dyn Entropy>,
    chain: Hash,
    /// Of the record sealed last; kept for its memory.
    sealed: Vec<u8>,
}

impl Sealer {
    /// A sealer whose next record follows `chain`. `None` when the volume has no keys.
    #[must_use]
    pub fn new(keys: &KeySet, owner: Owner, entropy: Rc<dyn Entropy>, chain: Hash) -> Option<Self> {
        let (cluster, volume) = (keys.cluster(), keys.volume());
        Some(Self { cluster, volume, owner, keys: keys.newest()?.clone(), entropy, chain, sealed: Vec::new() })
    }

    /// In whose name it seals.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// The chain at the record sealed last.
    #[must_use]
    pub const fn chain(&self) -> Hash {
        self.chain
    }

    /// Seals the next record; gives the bytes for the journal.
    pub fn seal(&mut self, record: &Record) -> &[u8] {
        let header = RecordHeader {
            kind: record.kind,
            key_epoch: self.keys.key_epoch,
            jseq: record.jseq,
            epoch: self.owner.epoch,
            lineage: self.owner.lineage,
            start: record.start,
            count: record.count,
            durable: record.durable,
            prev: self.chain,
        };
        let lead = header.encode();
        let aad = header.binding(self.cluster, self.volume).aad();
        self.sealed.clear();
        self.sealed.extend_from_slice(&lead);
        self.keys.journal.seal_into(&self.entropy.fresh32(), &aad, &record.contents, &mut self.sealed);
        self.chain = record::chain(&lead, self.sealed.get(HEADER_BYTES..).unwrap_or_default());
        &self.sealed
    }
}

/// Why a record does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordOpenError {
    /// It names a key generation that the volume does not have.
    #[error("it is sealed under key epoch {0}, which this volume does not have")]
    NoKey(KeyEpoch),
    /// It does not open.
    #[error(transparent)]
    Seal(#[from] OpenError),
}

/// Opens a record's body under the key that its header names.
///
/// # Errors
/// When the key is missing, or header or body are not what was sealed.
pub fn open(keys: &KeySet, header: &RecordHeader, body: &[u8]) -> Result<Bytes, RecordOpenError> {
    let key = keys.epoch(header.key_epoch).ok_or(RecordOpenError::NoKey(header.key_epoch))?;
    let aad = header.binding(keys.cluster(), keys.volume()).aad();
    Ok(Bytes::from(key.journal.open(&aad, body)?))
}
