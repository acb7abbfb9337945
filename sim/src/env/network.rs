//! Streams in memory, with delay, partial reads, stalls and cuts.
//!
//! A connection has two directions; each is a queue of chunks that arrive in order, each at its own time. A cut drops what
//! has not arrived and both ends get an error. When a process ends, its ends are dropped, which the other side sees as the
//! end of the stream or as a reset.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use velum_node::env::{Credentials, Listener, Local, Network, PeerIdentity, Stream, network::Address};
use velum_protocol::id::NodeId;

use crate::{
    rng::Rng,
    runtime::{Life, Sim},
    trace::checksum,
};

/// Bytes on their way in one direction before the writer has to wait, like a socket's buffers.
const DIRECTION_BYTES_MAX: usize = 256 * 1024;

/// How long a connection to another node is tried for while the way is blocked.
const CONNECT_MS_MAX: u64 = 3_000;

/// From one machine to another.
type Link = (Rc<str>, Rc<str>);

/// How the network behaves; the plan changes it while the world runs.
#[derive(Debug)]
pub struct NetworkFaults {
    /// A chunk takes up to this many milliseconds.
    pub delay_ms_max: Cell<u64>,
    /// Nothing arrives before this time.
    pub stalled_until_ms: Cell<u64>,
    blocked: RefCell<BTreeSet<Link>>,
    slow_ms: RefCell<BTreeMap<Link, u64>>,
}

impl Default for NetworkFaults {
    fn default() -> Self {
        Self {
            delay_ms_max: Cell::new(1),
            stalled_until_ms: Cell::new(0),
            blocked: RefCell::default(),
            slow_ms: RefCell::default(),
        }
    }
}

/// A node, and an address on it.
type Place = (Rc<str>, Address);

/// The network that all nodes and guests of a world share.
pub struct Wires {
    sim: Rc<Sim>,
    rng: Rng,
    listeners: RefCell<BTreeMap<Place, Rc<Queue>>>,
    live: RefCell<Vec<std::rc::Weak<Wire>>>,
    /// What goes wrong.
    pub faults: NetworkFaults,
}

/// Connections waiting to be accepted.
struct Queue {
    life: Rc<Life>,
    /// Of a door for nodes.
    credentials: Option<Rc<Credentials>>,
    waiting: RefCell<VecDeque<(End, Option<PeerIdentity>)>>,
    arrived: Notify,
}

impl Wires {
    /// A network without listeners.
    #[must_use]
    pub fn new(sim: Rc<Sim>, rng: Rng) -> Rc<Self> {
        Rc::new(Self {
            sim,
            rng,
            listeners: RefCell::default(),
            live: RefCell::default(),
            faults: NetworkFaults::default(),
        })
    }

    /// Connects a guest to a node's listener.
    ///
    /// # Errors
    /// `ConnectionRefused` when nobody listens there.
    pub fn connect(self: &Rc<Self>, node: &Rc<str>, address: &Address) -> io::Result<End> {
        let queue = self.listeners.borrow().get(&(Rc::clone(node), address.clone())).map(Rc::clone);
        let queue = queue.filter(|queue| queue.life.is_alive()).ok_or(io::ErrorKind::ConnectionRefused)?;
        let (guest, inside) = self.wire(None, [None, Some(Rc::clone(&queue.life))]);
        // A guest at the door for nodes has no certificate and is sent away.
        if queue.credentials.is_none() {
            queue.arrive(inside, None);
        }
        Ok(guest)
    }

    /// A new connection: both ends, the side that connects first.
    fn wire(self: &Rc<Self>, names: Option<[Rc<str>; 2]>, lives: [Option<Rc<Life>>; 2]) -> (End, End) {
        let wire =
            Rc::new(Wire { wires: Rc::clone(self), names, directions: [Direction::default(), Direction::default()] });
        self.live.borrow_mut().retain(|wire| wire.strong_count() > 0);
        self.live.borrow_mut().push(Rc::downgrade(&wire));
        let [life, other_life] = lives;
        (End { wire: Rc::clone(&wire), side: 0, life }, End { wire, side: 1, life: other_life })
    }

    fn live_wires(&self) -> Vec<Rc<Wire>> {
        self.live.borrow().iter().filter_map(std::rc::Weak::upgrade).collect()
    }

