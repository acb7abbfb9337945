//! The start of a node: keys, journal, raft, clouds, volumes, doors, in this order.
//!
//! First comes all that can refuse the start, and it changes nothing of the directory: keys open, journal and raft state are
//! looked at, the clouds are the cluster's, the addresses are free. Only then the journal is set up again, which drops an
//! unreadable end; that acked writes may be lost with it is stored before.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use futures_util::future::{Either, select};
use velum_protocol::{
    format::metadata::CloudName,
    id::{NodeId, VolumeId},
    peer::Verdict,
    version::LeadError,
};

use super::{
    Assembly, Node,
    applier::{MetadataApplier, RaftProposer},
    attachments,
    boot::{Boot, Unsynced},
    copies::{self, Copies, FoundCopies, Known},
    create, crowding, cut_off,
    desk::Hearing,
    exports::{NodeExports, OpenVolumes},
    gauges, group, joining,
    layout::Layout,
    members::{self, Peers},
    ownership::{self, Ownership},
    quota::Quota,
    resync, settings,
    switches::{self, Switches},
};
use crate::{
    actor,
    array::{ArrayContext, catalogue::Catalogue, life, reclaim::retire, repair},
    audit::Audit,
    cache::{DiskCache, MemoryCache},
    cloud::{
        CloudSet, Fetcher, OpenCloudError,
        identity::{Identity, Place},
    },
    config::{CloudConfig, Listen, NodeConfig},
    consensus::{self, Consensus, ConsensusError},
    env::{CloudStoreError, Credentials, Env, Listener},
    journal::{self, Journal, JournalError, JournalIdentity, Replay, Tail},
    keyring::{KeyError, Keyring, ProviderSecret},
    metadata::{Metadata, Rejection, State, state::CloudEntry},
    metrics::Metrics,
    server::{
        forward::{self, Forwarding},
        gate::Gate,
        nbd::{self, session::Surroundings},
        session::Sessions,
    },
    volume::budget::DirtyBudget,
};

/// Why a node does not start. Nothing was changed, unless the message says so.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file or directory of the node's own.
    #[error("{}: {error}; look at who owns it and at the space there", .path.display())]
    Disk {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Another process runs here.
    #[error("{}: another process uses this directory; stop it first", .0.display())]
    InUse(PathBuf),
    /// A new cluster was to be made where there is one.
    #[error("{}: there is a node here already; start it instead", .0.display())]
    AlreadyCreated(PathBuf),
    /// There is no node in the directory.
    #[error(
        "{}: there is no node here; `velum up` or `velum cluster init` makes a cluster, `velum cluster join` adds a node to one, \
         `velum recover` brings one back from its clouds", .0.display()
    )]
    NotCreated(PathBuf),
    /// The keys do not open.
    #[error("the keys of this node do not open: {0}; give the root key that the cluster was made with")]
    Key(#[from] KeyError),
    /// A cloud does not do for this cluster.
    #[error("cloud {name}: {error}; look at its URL, its options and the provider's environment variables")]
    Cloud {
        /// The operator's name for it.
        name: String,
        /// Why.
        error: CloudStoreError,
    },
    /// A cloud's URL or options are not understood.
    #[error(transparent)]
    OpenCloud(#[from] OpenCloudError),
    /// The configured clouds are not the cluster's.
    #[error("the configuration lists the clouds {configured}, the cluster has {known}; configure the same ones")]
    OtherClouds {
        /// Names and URLs configured.
        configured: String,
        /// Names and URLs in the metadata.
        known: String,
    },
    /// The journal does not open.
    #[error("the journal: {0}")]
    Journal(#[from] JournalError),
    /// Raft does not start.
    #[error("raft: {0}")]
    Consensus(#[from] ConsensusError),
    /// A newer Velum wrote here.
    #[error("{}: {source}; nothing was changed, start the newer version", .path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// The versions.
        source: LeadError,
    },
    /// Writes may be lost and the metadata does not let it be told.
    #[error("the lineage of volume {volume} cannot be changed although acked writes may be lost: {rejection}")]
    Lineage {
        /// Which volume.
        volume: VolumeId,
        /// Why.
        rejection: Rejection,
    },
    /// The cluster has removed the node.
    #[error(
        "node {node} was removed from its cluster, for ever; to use the machine again, delete {} and join under a new number: \
         `velum cluster token` on a member gives one", .dir.display()
    )]
    Removed {
        /// Which.
        node: NodeId,
        /// Its directory.
        dir: PathBuf,
    },
    /// The cluster lives on without the node.
    #[error(
        "node {node} belongs to an older life of its cluster, which was recovered since, and never starts again; what it held that \
         no cloud has is still in {} (`velum inspect journal` reads it); to use the machine again, delete that and join under a \
         new number: `velum cluster token` on a member gives one", .dir.display()
    )]
    Outlived {
        /// Which.
        node: NodeId,
        /// Its directory.
        dir: PathBuf,
    },
    /// The cluster does not take the node.
    #[error(
        "the cluster does not take node {node}: {why}; delete its directory and join anew with what `velum cluster token` on a \
         member gives"
    )]
    NotTaken {
        /// Which.
        node: NodeId,
        /// Why.
        why: Verdict,
    },
    /// The door for the other nodes cannot be opened.
    #[error("cannot listen on {address} for other nodes: {error}; free the address or set another peers.listen")]
    ListenPeers {
        /// Which.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}; free the address or set another nbd.listen")]
    Listen {
        /// Which.
        address: String,
        /// What the system said.
        error: io::Error,
    },
}

