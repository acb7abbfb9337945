//! Which volumes are whose: what this node does about its own, and what the keeper does about those of nodes that are silent.
//!
//! Raft's word is the metadata: an owner, an epoch, an ensemble. A node that sees itself named opens the volume behind a fence;
//! one that sees another named lets go of it. A node that was restarted has itself granted a new epoch, for it can not know
//! what the others took meanwhile. The keeper gives a volume whose owner was silent for too long to another member. Nothing
//! here rests on two nodes not doing so at once: whoever is granted last goes on.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::{Rc, Weak},
    time::Duration,
};

use futures_util::future::{Either, select};
use velum_protocol::{
    admin::Durability,
    format::metadata::Command,
    id::{Epoch, NodeId, VolumeId},
    peer::Frame,
};

use super::{
    Assembly,
    changes::Follower,
    copies::Copies,
    desk::Hearing,
    opening::{Found, OpenError, RETRY},
};
use crate::{
    actor,
    env::Instant,
    metadata::{MetadataError, State},
    peer::Links,
};

/// How often the metadata is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// A node that was not heard for so long is silent: two beats of a link. Links break at once when a process ends.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// A node that is silent for this long is taken for gone. One that was merely not looked at, because this node itself took no step,
/// is heard again before.
const SUSPICION: Duration = Duration::from_secs(1);

/// The same for a node that was not seen since this one has started: all of them may have been started together.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long an ensemble may lack members that there are nodes for before its owner has others take part.
const REPAIR_AFTER: Duration = Duration::from_secs(3);

/// A member that is silent for this long is replaced, when there is a node to take its place.
const REPLACE_AFTER: Duration = Duration::from_secs(60);

/// How long a planned change waits for what is under way.
pub(super) const IDLE_WAIT: Duration = Duration::from_secs(5);

/// How often that time is doubled for an ensemble that lacks members: what waits for room that clouds are to make takes its time.
const DOUBLINGS_MAX: u32 = 4;

/// Nodes that keep a volume's journal, when there are so many.
const COPIES: usize = 3;

/// What this node is at, and whom it hears.
pub(super) struct Ownership {
    copies: Copies,
    links: Links,
    engaged: RefCell<BTreeMap<VolumeId, Engaged>>,
    /// Who owned each volume at the last look.
    owners: RefCell<BTreeMap<VolumeId, NodeId>>,
    /// Since when each silent node is.
    silent: RefCell<BTreeMap<NodeId, Instant>>,
    /// Nodes that there was a link to since the start.
    seen: RefCell<BTreeSet<NodeId>>,
    /// Ensembles of this node's volumes that are not as they should be.
    unfit: Rc<RefCell<BTreeMap<VolumeId, Unfit>>>,
    /// Since when the keeper sees volumes of nobody.
    orphans: RefCell<BTreeMap<VolumeId, Instant>>,
}

/// An epoch of a volume that this node opens, serves or is done with.
#[derive(Clone)]
struct Engaged {
    epoch: Epoch,
    over: Rc<Cell<bool>>,
}

/// An ensemble that lacks members.
struct Unfit {
    /// Since it does, or since the last try to help.
    since: Instant,
    tries: u32,
    is_tried: bool,
}

/// The epochs of volumes whose journal a node has kept alone.
pub(super) fn kept_alone(state: &State, node: NodeId) -> BTreeMap<VolumeId, Epoch> {
    let own = state.volumes.iter().filter(|(id, volume)| {
        volume.owner == Some(node) && volume.epoch > Epoch(0) && !state.ensembles.contains_key(id)
    });
    own.map(|(id, volume)| (*id, volume.epoch)).collect()
}

impl Hearing for Ownership {
    fn told(&self, by: NodeId, frame: Frame) {
        self.copies.hear(by, frame);
    }

    fn lost(&self, to: NodeId) {
        self.copies.lost(to);
    }
}

/// Keeps this node at its volumes, for as long as it lives.
pub(super) fn watch(node: &Rc<Assembly>, mut changes: Follower) {
    let (weak, clock) = (Rc::downgrade(node), Rc::clone(&node.env.clock));
    actor::spawn(async move {
        // What was found on the disk may know nothing of a volume whose journal is here, and such a journal would be dropped.
        while !hears_all_agreed(&weak).await {
            clock.sleep(INTERVAL).await;
        }
        while look(&weak).await {
            // The metadata tells what is to be done at once, links and clocks only by and by.
            select(Box::pin(changes.changed()), clock.sleep(INTERVAL)).await;
        }
    });
}

