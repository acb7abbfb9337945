//! A whole cluster in virtual time: one node as it is shipped, on a disk that crashes, over three clouds in memory that fail and
//! are watched (`array_world::clouds`), with guests that speak NBD.
//!
//! Dropping a process's `LocalSet` is the crash of that process. The clouds assert on their own that they stay closed, that no
//! name is stored with two contents and that nothing comes back after it was deleted.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

#[path = "../array_world/clouds.rs"]
pub mod clouds;
pub mod guest;
#[path = "../support/mod.rs"]
pub mod support;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use clouds::{Eyes, MemoryCloud, MemoryClouds, pause};
use guest::{Guest, Ports};
use support::{Crash, CrashDisk};
use tokio::task::LocalSet;
use velum_node::{
    array::recover::{self, CloudAt, Plan, RecoverError, Recovered, Verify},
    config::{CloudConfig, KeyConfig, NodeConfig, Size},
    env::{Env, Instant},
    keyring::{self, KeySet, Keyring, ObjectId, ObjectKind, ProviderSecret},
    metadata::State,
    node::{self, Layout, Node, StartError},
};
use velum_protocol::{
    admin::{CreateVolume, Problem, Request, Response},
    format::metadata::CloudName,
    id::{Seq, VolumeId},
};

pub(crate) use support::Rng;

pub const CLOUDS: [&str; 3] = ["a", "b", "c"];
/// Two leaves of the extent map.
pub const BLOCKS: u64 = 4200;

/// Everything that outlives a process.
pub struct Cluster {
    pub rng: Rc<Rng>,
    pub clouds: BTreeMap<String, Rc<MemoryCloud>>,
    pub disk: RefCell<CrashDisk>,
    pub config: RefCell<NodeConfig>,
    pub secret: Cell<[u8; 32]>,
    pub eyes: RefCell<Option<Eyes>>,
    /// The clouds' URLs are not understood.
    pub misunderstood: Cell<bool>,
    /// Somebody else has the node's addresses.
    pub ports_taken: Cell<bool>,
    seeds: Cell<u64>,
}

/// One life of the node's process.
pub struct Process {
    pub node: Rc<Node>,
    pub local: LocalSet,
    pub ports: Rc<Ports>,
    cluster: Rc<Cluster>,
    alive: Rc<Cell<bool>>,
}

/// Runs a test in virtual time.
pub fn run<T>(seed: u64, test: impl AsyncFnOnce(Rc<Cluster>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async move { test(Cluster::new(seed)).await })
}

pub fn secret(bytes: [u8; 32]) -> ProviderSecret {
    ProviderSecret::from_keyfile(0o600, bytes.to_vec()).unwrap()
}

fn config() -> NodeConfig {
    let cloud =
        |name: &str| CloudConfig { name: name.into(), url: format!("memory:///{name}"), options: BTreeMap::new() };
    let mut config = NodeConfig::new(PathBuf::from("/node"), CLOUDS.map(cloud).into(), KeyConfig::default());
    config.plain_exports = true;
    config.journal.file_bytes = Size::mib(1);
    config.journal.files_initial = 2;
    config.journal.bytes_max = Size::mib(64);
    config.memory = Size::mib(64);
    config.cache.disk_bytes = Size::mib(0);
    config.checkpoint.records = 4;
    config.flush.interval = Duration::from_secs(3600);
    config.reclaim.grace = Duration::from_secs(0);
    config
}

impl Cluster {
    pub fn new(seed: u64) -> Rc<Self> {
        let rng = Rc::new(Rng::new(seed));
        let ledger = Rc::default();
        let cloud = |name: &str| (name.to_owned(), MemoryCloud::new(name, Rc::clone(&rng), Rc::clone(&ledger)));
        let clouds = CLOUDS.iter().map(|name| cloud(name)).collect();
        Rc::new(Self {
            clouds,
            disk: RefCell::new(CrashDisk::new()),
            config: RefCell::new(config()),
            secret: Cell::new(std::array::from_fn(|place| u8::try_from(place * 7 + 11).unwrap())),
            eyes: RefCell::default(),
            misunderstood: Cell::new(false),
            ports_taken: Cell::new(false),
            seeds: Cell::new(seed << 32),
            rng,
        })
    }

    pub fn cloud(&self, name: &str) -> &Rc<MemoryCloud> {
        &self.clouds[name]
    }

    /// The world as a process that is alive sees it.
    pub fn env(&self, alive: &Rc<Cell<bool>>, ports: &Rc<Ports>) -> Env {
        self.seeds.set(self.seeds.get() + 1);
        let known = if self.misunderstood.get() { BTreeMap::new() } else { self.clouds.clone() };
        let clouds = Rc::new(MemoryClouds { clouds: known, alive: Rc::clone(alive) });
        let network = Rc::clone(ports) as Rc<dyn velum_node::env::Network>;
        Env { clouds, network, ..support::env(&self.disk.borrow(), self.seeds.get()) }
    }

    pub fn lone_env(&self) -> Env {
        self.env(&Rc::new(Cell::new(true)), &Rc::default())
    }

