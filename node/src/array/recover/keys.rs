//! Which cluster it is, and its keys: identity and key slots from every cloud.
//!
//! The two kinds of object are looked at apart from each other: a good identity from one cloud and good slots from another
//! open the keys together. So damage to either costs a cloud nothing but a line in the report.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::join_all;
use velum_protocol::{
    id::ClusterId,
    version::{self, LEAD_BYTES},
};

use super::{
    RecoverError,
    source::{Fixed, Found, Source, Sources},
};
use crate::{
    cloud::identity::Identity,
    env::CloudStoreError,
    keyring::{self, IDENTITY_NAME, Keyring, ProviderSecret, slots_name},
};

/// Generations of the key slots looked for past the last one found. A new generation is stored before the old one is
/// deleted, so a gap in one cloud is a write it missed.
const GENERATIONS_AHEAD: u64 = 8;

/// Identity and key slots in reports.
const IDENTITY: &str = "identity";
const SLOTS: &str = "slots";

/// What one cloud has under the fixed names.
struct Answers<'a> {
    source: &'a Source,
    identity: Result<Bytes, CloudStoreError>,
    slots: BTreeMap<u64, Bytes>,
}

/// The keys of the newest generation that the secret opens. Says of each cloud what its own copies are worth.
pub(super) async fn find(sources: &Sources, secret: &ProviderSecret) -> Result<(Keyring, Identity), RecoverError> {
    let answers = join_all(sources.used().map(|source| ask(sources, source))).await;
    let mut reasons = Vec::new();
    let mut found: Vec<(&str, Keyring, Identity)> = Vec::new();
    for object in distinct_identities(&answers, &mut reasons) {
        let opened = newest(&answers, object.1, secret, &mut reasons);
        found.extend(opened.map(|(keyring, identity)| (object.0, keyring, identity)));
    }
    only_cluster(&found)?;
    let newest = found.into_iter().max_by_key(|(_, keyring, _)| keyring.generation());
    let Some((_, keyring, identity)) = newest else { return Err(RecoverError::NoCluster(reasons.join("; "))) };
    for answer in &answers {
        judge(answer, keyring.cluster(), &identity);
    }
    Ok((keyring, identity))
}

async fn ask<'a>(sources: &Sources, source: &'a Source) -> Answers<'a> {
    let identity = sources.fixed(source, IDENTITY_NAME).await;
    let (mut slots, mut last, mut generation) = (BTreeMap::new(), 0, 1);
    while generation <= last + GENERATIONS_AHEAD {
        if let Ok(object) = sources.fixed(source, &slots_name(generation)).await {
            last = generation;
            slots.insert(generation, object);
        }
        generation += 1;
    }
    Answers { source, identity, slots }
}

/// The identity objects, each once, with the first cloud that has it.
fn distinct_identities<'a>(answers: &'a [Answers<'_>], reasons: &mut Vec<String>) -> Vec<(&'a str, &'a Bytes)> {
    let mut distinct: Vec<(&str, &Bytes)> = Vec::new();
    for Answers { source, identity, .. } in answers {
        match identity {
            Ok(object) if distinct.iter().any(|(_, other)| *other == object) => {}
            Ok(object) => distinct.push((&source.name.0, object)),
            Err(CloudStoreError::NotFound) => reasons.push(format!("cloud {}: no identity object", source.name.0)),
            Err(error) => reasons.push(format!("cloud {}: {error}", source.name.0)),
        }
    }
    distinct
}