impl StartError {
    pub(super) fn disk(path: &Path, error: io::Error) -> Self {
        Self::Disk { path: path.to_owned(), error }
    }
}

pub(super) async fn lock(env: &Env, layout: &Layout) -> Result<Box<dyn std::any::Any>, StartError> {
    env.disk.lock(layout.lock()).await.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => StartError::InUse(layout.dir().to_owned()),
        _ => StartError::disk(&layout.lock(), error),
    })
}

/// Looks whether no process uses a node's directory.
///
/// # Errors
/// When one does, or the directory cannot be used.
pub async fn expect_idle(env: &Env, dir: &Path) -> Result<(), StartError> {
    lock(env, &Layout::new(dir)).await.map(drop)
}

impl Node {
    /// Starts the node that `config.dir` holds.
    ///
    /// Returns when operators and guests are answered. Volumes whose map root is in a cloud that is away open later, by
    /// themselves; among several nodes all do.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(env: Env, config: NodeConfig, secret: &ProviderSecret) -> Result<Self, StartError> {
        let layout = Layout::new(&config.dir);
        if !create::is_created(&env, &config).await? {
            return Err(StartError::NotCreated(config.dir.clone()));
        }
        let lock = lock(&env, &layout).await?;
        let keys = create::read_keys(&env, &layout, secret).await?;
        let (keyring, identity) = keys.ok_or_else(|| StartError::NotCreated(config.dir.clone()))?;
        let Examined { boot, unsynced, journal, replay, consensus, state, applier, listeners, peers } =
            examine(&env, &config, &layout, &keyring).await?;
        let changes = applier.borrow().changes();
        // From here on nothing of the settings refuses the start, and things are changed.
        let is_doubtful = unsynced.may_be_lost(&replay);
        if is_doubtful {
            boot.doubt(&*env.disk).await?;
        }
        let journal = journal.begin().await?;
        let (consensus, peers) = match peers {
            Some(door) => {
                let found = group::Found { examined: consensus, journal: Rc::clone(&journal), applier };
                let begun = begin_in_group(&env, &config, (&layout, &boot), (door, &keyring), found, &state).await?;
                (begun.0, Some(begun.1))
            }
            None => (Consensus::start(&env, consensus, Rc::clone(&journal), applier).await?, None),
        };
        let metrics = Arc::new(Metrics::new());
        journal.count_in(metrics.journal.clone());
        let proposer = Rc::new(RaftProposer {
            consensus: consensus.clone(),
            clock: Rc::clone(&env.clock),
            metrics: metrics.raft.clone(),
        });
        let ownership = match &peers {
            Some(peers) => {
                let found = (&replay, unsynced);
                Some(begin_ownership(&env, (&layout, &keyring, config.node), peers, &journal, &state, found).await?)
            }
            None => None,
        };
        let metadata = Metadata::new(state, proposer, Rc::clone(&env.entropy));
        let agreement = (consensus, peers.zip(ownership), metadata);
        let node = assemble(env, config, (lock, boot), (keyring, identity), journal, agreement, metrics).await?;
        node.begin();
        switches::follow(&node, changes.clone());
        attachments::follow(&node, changes.clone());
        if node.ownership.is_some() {
            drop(replay);
            node.boot.started(&*node.env.disk).await?;
            ownership::watch(&node, changes);
            cut_off::watch(&node);
            node.looked_through.set(true);
        } else {
            node.open_now(is_doubtful, replay).await?;
        }
        node.open_doors(listeners);
        Ok(Self(node))
    }
}