    /// Blocks or opens the way from one machine to another.
    pub fn set_blocked(&self, from: &Rc<str>, to: &Rc<str>, is_blocked: bool) {
        let link = (Rc::clone(from), Rc::clone(to));
        let changed = {
            let mut blocked = self.faults.blocked.borrow_mut();
            if is_blocked { blocked.insert(link) } else { blocked.remove(&link) }
        };
        if changed {
            self.sim.event(if is_blocked { "block" } else { "open" }, from, &[place_number(to)]);
        }
        if changed && !is_blocked {
            let now_ms = self.sim.now_ms();
            self.live_wires().iter().for_each(|wire| (0..2).for_each(|side| wire.land(side, now_ms)));
        }
    }

    /// Makes everything from one machine to another take that much longer; zero makes it as fast as ever.
    pub fn set_slow(&self, from: &Rc<str>, to: &Rc<str>, slow_ms: u64) {
        self.faults.slow_ms.borrow_mut().insert((Rc::clone(from), Rc::clone(to)), slow_ms);
    }

    /// Cuts all connections between two machines; what was under way is lost.
    pub fn reset(&self, one: &Rc<str>, other: &Rc<str>) {
        self.sim.event("reset", one, &[place_number(other)]);
        for wire in self.live_wires() {
            if wire.names.as_ref().is_some_and(|names| names.contains(one) && names.contains(other)) {
                wire.cut();
            }
        }
    }

    fn is_blocked(&self, from: &Rc<str>, to: &Rc<str>) -> bool {
        let blocked = self.faults.blocked.borrow();
        !blocked.is_empty() && blocked.contains(&(Rc::clone(from), Rc::clone(to)))
    }

    /// The door for nodes at `address`, whose host is a machine's name or the machine itself.
    fn door(&self, from: &Rc<str>, address: &Address) -> io::Result<(Rc<str>, Rc<Queue>)> {
        let Address::Tcp(text) = address else { return Err(io::ErrorKind::Unsupported.into()) };
        let (host, port) = text.rsplit_once(':').ok_or(io::ErrorKind::InvalidInput)?;
        let host: Rc<str> = if host.starts_with("127.") { Rc::clone(from) } else { host.into() };
        let listeners = self.listeners.borrow();
        let fits = |(place, queue): &(&Place, &Rc<Queue>)| {
            let Address::Tcp(bound) = &place.1 else { return false };
            place.0 == host && queue.life.is_alive() && bound.rsplit_once(':').is_some_and(|(_, bound)| bound == port)
        };
        let found = listeners.iter().find(fits).map(|(_, queue)| Rc::clone(queue));
        found.map(|queue| (host, queue)).ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }

    /// Cuts every guest's connection; those between nodes stay.
    pub fn cut_guests(&self) {
        for wire in self.live_wires() {
            if wire.names.is_none() {
                wire.cut();
            }
        }
    }

    /// Cuts one live connection, chosen by chance; `false` when there is none.
    pub fn cut_one(&self) -> bool {
        let live = self.live_wires();
        if live.is_empty() {
            return false;
        }
        self.sim.event("cut", "network", &[live.len() as u64]);
        self.rng.pick(&live).cut();
        true
    }
}

/// A machine's name as a number of the trace.
fn place_number(name: &str) -> u64 {
    name.bytes().fold(0, |number, byte| (number << 8) | u64::from(byte))
}

impl Queue {
    fn arrive(&self, end: End, identity: Option<PeerIdentity>) {
        self.waiting.borrow_mut().push_back((end, identity));
        self.arrived.notify_one();
    }
}

/// One connection.
struct Wire {
    wires: Rc<Wires>,
    /// The machines of both sides, of a connection between nodes.
    names: Option<[Rc<str>; 2]>,
    /// What side 0 sends, and what side 1 sends.
    directions: [Direction; 2],
}

/// Something on its way.
enum Parcel {
    Bytes(Vec<u8>),
    End,
}

#[derive(Default)]
struct Direction {
    arrived: RefCell<VecDeque<u8>>,
    /// In the order of sending, each with its time of arrival; times never fall.
    parcels: RefCell<VecDeque<(u64, Parcel)>>,
    bytes_under_way: Cell<usize>,
    ended: Cell<bool>,
    cut: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

impl Direction {
    /// Takes in everything that is due, in order.
    fn land(&self, now_ms: u64) {
        while let Some(parcel) = self.next_due(now_ms) {
            match parcel {
                Parcel::Bytes(bytes) => {
                    self.bytes_under_way.set(self.bytes_under_way.get() - bytes.len());
                    self.arrived.borrow_mut().extend(bytes);
                }
                Parcel::End => self.ended.set(true),
            }
        }
        self.wake();
    }

    fn next_due(&self, now_ms: u64) -> Option<Parcel> {
        let mut parcels = self.parcels.borrow_mut();
        let is_due = parcels.front().is_some_and(|(at_ms, _)| *at_ms <= now_ms);
        if is_due { parcels.pop_front().map(|(_, parcel)| parcel) } else { None }
    }

