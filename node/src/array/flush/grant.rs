//! Gate 3: may this node flush this volume now?
//!
//! A decision point of its own, after the cache has given out a window and before any of it is sealed or sent. What this
//! node knows is judged first, once the clouds' catalogue shows the volume; then Raft gives a grant bound to (volume, epoch,
//! key epoch), and judges it once more when the window's record is appended. Every decision is audited.

use std::rc::Rc;

use velum_protocol::{
    format::metadata::Command,
    id::{Epoch, KeyEpoch},
};

use super::machine::Granted;
use crate::{
    array::{context::VolumeContext, life::Life},
    audit::Action,
    metadata::{Answer, Rejection, state::VolumeState},
    metrics::Gate,
};

/// Asks gate 3 for one window.
pub(crate) async fn ask(context: &VolumeContext) -> Granted {
    context.described().await;
    let life = context.array.known.life();
    let decided = match context.state(|state| judge(state, context.epoch, life)).unwrap_or(Err(Granted::Fenced)) {
        Ok(key_epoch) => agree(context, key_epoch).await,
        Err(refused) => refused,
    };
    let who: Rc<str> = format!("node {}", context.array.node).into();
    let audit = &context.array.audit;
    if matches!(decided, Granted::Allowed(_)) {
        audit.allowed(Gate::Flush, &who, Action::Flush, context.volume, None);
    } else {
        audit.refused(Gate::Flush, &who, Action::Flush, Some(context.volume), None);
    }
    decided
}

/// What this node can tell by itself: the key epoch to ask for, or why not.
fn judge(state: &VolumeState, epoch: Epoch, life: Life) -> Result<KeyEpoch, Granted> {
    match life {
        Life::Over => return Err(Granted::Fenced),
        _ if state.deleted || state.epoch != epoch => return Err(Granted::Fenced),
        // Until enough clouds have said that no later life began, none may be wrong about it.
        Life::Unknown => return Err(Granted::Refused),
        Life::Newest => {}
    }
    state.keys.last().map(|keys| keys.key_epoch).ok_or(Granted::Refused)
}

async fn agree(context: &VolumeContext, key_epoch: KeyEpoch) -> Granted {
    let command = Command::GrantFlush { volume: context.volume, epoch: context.epoch, key_epoch };
    match context.array.agree(command).await {
        Ok(Answer::Grant(grant)) => Granted::Allowed(grant),
        Err(Rejection::StaleEpoch(_) | Rejection::NoSuchVolume) => Granted::Fenced,
        Ok(_) | Err(_) => Granted::Refused,
    }
}