/// Whether this node holds all that the cluster had agreed on when it was asked. True as well when there is nothing more to do.
async fn hears_all_agreed(node: &Weak<Assembly>) -> bool {
    let Some(consensus) = node.upgrade().map(|node| node.consensus.clone()) else { return true };
    consensus.read().await.is_ok()
}

async fn look(node: &Weak<Assembly>) -> bool {
    let Some(node) = node.upgrade() else { return false };
    let Some(ownership) = node.ownership.as_ref().filter(|_| !node.stopping.get()).map(Rc::clone) else { return false };
    ownership.look(&node).await;
    true
}

/// A volume of the metadata's that is this node's.
struct Own {
    id: VolumeId,
    epoch: Epoch,
    is_granted: bool,
}

impl Ownership {
    pub(super) fn new(copies: Copies, links: Links) -> Self {
        Self {
            copies,
            links,
            engaged: RefCell::default(),
            owners: RefCell::default(),
            silent: RefCell::default(),
            seen: RefCell::default(),
            unfit: Rc::default(),
            orphans: RefCell::default(),
        }
    }

    async fn look(&self, node: &Rc<Assembly>) {
        self.listen(node);
        let (own, live) = node.metadata.with(|state| (own(state, node.node), live(state)));
        self.let_go(node, &own);
        self.copies.retain(&live).await;
        for volume in &own {
            self.engage(node, volume);
        }
        *self.owners.borrow_mut() = node
            .metadata
            .with(|state| state.volumes.iter().filter_map(|(id, volume)| Some((*id, volume.owner?))).collect());
        self.repair(node);
        if node.array.is_keeper() {
            self.keep(node).await;
        } else {
            self.orphans.borrow_mut().clear();
        }
    }

    /// Notes who is silent.
    pub(super) fn listen(&self, node: &Assembly) {
        let now = node.env.clock.now();
        let up = self.links.heard(HEARD_WITHIN);
        let others = node.metadata.with(|state| {
            state.nodes.iter().filter(|(_, entry)| !entry.retired).map(|(node, _)| *node).collect::<BTreeSet<_>>()
        });
        let mut silent = self.silent.borrow_mut();
        silent.retain(|other, _| others.contains(other) && !up.contains(other));
        for other in others.into_iter().filter(|other| *other != node.node && !up.contains(other)) {
            silent.entry(other).or_insert(now);
        }
        self.seen.borrow_mut().extend(up);
    }

    /// Whether another node was silent for so long.
    pub(super) fn is_silent(&self, now: Instant, other: NodeId, at_least: Duration) -> bool {
        self.silent.borrow().get(&other).is_some_and(|since| now.since(*since) >= at_least)
    }

    /// True when there is a link to a node of the cluster.
    pub(super) fn hears(&self, other: NodeId) -> bool {
        self.seen.borrow().contains(&other) && !self.silent.borrow().contains_key(&other)
    }

    /// Whether another node is to be taken for gone.
    fn is_suspect(&self, now: Instant, other: NodeId) -> bool {
        self.is_silent(now, other, if self.seen.borrow().contains(&other) { SUSPICION } else { PATIENCE })
    }

    /// Lets go of what is not this node's any more, or not in that epoch.
    fn let_go(&self, node: &Assembly, own: &[Own]) {
        let is_own = |id: &VolumeId, engaged: &Engaged| {
            own.iter().any(|volume| volume.id == *id && volume.epoch == engaged.epoch) && !engaged.over.get()
        };
        let over: Vec<VolumeId> = {
            let engaged = self.engaged.borrow();
            engaged.iter().filter(|(id, engaged)| !is_own(id, engaged)).map(|(id, _)| *id).collect()
        };
        for id in over {
            self.engaged.borrow_mut().remove(&id);
            node.let_go(id);
        }
    }

