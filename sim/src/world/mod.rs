//! A world: clouds, machines with a node each, guests, a plan, and the checkers that judge what comes of it.

mod agreement;
mod attach;
mod cluster;
mod departures;
mod director;
mod fall;
pub mod host;
mod phase;
mod place;
pub mod program;
mod rights;
mod settle;
pub mod watch;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use velum_node::keyring::ObjectId;
use velum_protocol::{
    admin::{CreateVolume, Request},
    id::NodeId,
};

use crate::{
    checker,
    env::{Surroundings, cloud::SimCloud, network::Wires},
    guest::workload::Guest,
    history::{StepCount, VolumeHistory},
    plan::{self, Event, Options},
    planted::Planted,
    rng::Rng,
    runtime::{Run, Sim, simulate},
    trace::Printer,
};
use cluster::Several;
use host::{Condition, Host};
use place::Misplaced;
use program::Task;
use watch::Watch;

/// What a world is made from.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Decides everything that the rest leaves open.
    pub seed: u64,
    /// The kind of world, when it is not drawn from the seed.
    pub options: Option<Options>,
    /// What goes wrong, when it is not drawn from the seed.
    pub events: Option<Vec<Event>>,
    /// A bug planted on purpose.
    pub planted: Option<Planted>,
}

impl Recipe {
    /// The world of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self { seed, options: None, events: None, planted: None }
    }

    /// Makes the world and lets it run to its end.
    pub fn run(self, printer: impl FnOnce() -> Option<Printer> + Send + 'static) -> Run<()> {
        simulate(self.seed, printer, |sim| Box::pin(async move { Rc::new(World::new(&sim, self)).run().await }))
    }
}

/// How long a node may take to serve after a start, everything being well, in simulated milliseconds.
const START_LIMIT_MS: u64 = 60_000;

/// A world under way.
struct World {
    sim: Rc<Sim>,
    rng: Rng,
    options: Options,
    events: Vec<Event>,
    around: Surroundings,
    secret: [u8; 32],
    planted: Option<Planted>,
    watch: Rc<Watch>,
    /// In the order of their coming; never empty.
    hosts: RefCell<Vec<Rc<Host>>>,
    /// Machines that there were.
    machines: Cell<u64>,
    /// What is kept about several nodes.
    several: Several,
    /// The node on which each volume was made, by its name.
    homes: RefCell<BTreeMap<String, NodeId>>,
    guests: Vec<Rc<Guest>>,
    steps: Rc<StepCount>,
    misplaced: RefCell<Option<Misplaced>>,
    /// What hosts and operators have asked about attachments and is not answered.
    asked: Rc<Cell<u32>>,
    /// Segments that nodes have sent.
    departed: RefCell<BTreeSet<ObjectId>>,
}

impl World {
    fn new(sim: &Rc<Sim>, recipe: Recipe) -> Self {
        let seed = recipe.seed;
        let options = recipe.options.unwrap_or_else(|| Options::of(seed, None));
        let events = recipe.events.unwrap_or_else(|| plan::draw(&options, &Rng::new(seed, "plan")));
        let rng = Rng::new(seed, "world");
        let mut secret = [0; 32];
        rng.fill(&mut secret);
        let wires = Wires::new(Rc::clone(sim), Rng::new(seed, "network"));
        wires.faults.delay_ms_max.set(options.network_ms_max);
        let clouds: BTreeMap<_, _> = ["a", "b", "c"][..options.clouds]
            .iter()
            .map(|name| (format!("memory:///{name}"), SimCloud::new(Rc::clone(sim), name)))
            .collect();
        for cloud in clouds.values() {
            cloud.faults.latency_ms_max.set(options.cloud_latency_ms_max);
        }
        let names: Vec<_> = (0..options.volume_blocks.len()).map(volume_name).collect();
        let quorum = options.clouds / 2 + 1;
        let watch = Watch::new(sim, clouds.values().cloned().collect(), quorum, secret, &names);
        let around = Surroundings { sim: Rc::clone(sim), wires, clouds: Rc::new(clouds) };
        let host = Rc::new(Host::new(&around, ("node-1", 1), &options, secret, recipe.planted));
        watch.disk(&host.machine().medium);
        let steps = Rc::<StepCount>::default();
        let guest = |(at, blocks): (usize, &u64)| {
            let first_op = (at as u64) << 32;
            let history = VolumeHistory::new(&names[at], blocks * 8, first_op, Rc::clone(&steps));
            let rng = Rng::new(seed, &format!("guest {at}"));
            let doors = vec![host.door()];
            let guest = Guest::new(Rc::clone(sim), Rc::clone(&around.wires), doors, history, options.load.clone(), rng);
            guest.is_cut.set(recipe.planted == Some(Planted::CutRequest));
            guest
        };
        let guests = options.volume_blocks.iter().enumerate().map(guest).collect();
        Self {
            sim: Rc::clone(sim),
            rng,
            options,
            events,
            around,
            secret,
            planted: recipe.planted,
            watch,
            hosts: RefCell::new(vec![host]),
            machines: Cell::new(1),
            several: Several::default(),
            homes: RefCell::default(),
            guests,
            steps,
            misplaced: RefCell::default(),
            asked: Rc::default(),
            departed: RefCell::default(),
        }
    }