/// Opens the newest slots, of any cloud, that go with an identity. Slots of another cluster are refused before any key is
/// derived, and each object is tried once, for a derivation may take a second.
fn newest(
    answers: &[Answers<'_>],
    object: &Bytes,
    secret: &ProviderSecret,
    reasons: &mut Vec<String>,
) -> Option<(Keyring, Identity)> {
    let mut candidates: Vec<(u64, &Bytes)> = Vec::new();
    for (generation, slots) in answers.iter().flat_map(|answer| &answer.slots) {
        if !candidates.contains(&(*generation, slots)) {
            candidates.push((*generation, slots));
        }
    }
    candidates.sort_by_key(|(generation, _)| std::cmp::Reverse(*generation));
    if candidates.is_empty() {
        reasons.push("no cloud has key slots".to_owned());
    }
    for (generation, slots) in candidates {
        match keyring::open_cluster(object, slots, secret) {
            // Older slots under a newer name are a cloud's attempt to bring back a secret that was taken away.
            Ok(keyring) if keyring.generation() == generation => {
                return Some((keyring, Identity { object: object.clone(), slots: slots.clone(), generation }));
            }
            Ok(_) => reasons.push(format!("key slots {generation} are those of another generation")),
            Err(error) => reasons.push(format!("key slots {generation}: {error}")),
        }
    }
    None
}

/// One secret may open several clusters; which one is meant cannot be guessed.
fn only_cluster(found: &[(&str, Keyring, Identity)]) -> Result<(), RecoverError> {
    let Some((left, first, _)) = found.first() else { return Ok(()) };
    match found.iter().find(|(_, other, _)| other.cluster() != first.cluster()) {
        Some((right, ..)) => Err(RecoverError::TwoClusters((*left).to_owned(), (*right).to_owned())),
        None => Ok(()),
    }
}

/// Counts what a cloud has under the fixed names. A cloud without a good identity may still be the cluster's: what else it
/// holds will tell.
fn judge(answer: &Answers<'_>, cluster: ClusterId, good: &Identity) {
    let Answers { source, identity, slots } = answer;
    let identity_found = match identity {
        Ok(object) if *object == good.object => Found::Authentic(()),
        Ok(_) | Err(CloudStoreError::Refused(_)) => Found::Corrupt,
        Err(CloudStoreError::NotFound) => Found::Missing,
        Err(_) => Found::Silent,
    };
    let name = slots_name(good.generation);
    let slots_found = match slots.get(&good.generation) {
        Some(object) if *object == good.slots => Found::Authentic(()),
        Some(_) => Found::Corrupt,
        None if source.failed().is_none() => Found::Missing,
        None => Found::Silent,
    };
    let is_good = |found: &Found<()>| matches!(found, Found::Authentic(()));
    let is_foreign = identity.iter().chain(slots.values()).any(|object| names_another(object, cluster));
    source.set_fixed(match () {
        () if is_foreign => Fixed::Foreign,
        () if is_good(&identity_found) && is_good(&slots_found) => Fixed::Good,
        () => Fixed::Wanting,
    });
    let why = if is_foreign { "it is another cluster's" } else { "it is damaged" };
    source.count(IDENTITY, IDENTITY_NAME, &identity_found, why);
    source.count(SLOTS, &name, &slots_found, "they are not the newest ones, or damaged");
}

/// True for an identity or slots object that begins as they do and names a cluster that is not this one with some bytes
/// changed: of 16 random bytes, another cluster's share hardly one with these. What cannot be read at all names nobody.
fn names_another(object: &Bytes, cluster: ClusterId) -> bool {
    let begins = [version::IDENTITY, version::SLOTS].iter().any(|format| object.starts_with(&format.magic));
    let Some(named) = object.get(LEAD_BYTES..LEAD_BYTES + cluster.0.len()) else { return false };
    let same = named.iter().zip(&cluster.0).filter(|(named, own)| named == own).count();
    begins && same < cluster.0.len() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_identity_names_nobody_else() {
        let cluster = ClusterId(std::array::from_fn(|place| u8::try_from(place * 11 + 3).unwrap()));
        let own = [&version::IDENTITY.lead()[..], &cluster.0, &[9; 32]].concat();
        for damage in 0..own.len() {
            let mut hurt = own.clone();
            hurt[damage] ^= 0x40;
            assert!(!names_another(&hurt.into(), cluster), "byte {damage}");
            assert!(!names_another(&Bytes::copy_from_slice(&own[..damage]), cluster), "cut at {damage}");
        }
        assert!(!names_another(&Bytes::from(vec![7; 56]), cluster), "what is no identity names nobody");
    }

    #[test]
    fn another_clusters_identity_and_slots_are_known_whatever_their_version() {
        let cluster = ClusterId([1; 16]);
        for lead in [version::IDENTITY.lead(), version::SLOTS.lead(), *b"VLid\x07\0\0\0"] {
            let object = [&lead[..], &[2; 16], &[9; 32]].concat();
            assert!(names_another(&object.into(), cluster));
        }
    }
}
