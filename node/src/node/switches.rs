//! The switches of a node among others: one for each volume of the cluster, set as the replicated metadata says who owns it.
//!
//! A volume that this node owns is behind its switch as soon as it is open; whoever opens, moves or takes over volumes may use the
//! switch before that, to hold requests or to break off.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::{Rc, Weak},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{join_all, select},
};
use velum_protocol::id::{Epoch, NodeId, VolumeId};

use super::{Assembly, changes::Follower, exports::OpenVolumes};
use crate::{
    actor,
    env::Clock,
    limits::SESSION_STOP_MAX,
    metadata::{Metadata, state::VolumeState},
    server::{
        forward::{Forwarding, Own},
        roads::Roads,
        switch::Switch,
    },
};

/// Changes of the metadata are looked at together when they come faster than this.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long what is under way at the owner before may take to come back.
const RETURN_MAX: Duration = Duration::from_millis(500);

/// See the module.
pub(super) struct Switches {
    clock: Rc<dyn Clock>,
    node: NodeId,
    metadata: Metadata,
    open: Rc<OpenVolumes>,
    /// None until doors open; nobody is on the way to another node before.
    roads: RefCell<Option<Weak<dyn Roads>>>,
    known: RefCell<BTreeMap<VolumeId, Switch>>,
    /// Volumes whose requests come back from a node that owns them no more.
    returning: RefCell<BTreeSet<VolumeId>>,
    own: Weak<Self>,
}

impl Switches {
    pub(super) fn new(clock: &Rc<dyn Clock>, node: NodeId, metadata: &Metadata, open: &Rc<OpenVolumes>) -> Rc<Self> {
        let (clock, metadata, open) = (Rc::clone(clock), metadata.clone(), Rc::clone(open));
        Rc::new_cyclic(|own| Self {
            clock,
            node,
            metadata,
            open,
            roads: RefCell::default(),
            known: RefCell::default(),
            returning: RefCell::default(),
            own: Weak::clone(own),
        })
    }

    /// From now on other nodes are reached.
    pub(super) fn connect(&self, forwarding: &Rc<Forwarding>) {
        let roads: Weak<Forwarding> = Rc::downgrade(forwarding);
        *self.roads.borrow_mut() = Some(roads);
        self.look();
    }

    /// The switch of a volume.
    pub(super) fn get(&self, volume: VolumeId) -> Option<Switch> {
        self.known.borrow().get(&volume).cloned()
    }

    /// Sets every switch as the metadata says.
    pub(super) fn look(&self) {
        let volumes: Vec<(VolumeId, bool)> =
            self.metadata.with(|state| state.volumes.iter().map(|(id, volume)| (*id, volume.deleted)).collect());
        let is_there = |id: &VolumeId| volumes.binary_search(&(*id, false)).is_ok();
        let gone: Vec<Switch> = {
            let mut known = self.known.borrow_mut();
            let gone: Vec<VolumeId> = known.keys().filter(|id| !is_there(id)).copied().collect();
            gone.iter().filter_map(|id| known.remove(id)).collect()
        };
        gone.iter().for_each(Switch::end_all);
        volumes.iter().filter(|(_, deleted)| !deleted).for_each(|(id, _)| self.look_at(*id));
    }

    /// Sets one volume's.
    pub(super) fn look_at(&self, id: VolumeId) {
        let Some(switch) = self.switch_of(id) else { return };
        let read = |volume: &VolumeState| (volume.owner, volume.epoch);
        let Some((owner, epoch)) = self.metadata.with(|state| state.volumes.get(&id).map(read)) else { return };
        let Some(owner) = owner else { return };
        if switch.served_there().is_some_and(|before| before != owner) {
            return self.await_returns(id, switch);
        }
        self.set(id, &switch, owner, epoch);
    }

    /// What is under way at a node that owns the volume no more comes back undone, or answered, if that node lives. Guests would lose
    /// their sessions if it was not waited for.
    fn await_returns(&self, id: VolumeId, switch: Switch) {
        if !self.returning.borrow_mut().insert(id) {
            return;
        }
        let (weak, late) = (Weak::clone(&self.own), self.clock.sleep(RETURN_MAX));
        actor::spawn(async move {
            // The volume is set anew below, or was meanwhile, which ends it.
            let _ = switch.hold();
            select(switch.idle(), late).await;
            let Some(own) = weak.upgrade() else { return };
            own.returning.borrow_mut().remove(&id);
            let read = |volume: &VolumeState| Some((volume.owner?, volume.epoch));
            let owner = own.metadata.with(|state| state.volumes.get(&id).and_then(read));
            if let Some((owner, epoch)) = owner {
                own.set(id, &switch, owner, epoch);
            }
        });
    }

    fn set(&self, id: VolumeId, switch: &Switch, owner: NodeId, epoch: Epoch) {
        if owner != self.node {
            return switch.serve_there(owner);
        }
        match self.open.get(id).filter(|open| open.owner.epoch == epoch) {
            Some(open) if switch.served_here() != Some(open.owner) => {
                switch.serve_here(Rc::clone(&open.door), open.owner);
            }
            Some(_) => {}
            // This node becomes the owner; whoever was it is not asked any more.
            None if switch.served_there().is_some() => switch.break_off(),
            None => {}
        }
    }

    fn switch_of(&self, id: VolumeId) -> Option<Switch> {
        let roads = self.roads.borrow().clone()?;
        let mut known = self.known.borrow_mut();
        let switch = known.entry(id).or_insert_with(|| {
            let metadata = self.metadata.clone();
            let size_bytes =
                move || metadata.with(|state| state.volumes.get(&id).map_or(0, |volume| volume.size_bytes));
            Switch::new(&self.clock, id, Box::new(size_bytes), roads)
        });
        Some(switch.clone())
    }

    /// Lets what is under way end, for a while, and passes nothing more on.
    pub(super) async fn stop(&self) {
        let switches: Vec<Switch> = self.known.borrow().values().cloned().collect();
        let mut late = self.clock.sleep(SESSION_STOP_MAX).fuse();
        for switch in &switches {
            let _ = switch.hold();
        }
        let mut idle = Box::pin(join_all(switches.iter().map(Switch::idle)).fuse());
        futures_util::select_biased! {
            _ = idle => {}
            () = late => tracing::warn!("requests of other nodes' guests did not end in time"),
        }
        switches.iter().for_each(Switch::break_off);
    }
}

impl Own for Switches {
    fn switch(&self, volume: VolumeId) -> Option<Switch> {
        self.get(volume)
    }
}

/// Follows the metadata, for as long as the node lives.
pub(super) fn follow(node: &Rc<Assembly>, mut changes: Follower) {
    if node.switches.is_none() {
        return;
    }
    let (weak, clock) = (Rc::downgrade(node), Rc::clone(&node.env.clock));
    actor::spawn(async move {
        // The applier lives as long as raft does.
        while changes.changed().await {
            let Some(node) = weak.upgrade() else { return };
            if let Some(switches) = &node.switches {
                switches.look();
            }
            drop(node);
            clock.sleep(INTERVAL).await;
        }
    });
}