    /// Any node, one that is well if there is one.
    fn host(&self) -> Rc<Host> {
        let hosts = self.hosts.borrow();
        Rc::clone(hosts.iter().find(|host| host.is_well()).unwrap_or(&hosts[0]))
    }

    fn hosts(&self) -> Vec<Rc<Host>> {
        self.hosts.borrow().clone()
    }

    /// The node that works on a guest's volume, or should.
    fn owner(&self, guest: &Guest) -> Rc<Host> {
        let owner = self.owner_number(guest);
        self.hosts().into_iter().find(|host| Some(host.node()) == owner).unwrap_or_else(|| self.host())
    }

    fn owner_number(&self, guest: &Guest) -> Option<NodeId> {
        if self.options.owners_must_return {
            return self.homes.borrow().get(&guest.export).copied();
        }
        let granted = |host: &Rc<Host>| {
            let node = host.seen()?;
            let state = node.metadata().state();
            state.volume_named(&guest.export).map(|(_, volume)| (volume.epoch, volume.owner))
        };
        self.hosts().iter().filter_map(granted).max().and_then(|(_, owner)| owner)
    }

    async fn run(self: Rc<Self>) {
        self.attach_guests();
        self.withhold_rights();
        self.watch_departures();
        self.look_at_phases();
        if !self.prepare().await {
            return;
        }
        if self.options.nodes > 1 {
            self.direct_several().await;
        } else {
            self.direct().await;
        }
        self.settle().await;
        if self.options.burns && !self.sim.has_failed() {
            self.burn().await;
        }
        for guest in &self.guests {
            for broken in checker::judge_guests(&guest.history.borrow()) {
                self.sim.fail(broken);
            }
        }
    }

    /// Makes the cluster and its volumes, in good weather.
    async fn prepare(self: &Rc<Self>) -> bool {
        self.host().start(Task::Up);
        if !self.await_up(START_LIMIT_MS).await {
            self.sim.fail(format!("the first start came to nothing: {:?}", self.host().condition()));
            return false;
        }
        if self.options.nodes > 1 && !self.gather().await {
            return false;
        }
        for guest in &self.guests {
            let hosts = self.hosts();
            let host = if hosts.len() > 1 { self.rng.pick(&hosts) } else { &hosts[0] };
            let create =
                CreateVolume { name: guest.export.clone(), size_bytes: guest.history.borrow().sectors() * 512 };
            match host.admin(Request::CreateVolume(create), START_LIMIT_MS).await {
                Some(Ok(_)) => {
                    self.homes.borrow_mut().insert(guest.export.clone(), host.node());
                    self.note_lineage(guest).await;
                    guest.start();
                }
                other => {
                    self.sim.fail(format!("volume {} was not made: {other:?}", guest.export));
                    return false;
                }
            }
        }
        true
    }

    /// Waits until the node serves; `false` when it does not within `limit_ms`.
    async fn await_up(&self, limit_ms: u64) -> bool {
        let until = self.sim.now_ms() + limit_ms;
        while self.sim.now_ms() < until {
            match self.host().condition() {
                Condition::Up => return true,
                Condition::Starting if self.host().has_ended() => return false,
                Condition::Starting => self.sim.sleep_ms(10).await,
                Condition::Down | Condition::Failed(_) => return false,
            }
        }
        false
    }
}

/// Names long enough to look for: sixteen bytes and at least eight distinct ones.
fn volume_name(at: usize) -> String {
    format!("quartz-vault-{at}-zebra")
}
