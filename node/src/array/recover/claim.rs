//! The claim of the next incarnation: what lets at most one recovery go on, and stops the nodes of the old life.

use std::collections::BTreeMap;

use velum_protocol::{
    format::claim::{Claim, ClaimedHead},
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
    if held.iter().any(|other| *other != stored) {
        return Err(RecoverError::Claimed(incarnation));
    }
    let quorum = usize::try_from(history.catalogue.quorum).unwrap_or(usize::MAX);
    if held.len() < quorum {
        return Err(RecoverError::ClaimNotStored { stored: held.len(), quorum });
    }
    Ok(())
}
