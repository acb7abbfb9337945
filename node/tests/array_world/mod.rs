//! A cluster of one node's array over three clouds in memory, in virtual time, that can crash and come back.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod clouds;
pub(crate) mod port;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use clouds::{Eyes, MemoryCloud, MemoryClouds, pause};
use port::{Journal, Port};
use tokio::task::LocalSet;
use velum_node::{
    array::{
        ArrayContext, ArraySettings, Catalogue, VolumeArray, closure,
        copies::Copies,
        flush::machine::Triggers,
        life,
        reclaim::retire,
        recover::{CloudAt, Plan, RecoverError, Recovered, Verify, recover},
    },
    audit::Audit,
    cloud::{
        Cloud, CloudSet,
        identity::{Identity, Place},
    },
    env::{
        Clock, Compute, Disk, Entropy, Env, File, Instant, Listener, Local, Network, OpenMode, Urgency, WallTime,
        network::Address,
    },
    extent::ExtentMap,
    keyring::{self, IDENTITY_NAME, KeySet, Keyring, ProviderSecret, slots_name},
    metadata::{
        Answer, Metadata, Proposer, State, Unknown,
        state::{CloudEntry, VolumeState},
    },
    metrics::Metrics,
};
use velum_protocol::{
    format::{
        location::Frame,
        metadata::{CloudName, Command},
    },
    id::{BlockIndex, Epoch, Incarnation, KeyEpoch, NodeId, ObjectNumber, VolumeId},
};

pub(crate) const VOLUME: VolumeId = VolumeId([7; 16]);
/// Two leaves and a bit.
pub(crate) const BLOCKS: u64 = 8300;
pub(crate) const CLOUDS: [&str; 3] = ["a", "b", "c"];

/// Something was stored there.
const USED: Place = Place { may_be_new: false, is_shared: false };

/// A small generator; the same seed gives the same run.
pub(crate) struct Rng(Cell<u64>);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    pub(crate) fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn index(&self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }
}

struct VirtualClock(tokio::time::Instant);

#[expect(clippy::disallowed_methods, reason = "the virtual clock of these tests is tokio's paused one")]
impl Clock for VirtualClock {
    fn now(&self) -> Instant {
        Instant(u64::try_from(self.0.elapsed().as_micros()).unwrap())
    }

    fn wall(&self) -> WallTime {
        WallTime(0)
    }

    fn sleep(&self, duration: Duration) -> Local<()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

struct Counting(Rc<Cell<u64>>);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.set(self.0.get() + 1);
        blake3::Hasher::new().update(&self.0.get().to_le_bytes()).finalize_xof().fill(bytes);
    }
}

struct Inline;

impl Compute for Inline {
    fn run(&self, _: Urgency, job: Box<dyn FnOnce() + Send>) -> Local<()> {
        job();
        Box::pin(async { pause(1).await })
    }
}

struct Nothing;

impl Disk for Nothing {
    fn open(&self, _: &std::path::Path, _: OpenMode) -> Local<std::io::Result<Rc<dyn File>>> {
        unreachable!("the array uses no disk")
    }
    fn list(&self, _: &std::path::Path) -> Local<std::io::Result<Vec<String>>> {
        unreachable!("the array uses no disk")
    }
    fn create_dir_all(&self, _: &std::path::Path) -> Local<std::io::Result<()>> {
        unreachable!("the array uses no disk")
    }
    fn rename(&self, _: &std::path::Path, _: &std::path::Path) -> Local<std::io::Result<()>> {
        unreachable!("the array uses no disk")
    }
    fn remove(&self, _: &std::path::Path) -> Local<std::io::Result<()>> {
        unreachable!("the array uses no disk")
    }
    fn sync_dir(&self, _: &std::path::Path) -> Local<std::io::Result<()>> {
        unreachable!("the array uses no disk")
    }
    fn boot(&self) -> Local<std::io::Result<velum_protocol::id::BootId>> {
        unreachable!("the array uses no disk")
    }
    fn lock(&self, _: std::path::PathBuf) -> Local<std::io::Result<Box<dyn std::any::Any>>> {
        unreachable!("the array uses no disk")
    }
}