    fn engage(&self, node: &Rc<Assembly>, volume: &Own) {
        let engaged = Engaged { epoch: volume.epoch, over: Rc::default() };
        if self.engaged.borrow().contains_key(&volume.id) {
            return;
        }
        self.engaged.borrow_mut().insert(volume.id, engaged.clone());
        let (node, copies, id, epoch) = (Rc::clone(node), self.copies.clone(), volume.id, volume.epoch);
        let members = self.members(&node, node.node, id);
        let is_granted = volume.is_granted;
        if is_granted && self.owners.borrow().get(&id).is_some_and(|owner| *owner != node.node) {
            node.metrics.ensemble.takeovers.inc();
        }
        actor::spawn(async move {
            let ended = if is_granted {
                node.open_persistently(&copies, id, epoch).await
            } else {
                node.claim(id, epoch, members).await
            };
            engaged.over.set(ended);
        });
    }

    /// Has other nodes keep the journal too, where an ensemble of this node's lacks members that there are nodes for.
    fn repair(&self, node: &Rc<Assembly>) {
        let now = node.env.clock.now();
        let mut lacking = BTreeSet::new();
        for (id, open) in node.open.all() {
            let found = node.metadata.with(|state| {
                let ensemble = state.ensembles.get(&id)?;
                let epoch = state.volumes.get(&id).filter(|volume| volume.owner == Some(node.node))?.epoch;
                (ensemble.opened == epoch).then(|| (epoch, ensemble.members.clone()))
            });
            let Some((epoch, present)) = found.filter(|_| open.owning.is_some()) else { continue };
            let wanted = self.members(node, node.node, id);
            if wanted == present {
                continue;
            }
            lacking.insert(id);
            let mut unfit = self.unfit.borrow_mut();
            let unfit = unfit.entry(id).or_insert(Unfit { since: now, tries: 0, is_tried: false });
            if unfit.is_tried || now.since(unfit.since) < REPAIR_AFTER {
                continue;
            }
            unfit.is_tried = true;
            tracing::info!(volume = %id, ?present, ?wanted, "the journal is to be kept by other nodes");
            self.have_kept_by(node, (id, epoch), wanted, IDLE_WAIT * 2u32.pow(unfit.tries.min(DOUBLINGS_MAX)));
        }
        self.unfit.borrow_mut().retain(|id, unfit| unfit.is_tried || lacking.contains(id));
    }

    /// Nothing else that is to be looked at waits for it.
    fn have_kept_by(
        &self,
        node: &Rc<Assembly>,
        (id, epoch): (VolumeId, Epoch),
        members: Vec<NodeId>,
        idle_wait: Duration,
    ) {
        let (node, unfit) = (Rc::clone(node), Rc::clone(&self.unfit));
        actor::spawn(async move {
            let is_granted = node.hand_over((id, epoch), node.node, members, idle_wait).await;
            let mut unfit = unfit.borrow_mut();
            match unfit.get_mut(&id) {
                Some(unfit) if !is_granted => {
                    *unfit = Unfit { since: node.env.clock.now(), tries: unfit.tries + 1, is_tried: false };
                }
                _ => drop(unfit.remove(&id)),
            }
        });
    }

    /// Gives volumes of nobody, and of nodes that are silent, to nodes that are there.
    async fn keep(&self, node: &Rc<Assembly>) {
        let now = node.env.clock.now();
        let wards = node.metadata.with(|state| {
            let live = state.volumes.iter().filter(|(_, volume)| !volume.deleted);
            let wards = live.filter(|(id, volume)| volume.owner.is_none() || state.ensembles.contains_key(id));
            wards.map(|(id, volume)| (*id, volume.epoch, volume.owner)).collect::<Vec<_>>()
        });
        let mut orphans = BTreeMap::new();
        for (id, epoch, owner) in wards {
            let heir = match owner {
                Some(owner) if !self.is_suspect(now, owner) && node.metadata.with(|state| state.stays(owner)) => {
                    continue;
                }
                Some(_) => self.heir(node, id, true),
                // Its maker opens it, unless that was its end.
                None => {
                    let since = *self.orphans.borrow().get(&id).unwrap_or(&now);
                    orphans.insert(id, since);
                    (now.since(since) >= PATIENCE).then_some(node.node)
                }
            };
            if let Some(heir) = heir {
                tracing::warn!(volume = %id, ?owner, %heir, "the volume's owner is silent; another node takes over");
                grant(node, id, epoch, heir, self.members(node, heir, id)).await;
            }
        }
        *self.orphans.borrow_mut() = orphans;
    }