/// Begins raft among the other nodes; a newcomer is let in first.
async fn begin_in_group(
    env: &Env,
    config: &NodeConfig,
    (layout, boot): (&Layout, &Boot),
    (door, keyring): (Rc<dyn Listener>, &Keyring),
    found: group::Found,
    state: &Rc<RefCell<State>>,
) -> Result<(Consensus, Peers), StartError> {
    let settings = config.peers.as_ref().expect("a door for peers is opened when the settings say where");
    let join = joining::read(env, layout).await?;
    let door = (door, keyring.credentials(config.node));
    let begun = members::begin(env, settings, door, found, (state, join.as_ref())).await;
    if let Err(StartError::NotTaken { node, why }) = &begun {
        boot.ended(&*env.disk, *why).await.map_err(|error| StartError::disk(&layout.boot(), error))?;
        if *why == Verdict::Outlived {
            return Err(StartError::Outlived { node: *node, dir: layout.dir().to_owned() });
        }
    }
    let begun = begun?;
    if join.is_some() {
        check_clouds(config, &state.borrow().clouds)?;
        joining::forget(env, layout).await?;
    }
    Ok(begun)
}

/// Starts what this node keeps of volumes' journals. Which copies are not whole is noted when this returns.
async fn begin_ownership(
    env: &Env,
    (layout, keyring, node): (&Layout, &Keyring, NodeId),
    peers: &Peers,
    journal: &Rc<Journal>,
    state: &Rc<RefCell<State>>,
    (replay, unsynced): (&Replay, Unsynced),
) -> Result<Rc<Ownership>, StartError> {
    let cluster = keyring.cluster();
    let known = Known {
        cluster,
        node,
        promises: layout.promises(),
        unsynced,
        replay,
        alone: ownership::kept_alone(&state.borrow(), node),
        sequenced: state.borrow().volumes.iter().map(|(id, volume)| (*id, volume.head.last)).collect(),
    };
    let found = FoundCopies::look(env, known).await?;
    let (volumes, nodes, share) = (Rc::clone(state), Rc::clone(state), journal.bytes_for_volumes());
    let around = copies::Surroundings {
        env: env.clone(),
        cluster,
        node,
        journal: Rc::clone(journal),
        links: peers.links.clone(),
        is_volume: Box::new(move |id| volumes.borrow().volumes.get(&id).is_some_and(|volume| !volume.deleted)),
        quota: Quota::new(Box::new(move || share / (nodes.borrow().present_nodes() + 1))),
    };
    let ownership = Rc::new(Ownership::new(Copies::start(around, found).await?, peers.links.clone()));
    let hearing: Rc<dyn Hearing> = ownership.clone();
    peers.desk.hear_with(Rc::downgrade(&hearing));
    Ok(ownership)
}

/// What a start has looked at and not changed.
struct Examined {
    boot: Boot,
    unsynced: Unsynced,
    journal: journal::Examined,
    replay: Replay,
    consensus: consensus::Examined,
    state: Rc<RefCell<State>>,
    applier: Rc<RefCell<MetadataApplier>>,
    listeners: Vec<Rc<dyn Listener>>,
    peers: Option<Rc<dyn Listener>>,
}

/// All that can refuse a start once the keys have opened. Changes nothing of the node's directory.
async fn examine(env: &Env, config: &NodeConfig, layout: &Layout, keyring: &Keyring) -> Result<Examined, StartError> {
    let identity = JournalIdentity { cluster: keyring.cluster(), node: config.node };
    let (boot, unsynced) = Boot::find(env, layout, identity).await?;
    let (journal, mut replay) = Journal::examine(env, &layout.journal(), settings::journal(config), identity).await?;
    report(&replay);
    let state = Rc::new(RefCell::new(State::new(keyring.cluster(), Vec::new(), 1)));
    let applier = Rc::new(RefCell::new(MetadataApplier::new(Rc::clone(&state))));
    let member = create::member(config, keyring);
    let consensus = Consensus::examine(env, &layout.raft(), member, (&journal, &mut replay), &*applier).await?;
    let members = consensus.members();
    if config.peers.is_none() && members.voters != [config.node.0] {
        return Err(ConsensusError::NotAlone.into());
    }
    // No command changes the cluster's clouds, so they are what the snapshot says. A newcomer is told later.
    if !members.voters.is_empty() {
        check_clouds(config, &state.borrow().clouds)?;
    }
    for CloudConfig { name, url, options } in config.placed_clouds() {
        let opened = env.clouds.open(&url, &options);
        opened.map_err(|source| OpenCloudError { cloud: name, url, source })?;
    }
    let mut listeners = Vec::new();
    for listen in &config.nbd.listen {
        let listener = env.network.listen(listen.address()).await;
        listeners.push(listener.map_err(|error| StartError::Listen { address: listen.to_string(), error })?);
    }
    let peers = match &config.peers {
        Some(peers) => Some(listen_for_peers(env, &peers.listen, keyring.credentials(config.node)).await?),
        None => None,
    };
    Ok(Examined { boot, unsynced, journal, replay, consensus, state, applier, listeners, peers })
}