impl Network for Nothing {
    fn listen(&self, _: &Address) -> Local<std::io::Result<Rc<dyn Listener>>> {
        unreachable!("the array listens nowhere")
    }
}

/// Raft of one: applies, and sometimes does not answer, before or after applying.
struct Raft {
    state: Rc<RefCell<State>>,
    rng: Rc<Rng>,
    failures: Rc<Cell<u64>>,
    alive: Rc<Cell<bool>>,
}

impl Proposer for Raft {
    fn propose(&self, entry: Bytes) -> Local<Result<Bytes, Unknown>> {
        let (state, rng) = (Rc::clone(&self.state), Rc::clone(&self.rng));
        let (failures, alive) = (self.failures.get(), Rc::clone(&self.alive));
        Box::pin(async move {
            pause(1 + rng.below(3)).await;
            if !alive.get() {
                std::future::pending::<()>().await;
            }
            let fault = rng.below(200);
            if fault < failures {
                return Err(Unknown("made to fail".into()));
            }
            let answer = state.borrow_mut().apply_encoded(&entry);
            if fault < 2 * failures {
                return Err(Unknown("made to fail".into()));
            }
            pause(1).await;
            Ok(answer)
        })
    }
}

/// Everything that outlives a crash of the node.
pub(crate) struct World {
    pub(crate) rng: Rc<Rng>,
    pub(crate) clouds: BTreeMap<String, Rc<MemoryCloud>>,
    pub(crate) state: Rc<RefCell<State>>,
    pub(crate) journal: Rc<Journal>,
    pub(crate) keyring: Keyring,
    pub(crate) settings: Cell<ArraySettings>,
    pub(crate) raft_failures: Rc<Cell<u64>>,
    identity: Identity,
    secret: [u8; 32],
    entropy: Rc<Cell<u64>>,
    started: tokio::time::Instant,
}

/// One life of the node's process.
pub(crate) struct Process {
    alive: Rc<Cell<bool>>,
    pub(crate) local: LocalSet,
    pub(crate) array: VolumeArray,
    pub(crate) catalogue: Catalogue,
    pub(crate) port: Rc<Port>,
    pub(crate) copies: Rc<Copies>,
}

/// Runs a test in virtual time.
pub(crate) fn run(seed: u64, test: impl AsyncFnOnce(Rc<World>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async { test(World::new(seed)).await });
}

pub(crate) fn settings() -> ArraySettings {
    ArraySettings {
        flush: Triggers { bytes: 32 * 4096, interval: Duration::from_secs(5) },
        checkpoint_records: 6,
        checkpoint_bytes: 1 << 20,
        reclaim_grace: Duration::from_secs(20),
        compact_live_percent: 0,
    }
}

fn secret(bytes: [u8; 32]) -> ProviderSecret {
    ProviderSecret::from_keyfile(0o600, bytes.to_vec()).unwrap()
}

impl World {
    fn new(seed: u64) -> Rc<Self> {
        let rng = Rc::new(Rng::new(seed));
        let entropy = Rc::new(Cell::new(seed << 32));
        let random = Counting(Rc::clone(&entropy));
        let key = random.fresh32();
        let cluster = keyring::create_cluster(&random, &secret(key)).unwrap();
        let entries = CLOUDS.map(|name| CloudEntry { name: CloudName(name.into()), url: format!("memory:///{name}") });
        let mut state = State::new(cluster.keyring.cluster(), entries.to_vec(), 2);
        let keys = cluster.keyring.new_volume_keys(&random, VOLUME, KeyEpoch(1));
        state.volumes.insert(VOLUME, VolumeState::new("demo".into(), BLOCKS * 4096, keys, Vec::new(), 0));
        let ledger = Rc::default();
        let clouds: BTreeMap<String, Rc<MemoryCloud>> = CLOUDS
            .map(|name| (name.to_owned(), MemoryCloud::new(name, Rc::clone(&rng), Rc::clone(&ledger))))
            .into_iter()
            .collect();
        let world = Rc::new(Self {
            rng,
            clouds,
            state: Rc::new(RefCell::new(state)),
            journal: Rc::default(),
            keyring: cluster.keyring,
            settings: Cell::new(settings()),
            raft_failures: Rc::default(),
            identity: Identity {
                object: cluster.identity_object.clone(),
                slots: cluster.slots_object.clone(),
                generation: 1,
            },
            secret: key,
            entropy,
            started: tokio::time::Instant::now(),
        });
        for cloud in world.clouds.values() {
            cloud.keep_fixed(IDENTITY_NAME, cluster.identity_object.clone());
            cloud.keep_fixed(&slots_name(1), cluster.slots_object.clone());
        }
        world.look_with_keys();
        world
    }

