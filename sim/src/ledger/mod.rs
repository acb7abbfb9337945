//! The harness's own book of the clouds: every object ever stored, opened and understood at the instant it takes effect.
//!
//! The checkers of the sequence and of secrecy look here. The ledger holds the root key, as the operator does, and opens
//! objects with it; it never asks the node what it meant.

#[cfg(test)]
pub(crate) mod example;
pub mod holding;
pub mod image;
pub mod meaning;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use bytes::Bytes;
use velum_node::keyring::{IDENTITY_NAME, KeySet, Keyring, ObjectId, ProviderSecret, open_cluster, slots_name};
use velum_protocol::{
    checksum,
    id::{Hash, Incarnation, VolumeId},
};

pub use holding::Holding;
pub use meaning::{Meaning, Record};

/// An object the ledger has seen.
#[derive(Clone, Debug)]
pub struct Known {
    /// Which object it is.
    pub id: ObjectId,
    /// What it says.
    pub meaning: Rc<Meaning>,
}

/// Everything that clouds were ever given.
#[derive(Default)]
pub struct Ledger {
    secret: [u8; 32],
    keyring: Option<Keyring>,
    keys: BTreeMap<VolumeId, ((Incarnation, u64), KeySet)>,
    volume_names: BTreeMap<String, VolumeId>,
    /// The life that wrote the first object of each volume.
    first_lives: BTreeMap<VolumeId, Incarnation>,
    /// Objects by the hash of their bytes.
    known: BTreeMap<Hash, Known>,
    /// The first bytes seen of each object.
    first: BTreeMap<ObjectId, Hash>,
    /// The bytes each name was first given.
    names: BTreeMap<String, Hash>,
    /// Clouds by name.
    pub holdings: BTreeMap<String, Holding>,
    fixed: BTreeMap<String, Bytes>,
}

/// What became of a stored object in the ledger.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The object, opened.
    pub known: Known,
    /// The hash of its bytes.
    pub hash: Hash,
    /// True the first time that any cloud got these bytes.
    pub is_new: bool,
}

impl Ledger {
    /// A ledger that opens objects with the root key `secret` and follows `clouds`.
    #[must_use]
    pub fn new(secret: [u8; 32], clouds: &[String]) -> Self {
        let holdings = clouds.iter().map(|cloud| (cloud.clone(), Holding::default())).collect();
        Self { secret, holdings, ..Self::default() }
    }

    /// The cluster's keys, once its identity was stored.
    #[must_use]
    pub fn keyring(&self) -> Option<&Keyring> {
        self.keyring.as_ref()
    }

    /// The keys of a volume, once a catalogue names it.
    #[must_use]
    pub fn keys(&self, volume: VolumeId) -> Option<&KeySet> {
        self.keys.get(&volume).map(|(_, keys)| keys)
    }

    /// The volume that a catalogue calls `name`.
    #[must_use]
    pub fn volume_named(&self, name: &str) -> Option<VolumeId> {
        self.volume_names.get(name).copied()
    }

