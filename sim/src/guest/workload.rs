//! What a guest does: many requests in flight on several connections, over and over, until it is told to stop.

use std::{
    cell::{Cell as StdCell, RefCell},
    collections::BTreeMap,
    pin::Pin,
    rc::Rc,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::Notify;
use velum_node::env::network::Address;
use velum_protocol::nbd::{
    ErrorCode,
    client::{Answer, Ask, Wishes},
    flags::StatusFlags,
    reply::Descriptor,
};

use super::{
    connection::{Connection, NoAnswer, within},
    parts::ask_in_parts,
    pattern::{BLOCK_SECTORS, Cell, SECTOR, payload, recognise},
};
use crate::{
    env::network::Wires,
    history::{Kind, Ticket, VolumeHistory},
    rng::Rng,
    runtime::Sim,
};

/// What a guest asks for, how often and how much at once.
#[derive(Clone, Debug)]
pub struct Load {
    /// Connections.
    pub connections: u32,
    /// Requests in flight on each.
    pub depth: u32,
    /// Longest pause between two requests of a connection, in milliseconds.
    pub pause_ms_max: u64,
    /// Longest request, in blocks.
    pub blocks_max: u64,
    /// Half of the requests go to this many blocks; the rest anywhere.
    pub hot_blocks: u64,
    /// The first of them, if the volume reaches so far.
    pub hot_first: u64,
    /// Requests in a million that do not cover whole blocks.
    pub partial_ppm: u32,
    /// Changes in a million with FUA.
    pub fua_ppm: u32,
    /// Weights of writes, reads, zeroing, barriers, block status and prefetch.
    pub weights: [u32; 6],
}

/// What a weight stands for, in the order of [`Load::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Write,
    Read,
    Zero,
    Barrier,
    Status,
    Prefetch,
}

const DEEDS: [Deed; 6] = [Deed::Write, Deed::Read, Deed::Zero, Deed::Barrier, Deed::Status, Deed::Prefetch];

/// Lets guests work, or holds them back.
#[derive(Default)]
pub struct Gate {
    closed: StdCell<bool>,
    changed: Notify,
}

impl Gate {
    /// Holds guests back: no new requests, no new connections.
    pub fn close(&self) {
        self.closed.set(true);
    }

    /// True while guests are held back.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Lets them work.
    pub fn open(&self) {
        self.closed.set(false);
        self.changed.notify_waiters();
    }

    async fn passed(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.closed.get() {
                return;
            }
            changed.await;
        }
    }
}

/// Hears which machine serves a guest.
pub type Served = Rc<dyn Fn(&str)>;

/// Gives the name under which one of a guest's hosts finds its volume now.
pub type Attach = Rc<dyn Fn(u64) -> Pin<Box<dyn Future<Output = Option<String>>>>>;

/// The host that looks at a whole volume. It is the only one unless hosts share it.
pub const LOOKER: u64 = 0;

/// One guest and the volume it uses, or the hosts that share a volume, with one connection each.
pub struct Guest {
    sim: Rc<Sim>,
    wires: Rc<Wires>,
    /// Where nodes are; any of them may serve its volume, and they are tried in turn.
    pub doors: RefCell<Vec<(Rc<str>, Address)>>,
    /// The door that each host tries first: the one that served it last.
    nearest: RefCell<BTreeMap<u64, usize>>,
    /// Is told which machine has let it at its volume.
    pub served: RefCell<Option<Served>>,
    /// The volume's name, and the export's unless it is attached.
    pub export: String,
    /// How it is attached, if it is to be.
    pub attach: RefCell<Option<Attach>>,
    /// The name under which each host found the volume last.
    pub attachments: RefCell<BTreeMap<u64, String>>,
    /// What it asked and was told.
    pub history: RefCell<VolumeHistory>,
    /// Holds it back.
    pub gate: Gate,
    /// What it writes goes in parts, as a planted bug has it.
    pub is_cut: StdCell<bool>,
    /// An operator has taken rights to the volume away, and will give them back.
    pub is_withheld: StdCell<bool>,
    load: Load,
    rng: Rng,
    in_flight: StdCell<u64>,
    connecting: StdCell<u64>,
    lost_sessions: StdCell<u64>,
}

/// Why a volume could not be read as a whole.
#[derive(Debug, thiserror::Error)]
#[error("volume {export}: {why}")]
pub struct Unreadable {
    export: String,
    why: String,
}

/// Who waits longer than this for an answer, with his connection open, is counted.
const PATIENCE_MS: u64 = 10_000;

/// Without any answer for so long, an attached guest tries another door.
const ATTACHED_PATIENCE_MS: u64 = 700;

/// Longer than any world.
const NEVER_MS: u64 = 1 << 40;

