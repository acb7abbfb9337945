//! One host node, assembled: the only place that knows every actor.
//!
//! A start reads what this node holds (key copies, raft state, journal), asks no cloud for anything it needs before it can
//! answer, and lets guests at each volume as soon as that volume's map root is at hand and its journal is replayed. Everything
//! runs on the `LocalSet` it was started on; dropping that is the crash that every part is built for.

mod applier;
mod attaching;
mod attachments;
mod boot;
mod changes;
mod cluster;
mod copies;
mod create;
mod crowding;
mod cut_off;
mod desk;
mod exports;
mod files;
mod frames;
mod gauges;
pub mod group;
mod joining;
mod layout;
mod loads;
mod members;
mod opening;
mod ownership;
mod owning;
mod quota;
mod records;
mod resync;
mod service;
mod settings;
mod start;
mod steps;
mod stoppable;
mod switches;
mod takeover;
mod views;

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::future::{Either, select};
use velum_protocol::{
    admin::{Durability, Problem, Request, Response},
    id::NodeId,
    peer::Verdict,
};

pub use create::{adopt, cloud_entries, create, is_created, quorum};
pub use joining::{JoinError, join};
pub use layout::Layout;
pub use loads::Load;
pub use start::{StartError, expect_idle};

use crate::{
    array::{ArrayContext, catalogue::Catalogue},
    audit::Audit,
    cache::{DiskCache, MemoryCache},
    cloud::{CloudSet, Fetcher},
    config::NodeConfig,
    consensus::{Consensus, RaftStatus},
    env::{Env, Instant, network::Address},
    journal::Journal,
    keyring::Keyring,
    metadata::Metadata,
    metrics::Metrics,
    server::{admin::Backend, forward::Forwarding, nbd::NbdDoor, session::Sessions},
    volume::budget::DirtyBudget,
};

/// How long a node that stops tries to have others go on with its volumes.
const HAND_OVER_MAX: Duration = Duration::from_secs(5);

/// A running node.
pub struct Node(Rc<Assembly>);

/// The parts of a node.
pub(crate) struct Assembly {
    env: Env,
    node: NodeId,
    started: Instant,
    config: NodeConfig,
    keyring: Keyring,
    journal: Rc<Journal>,
    consensus: Consensus,
    /// The way to the other nodes, unless this one is meant to be alone.
    peers: Option<members::Peers>,
    /// What it does about volumes then.
    ownership: Option<Rc<ownership::Ownership>>,
    /// Which of them it waits for.
    waiting: Rc<takeover::Waiting>,
    metadata: Metadata,
    clouds: Rc<CloudSet>,
    fetcher: Fetcher,
    disk_cache: DiskCache,
    memory: Rc<RefCell<MemoryCache>>,
    budget: Rc<DirtyBudget>,
    audit: Rc<Audit>,
    metrics: Arc<Metrics>,
    array: ArrayContext,
    catalogue: Catalogue,
    open: Rc<exports::OpenVolumes>,
    /// The ways in to the volumes of all nodes, for a node among others.
    switches: Option<Rc<switches::Switches>>,
    /// What is asked of other nodes and served to them.
    forwarding: RefCell<Option<Rc<Forwarding>>>,
    sessions: Rc<Sessions>,
    doors: RefCell<Vec<NbdDoor>>,
    stopping: Cell<bool>,
    /// Every volume that was there at the start is open, or known not to be.
    looked_through: Cell<bool>,
    boot: boot::Boot,
    /// Held for as long as the node runs.
    _lock: Box<dyn std::any::Any>,
}

impl Node {
    /// Does what an operator asks through the admin API.
    ///
    /// # Errors
    /// Why it was not done, in words for people and a kind for programs.
    pub async fn admin(&self, principal: &str, request: Request) -> Result<Response, Problem> {
        service::Service(Rc::clone(&self.0)).handle(principal, request).await
    }

    /// What answers operators, for the HTTP door.
    #[must_use]
    pub fn backend(&self) -> Rc<dyn Backend> {
        Rc::new(service::Service(Rc::clone(&self.0)))
    }

    /// True while nothing was ever asked of this cluster.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.0.metadata.with(crate::metadata::State::is_untouched)
    }

    /// What is promised of its volumes at which moment.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.0.durability()
    }

    /// Where volumes are served.
    #[must_use]
    pub fn nbd_addresses(&self) -> Vec<Address> {
        self.0.doors.borrow().iter().map(|door| door.address().clone()).collect()
    }

    /// The node's counters.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// What the gates decided.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.0.audit
    }

    /// The replicated metadata as this node has it.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// How raft stands on this node.
    #[must_use]
    pub fn raft(&self) -> RaftStatus {
        self.0.consensus.status()
    }

    /// Completes when the node can do nothing more for its guests: its journal failed. Restart it to verify its disk.
    pub async fn failed(&self) -> String {
        self.0.failed().await
    }

    /// Completes when this node is no part of the cluster any more, for ever: stop it. The next start is refused.
    pub async fn ended(&self) -> Verdict {
        let told = async {
            match &self.0.peers {
                Some(peers) => peers.desk.refusal().await,
                None => std::future::pending().await,
            }
        };
        let verdict = match select(pin!(told), pin!(self.0.outlived())).await {
            Either::Left((verdict, _)) => verdict,
            Either::Right(((), _)) => Verdict::Outlived,
        };
        if let Err(error) = self.0.boot.ended(&*self.0.env.disk, verdict).await {
            tracing::error!(%error, "that this node is no part of the cluster could not be noted; it will be told again");
        }
        verdict
    }

    /// Lets guests finish what is in flight, syncs the journal and stops. What is dirty stays in the journal.
    pub async fn stop(self) {
        let node = self.0;
        // While others run, guests go on there.
        select(Box::pin(node.hand_all_over()), node.env.clock.sleep(HAND_OVER_MAX)).await;
        node.stopping.set(true);
        let doors: Vec<NbdDoor> = node.doors.borrow_mut().drain(..).collect();
        for door in doors {
            door.stop().await;
        }
        if let Some(switches) = &node.switches {
            switches.stop().await;
        }
        for (_, open) in node.open.all() {
            open.volume.close();
        }
        if let Some(peers) = &node.peers {
            peers.links.close();
        }
        if let Err(error) = node.journal.close().await {
            tracing::error!(%error, "the journal could not be closed cleanly; the next start will verify it");
            return;
        }
        // Only now: all that was acked is at d1.
        if let Err(error) = node.boot.stopped(&*node.env.disk).await {
            tracing::error!(%error, "the clean stop could not be noted; after a reboot lineages change");
        }
    }
}

impl Assembly {
    /// Completes when the journal has failed.
    async fn failed(&self) -> String {
        loop {
            if let Some(cause) = self.journal.status().poisoned {
                return cause;
            }
            self.env.clock.sleep(gauges::INTERVAL).await;
        }
    }

    /// Completes when the clouds tell that a later life of the cluster has begun.
    async fn outlived(&self) {
        while !self.array.is_outlived() {
            self.env.clock.sleep(gauges::INTERVAL).await;
        }
    }

    /// Where volumes are served, as people type it.
    fn nbd_addresses(&self) -> Vec<String> {
        let text = |address: &Address| match address {
            Address::Tcp(address) => address.clone(),
            Address::Unix(path) => format!("unix:{}", path.display()),
        };
        self.doors.borrow().iter().map(|door| text(door.address())).collect()
    }
}
