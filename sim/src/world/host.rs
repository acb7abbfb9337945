//! One machine and the node process on it: started, asked, killed, cut from power, replaced.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::PathBuf,
    rc::{Rc, Weak},
};

use futures_util::future::{Either, select};
use tokio::sync::{mpsc, oneshot};
use velum_node::{
    config::{CloudConfig, KeyConfig, Listen, NodeConfig, PeersConfig, Size},
    env::{Env, network::Address},
    journal::{self, Journal, JournalIdentity, JournalSettings, StreamId},
    node::Node,
};
use velum_protocol::{
    admin::{Problem, Request, Response},
    format::journal::RECORDS_OFFSET,
    id::{ClusterId, Jseq, NodeId, VolumeId},
};

use super::program::{self, Command, Task};
use crate::{
    checker::seq4::Journaled,
    env::{self, Machine, Surroundings, disk::Loss},
    guest::connection::within,
    plan::Options,
    planted::Planted,
    rng::Rng,
    runtime::{Life, Process},
};

/// Where every node listens, on its own machine.
const NBD: &str = "127.0.0.1:10809";
/// The port that nodes find each other on.
const PEERS_PORT: u16 = 9891;

/// How the process on a host is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// No process.
    Down,
    /// Not serving yet.
    Starting,
    /// Serving.
    Up,
    /// It gave up, and why.
    Failed(String),
}

/// What those who look after a host of several know of it.
#[derive(Default)]
pub(super) struct Upkeep {
    /// What its process does before it serves.
    pub(super) task: RefCell<Task>,
    /// The end of its process at the I/O that was chosen is a loss of power.
    pub(super) at_next_end: Cell<Option<Loss>>,
    /// Somebody took it down and will start it again.
    pub(super) is_down: Cell<bool>,
    /// Guests wait to see what its machine's loss left.
    pub(super) is_mending: Cell<bool>,
    /// It is gone for good.
    pub(super) is_retired: Cell<bool>,
}

/// A machine with a node.
pub struct Host {
    around: Surroundings,
    machine: Machine,
    config: NodeConfig,
    secret: [u8; 32],
    rng: Rng,
    planted: Option<Planted>,
    lives: Cell<u64>,
    condition: Rc<RefCell<Condition>>,
    seen: Rc<RefCell<Weak<Node>>>,
    process: RefCell<Option<Process>>,
    commands: RefCell<Option<mpsc::Sender<Command>>>,
    pub(super) upkeep: Upkeep,
}

impl Host {
    /// A host called `name` with an empty disk, for the node with this number.
    #[must_use]
    pub fn new(
        around: &Surroundings,
        (name, node): (&str, u64),
        options: &Options,
        secret: [u8; 32],
        planted: Option<Planted>,
    ) -> Self {
        let rng = Rng::new(around.sim.seed(), name);
        let machine = Machine {
            clock_offset_ms: options.clock_offset_ms,
            clock_rate_ppm: clock_rate_ppm(options, node, &rng),
            compute_ms_max: options.compute_ms_max,
            ..Machine::new(name)
        };
        Self {
            around: around.clone(),
            machine,
            config: config(around, options, (name, node)),
            secret,
            rng,
            planted,
            lives: Cell::new(0),
            condition: Rc::new(RefCell::new(Condition::Down)),
            seen: Rc::default(),
            process: RefCell::default(),
            commands: RefCell::default(),
            upkeep: Upkeep::default(),
        }
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The node's number.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.config.node
    }

    /// How often a process was started on it.
    #[must_use]
    pub fn lives(&self) -> u64 {
        self.lives.get()
    }

    /// The node itself, for eyes that see more than operators do; none before it serves and after its process has ended.
    #[must_use]
    pub fn seen(&self) -> Option<Rc<Node>> {
        self.seen.borrow().upgrade().filter(|_| !self.has_ended())
    }