/// Bytes of one read when a whole volume is read.
const SWEEP_BYTES: u64 = 256 * 1024;

impl Guest {
    /// A guest of `history`'s volume that looks for it behind `doors`.
    #[must_use]
    pub fn new(
        sim: Rc<Sim>,
        wires: Rc<Wires>,
        doors: Vec<(Rc<str>, Address)>,
        history: VolumeHistory,
        load: Load,
        rng: Rng,
    ) -> Rc<Self> {
        let export = history.name.clone();
        let (doors, history) = (RefCell::new(doors), RefCell::new(history));
        Rc::new(Self {
            sim,
            wires,
            doors,
            nearest: RefCell::default(),
            served: RefCell::default(),
            export,
            attach: RefCell::default(),
            attachments: RefCell::default(),
            history,
            gate: Gate::default(),
            is_cut: StdCell::new(false),
            is_withheld: StdCell::new(false),
            load,
            rng,
            in_flight: StdCell::new(0),
            connecting: StdCell::new(0),
            lost_sessions: StdCell::new(0),
        })
    }

    /// Starts all its connections; they work until the world ends.
    pub fn start(self: &Rc<Self>) {
        let is_shared = self.history.borrow().is_shared;
        for number in 0..u64::from(self.load.connections) {
            let guest = Rc::clone(self);
            let host = if is_shared { LOOKER + 1 + number } else { LOOKER };
            self.sim.spawn(async move {
                loop {
                    guest.gate.passed().await;
                    guest.connecting.set(guest.connecting.get() + 1);
                    let connected = guest.connect(host).await;
                    guest.connecting.set(guest.connecting.get() - 1);
                    if let Some((connection, export)) = connected {
                        guest.work(&connection, (host, &export)).await;
                    }
                    guest.sim.sleep_ms(guest.rng.between(5, 200)).await;
                }
            });
        }
    }