async fn listen_for_peers(
    env: &Env,
    listen: &Listen,
    credentials: Credentials,
) -> Result<Rc<dyn Listener>, StartError> {
    let listener = env.network.listen_peers(listen.address(), Rc::new(credentials)).await;
    listener.map_err(|error| StartError::ListenPeers { address: listen.to_string(), error })
}

/// Says what is wrong with the journal, also when the start is refused over it.
fn report(replay: &Replay) {
    for damage in &replay.damage {
        tracing::error!(
            file = damage.file,
            offset = damage.offset,
            bytes = damage.bytes,
            kind = ?damage.kind,
            "the journal is damaged where it had been durable; volumes that need it do not open"
        );
    }
    match (replay.tail, &replay.torn) {
        (Tail::Cut, torn) => tracing::warn!(
            records = torn.map_or(0, |torn| torn.records),
            at = ?torn.map(|torn| torn.at),
            "the journal ends before where it was written to: acked writes are lost, lineages change"
        ),
        (Tail::Whole | Tail::Unknown, Some(_)) => tracing::info!("an unfinished end of the journal is dropped"),
        (Tail::Whole | Tail::Unknown, None) => {}
    }
}

/// The cloud set is the cluster's business: a node with other clouds would count copies where nobody else looks.
fn check_clouds(config: &NodeConfig, known: &[CloudEntry]) -> Result<(), StartError> {
    let configured = create::cloud_entries(config);
    if configured == known {
        return Ok(());
    }
    let text = |entries: &[CloudEntry]| {
        entries.iter().map(|entry| format!("{}={}", entry.name.0, entry.url)).collect::<Vec<_>>().join(", ")
    };
    Err(StartError::OtherClouds { configured: text(&configured), known: text(known) })
}

async fn assemble(
    env: Env,
    config: NodeConfig,
    (lock, boot): (Box<dyn std::any::Any>, Boot),
    (keyring, identity): (Keyring, Identity),
    journal: Rc<Journal>,
    (consensus, peers, metadata): (Consensus, Option<(Peers, Rc<Ownership>)>, Metadata),
    metrics: Arc<Metrics>,
) -> Result<Rc<Assembly>, StartError> {
    let (peers, ownership) = peers.unzip();
    let audit = Rc::new(Audit::new(Rc::clone(&env.clock), Arc::clone(&metrics)));
    let quorum = metadata.with(|state| usize::try_from(state.quorum).unwrap_or(usize::MAX));
    let used = used_clouds(&config, &metadata);
    let place = |url: &str| Place { may_be_new: !used.contains(url), is_shared: peers.is_some() };
    let clouds = CloudSet::open(&env, &config.placed_clouds(), quorum, (&identity, &place), &metrics)?;
    let fetcher = Fetcher::new(&env, &clouds, keyring.clone());
    let disk_cache = DiskCache::open(&env, settings::disk_cache(&config, &keyring)).await;
    let clouds = Rc::new(clouds);
    let array = ArrayContext::new(
        &env,
        config.node,
        metadata.clone(),
        keyring.clone(),
        Rc::clone(&clouds),
        Rc::clone(&audit),
        Arc::clone(&metrics),
        settings::array(&config),
    )
    .with_keeper(members::keeper(peers.is_none(), &consensus));
    let catalogue = Catalogue::start(&array);
    retire::start(&array, &catalogue);
    life::watch(&array);
    repair::start(&array, fetcher.holes());
    let dirty_bytes_max = config.dirty_bytes_max();
    let memory = MemoryCache::new(config.memory.bytes().saturating_sub(dirty_bytes_max));
    let open = Rc::new(OpenVolumes::default());
    let switches = peers.as_ref().map(|_| Switches::new(&env.clock, config.node, &metadata, &open));
    Ok(Rc::new(Assembly {
        started: env.clock.now(),
        node: config.node,
        catalogue,
        keyring,
        journal,
        consensus,
        peers,
        ownership,
        metadata,
        clouds,
        fetcher,
        disk_cache,
        memory: Rc::new(RefCell::new(memory)),
        budget: DirtyBudget::new(dirty_bytes_max),
        audit,
        metrics,
        array,
        open,
        switches,
        forwarding: RefCell::default(),
        sessions: Rc::new(Sessions::default()),
        doors: RefCell::default(),
        stopping: Cell::new(false),
        looked_through: Cell::new(false),
        waiting: Rc::default(),
        boot,
        _lock: lock,
        config,
        env,
    }))
}