    /// True when the node serves and takes steps.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let takes_steps = |process: &Process| process.life().is_alive() && !process.life().is_paused();
        self.condition() == Condition::Up && self.process.borrow().as_ref().is_some_and(takes_steps)
    }

    /// The life of the process that runs.
    #[must_use]
    pub fn life(&self) -> Option<Rc<Life>> {
        self.process.borrow().as_ref().map(|process| Rc::clone(process.life()))
    }

    /// Where guests find the node.
    #[must_use]
    pub fn door(&self) -> (Rc<str>, Address) {
        (Rc::clone(&self.machine.name), Address::Tcp(NBD.to_owned()))
    }

    /// How the process is doing.
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.condition.borrow().clone()
    }

    /// Starts a process: a node, or what makes one first.
    pub fn start(&self, task: Task) {
        self.lives.set(self.lives.get() + 1);
        self.around.sim.event("start", &self.machine.name, &[self.lives.get()]);
        self.around.sim.count("process starts", 1);
        let life = Rc::<Life>::default();
        let mut env = self.env(&life);
        if let Some(planted) = self.planted {
            env = planted.into_env(&self.around, env, self.secret);
        }
        let (commands, received) = mpsc::channel(16);
        self.condition.replace(Condition::Starting);
        let shown = (Rc::clone(&self.condition), Rc::clone(&self.seen));
        let main = program::run(env, self.config.clone(), self.secret, task, received, shown);
        *self.commands.borrow_mut() = Some(commands);
        *self.process.borrow_mut() = Some(Process::start(&self.around.sim, life, main));
    }

    fn env(&self, life: &Rc<Life>) -> Env {
        env::of(&self.around, &self.machine, life, self.lives.get())
    }

    /// True when the process has ended by itself: at an I/O that the plan chose.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.process.borrow().as_ref().is_some_and(|process| !process.life().is_alive())
    }

    /// Completes when the process has ended by itself: at an I/O that the plan chose.
    pub async fn ended(&self) {
        match self.life() {
            Some(life) => life.ended().await,
            None => std::future::pending().await,
        }
    }

    /// The process is killed; the page cache stays.
    pub fn kill(&self) {
        self.end("kill");
        self.machine.medium.image.borrow_mut().drop_nameless();
    }

    /// The process is killed, and the page cache spoils a bit of what it had not synced of its journal. `false` when there was
    /// nothing of that.
    pub fn rot_end(&self) -> bool {
        self.kill();
        let dir = self.config.dir.join("journal");
        self.machine.medium.image.borrow_mut().rot_unsynced((&dir, "journal"), RECORDS_OFFSET, &self.rng)
    }

    /// The machine loses power.
    pub fn lose_power(&self, loss: Loss) {
        self.end("power loss");
        self.machine.medium.image.borrow_mut().crash(loss, &self.rng);
    }

    fn end(&self, how: &'static str) {
        self.around.sim.event(how, &self.machine.name, &[]);
        self.machine.medium.faults.end_after.set(None);
        *self.commands.borrow_mut() = None;
        drop(self.process.borrow_mut().take());
        self.seen.replace(Weak::new());
        self.condition.replace(Condition::Down);
    }

    /// What a start would find of each volume in the journal now, read from a copy of the disk. Only for a host whose
    /// process is down. `None` when it cannot be opened.
    pub async fn journaled(&self, cluster: ClusterId) -> Option<BTreeMap<VolumeId, Journaled>> {
        let copy = Machine::new(&format!("copy of {}", self.machine.name));
        copy.medium.image.replace(self.machine.medium.image.borrow().clone());
        let life = Rc::<Life>::default();
        let env = env::of(&self.around, &copy, &life, self.lives.get());
        let found = self.open_journal(&env, cluster).await;
        // What the journal had begun to do in the background is over.
        life.end();
        found
    }

    async fn open_journal(&self, env: &Env, cluster: ClusterId) -> Option<BTreeMap<VolumeId, Journaled>> {
        let dir = self.config.dir.join("journal");
        let settings = JournalSettings {
            file_bytes: self.config.journal.file_bytes.bytes(),
            files_at_start: usize::try_from(self.config.journal.files_initial).ok()?,
            bytes_max: self.config.journal.bytes_max.bytes(),
        };
        let identity = JournalIdentity { cluster, node: self.config.node };
        let (_, replay) =
            Journal::open(env, &dir, settings, identity).await.ok().filter(|(_, replay)| !replay.created)?;
        let mut journaled: BTreeMap<VolumeId, Journaled> = BTreeMap::new();
        for (stream, records) in replay.records {
            if let StreamId::Volume(volume) = stream {
                let found = records.iter().map(|(at, _)| Jseq(at.number)).collect();
                journaled.entry(volume).or_default().found = found;
            }
        }
        // The start has noted in a ring record what it knows to be trimmed.
        for name in env.disk.list(&dir).await.ok()? {
            let Ok(file) = journal::inspect(env, &dir.join(name)).await else { continue };
            for (stream, at) in
                file.records.iter().filter_map(|record| record.ring.as_ref()).flat_map(|ring| &ring.trims)
            {
                if let StreamId::Volume(volume) = stream {
                    let of = journaled.entry(*volume).or_default();
                    of.trimmed = of.trimmed.max(Jseq(at.number));
                }
            }
        }
        Some(journaled)
    }

    /// Asks the node as an operator does. `None` when the process ended, or has not answered within `limit_ms`.
    pub async fn admin(&self, request: Request, limit_ms: u64) -> Option<Result<Response, Problem>> {
        let (answer, answered) = oneshot::channel();
        let commands = self.commands.borrow().clone()?;
        let ask = async move {
            commands.send(Command::Admin(request, answer)).await.ok()?;
            answered.await.ok()
        };
        match select(Box::pin(within(&self.around.sim, limit_ms, ask)), Box::pin(self.ended())).await {
            Either::Left((answer, _)) => answer.flatten(),
            Either::Right(_) => None,
        }
    }

    /// Stops the node as an operator does; kills it when it has not stopped within `limit_ms`.
    pub async fn stop(&self, limit_ms: u64) -> bool {
        let (done, stopped) = oneshot::channel();
        let commands = self.commands.borrow().clone();
        let ask = async move {
            commands?.send(Command::Stop(done)).await.ok()?;
            stopped.await.ok()
        };
        let clean = within(&self.around.sim, limit_ms, ask).await.flatten().is_some();
        self.kill();
        clean
    }
}