    /// Gives the clouds' watchers the keys as the metadata has them now.
    pub(crate) fn look_with_keys(&self) {
        let state = self.state.borrow();
        let keys = state.volumes.iter().map(|(id, volume)| self.keyring.key_set(*id, &volume.keys).unwrap()).collect();
        let eyes = Eyes { keyring: self.keyring.clone(), keys: Rc::new(RefCell::new(keys)) };
        for cloud in self.clouds.values() {
            *cloud.eyes.borrow_mut() = Some(eyes.clone());
        }
    }

    pub(crate) fn keys(&self) -> KeySet {
        self.keyring.key_set(VOLUME, &self.state.borrow().volumes[&VOLUME].keys).unwrap()
    }

    pub(crate) fn cloud(&self, name: &str) -> &Rc<MemoryCloud> {
        &self.clouds[name]
    }

    pub(crate) fn env(&self, alive: &Rc<Cell<bool>>) -> Env {
        Env {
            clock: Rc::new(VirtualClock(self.started)),
            entropy: Rc::new(Counting(Rc::clone(&self.entropy))),
            disk: Rc::new(Nothing),
            network: Rc::new(Nothing),
            clouds: Rc::new(MemoryClouds { clouds: self.clouds.clone(), alive: Rc::clone(alive) }),
            compute: Rc::new(Inline),
        }
    }

    /// Starts the node: takes ownership, rebuilds the map from the clouds, replays the journal.
    pub(crate) async fn start(self: &Rc<Self>) -> Process {
        let alive = Rc::new(Cell::new(true));
        let local = LocalSet::new();
        let (own, alive_there) = (Rc::clone(self), Rc::clone(&alive));
        let (array, catalogue, port, copies) = local.run_until(async move { own.assemble(&alive_there).await }).await;
        Process { alive, local, array, catalogue, port, copies }
    }

    async fn assemble(&self, alive: &Rc<Cell<bool>>) -> (VolumeArray, Catalogue, Rc<Port>, Rc<Copies>) {
        let env = self.env(alive);
        let proposer = Raft {
            state: Rc::clone(&self.state),
            rng: Rc::clone(&self.rng),
            failures: Rc::clone(&self.raft_failures),
            alive: Rc::clone(alive),
        };
        let metadata = Metadata::new(Rc::clone(&self.state), Rc::new(proposer), Rc::clone(&env.entropy));
        let metrics = Arc::new(Metrics::new());
        let open = |name: &str| {
            let store = env.clouds.open(&format!("memory:///{name}"), &BTreeMap::new()).unwrap();
            Cloud::new(&env, CloudName(name.into()), store, (self.identity.clone(), USED), metrics.cloud(name))
        };
        let set = Rc::new(CloudSet { clouds: CLOUDS.iter().map(|name| open(name)).collect(), quorum: 2 });
        let after = self.state.borrow().volumes[&VOLUME].epoch;
        let grant = Command::GrantOwner { volume: VOLUME, node: NodeId(1), after };
        let epoch = self.apply(grant);
        let copies = Copies::new(self.keyring.clone(), Rc::clone(&set), Rc::clone(&env.clock));
        let state = self.state.borrow().volumes[&VOLUME].clone();
        let map = rebuild(&copies, &self.keys(), &state).await;
        let port = Port::open(VOLUME, epoch, Rc::clone(&env.clock), Rc::clone(&self.journal), map, state.head.last);
        let audit = Rc::new(Audit::new(Rc::clone(&env.clock), Arc::clone(&metrics)));
        let context = ArrayContext::new(
            &env,
            NodeId(1),
            metadata,
            self.keyring.clone(),
            set,
            audit,
            metrics,
            self.settings.get(),
        );
        let array = VolumeArray::start(&context, VOLUME, epoch, port.clone()).unwrap();
        let catalogue = Catalogue::start(&context);
        retire::start(&context, &catalogue);
        life::watch(&context);
        (array, catalogue, port, copies)
    }