    /// Who is to own a volume next: a member that is there, and has the fewest volumes; this node only with `or_self`.
    fn heir(&self, node: &Assembly, id: VolumeId, or_self: bool) -> Option<NodeId> {
        node.metadata.with(|state| {
            let members = &state.ensembles.get(&id)?.opened_members;
            let burden = |node: NodeId| {
                state.volumes.values().filter(|volume| !volume.deleted && volume.owner == Some(node)).count()
            };
            let is_there = |other: &NodeId| {
                (if *other == node.node { or_self } else { !self.silent.borrow().contains_key(other) })
                    && state.nodes.get(other).is_some_and(|entry| !entry.retired)
                    && !state.leaving.contains(other)
            };
            members.iter().copied().filter(is_there).min_by_key(|other| (burden(*other), *other))
        })
    }

    /// The nodes that are to keep a volume's journal with `owner`: those that do, then others that are there.
    pub(super) fn members(&self, node: &Assembly, owner: NodeId, id: VolumeId) -> Vec<NodeId> {
        let (voters, now) = (node.consensus.members().voters, node.env.clock.now());
        let silent = self.silent.borrow();
        node.metadata.with(|state| {
            let present = state.ensembles.get(&id).map(|ensemble| ensemble.members.clone()).unwrap_or_default();
            let fits = |other: &NodeId| {
                *other != owner
                    && state.nodes.get(other).is_some_and(|entry| !entry.retired)
                    && !state.leaving.contains(other)
            };
            let mut others: Vec<NodeId> = voters.into_iter().map(NodeId).filter(fits).collect();
            let rank = |other: &NodeId| {
                let is_gone = silent.get(other).is_some_and(|since| now.since(*since) >= REPLACE_AFTER);
                (is_gone, !present.contains(other), silent.contains_key(other), *other)
            };
            others.sort_by_key(rank);
            others.truncate(COPIES - 1);
            others.push(owner);
            others.sort_unstable();
            others
        })
    }
}

/// The volumes that are this node's.
fn own(state: &State, node: NodeId) -> Vec<Own> {
    let own = state.volumes.iter().filter(|(_, volume)| !volume.deleted && volume.owner == Some(node));
    let is_granted = |id: &VolumeId, epoch| state.ensembles.get(id).is_some_and(|ensemble| ensemble.opened < epoch);
    own.map(|(id, volume)| Own { id: *id, epoch: volume.epoch, is_granted: is_granted(id, volume.epoch) }).collect()
}

fn live(state: &State) -> BTreeSet<VolumeId> {
    state.volumes.iter().filter(|(_, volume)| !volume.deleted).map(|(id, _)| *id).collect()
}

/// What raft does not grant now is seen at the next look.
async fn grant(node: &Assembly, id: VolumeId, after: Epoch, to: NodeId, members: Vec<NodeId>) -> bool {
    let command = Command::GrantEnsemble { volume: id, node: to, after, members };
    match node.metadata.propose(command).await {
        Ok(_) => true,
        Err(error @ MetadataError::Rejected(_)) => {
            tracing::info!(volume = %id, %to, %error, "the volume was not granted");
            false
        }
        Err(error @ MetadataError::Unknown(_)) => {
            tracing::debug!(volume = %id, %to, %error, "it is not known whether the volume was granted");
            false
        }
    }
}

impl Assembly {
    /// What is promised of a volume here.
    pub(super) fn durability(&self) -> Durability {
        let nodes = self.metadata.with(|state| usize::try_from(state.present_nodes()).unwrap_or(COPIES));
        let keepers = if self.ownership.is_some() { nodes.min(COPIES) } else { 1 };
        Durability::of(keepers, self.clouds.clouds.len(), self.clouds.quorum)
    }

    /// Opens a volume that was just made here.
    ///
    /// # Errors
    /// When it does not open, or not in time.
    pub(super) async fn open_new(self: &Rc<Self>, id: VolumeId) -> Result<(), OpenError> {
        let Some(ownership) = &self.ownership else { return self.open_volume(id, Found::default()).await };
        let members = ownership.members(self, self.node, id);
        let command = Command::GrantEnsemble { volume: id, node: self.node, after: Epoch(0), members };
        self.metadata.propose(command).await?;
        if self.wait(|| self.open.get(id).is_some()).await { Ok(()) } else { Err(OpenError::Late) }
    }