    /// The volumes that a catalogue names.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> + '_ {
        self.volume_names.values().copied()
    }

    /// An object by the hash of its bytes.
    #[must_use]
    pub fn known(&self, hash: &Hash) -> Option<&Known> {
        self.known.get(hash)
    }

    /// An object that any cloud was ever given.
    #[must_use]
    pub fn ever(&self, id: &ObjectId) -> Option<&Known> {
        self.known.get(self.first.get(id)?)
    }

    /// An object that `cloud` holds.
    #[must_use]
    pub fn held(&self, cloud: &str, id: &ObjectId) -> Option<&Known> {
        self.known.get(self.holdings.get(cloud)?.hash(id)?)
    }

    /// Takes in an object that `cloud` has stored. `None` for the objects with fixed names.
    ///
    /// # Errors
    /// When the object does not open, lies under another's name, or its name once stood for other bytes.
    pub fn stored(&mut self, cloud: &str, name: &str, body: &Bytes) -> Result<Option<Entry>, String> {
        let hash = checksum::hash(body);
        self.note_name(name, hash)?;
        if name == IDENTITY_NAME || name.starts_with("velum/slots/") {
            self.fixed.insert(name.to_owned(), body.clone());
            self.open_keyring();
            return Ok(None);
        }
        let is_new = !self.known.contains_key(&hash);
        if is_new {
            let known = self.understand(name, body).map_err(|why| format!("object {name} in cloud {cloud}: {why}"))?;
            self.first.entry(known.id).or_insert(hash);
            let life = self.first_lives.entry(known.id.volume).or_insert(known.id.incarnation);
            *life = known.id.incarnation.min(*life);
            self.known.insert(hash, known);
        }
        let known = self.known.get(&hash).expect("it was put there above").clone();
        let holding = self.holdings.get_mut(cloud).expect("every cloud of the world has a holding");
        holding.put(known.id, hash, known.meaning.names(known.id.volume));
        Ok(Some(Entry { known, hash, is_new }))
    }

    /// The object that lies under a name in some cloud, or once did.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<ObjectId> {
        Some(self.known.get(self.names.get(name)?)?.id)
    }

    /// Takes in a deletion.
    pub fn deleted(&mut self, cloud: &str, name: &str) {
        if let (Some(id), Some(holding)) = (self.named(name), self.holdings.get_mut(cloud)) {
            holding.delete(&id);
        }
    }

    /// GC3: a name never stands for other bytes.
    fn note_name(&mut self, name: &str, hash: Hash) -> Result<(), String> {
        let first = self.names.entry(name.to_owned()).or_insert(hash);
        if *first == hash { Ok(()) } else { Err(format!("the name {name} stood for other bytes before (GC3)")) }
    }

    fn open_keyring(&mut self) {
        let (Some(identity), Some(slots)) = (self.fixed.get(IDENTITY_NAME), self.fixed.get(&slots_name(1))) else {
            return;
        };
        let secret = ProviderSecret::from_keyfile(0o600, self.secret.to_vec()).expect("the world's root key is random");
        if self.keyring.is_none() {
            self.keyring = open_cluster(identity, slots, &secret).ok();
        }
    }

    fn understand(&mut self, name: &str, body: &Bytes) -> Result<Known, String> {
        let keyring = self.keyring.clone().ok_or("it was stored before the cluster's identity")?;
        let id = meaning::identify(&keyring, body)?;
        if keyring.object_name(&id) != name {
            return Err(format!("it is {id:?} and lies under another object's name"));
        }
        let meaning = meaning::open(&keyring, self.keys(id.volume), &id, body)?;
        if let Meaning::Catalogue(catalogue) = &meaning {
            for volume in &catalogue.volumes {
                self.volume_names.insert(volume.name.clone(), volume.volume);
                // Numbers go on from life to life, but not from records that a recovery did not see.
                let place = (catalogue.incarnation, catalogue.number);
                if self.keys.get(&volume.volume).is_none_or(|(known, _)| *known < place) {
                    let keys = keyring.key_set(volume.volume, &volume.keys).map_err(|error| error.to_string())?;
                    self.keys.insert(volume.volume, (place, keys));
                }
            }
        }
        Ok(Known { id, meaning: Rc::new(meaning) })
    }

    /// Everything that a stub, root or page in `cloud` needs, itself included; an error names what the cloud lacks.
    ///
    /// # Errors
    /// The first object that is missing, or whose bytes are not those its parent vouches for.
    pub fn closure(&self, cloud: &str, from: ObjectId) -> Result<BTreeSet<ObjectId>, String> {
        let holding = &self.holdings[cloud];
        if !holding.holds(&from, None) {
            return Err(format!("cloud {cloud} lacks {from:?}"));
        }
        let mut reached = BTreeSet::new();
        let mut left = vec![from];
        while let Some(id) = left.pop() {
            if !reached.insert(id) {
                continue;
            }
            for (child, hash) in holding.names(&id) {
                if !holding.holds(child, hash.as_ref()) {
                    return Err(format!("cloud {cloud} holds {id:?} and lacks {child:?}, which that names"));
                }
                left.push(*child);
            }
        }
        Ok(reached)
    }

    /// As [`closure`](Self::closure), without a walk for what is whole.
    ///
    /// # Errors
    /// As there.
    pub fn check_whole(&self, cloud: &str, id: ObjectId) -> Result<(), String> {
        if self.holdings[cloud].is_whole(&id) { Ok(()) } else { self.closure(cloud, id).map(drop) }
    }
}
