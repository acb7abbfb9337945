//! The contents of one cloud: what was stored (pristine), and what the cloud serves, which an adversary may have touched.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::rng::{Rng, mix};

/// How a lying cloud changes an object it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// One bit is flipped.
    Flip,
    /// The end is missing.
    Truncate,
    /// Bytes are appended.
    Extend,
    /// It is withheld.
    Withhold,
    /// Another object is served under its name.
    Swap,
}

/// All lies there are.
pub const LIES: [Lie; 5] = [Lie::Flip, Lie::Truncate, Lie::Extend, Lie::Withhold, Lie::Swap];

/// One cloud's objects.
#[derive(Debug, Default)]
pub struct Bucket {
    pristine: BTreeMap<String, Bytes>,
    /// Objects about which the cloud lies; `None` is withheld.
    lies: BTreeMap<String, Option<Bytes>>,
}

impl Bucket {
    /// What the cloud serves under `name`.
    #[must_use]
    pub fn served(&self, name: &str) -> Option<Bytes> {
        match self.lies.get(name) {
            Some(lie) => lie.clone(),
            None => self.pristine.get(name).cloned(),
        }
    }

    /// Everything that was stored and not deleted, by name.
    #[must_use]
    pub fn pristine(&self) -> &BTreeMap<String, Bytes> {
        &self.pristine
    }

    pub(super) fn put(&mut self, name: &str, body: Bytes) {
        self.lies.remove(name);
        self.pristine.insert(name.to_owned(), body);
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.lies.remove(name);
        self.pristine.remove(name);
    }

    /// Lies from now on about `per_million` of the objects, chosen by their names and `rng`, in the given way.
    pub fn lie(&mut self, rng: &Rng, per_million: u32, lie: Lie) -> u64 {
        let salt = rng.next();
        let is_chosen = |name: &&String| name_hash(name, salt) % 1_000_000 < u64::from(per_million);
        let chosen: Vec<_> = self.pristine.keys().filter(is_chosen).cloned().collect();
        for name in &chosen {
            let other = self.pristine.values().nth(rng.below(self.pristine.len() as u64) as usize).cloned();
            let served = self.pristine.get(name).and_then(|body| told(body, other, lie, rng));
            self.lies.insert(name.clone(), served);
        }
        chosen.len() as u64
    }

    /// Serves what was stored again.
    pub fn repent(&mut self) {
        self.lies.clear();
    }

    /// True while it lies about any object.
    #[must_use]
    pub fn is_lying(&self) -> bool {
        !self.lies.is_empty()
    }
}

fn name_hash(name: &str, salt: u64) -> u64 {
    name.bytes().fold(salt, |hash, byte| mix(hash ^ u64::from(byte)))
}

fn told(body: &Bytes, other: Option<Bytes>, lie: Lie, rng: &Rng) -> Option<Bytes> {
    let mut bytes = body.to_vec();
    match lie {
        Lie::Flip if !bytes.is_empty() => {
            let bit = rng.below(bytes.len() as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        Lie::Truncate => bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize),
        Lie::Flip | Lie::Extend => bytes.extend_from_slice(&rng.next().to_le_bytes()),
        Lie::Withhold => return None,
        Lie::Swap => return other,
    }
    Some(Bytes::from(bytes))
}