    pub(crate) fn apply(&self, command: Command) -> Epoch {
        let mut request = [0; 16];
        Counting(Rc::clone(&self.entropy)).fill(&mut request);
        let proposal = velum_protocol::format::metadata::Proposal {
            request: velum_protocol::format::metadata::RequestId(request),
            command,
        };
        match self.state.borrow_mut().apply(&proposal).unwrap() {
            Answer::Epoch(epoch) => epoch,
            _ => Epoch(0),
        }
    }

    /// Recovers from some of the clouds.
    pub(crate) async fn recover(&self, from: &[&str], verify: Verify) -> Result<Recovered, RecoverError> {
        let at = |name: &&str| CloudAt {
            name: CloudName((*name).into()),
            url: format!("memory:///{name}"),
            options: BTreeMap::new(),
        };
        let missing: BTreeSet<CloudName> =
            CLOUDS.iter().filter(|name| !from.contains(name)).map(|name| CloudName((*name).into())).collect();
        let plan = Plan {
            clouds: from.iter().map(at).collect(),
            secret: secret(self.secret),
            accept_missing: missing,
            verify,
        };
        recover(&self.env(&Rc::new(Cell::new(true))), &plan, &|_| {}).await
    }

    /// What the volume of a state holds, read from some of the clouds.
    pub(crate) async fn image(&self, state: &State, from: &[&str]) -> BTreeMap<BlockIndex, Bytes> {
        let env = self.env(&Rc::new(Cell::new(true)));
        let metrics = Metrics::new();
        let open = |name: &&str| {
            let store = env.clouds.open(&format!("memory:///{name}"), &BTreeMap::new()).unwrap();
            Cloud::new(&env, CloudName((*name).into()), store, (self.identity.clone(), USED), metrics.cloud(name))
        };
        let set = Rc::new(CloudSet { clouds: from.iter().map(open).collect(), quorum: 1 });
        let copies = Copies::new(self.keyring.clone(), set, Rc::clone(&env.clock));
        let volume = &state.volumes[&VOLUME];
        let keys = self.keyring.key_set(VOLUME, &volume.keys).unwrap();
        let mut map = rebuild(&copies, &keys, volume).await;
        read_all(&copies, &keys, &mut map).await
    }
}

impl Process {
    /// Lets the node work for some virtual time.
    pub(crate) async fn work(&self, milliseconds: u64) {
        self.local.run_until(pause(milliseconds)).await;
    }

    pub(crate) async fn flush(&self) {
        let array = self.array.clone();
        self.local.run_until(async move { array.flush().await.unwrap() }).await;
    }

    pub(crate) async fn checkpoint(&self) {
        let array = self.array.clone();
        self.local.run_until(async move { array.checkpoint().await.unwrap() }).await;
    }

    pub(crate) async fn publish_catalogue(&self) {
        let catalogue = self.catalogue.clone();
        self.local.run_until(async move { catalogue.published().await }).await;
    }

