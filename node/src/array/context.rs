//! What every part of the array shares: the ways out of the node, and how to get an answer out of Raft.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::future::select;
use velum_protocol::{
    format::metadata::{CloudName, Command, RequestId},
    id::{Epoch, Incarnation, NodeId, ObjectNumber, VolumeId},
};

use super::{
    catalogue::shown::Shown,
    copies::Copies,
    flush::{machine::Triggers, relocate::Relocation},
    life::{Known, Life},
    numbers::Numbers,
};
use crate::{
    audit::Audit,
    cloud::CloudSet,
    env::Env,
    keyring::{KeyError, KeySet, Keyring},
    metadata::{
        Answer, Metadata, MetadataError, Rejection,
        state::{Head, VolumeState},
    },
    metrics::Metrics,
    volume::messages::FlushPort,
};

/// First pause before a proposal without an answer is repeated.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// How often a volume that waits for the catalogue is looked at, for it may be over.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Longest pause between repeated proposals.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What an operator decides about the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArraySettings {
    /// When a flush starts.
    pub flush: Triggers,
    /// Records since the last checkpoint that start one.
    pub checkpoint_records: u64,
    /// Bytes of sealed records since the last checkpoint that start one.
    pub checkpoint_bytes: u64,
    /// Shortest time between an object's condemnation and its deletion.
    pub reclaim_grace: Duration,
    /// Percent of the bytes of a volume's segments that must be live, or they are compacted; zero for never.
    pub compact_live_percent: u8,
}

impl Default for ArraySettings {
    fn default() -> Self {
        Self {
            flush: Triggers { bytes: 8 << 20, interval: Duration::from_secs(5) },
            checkpoint_records: 1024,
            checkpoint_bytes: 4 << 20,
            reclaim_grace: Duration::from_secs(3600),
            compact_live_percent: 50,
        }
    }
}

/// The array of one node. Cheap to clone.
#[derive(Clone)]
pub struct ArrayContext {
    pub(crate) env: Env,
    pub(crate) node: NodeId,
    pub(crate) metadata: Metadata,
    pub(crate) keyring: Keyring,
    pub(crate) copies: Rc<Copies>,
    pub(crate) audit: Rc<Audit>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) settings: ArraySettings,
    pub(crate) known: Rc<Known>,
    pub(crate) shown: Rc<Shown>,
    /// How often each cloud had begun anew when this node started over with it.
    beginnings: Rc<RefCell<BTreeMap<CloudName, u64>>>,
    /// Whether this node is the one that does what is done once per cluster.
    keeper: Rc<dyn Fn() -> bool>,
    /// Held by the volume whose segments are being compacted: what that takes in memory is taken once per node.
    pub(crate) compacting: Rc<tokio::sync::Mutex<()>>,
}

impl ArrayContext {
    /// The array of `node` over `clouds`.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the node that only assembly knows")]
    #[must_use]
    pub fn new(
        env: &Env,
        node: NodeId,
        metadata: Metadata,
        keyring: Keyring,
        clouds: Rc<CloudSet>,
        audit: Rc<Audit>,
        metrics: Arc<Metrics>,
        settings: ArraySettings,
    ) -> Self {
        let copies = Copies::new(keyring.clone(), clouds, Rc::clone(&env.clock));
        let beginnings = Rc::new(RefCell::new(metadata.with(|state| state.beginnings.clone())));
        Self {
            env: env.clone(),
            node,
            metadata,
            keyring,
            copies,
            audit,
            metrics,
            settings,
            known: Rc::default(),
            shown: Rc::default(),
            beginnings,
            keeper: Rc::new(|| true),
            compacting: Rc::default(),
        }
    }

    /// The array of one node among several, which asks `keeper` whether it is the one that does what is done once per
    /// cluster. Without this it is.
    #[must_use]
    pub fn with_keeper(self, keeper: Rc<dyn Fn() -> bool>) -> Self {
        Self { keeper, ..self }
    }

    /// True on the one node that does what is done once per cluster. For a moment after another one has become it, both may
    /// take themselves for it: nothing that a keeper does may rest on being the only one.
    pub(crate) fn is_keeper(&self) -> bool {
        (self.keeper)()
    }

    /// True when a later life of the cluster has begun.
    pub(crate) fn is_outlived(&self) -> bool {
        self.known.life() == Life::Over
    }

    /// How often a cloud had begun anew when this node started over with it.
    pub(crate) fn beginning(&self, cloud: &CloudName) -> u64 {
        self.beginnings.borrow().get(cloud).copied().unwrap_or_default()
    }

    /// True when a cloud has begun anew, as another node found or asked, and this node has not started over with it yet.
    #[must_use]
    pub fn is_behind(&self, cloud: &CloudName) -> bool {
        self.metadata.with(|state| state.beginning(cloud)) > self.beginning(cloud)
    }

