//! Sees to it that guests do not wait at a node that is cut off from whoever serves their volume: it can not know who that is, and
//! they may find the volume at another node's door. See `docs/decisions/0017-a-node-that-is-cut-off.md`.

use std::{
    rc::{Rc, Weak},
    time::Duration,
};

use velum_protocol::id::{NodeId, VolumeId};

use super::{Assembly, ownership::Ownership};
use crate::{actor, env::Instant, metadata::State};

/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long a node is without a leader, or does not hear whom it needs, before it takes itself for cut off: longer than it takes to
/// choose another leader or to take a volume over, so that guests wait through those.
const CUT_OFF_AFTER: Duration = Duration::from_secs(3);

/// Looks from now on, for as long as the node lives.
pub(super) fn watch(node: &Rc<Assembly>) {
    let (weak, clock) = (Rc::downgrade(node), Rc::clone(&node.env.clock));
    actor::spawn(async move {
        let mut leaderless = None;
        while look(&weak, &mut leaderless) {
            clock.sleep(INTERVAL).await;
        }
    });
}

/// Tells every switch; false when the node is gone. `leaderless` says since when it knows no leader.
fn look(node: &Weak<Assembly>, leaderless: &mut Option<Instant>) -> bool {
    let Some(node) = node.upgrade() else { return false };
    let (Some(ownership), Some(switches)) = (&node.ownership, &node.switches) else { return false };
    let now = node.env.clock.now();
    ownership.listen(&node);
    let has_leader = node.consensus.status().leader.is_some();
    *leaderless = leaderless.or(Some(now)).filter(|_| !has_leader);
    let is_leaderless = leaderless.is_some_and(|since| now.since(since) >= CUT_OFF_AFTER);
    let cut_off: Vec<(VolumeId, bool)> = node.metadata.with(|state| {
        let volumes = state.volumes.keys();
        volumes.map(|id| (*id, is_leaderless || is_out_of_reach(state, *id, node.node, ownership, now))).collect()
    });
    for (id, is_cut_off) in cut_off {
        if let Some(switch) = switches.get(id) {
            switch.set_cut_off(is_cut_off);
        }
    }
    true
}

/// Whether a volume can not be served through this node: its owner is not heard or, if that is this node, too many who keep its
/// journal are not.
fn is_out_of_reach(state: &State, id: VolumeId, own: NodeId, ownership: &Ownership, now: Instant) -> bool {
    let is_silent = |node: NodeId| ownership.is_silent(now, node, CUT_OFF_AFTER);
    match state.volumes.get(&id).and_then(|volume| volume.owner) {
        Some(owner) if owner != own => is_silent(owner),
        Some(_) => state.ensembles.get(&id).is_some_and(|ensemble| {
            let silent = ensemble.members.iter().filter(|member| is_silent(**member)).count();
            silent * 2 >= ensemble.members.len()
        }),
        None => false,
    }
}