    /// Works until every cloud holds everything, as far as Raft knows.
    pub(crate) async fn settle(&self) {
        for _ in 0..4000 {
            let status = self.array.status();
            let behind = |lag: &velum_node::array::CloudLag| lag.records > 0 || lag.checkpoint < status.checkpoint;
            if status.dirty_bytes == 0 && !status.clouds.values().any(behind) {
                return;
            }
            self.work(100).await;
        }
        panic!("the clouds do not settle: {:?}", self.array.status());
    }

    /// Ends the process at this instant; nothing of it takes effect any more.
    pub(crate) fn crash(self) {
        self.alive.set(false);
    }
}

/// The map of a volume: its newest checkpoint and the records behind it.
async fn rebuild(copies: &Rc<Copies>, keys: &KeySet, state: &VolumeState) -> ExtentMap {
    let mut map = match &state.checkpoint {
        None => ExtentMap::empty(state.size_bytes / 4096),
        Some(checkpoint) => {
            let root = loop {
                match closure::read_root(copies, keys, &checkpoint.root).await {
                    Ok(root) => break root,
                    Err(_) => pause(100).await,
                }
            };
            ExtentMap::from_root(checkpoint.root.clone(), &root.payload)
        }
    };
    let since = state.checkpoint.as_ref().map_or(velum_protocol::id::Seq(0), |checkpoint| checkpoint.seq);
    for (seq, record) in state.records.range(since.next()..) {
        let life = keys.record_incarnation(*seq, &record.record).unwrap();
        let opened = keys.open_record((life, *seq), &record.record).unwrap();
        opened.body.segments.iter().for_each(|segment| map.add_segment(segment));
        opened.body.updates.iter().for_each(|update| map.apply(update).unwrap());
    }
    map
}

/// Reads every mapped block.
async fn read_all(copies: &Rc<Copies>, keys: &KeySet, map: &mut ExtentMap) -> BTreeMap<BlockIndex, Bytes> {
    let mut mapped = Vec::new();
    loop {
        match map.lookup(BlockIndex(0), BLOCKS, &mut mapped) {
            Ok(()) => break,
            Err(needed) => {
                let payload = closure::read_page_bytes(copies, keys, &needed.0).await.unwrap();
                map.page_loaded(&needed.0, &payload).unwrap();
            }
        }
    }
    let mut image = BTreeMap::new();
    let mut segments: BTreeMap<(Incarnation, ObjectNumber), Bytes> = BTreeMap::new();
    for run in mapped {
        let Some(frame) = run.location else { continue };
        let name = (frame.incarnation, frame.segment);
        if let std::collections::btree_map::Entry::Vacant(place) = segments.entry(name) {
            place.insert(read_segment(copies, keys, name).await);
        }
        let plain = open_frame(keys, &frame, &segments[&name]);
        for block in run.start.0..run.start.0 + run.count {
            let at = usize::try_from(block - frame.start.0).unwrap() * 4096;
            image.insert(BlockIndex(block), plain.slice(at..at + 4096));
        }
    }
    image
}

/// Reads a segment from the first cloud whose copy opens in all its parts.
async fn read_segment(copies: &Rc<Copies>, keys: &KeySet, name: (Incarnation, ObjectNumber)) -> Bytes {
    let id = keys.id(keyring::ObjectKind::Segment, name.0, name.1.0);
    let whole = |stored: &Bytes| keys.verify_segment(name, stored).is_ok();
    copies.read_where(&id, 64 << 20, None, whole).await.unwrap()
}

fn open_frame(keys: &KeySet, frame: &Frame, stored: &Bytes) -> Bytes {
    let binding = velum_protocol::format::bind::BlockFrame {
        cluster: keys.cluster(),
        volume: keys.volume(),
        key_epoch: frame.key_epoch,
        incarnation: frame.incarnation,
        segment: frame.segment,
        frame: frame.frame,
        start: frame.start,
        blocks: frame.blocks,
        codec: velum_protocol::format::bind::FrameCodec::Stored,
    };
    let at = frame.offset as usize;
    let sealed = &stored[at..at + frame.sealed_bytes() as usize];
    keys.epoch(frame.key_epoch).unwrap().block.open(&binding.aad(), sealed).unwrap().into()
}
