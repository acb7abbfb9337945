//! The claim of the next incarnation: what lets at most one recovery go on, and stops the nodes of the old life.

use std::collections::BTreeMap;

use bytes::Bytes;
use velum_protocol::{
    format::{
        claim::{Claim, ClaimedHead},
        metadata::CloudName,
    },
    id::VolumeId,
};

use super::{History, RecoverError, source::Sources};
use crate::{env::Env, keyring::Keyring, metadata::state::VolumeState};

pub(super) async fn claim(
    env: &Env,
    sources: &Sources,
    keyring: &Keyring,
    history: &History,
    volumes: &BTreeMap<VolumeId, VolumeState>,
) -> Result<(), RecoverError> {
    let incarnation = history.incarnation.next();
    let head = |(volume, state): (&VolumeId, &VolumeState)| ClaimedHead {
        volume: *volume,
        seq: state.head.seq,
        chain: state.head.chain,
        checkpoint: state.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.number),
        epoch: state.epoch,
    };
    let claim = Claim {
        cluster: keyring.cluster(),
        incarnation,
        claim: env.entropy.fresh16(),
        catalogue: (history.catalogue.number, history.hash),
        heads: volumes.iter().map(head).collect(),
    };
    let stored = keyring.seal_claim(&env.entropy.fresh32(), &claim);
    let name = keyring.object_name(&Keyring::claim_id(incarnation));
    let held = sources.create_everywhere(&name, &stored).await;
    // What is no claim at all is damage, not a rival.
    let is_rival = |other: &Bytes| *other != stored && keyring.open_claim(incarnation, other).is_ok();
    if held.iter().any(|(_, other)| is_rival(other)) {
        return Err(RecoverError::Claimed(incarnation));
    }
    // Nodes of the old life and other recoveries look into the catalogue's clouds only.
    let is_listed = |name: &CloudName| history.catalogue.clouds.iter().any(|cloud| cloud.name == *name);
    let told = held.iter().filter(|(source, other)| *other == stored && is_listed(&source.name)).count();
    let quorum = usize::try_from(history.catalogue.quorum).unwrap_or(usize::MAX);
    if told < quorum {
        return Err(RecoverError::ClaimNotStored { stored: told, quorum });
    }
    Ok(())
}
