//! SEQ6: what a recovery brings back beside the data is what the volume was: it is listed under its name, and its size is
//! the one it was made with. That every object opens with the cluster's keys and lies under its own name, the ledger asks
//! of each object at the instant it is stored; GC3 with it: no name ever stands for other bytes.

use super::Verdict;

/// Judges what an operator is shown of a volume that guests know to have `sectors` sectors.
///
/// # Errors
/// When it has another size.
pub fn check_shown(sectors: u64, shown_bytes: u64) -> Verdict {
    if shown_bytes == sectors * 512 {
        Ok(())
    } else {
        Err(format!("it has {} bytes and is shown with {shown_bytes}", sectors * 512))
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use bytes::Bytes;
    use velum_node::keyring::{IDENTITY_NAME, Keyring, NewCluster, ProviderSecret, create_cluster, slots_name};
    use velum_protocol::{
        format::claim::Claim,
        id::{Hash, Incarnation},
    };

    use super::*;
    use crate::{env::entropy::NodeEntropy, ledger::Ledger, rng::Rng};

    /// A ledger that has seen a cluster being made, the cluster's keys, and a claim with its name.
    fn cluster() -> (Ledger, Keyring, String, Bytes) {
        let entropy = NodeEntropy::new(Rc::new(Rng::new(1, "keys")));
        let secret: [u8; 32] = std::array::from_fn(|at| (at as u8).wrapping_mul(37));
        let provider = ProviderSecret::from_keyfile(0o600, secret.to_vec()).unwrap();
        let NewCluster { keyring, identity_object, slots_object } = create_cluster(&entropy, &provider).unwrap();
        let mut ledger = Ledger::new(secret, &["a".to_owned(), "b".to_owned()]);
        ledger.stored("a", IDENTITY_NAME, &identity_object).unwrap();
        ledger.stored("a", &slots_name(1), &slots_object).unwrap();
        let (name, claim) = claim(&keyring, 7);
        (ledger, keyring, name, claim)
    }

    fn claim(keyring: &Keyring, random: u8) -> (String, Bytes) {
        let claim = Claim {
            cluster: keyring.cluster(),
            incarnation: Incarnation(2),
            claim: [random; 16],
            catalogue: (1, Hash::ZERO),
            heads: Vec::new(),
        };
        (keyring.object_name(&Keyring::claim_id(Incarnation(2))), keyring.seal_claim(&[random; 32], &claim))
    }

    #[test]
    fn another_size_than_the_volume_was_made_with_is_rejected() {
        assert_eq!(check_shown(8, 4096), Ok(()));
        assert!(check_shown(8, 8192).is_err());
    }

    #[test]
    fn an_object_that_opens_under_its_own_name_is_kept() {
        let (mut ledger, _, name, claim) = cluster();
        assert!(ledger.stored("a", &name, &claim).unwrap().is_some_and(|entry| entry.is_new));
        assert!(ledger.stored("b", &name, &claim).unwrap().is_some_and(|entry| !entry.is_new));
    }

    #[test]
    fn an_object_that_does_not_open_is_rejected() {
        let (mut ledger, _, name, claim) = cluster();
        let mut damaged = claim.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(ledger.stored("a", &name, &damaged.into()).is_err());
    }

    #[test]
    fn an_object_under_another_ones_name_is_rejected() {
        let (mut ledger, keyring, _, claim) = cluster();
        let other = keyring.object_name(&Keyring::claim_id(Incarnation(3)));
        assert!(ledger.stored("a", &other, &claim).unwrap_err().contains("another object's name"));
    }

    #[test]
    fn other_bytes_under_a_name_are_rejected_in_any_cloud_and_after_a_deletion() {
        let (mut ledger, keyring, name, first) = cluster();
        let (_, second) = claim(&keyring, 8);
        ledger.stored("a", &name, &first).unwrap();
        assert!(ledger.stored("b", &name, &second).unwrap_err().contains("GC3"));
        ledger.deleted("a", &name);
        assert!(ledger.stored("a", &name, &second).unwrap_err().contains("GC3"));
    }
}