    /// Has this node granted a new epoch of a volume that it owns already. True: there is nothing more to do in this one.
    async fn claim(&self, id: VolumeId, epoch: Epoch, members: Vec<NodeId>) -> bool {
        if !grant(self, id, epoch, self.node, members).await {
            self.env.clock.sleep(RETRY / 10).await;
        }
        true
    }

    /// Opens a volume in an epoch that was granted to this node. True when the epoch is over, false when the volume is open, or
    /// can not be.
    async fn open_persistently(self: &Rc<Self>, copies: &Copies, id: VolumeId, epoch: Epoch) -> bool {
        loop {
            match self.open_in_ensemble(copies, id, epoch).await {
                Ok(()) => return false,
                Err(OpenError::Gone | OpenError::Over) => return true,
                Err(error) if error.is_passing() => {
                    tracing::warn!(volume = %id, %error, "the volume does not open yet; trying again");
                }
                Err(error) => {
                    tracing::error!(volume = %id, %error, "the volume does not open; nothing of it was changed");
                    return false;
                }
            }
            self.env.clock.sleep(RETRY).await;
        }
    }

    /// Has a volume of this node's go on in a new epoch, here or elsewhere, with as little notice as can be: guests' requests are
    /// held meanwhile, and what is under way is answered before, or nothing is done. True when raft has granted it.
    pub(super) async fn hand_over(
        &self,
        (id, epoch): (VolumeId, Epoch),
        to: NodeId,
        members: Vec<NodeId>,
        idle_wait: Duration,
    ) -> bool {
        let Some(switch) = self.switches.as_ref().and_then(|switches| switches.get(id)) else { return false };
        let hold = switch.hold();
        let is_idle = match select(switch.idle(), self.env.clock.sleep(idle_wait)).await {
            Either::Left(_) => true,
            Either::Right(_) => false,
        };
        let open = self.open.get(id);
        // Somebody else may have had it go on here meanwhile, and it is not this epoch's to be released.
        let is_over = open.as_ref().is_some_and(|open| open.owner.epoch > epoch);
        if let Some(owning) = open.as_ref().and_then(|open| open.owning.as_ref()).filter(|_| is_idle && !is_over) {
            // Before the grant: whoever is granted the volume fences at once.
            owning.release();
        }
        let is_granted = is_idle && !is_over && grant(self, id, epoch, to, members).await;
        if !is_granted {
            switch.go_on(hold);
        }
        is_granted
    }

    /// Gives all volumes of this node, and the lead, to others that are there, before it stops.
    pub(super) async fn hand_all_over(&self) {
        let Some(ownership) = &self.ownership else { return };
        for (id, open) in self.open.all().into_iter().filter(|(_, open)| open.owning.is_some()) {
            let Some(heir) = ownership.heir(self, id, false) else { continue };
            let members = ownership.members(self, heir, id);
            if self.hand_over((id, open.owner.epoch), heir, members, IDLE_WAIT).await {
                tracing::info!(volume = %id, %heir, "the volume goes on at another node");
            }
        }
        let others = self.consensus.members().voters.into_iter().map(NodeId);
        let heir = others.into_iter().find(|other| *other != self.node && ownership.hears(*other));
        if let (true, Some(heir)) = (self.consensus.status().is_leader, heir)
            && let Err(error) = self.consensus.transfer(heir).await
        {
            tracing::debug!(%heir, %error, "the lead was not handed over; the others will choose");
        }
    }

    /// Serves a volume here no more.
    fn let_go(&self, id: VolumeId) {
        let Some(open) = self.open.remove(id) else { return };
        tracing::info!(volume = %id, "the volume is not served here any more");
        let switch = self.switches.as_ref().and_then(|switches| switches.get(id));
        if let Some(switch) = switch.filter(|switch| switch.served_here() == Some(open.owner)) {
            switch.break_off();
        }
        if let Some(owning) = &open.owning {
            owning.stop();
        }
        open.volume.abandon();
        if let Some(switches) = &self.switches {
            switches.look_at(id);
        }
    }
}
