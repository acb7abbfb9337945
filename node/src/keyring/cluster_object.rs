//! The objects of the cluster, sealed and opened under the cluster-state key: catalogue records and incarnation claims.

use bytes::Bytes;
use velum_protocol::{
    checksum,
    format::{
        bind,
        catalogue::{CATALOGUE_BYTES_MAX, Catalogue},
        claim::{CLAIM_BYTES_MAX, Claim},
        object::{self, NO_DETAIL, PRELUDE_BYTES},
    },
    id::{Hash, Incarnation, KeyEpoch, VolumeId},
};

use super::{
    Keyring, ObjectFault, ObjectId, ObjectKind,
    object::{open_metadata, prelude, seal_metadata},
};

impl Keyring {
    /// Names a catalogue record.
    #[must_use]
    pub const fn catalogue_id(incarnation: Incarnation, number: u64) -> ObjectId {
        ObjectId { kind: ObjectKind::Catalogue, volume: VolumeId::ZERO, incarnation, number }
    }

    /// Names an incarnation's claim.
    #[must_use]
    pub const fn claim_id(incarnation: Incarnation) -> ObjectId {
        ObjectId { kind: ObjectKind::Claim, volume: VolumeId::ZERO, incarnation, number: 0 }
    }

    /// Seals a catalogue record; gives the stored bytes and the chain hash at it.
    #[must_use]
    pub fn seal_catalogue(&self, fresh: &[u8; 32], catalogue: &Catalogue) -> (Bytes, Hash) {
        let id = Self::catalogue_id(catalogue.incarnation, catalogue.number);
        let detail = object::hash_detail(catalogue.prev_hash);
        let prelude = prelude(self.cluster(), self.state(), fresh, &id, KeyEpoch(0), detail);
        let binding = self.catalogue_binding(&id, catalogue.prev_hash);
        let stored = seal_metadata(&prelude, self.state(), fresh, &binding, &catalogue.encode());
        let (_, ciphertext) = stored.split_at(PRELUDE_BYTES);
        let hash = checksum::chain(&prelude, ciphertext);
        (stored.into(), hash)
    }

    /// Opens a catalogue record; gives it and the chain hash at it.
    ///
    /// # Errors
    /// When it is damaged or another record.
    pub fn open_catalogue(
        &self,
        incarnation: Incarnation,
        number: u64,
        stored: &[u8],
    ) -> Result<(Catalogue, Hash), ObjectFault> {
        let id = Self::catalogue_id(incarnation, number);
        let (header, parts) = self.open_header(&id, stored, CATALOGUE_BYTES_MAX)?;
        let prev_hash = object::hash_from_detail(&header.detail)?;
        let payload = open_metadata(self.state(), &self.catalogue_binding(&id, prev_hash), parts.body)?;
        let catalogue = Catalogue::decode(&payload)?;
        let said = (catalogue.cluster, catalogue.incarnation, catalogue.number, catalogue.prev_hash);
        if said != (self.cluster(), incarnation, number, prev_hash) {
            return Err(ObjectFault::Unfit("payload"));
        }
        Ok((catalogue, checksum::chain(parts.prelude, parts.body)))
    }

    /// Seals a claim.
    #[must_use]
    pub fn seal_claim(&self, fresh: &[u8; 32], claim: &Claim) -> Bytes {
        let id = Self::claim_id(claim.incarnation);
        let prelude = prelude(self.cluster(), self.state(), fresh, &id, KeyEpoch(0), NO_DETAIL);
        seal_metadata(&prelude, self.state(), fresh, &self.claim_binding(claim.incarnation), &claim.encode()).into()
    }

    /// Opens a claim.
    ///
    /// # Errors
    /// When it is damaged or another claim.
    pub fn open_claim(&self, incarnation: Incarnation, stored: &[u8]) -> Result<Claim, ObjectFault> {
        let (_, parts) = self.open_header(&Self::claim_id(incarnation), stored, CLAIM_BYTES_MAX)?;
        let payload = open_metadata(self.state(), &self.claim_binding(incarnation), parts.body)?;
        let claim = Claim::decode(&payload)?;
        let fits = (claim.cluster, claim.incarnation) == (self.cluster(), incarnation);
        if fits { Ok(claim) } else { Err(ObjectFault::Unfit("payload")) }
    }

    fn catalogue_binding(&self, id: &ObjectId, prev_hash: Hash) -> [u8; 68] {
        bind::Catalogue { cluster: self.cluster(), incarnation: id.incarnation, number: id.number, prev_hash }.aad()
    }

    fn claim_binding(&self, incarnation: Incarnation) -> [u8; 28] {
        bind::Claim { cluster: self.cluster(), incarnation }.aad()
    }
}
