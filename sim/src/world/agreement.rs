//! The eyes on agreement among several nodes: who leads, what is applied, whose each epoch is.
//!
//! They look at each node that serves, often, and see no more than single moments. Entry by entry the same is judged of groups
//! ([`group`](crate::group)); here it is the shipped state machine's own state that must be the same.

use std::{collections::BTreeMap, rc::Rc};

use velum_node::{consensus::RaftStatus, node::Node};
use velum_protocol::{
    checksum,
    id::{Epoch, NodeId, VolumeId},
};

use super::{World, host::Host};
use crate::checker::{
    liv1::TOGETHER_MS_MAX,
    liv2,
    liv3::{self, Unrest},
    own1::{self, Epochs, Granted},
    own7::{self, Applied, Led},
    own8::{self, Standing},
};

/// How often is looked.
const LOOK_MS: u64 = 20;

/// What was seen.
#[derive(Default)]
pub(super) struct Seen {
    leaders: BTreeMap<u64, u64>,
    /// By index: who was seen there first, and the state it had.
    agreed: BTreeMap<u64, (u64, u64)>,
    epochs: Epochs,
    nodes: BTreeMap<NodeId, Stood>,
}

impl Seen {
    /// What there was of elections and of changes of owner until now.
    pub(super) fn so_far(&self) -> SoFar {
        SoFar { terms: self.leaders.len() as u64, owner_changes: self.epochs.owner_changes() }
    }
}

/// What there was of elections and of changes of owner until some moment.
#[derive(Default)]
pub(super) struct SoFar {
    terms: u64,
    owner_changes: BTreeMap<VolumeId, u64>,
}

/// Where a node was when it was last looked at.
#[derive(Default)]
struct Stood {
    life: u64,
    standing: Standing,
    epochs: BTreeMap<VolumeId, Epoch>,
    /// Where its state was last hashed.
    hashed: u64,
}

impl World {
    /// Looks at every node as long as the world goes on.
    pub(super) async fn watch_agreement(self: Rc<Self>) {
        while self.several.is_tended() && !self.sim.has_failed() {
            for host in self.hosts() {
                if let Some(node) = host.seen() {
                    self.look_at(&host, &node);
                }
            }
            self.sim.sleep_ms(LOOK_MS).await;
        }
    }

    /// Judges each node that serves a guest by itself, at the moment it does.
    pub(super) fn watch_serving(self: &Rc<Self>) {
        for guest in &self.guests {
            let (world, export) = (Rc::downgrade(self), guest.export.clone());
            let served = move |machine: &str| {
                if let Some(world) = world.upgrade() {
                    world.serves(machine, &export);
                }
            };
            guest.served.replace(Some(Rc::new(served)));
        }
    }

    fn serves(&self, machine: &str, export: &str) {
        // Where another node may take over, any door leads to the owner.
        if !self.options.owners_must_return || !self.several.is_tended() {
            return;
        }
        let hosts = self.hosts();
        let Some(host) = hosts.iter().find(|host| *host.machine().name == *machine) else { return };
        let Some(node) = host.seen() else { return };
        let state = node.metadata().state();
        let Some((id, volume)) = state.volume_named(export) else { return };
        let owner = volume.owner.unwrap_or(NodeId(0));
        let granted = Granted { volume: id, epoch: volume.epoch, owner };
        self.judge_own("OWN1", own1::check_serving(host.node(), granted));
    }

    fn look_at(&self, host: &Host, node: &Node) {
        let mut seen = self.several.seen.borrow_mut();
        let Seen { leaders, agreed, epochs, nodes } = &mut *seen;
        let stood = nodes.entry(host.node()).or_default();
        let number = host.node().0;
        let RaftStatus { term, applied, commit, persisted, is_leader, .. } = node.raft();
        let before = stood.standing;
        let now = Standing { term, led: if is_leader { term } else { before.led }, applied, commit, persisted };
        let mut verdict = own8::check(number, now);
        if stood.life != host.lives() {
            *stood = Stood { life: host.lives(), ..Stood::default() };
            verdict = verdict.and_then(|()| own8::check_restart(number, before, now));
        }
        stood.standing = now;
        if let Err(why) = verdict {
            self.sim.fail(format!("OWN8 {why}"));
        }
        if is_leader {
            self.judge_own("OWN7", own7::check_leader(leaders, Led { term, node: number }));
        }
        self.judge_own("LIV2", liv2::check(number, &node.loads()));
        if stood.hashed == applied {
            return;
        }
        stood.hashed = applied;
        let state = node.metadata().state();
        let hash = checksum::hash(&state.save());
        let state_hash = u64::from_le_bytes(*hash.0.first_chunk().expect("a hash has 32 bytes"));
        // What the start found is applied at once, so the same index may be seen again in another life.
        let now = Applied { node: number, index: applied, state: state_hash };
        self.judge_own("OWN7", own7::check_applied(agreed, 0, now));
        for (id, volume) in &state.volumes {
            let Some(owner) = volume.owner else { continue };
            let known = stood.epochs.insert(*id, volume.epoch).unwrap_or_default();
            let granted = Granted { volume: *id, epoch: volume.epoch, owner };
            self.judge_own("OWN1", epochs.check(host.node(), known, granted));
        }
    }

    /// LIV2: all is flushed, so no node counts anything as dirty.
    pub(super) fn check_clean(&self) {
        for host in self.hosts() {
            if let Some(node) = host.seen() {
                self.judge_own("LIV2", liv2::check_rest(host.node().0, node.dirty()));
            }
        }
    }

    /// LIV3: the cluster has come to rest since there was only `before`.
    pub(super) fn check_rest(&self, before: &SoFar) {
        let now = self.several.seen.borrow().so_far();
        let since = |(volume, changes): (&VolumeId, &u64)| {
            changes - before.owner_changes.get(volume).copied().unwrap_or_default()
        };
        let unrest = Unrest {
            terms: now.terms - before.terms,
            owner_changes: now.owner_changes.iter().map(since).max().unwrap_or_default(),
            falls: self.several.falls_at_rest.get(),
        };
        self.judge_own("LIV3", liv3::check(unrest));
    }

    fn judge_own(&self, promise: &str, verdict: Result<(), String>) {
        if let Err(why) = verdict {
            self.sim.fail(format!("{promise} {why}"));
        }
    }

    /// At rest every node comes to hold all that was agreed when the rest began.
    pub(super) async fn agreed_in_the_end(&self) {
        let standing = || -> Vec<_> {
            self.hosts().iter().filter_map(|host| Some((host.node().0, host.seen()?.raft()))).collect()
        };
        let agreed = standing().iter().map(|(_, raft)| raft.commit).max().unwrap_or_default();
        let all_hold =
            || standing().len() == self.hosts().len() && standing().iter().all(|(_, raft)| raft.applied >= agreed);
        if !self.within(TOGETHER_MS_MAX, all_hold).await {
            self.sim.fail(format!("OWN7 not every node holds what is agreed up to entry {agreed}: {:?}", standing()));
        }
        let seen = self.several.seen.borrow();
        self.sim.count("terms with a leader", seen.leaders.len() as u64);
        self.sim.count("states compared", seen.agreed.len() as u64);
    }
}