    pub fn layout(&self) -> Layout {
        Layout::new(&self.config.borrow().dir)
    }

    /// Makes the cluster.
    pub async fn create(&self) -> Result<(), StartError> {
        let config = self.config.borrow().clone();
        node::create(&self.lone_env(), &config, &secret(self.secret.get())).await?;
        self.open_eyes();
        Ok(())
    }

    /// Lets the watchers of the clouds read what is stored, with the node's copies of the key objects.
    pub fn open_eyes(&self) {
        let (disk, layout) = (self.disk.borrow(), self.layout());
        let (identity, slots) = (disk.bytes(&layout.identity()), disk.bytes(&layout.slots()));
        let keyring = keyring::open_cluster(&identity, &slots, &secret(self.secret.get())).unwrap();
        let eyes = Eyes { keyring, keys: Rc::default() };
        for cloud in self.clouds.values() {
            *cloud.eyes.borrow_mut() = Some(eyes.clone());
        }
        *self.eyes.borrow_mut() = Some(eyes);
    }

    pub fn keyring(&self) -> Keyring {
        self.eyes.borrow().as_ref().unwrap().keyring.clone()
    }

    /// Tells the watchers the keys of the volumes.
    pub fn learn(&self, state: &State) {
        let eyes = self.eyes.borrow();
        let eyes = eyes.as_ref().unwrap();
        let keys = state.volumes.iter().map(|(id, volume)| eyes.keyring.key_set(*id, &volume.keys).unwrap());
        eyes.keys.borrow_mut().extend(keys);
    }

    pub fn keys_of(&self, volume: VolumeId) -> KeySet {
        let eyes = self.eyes.borrow();
        let keys = eyes.as_ref().unwrap().keys.borrow();
        keys.iter().rev().find(|keys| keys.volume() == volume).unwrap().clone()
    }

    /// Starts the node.
    pub async fn try_start(self: &Rc<Self>) -> Result<Process, StartError> {
        let (alive, ports, local) = (Rc::new(Cell::new(true)), Rc::<Ports>::default(), LocalSet::new());
        ports.taken.set(self.ports_taken.get());
        let (env, config) = (self.env(&alive, &ports), self.config.borrow().clone());
        let key = secret(self.secret.get());
        let started = local.run_until(Node::start(env, config, &key)).await;
        let node = Rc::new(started?);
        if self.eyes.borrow().is_none() {
            self.open_eyes();
        }
        self.learn(&node.metadata().state());
        Ok(Process { node, local, ports, cluster: Rc::clone(self), alive })
    }

    pub async fn start(self: &Rc<Self>) -> Process {
        self.try_start().await.unwrap()
    }

    /// A new cluster with a running node and a volume.
    pub async fn founded(self: &Rc<Self>) -> Process {
        self.create().await.unwrap();
        let process = self.start().await;
        process.create_volume("demo", BLOCKS * 4096).await.unwrap();
        process
    }

    /// How a recovery from these clouds is asked for; the others are accepted as missing.
    pub fn plan(&self, from: &[&str], missing: &[&str], verify: Verify) -> Plan {
        let at = |name: &&str| CloudAt {
            name: CloudName((*name).into()),
            url: format!("memory:///{name}"),
            options: BTreeMap::new(),
        };
        Plan {
            clouds: from.iter().map(at).collect(),
            secret: secret(self.secret.get()),
            accept_missing: missing.iter().map(|name| CloudName((*name).into())).collect::<BTreeSet<_>>(),
            verify,
        }
    }

    pub async fn recover(&self, from: &[&str], missing: &[&str], verify: Verify) -> Result<Recovered, RecoverError> {
        recover::recover(&self.lone_env(), &self.plan(from, missing, verify), &|_| {}).await
    }

    /// Puts what was recovered on a new disk, for a node over all three clouds of the config.
    pub async fn adopt(&self, recovered: &Recovered) {
        *self.disk.borrow_mut() = CrashDisk::new();
        let mut state = recovered.state.clone();
        state.clouds = node::cloud_entries(&self.config.borrow());
        let config = self.config.borrow().clone();
        node::adopt(&self.lone_env(), &config, &recovered.identity, &recovered.keyring, &state).await.unwrap();
        self.open_eyes();
        self.learn(&state);
    }

    /// Makes it as if no recovery had ever claimed a life.
    pub fn lose_claims(&self) {
        for cloud in self.clouds.values() {
            for (name, id) in cloud.names() {
                if id.is_some_and(|id| id.kind == ObjectKind::Claim) {
                    cloud.forget(&name);
                }
            }
        }
    }

    /// Copies of a cloud's contents and all that is known of it.
    pub fn contents(&self) -> Vec<BTreeMap<String, bytes::Bytes>> {
        self.clouds.values().map(|cloud| cloud.contents()).collect()
    }

