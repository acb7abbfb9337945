//! The lives of a cluster and its newest catalogue record.

use std::collections::BTreeMap;

use velum_protocol::{
    format::{
        catalogue::{CATALOGUE_BYTES_MAX, Catalogue},
        claim::{CLAIM_BYTES_MAX, Claim},
    },
    id::{Hash, Incarnation},
};

use super::{History, RecoverError, source::Sources};
use crate::keyring::Keyring;

/// How far past the last number found is looked, one by one; further on in doubling steps.
const PROBES: u64 = 64;

/// The doubling steps end here: no chain grows longer.
const STEP_MAX: u64 = 1 << 32;

pub(super) async fn find(sources: &Sources, keyring: &Keyring) -> Result<History, RecoverError> {
    let claims = claims(sources, keyring).await;
    let newest = claims.keys().next_back().copied().unwrap_or(Incarnation(1));
    // A life that ended before its first catalogue record started from the record that its claim names.
    for life in (1..=newest.0).rev().map(Incarnation) {
        let before = claims.get(&life).map_or(0, |claim| claim.catalogue.0);
        let end = end_of(&claims, life, |claim| claim.catalogue.0);
        let open = |number| async move { catalogue(sources, keyring, life, number).await };
        if let Some((catalogue, hash)) = last(before, end, open).await {
            return Ok(History { incarnation: newest, claims, catalogue, hash });
        }
    }
    Err(RecoverError::NoCatalogue)
}

/// The last number of a life that counts, given what each claim says where its own life began: whatever any later life did not
/// take over is void for good. A life in between may have taken it over and ended, without a copy of it in enough clouds for
/// the next one to find; with it would come back what later lives wrote something else in place of.
pub(super) fn end_of(claims: &BTreeMap<Incarnation, Claim>, life: Incarnation, began: impl Fn(&Claim) -> u64) -> u64 {
    claims.range(life.next()..).map(|(_, claim)| began(claim)).min().unwrap_or(u64::MAX)
}

async fn claims(sources: &Sources, keyring: &Keyring) -> BTreeMap<Incarnation, Claim> {
    let mut claims = BTreeMap::new();
    let mut life = Incarnation(2);
    loop {
        let id = Keyring::claim_id(life);
        let answers = sources.ask(keyring, id, CLAIM_BYTES_MAX, |stored| keyring.open_claim(life, stored)).await;
        let Some(claim) = answers.into_iter().find_map(|(_, found)| found.authentic()) else { return claims };
        claims.insert(life, claim);
        life = life.next();
    }
}

async fn catalogue(sources: &Sources, keyring: &Keyring, life: Incarnation, number: u64) -> Option<(Catalogue, Hash)> {
    let id = Keyring::catalogue_id(life, number);
    let open = |stored: &bytes::Bytes| keyring.open_catalogue(life, number, stored);
    sources.ask(keyring, id, CATALOGUE_BYTES_MAX, open).await.into_iter().find_map(|(_, found)| found.authentic())
}

/// The thing with the highest number in `before + 1 ..= end` that `open` gives, looking in doubling steps first. Numbers
/// have no gaps while all clouds are at hand; a gap that a lost cloud leaves is passed when it is shorter than [`PROBES`]
/// or a doubling step lands behind it.
pub(super) async fn last<T>(before: u64, end: u64, open: impl AsyncFn(u64) -> Option<T>) -> Option<T> {
    let mut best = None;
    let mut high = before;
    loop {
        let near = (1..=PROBES).map(|step| high.saturating_add(step));
        let far =
            std::iter::successors(Some(2 * PROBES), |step| step.checked_mul(2)).take_while(|step| *step <= STEP_MAX);
        let numbers = near.chain(far.map(|step| high.saturating_add(step))).filter(|number| *number <= end);
        let found = futures_util::future::join_all(numbers.map(|number| {
            let open = &open;
            async move { open(number).await.map(|value| (number, value)) }
        }));
        match found.await.into_iter().flatten().max_by_key(|(number, _)| *number) {
            Some((number, value)) if number > high => {
                high = number;
                best = Some(value);
            }
            _ => return best,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn find_last(before: u64, end: u64, there: impl Fn(u64) -> bool) -> Option<u64> {
        last(before, end, async |number| there(number).then_some(number)).await
    }

    #[test]
    fn the_last_number_is_found_whatever_its_size() {
        futures_util::FutureExt::now_or_never(async {
            for length in [0, 1, 2, 63, 64, 65, 1000, 100_000, 12_345_678] {
                let expected = (length > 0).then_some(length);
                assert_eq!(find_last(0, u64::MAX, |number| number <= length).await, expected, "{length}");
            }
        })
        .expect("nothing here waits");
    }

    #[test]
    fn what_any_later_life_did_not_take_over_is_void() {
        let claim = |life, number| {
            let (cluster, claim) = (velum_protocol::id::ClusterId([0; 16]), [0; 16]);
            let incarnation = Incarnation(life);
            (incarnation, Claim { cluster, incarnation, claim, catalogue: (number, Hash([0; 32])), heads: Vec::new() })
        };
        // The second life saw number 3 in one cloud, the third one did not, the fourth one made up for it.
        let claims = BTreeMap::from([claim(2, 3), claim(3, 2), claim(4, 5)]);
        let ends = [1, 2, 3, 4].map(|life| end_of(&claims, Incarnation(life), |claim| claim.catalogue.0));
        assert_eq!(ends, [2, 2, 5, u64::MAX]);
    }

    #[test]
    fn a_short_gap_is_passed_and_the_bounds_are_kept() {
        futures_util::FutureExt::now_or_never(async {
            assert_eq!(find_last(0, u64::MAX, |number| number <= 10 || (40..=50).contains(&number)).await, Some(50));
            assert_eq!(find_last(7, 9, |number| number <= 100).await, Some(9));
            assert_eq!(find_last(7, 7, |number| number <= 100).await, None);
        })
        .expect("nothing here waits");
    }
}