impl Assembly {
    async fn open_now(self: &Rc<Self>, is_doubtful: bool, replay: Replay) -> Result<(), StartError> {
        // All this asks Raft, which never answers once the journal has failed: then it is the start that has failed.
        let opening = self.open(is_doubtful, replay);
        match select(Box::pin(opening), Box::pin(self.failed())).await {
            Either::Left((opened, _)) => opened,
            Either::Right((cause, _)) => Err(JournalError::Poisoned { cause: cause.into() }.into()),
        }
    }

    /// Opens the volumes; first, when acked writes may be lost, their lineages change.
    async fn open(self: &Rc<Self>, is_doubtful: bool, replay: Replay) -> Result<(), StartError> {
        if is_doubtful {
            self.change_lineages().await?;
        }
        self.boot.started(&*self.env.disk).await?;
        self.open_volumes(replay).await;
        self.looked_through.set(true);
        Ok(())
    }

    /// Starts what runs beside the volumes.
    fn begin(self: &Rc<Self>) {
        actor::spawn((*self.clouds).clone().watch(Rc::clone(&self.env.clock)));
        members::watch(self);
        resync::watch(self);
        crowding::watch(self);
        gauges::start(self);
    }

    /// Lets guests in.
    fn open_doors(self: &Rc<Self>, listeners: Vec<Rc<dyn Listener>>) {
        let plain = self.config.plain_exports;
        if !plain {
            tracing::info!(
                "plain_exports is false: guests find a volume under the name that `velum volume attach` gives"
            );
        }
        let exports = NodeExports {
            metadata: self.metadata.clone(),
            consensus: self.consensus.clone(),
            clock: Rc::clone(&self.env.clock),
            open: Rc::clone(&self.open),
            switches: self.switches.clone(),
            plain,
        };
        let gate = Rc::new(Gate::new(Rc::new(exports), Rc::clone(&self.audit)));
        self.open_to_peers(&gate);
        for listener in listeners {
            let around = Surroundings {
                clock: Rc::clone(&self.env.clock),
                gate: Rc::clone(&gate),
                metrics: Arc::clone(&self.metrics),
            };
            let door = nbd::open(&self.env, listener, around, Rc::clone(&self.sessions));
            self.doors.borrow_mut().push(door);
        }
    }

    /// Asks other nodes for guests here, and serves theirs.
    fn open_to_peers(&self, gate: &Rc<Gate>) {
        let (Some(peers), Some(switches)) = (&self.peers, &self.switches) else { return };
        let links = peers.links.clone();
        let send = Rc::new(move |to, frame| links.send(to, frame));
        let around = forward::Surroundings {
            clock: Rc::clone(&self.env.clock),
            send,
            gate: Rc::clone(gate),
            own: switches.clone(),
            sessions: Rc::clone(&self.sessions),
            metrics: self.metrics.forward.clone(),
        };
        let forwarding = Forwarding::new(around, self.env.entropy.fresh16());
        peers.ears.forward_to(&forwarding);
        switches.connect(&forwarding);
        *self.forwarding.borrow_mut() = Some(forwarding);
    }
}

/// URLs of the clouds that have taken something of this cluster: those must hold its identity.
fn used_clouds(config: &NodeConfig, metadata: &Metadata) -> BTreeSet<String> {
    metadata.with(|state| {
        let clouds = config.placed_clouds().into_iter();
        clouds.filter(|cloud| state.is_in_use(&CloudName(cloud.name.clone()))).map(|cloud| cloud.url).collect()
    })
}