    fn wake(&self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl Wire {
    fn cut(&self) {
        for direction in &self.directions {
            direction.cut.set(true);
            direction.wake();
        }
    }

    /// Whether what `side` sends gets through.
    fn is_blocked(&self, side: usize) -> bool {
        self.names.as_ref().is_some_and(|names| self.wires.is_blocked(&names[side], &names[1 - side]))
    }

    /// Takes in what `side` has sent and is due, unless the way is blocked.
    fn land(&self, side: usize, now_ms: u64) {
        if !self.is_blocked(side) {
            self.directions[side].land(now_ms);
        }
    }

    fn slow_ms(&self, side: usize) -> u64 {
        let Some(names) = &self.names else { return 0 };
        let link = (Rc::clone(&names[side]), Rc::clone(&names[1 - side]));
        self.wires.faults.slow_ms.borrow().get(&link).copied().unwrap_or(0)
    }

    /// Sends to the other side, to arrive after everything sent before.
    fn send(self: &Rc<Self>, side: usize, parcel: Parcel) {
        let (wires, direction) = (&self.wires, &self.directions[side]);
        let now_ms = wires.sim.now_ms();
        let delay_ms = wires.rng.below(wires.faults.delay_ms_max.get() + 1) + self.slow_ms(side);
        let before_ms = direction.parcels.borrow().back().map_or(0, |(at_ms, _)| *at_ms);
        let at_ms = (now_ms + delay_ms).max(before_ms).max(wires.faults.stalled_until_ms.get());
        if let (Some(names), Parcel::Bytes(bytes)) = (&self.names, &parcel) {
            let numbers = [place_number(&names[1 - side]), bytes.len() as u64, checksum(bytes), at_ms - now_ms];
            wires.sim.event("send", &names[side], &numbers);
        }
        direction.parcels.borrow_mut().push_back((at_ms, parcel));
        if at_ms == now_ms {
            self.land(side, now_ms);
        } else {
            let wire = Rc::clone(self);
            wires.sim.later(at_ms - now_ms, move || wire.land(side, wire.wires.sim.now_ms()));
        }
    }
}

/// One side of a connection.
pub struct End {
    wire: Rc<Wire>,
    side: usize,
    /// The process that holds this end, when it is a node's.
    life: Option<Rc<Life>>,
}

impl End {
    fn is_dead(&self) -> bool {
        self.life.as_ref().is_some_and(|life| !life.is_alive())
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let direction = &self.wire.directions[1 - self.side];
        if self.is_dead() {
            return Poll::Pending;
        }
        if direction.cut.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let mut arrived = direction.arrived.borrow_mut();
        if arrived.is_empty() {
            if direction.ended.get() {
                return Poll::Ready(Ok(()));
            }
            *direction.reader.borrow_mut() = Some(context.waker().clone());
            return Poll::Pending;
        }
        // Now and then a short read, as a real socket may give at any time.
        let mut count = arrived.len().min(buffer.remaining());
        if count > 1 && self.wire.wires.rng.chance(50_000) {
            count = self.wire.wires.rng.between(1, count as u64) as usize;
        }
        let (front, back) = arrived.as_slices();
        let first = front.len().min(count);
        buffer.put_slice(&front[..first]);
        buffer.put_slice(&back[..count - first]);
        arrived.drain(..count);
        if let Some(writer) = direction.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let direction = &self.wire.directions[self.side];
        if self.is_dead() {
            return Poll::Pending;
        }
        if direction.cut.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = direction.bytes_under_way.get() + direction.arrived.borrow().len();
        let room = DIRECTION_BYTES_MAX.saturating_sub(taken);
        if room == 0 {
            *direction.writer.borrow_mut() = Some(context.waker().clone());
            return Poll::Pending;
        }
        let count = room.min(bytes.len());
        direction.bytes_under_way.set(direction.bytes_under_way.get() + count);
        self.wire.send(self.side, Parcel::Bytes(bytes[..count].to_vec()));
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.send(self.side, Parcel::End);
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.wire.is_blocked(self.side) {
            // The other side hears of it when the way is open again.
            self.wire.send(self.side, Parcel::End);
        } else if self.is_dead() && self.wire.wires.rng.chance(500_000) {
            // A killed process: its kernel resets the connection, and what was under way may be lost.
            self.wire.cut();
        } else {
            self.wire.send(self.side, Parcel::End);
            let back = &self.wire.directions[1 - self.side];
            back.cut.set(true);
            back.wake();
        }
    }
}

/// The network as one life of a node sees it.
pub struct NodeNetwork {
    wires: Rc<Wires>,
    node: Rc<str>,
    life: Rc<Life>,
}

impl NodeNetwork {
    /// The shared network, seen from `node`.
    #[must_use]
    pub fn new(wires: Rc<Wires>, node: Rc<str>, life: Rc<Life>) -> Self {
        Self { wires, node, life }
    }
}

impl NodeNetwork {
    fn bind(&self, address: &Address, credentials: Option<Rc<Credentials>>) -> io::Result<Rc<dyn Listener>> {
        let mut listeners = self.wires.listeners.borrow_mut();
        let chosen = match address {
            // As a kernel does, a free port for port 0.
            Address::Tcp(host) if host.ends_with(":0") => {
                let port = 40_000 + listeners.len();
                Address::Tcp(format!("{}{port}", host.trim_end_matches('0')))
            }
            other => other.clone(),
        };
        let key = (Rc::clone(&self.node), chosen);
        if listeners.get(&key).is_some_and(|queue| queue.life.is_alive()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let queue = Rc::new(Queue {
            life: Rc::clone(&self.life),
            credentials,
            waiting: RefCell::default(),
            arrived: Notify::new(),
        });
        listeners.insert(key.clone(), Rc::clone(&queue));
        Ok(Rc::new(NodeListener { queue, wires: Rc::clone(&self.wires), key }))
    }
}

impl Network for NodeNetwork {
    fn listen(&self, address: &Address) -> Local<io::Result<Rc<dyn Listener>>> {
        let result = self.bind(address, None);
        Box::pin(async move { result })
    }

    fn listen_peers(&self, address: &Address, credentials: Rc<Credentials>) -> Local<io::Result<Rc<dyn Listener>>> {
        let result = self.bind(address, Some(credentials));
        Box::pin(async move { result })
    }

    fn connect_peer(
        &self,
        address: &Address,
        credentials: Rc<Credentials>,
        node: NodeId,
    ) -> Local<io::Result<Box<dyn Stream>>> {
        let (wires, own, life, address) =
            (Rc::clone(&self.wires), Rc::clone(&self.node), Rc::clone(&self.life), address.clone());
        Box::pin(async move {
            let sim = Rc::clone(&wires.sim);
            // There and back, twice: the connection and who is there.
            sim.sleep_ms(wires.rng.below(4 * wires.faults.delay_ms_max.get() + 1)).await;
            let deadline_ms = sim.now_ms() + CONNECT_MS_MAX;
            let (host, queue) = loop {
                let (host, queue) = wires.door(&own, &address)?;
                if !wires.is_blocked(&own, &host) && !wires.is_blocked(&host, &own) {
                    break (host, queue);
                }
                if sim.now_ms() >= deadline_ms {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                sim.sleep_ms(50).await;
            };
            // What TLS would find out.
            let trusted = queue.credentials.as_ref().is_some_and(|there| {
                there.cluster == credentials.cluster && there.authority == credentials.authority && there.node == node
            });
            if !trusted {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            let (end, inside) = wires.wire(Some([own, host]), [Some(life), Some(Rc::clone(&queue.life))]);
            let identity = PeerIdentity::Node { cluster: credentials.cluster, node: credentials.node };
            queue.arrive(inside, Some(identity));
            let stream: Box<dyn Stream> = Box::new(end);
            Ok(stream)
        })
    }
}

struct NodeListener {
    queue: Rc<Queue>,
    wires: Rc<Wires>,
    key: Place,
}

impl Listener for NodeListener {
    fn accept(&self) -> Local<io::Result<(Box<dyn Stream>, PeerIdentity)>> {
        let queue = Rc::clone(&self.queue);
        let peer = match &self.key.1 {
            Address::Tcp(_) => PeerIdentity::Unknown("guest".to_owned()),
            Address::Unix(_) => PeerIdentity::Unix { uid: 1000, gid: 1000, pid: 1 },
        };
        Box::pin(async move {
            loop {
                let next = queue.waiting.borrow_mut().pop_front();
                if let Some((end, identity)) = next {
                    let stream: Box<dyn Stream> = Box::new(end);
                    return Ok((stream, identity.unwrap_or(peer)));
                }
                queue.arrived.notified().await;
            }
        })
    }

    fn address(&self) -> Address {
        self.key.1.clone()
    }
}

impl Drop for NodeListener {
    fn drop(&mut self) {
        let mut listeners = self.wires.listeners.borrow_mut();
        if listeners.get(&self.key).is_some_and(|queue| Rc::ptr_eq(queue, &self.queue)) {
            listeners.remove(&self.key);
        }
    }
}