    /// Objects that the metadata refers to, or what it refers to does, and that some clouds lack.
    pub fn differences(&self, state: &State) -> BTreeSet<(String, ObjectId)> {
        let live = |cloud: &Rc<MemoryCloud>| cloud.closure_of(|id| is_referred_to(state, id));
        let all: BTreeSet<ObjectId> = self.clouds.values().flat_map(live).collect();
        let lacking = |cloud: &Rc<MemoryCloud>| {
            let (name, ids) = (cloud.name.clone(), cloud.ids());
            all.iter().filter(move |id| !ids.contains(id)).map(move |id| (name.clone(), *id)).collect::<Vec<_>>()
        };
        self.clouds.values().flat_map(lacking).collect()
    }

    /// True when every cloud has the newest record of the catalogue.
    fn has_catalogue_everywhere(&self, state: &State) -> bool {
        let newest = Keyring::catalogue_id(state.incarnation, state.catalogue.0);
        let everywhere = self.clouds.values().all(|cloud| cloud.ids().contains(&newest));
        state.catalogue_shown == state.catalogue_wanted && everywhere
    }
}

/// True for what the metadata itself names.
fn is_referred_to(state: &State, id: &ObjectId) -> bool {
    let volume = state.volumes.get(&id.volume);
    let checkpoint = volume.and_then(|volume| volume.checkpoint.as_ref());
    match id.kind {
        ObjectKind::Claim => true,
        ObjectKind::Catalogue => (id.incarnation, id.number) == (state.incarnation, state.catalogue.0),
        ObjectKind::Record => volume
            .and_then(|volume| volume.records.get(&Seq(id.number)))
            .is_some_and(|record| record.incarnation == id.incarnation),
        ObjectKind::Root => {
            checkpoint.is_some_and(|known| (known.root.incarnation, known.root.number.0) == (id.incarnation, id.number))
        }
        ObjectKind::Stub => {
            checkpoint.is_some_and(|known| (known.root.incarnation, known.number) == (id.incarnation, id.number))
        }
        ObjectKind::Segment | ObjectKind::Page => false,
    }
}

impl Process {
    /// Runs work on the node's thread.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.local.run_until(work).await
    }

    /// Lets the node work for some virtual time.
    pub async fn work(&self, milliseconds: u64) {
        self.run(pause(milliseconds)).await;
    }

    pub async fn admin(&self, request: Request) -> Result<Response, Problem> {
        self.run(self.node.admin("anonymous", request)).await
    }

    pub async fn create_volume(&self, name: &str, size_bytes: u64) -> Result<VolumeId, Problem> {
        let create = CreateVolume { name: name.into(), size_bytes };
        let own = async {
            let created = self.node.admin("anonymous", Request::CreateVolume(create)).await;
            self.cluster.learn(&self.node.metadata().state());
            created
        };
        self.run(own).await?;
        Ok(self.volume(name))
    }

    pub fn volume(&self, name: &str) -> VolumeId {
        self.node.metadata().with(|state| state.volume_named(name).unwrap().0)
    }

    pub fn state(&self) -> State {
        self.node.metadata().state().clone()
    }

    pub async fn flush(&self, name: &str) -> Result<Response, Problem> {
        self.admin(Request::FlushVolume { name: name.into() }).await
    }

    pub async fn connect(&self, export: &str) -> Guest {
        self.run(Guest::connect(&self.ports, export)).await.unwrap()
    }

    /// Waits until `reached` says so.
    ///
    /// # Panics
    /// After an hour of virtual time.
    pub async fn until(&self, what: &str, reached: impl Fn(&State) -> bool) {
        for _ in 0..7200 {
            if self.node.metadata().with(&reached) {
                return;
            }
            self.work(500).await;
        }
        panic!("never: {what}; {:#?}", self.node.metadata().state());
    }

    /// Waits until every cloud has everything of every volume.
    pub async fn converge(&self) {
        self.until("all cursors at the head", |state| {
            let volumes = state.volumes.values().all(|volume| {
                state.clouds.iter().all(|cloud| {
                    let newest = volume.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.number);
                    let held = volume.checkpoint_cursors.get(&cloud.name).copied().unwrap_or_default();
                    let cursor = volume.cursors.get(&cloud.name).copied().unwrap_or_default();
                    cursor == volume.head.seq && held == newest
                })
            });
            volumes && self.cluster.has_catalogue_everywhere(state)
        })
        .await;
    }

    /// The process dies.
    pub fn crash(self, how: Crash) {
        let cluster = Rc::clone(&self.cluster);
        self.alive.set(false);
        drop(self);
        let after = cluster.disk.borrow().after(how, &cluster.rng);
        *cluster.disk.borrow_mut() = after;
    }

    /// The node stops as it is asked to.
    pub async fn stop(self) {
        let Self { node, local, cluster, alive, .. } = self;
        let node = Rc::into_inner(node).expect("nobody else holds the node");
        local.run_until(node.stop()).await;
        alive.set(false);
        drop(local);
        let after = cluster.disk.borrow().after(Crash::Process, &cluster.rng);
        *cluster.disk.borrow_mut() = after;
    }
}

/// Now, for messages.
pub fn now(env: &Env) -> Instant {
    env.clock.now()
}