/// The first node's clock runs as the options say, those of others are at most as far off.
fn clock_rate_ppm(options: &Options, node: u64, rng: &Rng) -> i64 {
    let most = options.clock_rate_ppm.abs();
    if node == 1 { options.clock_rate_ppm } else { rng.below(2 * most.unsigned_abs() + 1) as i64 - most }
}

fn config(around: &Surroundings, options: &Options, (name, node): (&str, u64)) -> NodeConfig {
    let cloud = |(url, cloud): (&String, &Rc<env::cloud::SimCloud>)| CloudConfig {
        name: cloud.name().to_owned(),
        url: url.clone(),
        options: std::collections::BTreeMap::new(),
    };
    let clouds = around.clouds.iter().map(cloud).collect();
    let mut config = NodeConfig::new(PathBuf::from("/velum"), clouds, KeyConfig::default());
    config.memory = Size::from_bytes(options.memory_bytes);
    config.plain_exports = true;
    config.node = NodeId(node);
    if options.nodes > 1 {
        let advertise = Some(Listen::tcp(&format!("{name}:{PEERS_PORT}")));
        config.peers = Some(PeersConfig { listen: Listen::tcp(&format!("0.0.0.0:{PEERS_PORT}")), advertise });
    }
    config.nbd.listen = vec![Listen::tcp(NBD)];
    config.journal.file_bytes = Size::from_bytes(options.journal_file_bytes);
    config.journal.files_initial = 2;
    config.journal.bytes_max = Size::from_bytes(options.journal_file_bytes * options.journal_files_max);
    config.flush.bytes = Size::from_bytes(options.flush_bytes);
    config.flush.interval = std::time::Duration::from_millis(options.flush_interval_ms);
    config.cache.disk_bytes = Size::from_bytes(options.cache_bytes);
    config.checkpoint.records = options.checkpoint_records;
    config.reclaim.grace = std::time::Duration::from_millis(options.reclaim_grace_ms);
    config.compact.live_percent = options.compact_live_percent;
    config
}