    /// Proposes a command until it is known what became of it. The same request goes to Raft each time, so it is applied
    /// once however often it is proposed.
    pub(crate) async fn agree(&self, command: Command) -> Result<Answer, Rejection> {
        let request = RequestId(self.env.entropy.fresh16());
        let mut pause = PAUSE_MIN;
        loop {
            match self.metadata.propose_as(request, command.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(MetadataError::Rejected(rejection)) => return Err(rejection),
                Err(MetadataError::Unknown(_)) => self.env.clock.sleep(pause).await,
            }
            pause = pause.saturating_mul(2).min(PAUSE_MAX);
        }
    }

    /// Forgets what was known to be in a cloud. Volumes and the catalogue have cursors of their own for it.
    pub fn forget_cloud(&self, cloud: &CloudName) {
        let beginning = self.metadata.with(|state| state.beginning(cloud));
        self.beginnings.borrow_mut().insert(cloud.clone(), beginning);
        self.copies.forget_cloud(cloud);
        self.known.forget_cloud(cloud);
    }

    /// Reads something of a volume; `None` when it is not there.
    pub(crate) fn with_volume<T>(&self, volume: VolumeId, read: impl FnOnce(&VolumeState) -> T) -> Option<T> {
        self.metadata.with(|state| state.volumes.get(&volume).map(read))
    }

    /// The volume's keys as the metadata has them now.
    pub(crate) fn keys(&self, volume: VolumeId) -> Option<Result<KeySet, KeyError>> {
        self.with_volume(volume, |state| self.keyring.key_set(volume, &state.keys))
    }

    /// The life of the cluster.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.metadata.with(|state| state.incarnation)
    }
}

/// One volume as the array of its owner sees it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct VolumeContext {
    pub(crate) array: ArrayContext,
    pub(crate) volume: VolumeId,
    /// The owner's epoch: the fencing number of everything done here.
    pub(crate) epoch: Epoch,
    pub(crate) port: Rc<dyn FlushPort>,
    pub(crate) numbers: Rc<Numbers>,
    /// The last record that the volume's map has taken in. Raft's head is ahead of it for a moment after each append.
    pub(crate) mapped: Rc<Cell<Head>>,
    /// Roots this owner has made, committed or not.
    pub(crate) roots: Rc<RefCell<BTreeSet<(Incarnation, ObjectNumber)>>>,
    /// The compaction step under way.
    pub(crate) relocation: Rc<Relocation>,
    /// The opened keys, with the number of key epochs they were opened from.
    opened: Rc<RefCell<Option<(usize, KeySet)>>>,
}

impl VolumeContext {
    /// A volume of which nothing was done in `epoch` yet. Its map has taken in everything up to `mapped`.
    pub(crate) fn new(
        array: &ArrayContext,
        volume: VolumeId,
        epoch: Epoch,
        port: Rc<dyn FlushPort>,
        mapped: Head,
    ) -> Self {
        Self {
            array: array.clone(),
            volume,
            epoch,
            port,
            numbers: Numbers::new(volume, epoch),
            mapped: Rc::new(Cell::new(mapped)),
            roots: Rc::default(),
            relocation: Rc::default(),
            opened: Rc::default(),
        }
    }

    /// The keys of the volume, or none when it is gone. Opened once per key epoch, for opening derives a dozen keys.
    pub(crate) fn keys(&self) -> Option<KeySet> {
        let epochs = self.state(|state| state.keys.len())?;
        if let Some((opened, keys)) = self.opened.borrow().as_ref()
            && *opened == epochs
        {
            return Some(keys.clone());
        }
        match self.array.keys(self.volume)? {
            Ok(keys) => {
                *self.opened.borrow_mut() = Some((epochs, keys.clone()));
                Some(keys)
            }
            Err(error) => {
                tracing::error!(volume = %self.volume, %error, "the volume's keys do not open any more");
                None
            }
        }
    }

    /// True when the volume is deleted, or another epoch or another life of the cluster has begun: there is nothing left to do
    /// for this owner.
    pub(crate) fn is_over(&self) -> bool {
        self.array.is_outlived() || self.state(|state| state.deleted || state.epoch != self.epoch).unwrap_or(true)
    }

    /// Completes when enough clouds show the volume in their catalogue as it is now, or when it is over. A recovery knows keys
    /// and sizes from the catalogue alone: what is sealed for a volume before that would be lost with the nodes. Changes that
    /// come meanwhile are not waited for: what the caller has in hand is from before them.
    pub(crate) async fn described(&self) {
        let Some(change) = self.state(|state| state.described) else { return };
        while !self.is_over() && !self.array.shown.has(change) {
            let (shown, look) = (self.array.shown.reaches(change), self.array.env.clock.sleep(LOOK_INTERVAL));
            select(pin!(shown), pin!(look)).await;
        }
    }

    /// Reads something of the volume; `None` when it is gone.
    pub(crate) fn state<T>(&self, read: impl FnOnce(&VolumeState) -> T) -> Option<T> {
        self.array.with_volume(self.volume, read)
    }
}