    /// Requests that have no answer yet.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.get()
    }

    /// What is still under way once its gate is closed: requests that have no answer yet, and connections about to be made. One of
    /// those takes the place of any other connection of its attachment.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.in_flight.get() + self.connecting.get()
    }

    /// Connections that ended under its work.
    #[must_use]
    pub fn lost_sessions(&self) -> u64 {
        self.lost_sessions.get()
    }

    /// Tries one door after the other until one serves the volume.
    async fn connect(&self, host: u64) -> Option<(Connection, String)> {
        let attach = self.attach.borrow().clone();
        let export = match attach {
            Some(attach) => attach(host).await?,
            None => self.export.clone(),
        };
        let doors = self.doors.borrow().clone();
        let first = *self.nearest.borrow_mut().entry(host).or_insert(host as usize);
        for turn in 0..doors.len() {
            let at = (first + turn) % doors.len();
            if let Some(connection) = self.connect_to(&doors[at], export.clone()).await {
                self.nearest.borrow_mut().insert(host, at);
                if let Some(served) = &*self.served.borrow() {
                    served(&doors[at].0);
                }
                return Some((connection, export));
            }
        }
        None
    }

    async fn connect_to(&self, (node, address): &(Rc<str>, Address), export: String) -> Option<Connection> {
        let end = self.wires.connect(node, address).ok()?;
        let structured = self.rng.chance(800_000);
        let wishes = Wishes { export, structured, allocation: structured };
        // A node that has just been killed takes the connection and never answers; so does one that is still starting.
        within(&self.sim, 5_000, Connection::open(&self.sim, end, wishes)).await?.ok()
    }

    async fn work(self: &Rc<Self>, connection: &Connection, (host, export): (u64, &str)) {
        let number = self.history.borrow_mut().connect(host, export);
        self.sim.event("connected", &self.export, &[number]);
        let mut under_way = FuturesUnordered::new();
        while connection.is_open() && !self.gate.closed.get() {
            while under_way.len() < self.load.depth as usize && connection.is_open() {
                under_way.push(self.clone().request(connection.clone(), number));
            }
            // An attached guest goes elsewhere when it waits for too long. It may: nothing of its old connection takes effect then.
            let patience_ms = if self.attach.borrow().is_some() { ATTACHED_PATIENCE_MS } else { NEVER_MS };
            if within(&self.sim, patience_ms, under_way.next()).await.is_none() {
                self.sim.count("connections given up", 1);
                self.nearest.borrow_mut().entry(host).and_modify(|at| *at += 1);
                connection.hang_up();
                break;
            }
        }
        while under_way.next().await.is_some() {}
        self.lost_sessions.set(self.lost_sessions.get() + u64::from(!connection.is_open()));
        connection.hang_up();
    }

    async fn request(self: Rc<Self>, connection: Connection, number: u64) {
        if self.load.pause_ms_max > 0 {
            self.sim.sleep_ms(self.rng.below(self.load.pause_ms_max + 1)).await;
        }
        if !connection.is_open() || self.gate.closed.get() {
            return;
        }
        let weighted: Vec<_> = self.load.weights.iter().copied().zip(DEEDS).collect();
        let deed = *self.rng.weighted(&weighted);
        let fua = self.rng.chance(self.load.fua_ppm);
        let (first, count) = self.range();
        self.in_flight.set(self.in_flight.get() + 1);
        let asked_ms = self.sim.now_ms();
        match deed {
            Deed::Write => self.change(&connection, number, Kind::Write, first, count, fua).await,
            Deed::Zero => self.change(&connection, number, Kind::Zero, first, count, fua).await,
            Deed::Read => self.read(&connection, number, first, count).await,
            Deed::Barrier => self.barrier(&connection, number).await,
            Deed::Status => self.status(&connection, number, first, count).await,
            Deed::Prefetch => {
                let ask = Ask::Cache { offset: first * SECTOR as u64, length: (count * SECTOR as u64) as u32 };
                drop(connection.ask(&ask).await);
            }
        }
        self.in_flight.set(self.in_flight.get() - 1);
        if self.sim.now_ms() - asked_ms > PATIENCE_MS {
            self.sim.count("requests that were kept waiting", 1);
        }
    }

    /// A range of sectors to ask for.
    fn range(&self) -> (u64, u64) {
        let blocks = self.history.borrow().sectors() / BLOCK_SECTORS;
        let hot_first = self.load.hot_first.min(blocks - 1);
        let is_hot = self.rng.chance(500_000);
        let (from, span) =
            if is_hot { (hot_first, self.load.hot_blocks.clamp(1, blocks - hot_first)) } else { (0, blocks) };
        let first = from + self.rng.below(span);
        // Small requests are as frequent as all larger ones together.
        let longest = if self.rng.chance(500_000) { 1 } else { self.load.blocks_max };
        let count = self.rng.between(1, longest.min(blocks - first));
        let (mut first, mut count) = (first * BLOCK_SECTORS, count * BLOCK_SECTORS);
        if self.rng.chance(self.load.partial_ppm) {
            let skip = self.rng.below(BLOCK_SECTORS);
            first += skip;
            count = (count - skip).max(1);
            count -= self.rng.below(BLOCK_SECTORS.min(count));
        }
        (first, count)
    }

    async fn change(&self, connection: &Connection, number: u64, kind: Kind, first: u64, count: u64, fua: bool) {
        let (ticket, id) = self.history.borrow_mut().invoke(number, kind, first, count, fua);
        let offset = first * SECTOR as u64;
        let length = (count * SECTOR as u64) as u32;
        let ask = match (kind, self.rng.below(3)) {
            (Kind::Write, _) => Ask::Write { offset, payload: payload(id, count), fua },
            (_, 0) => Ask::Trim { offset, length, fua },
            (_, choice) => Ask::WriteZeroes { offset, length, no_hole: choice == 1, fast: false, fua },
        };
        self.sim.event("ask change", &self.export, &[id, first, count, kind as u64, u64::from(fua)]);
        let answer = if self.is_cut.get() { ask_in_parts(connection, &ask).await } else { connection.ask(&ask).await };
        self.sim.count("changed blocks", count.div_ceil(BLOCK_SECTORS));
        self.finish(ticket, &answer, Vec::new());
    }

    async fn read(&self, connection: &Connection, number: u64, first: u64, count: u64) {
        let (ticket, id) = self.history.borrow_mut().invoke(number, Kind::Read, first, count, false);
        self.sim.event("ask read", &self.export, &[id, first, count]);
        let ask = Ask::Read { offset: first * SECTOR as u64, length: (count * SECTOR as u64) as u32 };
        let answer = connection.ask(&ask).await;
        self.sim.count("read blocks", count.div_ceil(BLOCK_SECTORS));
        let cells = match &answer {
            Ok(Answer::Data(bytes)) => bytes.chunks(SECTOR).map(recognise).collect(),
            _ => Vec::new(),
        };
        self.finish(ticket, &answer, cells);
    }

    async fn barrier(&self, connection: &Connection, number: u64) {
        let (ticket, id) = self.history.borrow_mut().invoke(number, Kind::Barrier, 0, 0, false);
        self.sim.event("ask barrier", &self.export, &[id]);
        let answer = connection.ask(&Ask::Flush).await;
        self.sim.count("barriers", 1);
        self.finish(ticket, &answer, Vec::new());
    }

    /// A hole must read as zeros: a block status that reports one counts as a read of zeros.
    async fn status(&self, connection: &Connection, number: u64, first: u64, count: u64) {
        if connection.negotiated().allocation.is_none() {
            return;
        }
        let (ticket, id) = self.history.borrow_mut().invoke(number, Kind::Read, first, count, false);
        self.sim.event("ask status", &self.export, &[id, first, count]);
        let (offset, length) = (first * SECTOR as u64, (count * SECTOR as u64) as u32);
        let answer = connection.ask(&Ask::BlockStatus { offset, length, one: true }).await;
        let hole = match &answer {
            Ok(Answer::Status(extents)) => extents.first().filter(|extent| is_hole(extent)),
            _ => None,
        };
        let sectors = hole.map_or(0, |extent| u64::from(extent.length) / SECTOR as u64).min(count);
        self.history.borrow_mut().shorten(ticket, sectors);
        self.finish(ticket, &answer, vec![Cell::ZERO; sectors as usize]);
    }

    fn finish(&self, ticket: Ticket, answer: &Result<Answer, NoAnswer>, cells: Vec<Cell>) {
        let mut history = self.history.borrow_mut();
        match answer {
            Ok(_) => history.done(ticket, cells),
            Err(NoAnswer::Refused(ErrorCode::NotPermitted)) => {
                self.sim.count("requests denied", 1);
                history.denied(ticket);
            }
            Err(NoAnswer::Refused(code)) => {
                self.sim.event("refused", &self.export, &[u64::from(code.number())]);
                self.sim.count("guest errors", 1);
                history.refused(ticket);
            }
            Err(NoAnswer::Lost) => self.sim.count("unanswered requests", 1),
        }
    }

    /// Reads the whole volume over a connection of its own. `witnessed` puts the reads into the history.
    ///
    /// # Errors
    /// When it cannot be read within `limit_ms`.
    pub async fn sweep(&self, limit_ms: u64, witnessed: bool) -> Result<Vec<Cell>, Unreadable> {
        let unreadable = |why: String| Unreadable { export: self.export.clone(), why };
        match within(&self.sim, limit_ms, self.sweep_once(witnessed)).await {
            Some(Ok(image)) => Ok(image),
            Some(Err(why)) => Err(unreadable(why)),
            None => Err(unreadable(format!("not read within {limit_ms} simulated ms"))),
        }
    }

    /// True when a door serves the volume within `limit_ms`: its first block is read, or may not be. A session that ends meanwhile
    /// is begun anew.
    pub async fn is_served(&self, limit_ms: u64) -> bool {
        let first = Ask::Read { offset: 0, length: (BLOCK_SECTORS * SECTOR as u64) as u32 };
        let served = async {
            loop {
                if let Some((connection, _)) = self.connect(LOOKER).await {
                    let answer = connection.ask(&first).await;
                    connection.hang_up();
                    if matches!(answer, Ok(Answer::Data(_)) | Err(NoAnswer::Refused(ErrorCode::NotPermitted))) {
                        return;
                    }
                }
                self.sim.sleep_ms(50).await;
            }
        };
        within(&self.sim, limit_ms, served).await.is_some()
    }

    async fn sweep_once(&self, witnessed: bool) -> Result<Vec<Cell>, String> {
        while self.is_withheld.get() {
            self.sim.sleep_ms(50).await;
        }
        let (connection, export) = loop {
            match self.connect(LOOKER).await {
                Some(connected) => break connected,
                None => self.sim.sleep_ms(50).await,
            }
        };
        let number = self.history.borrow_mut().connect(LOOKER, &export);
        let sectors = self.history.borrow().sectors();
        let mut image = Vec::with_capacity(sectors as usize);
        while (image.len() as u64) < sectors {
            let first = image.len() as u64;
            let count = (SWEEP_BYTES / SECTOR as u64).min(sectors - first);
            let ticket = witnessed.then(|| self.history.borrow_mut().invoke(number, Kind::Read, first, count, false).0);
            let ask = Ask::Read { offset: first * SECTOR as u64, length: (count * SECTOR as u64) as u32 };
            match connection.ask(&ask).await {
                Ok(Answer::Data(bytes)) => {
                    let cells: Vec<_> = bytes.chunks(SECTOR).map(recognise).collect();
                    image.extend_from_slice(&cells);
                    if let Some(ticket) = ticket {
                        self.history.borrow_mut().done(ticket, cells);
                    }
                }
                Err(NoAnswer::Refused(ErrorCode::NotPermitted)) if self.history.borrow().rights.are_told() => {
                    self.is_withheld.set(true);
                    return Err(format!("sector {first} may not be read"));
                }
                other => return Err(format!("reading sector {first} gave {other:?}")),
            }
        }
        self.sim.count("read blocks", sectors / BLOCK_SECTORS);
        connection.hang_up();
        Ok(image)
    }
}

fn is_hole(extent: &Descriptor) -> bool {
    extent.flags.has(StatusFlags::HOLE) && extent.flags.has(StatusFlags::ZERO)
}
