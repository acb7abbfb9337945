//! Streams in memory, with delay, partial reads, stalls and cuts.
//!
//! A connection has two directions; each is a queue of chunks that arrive in order, each at its own time. A cut drops what
//! has not arrived and both ends get an error. When a process ends, its ends are dropped, which the other side sees as the
//! end of the stream or as a reset.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use velum_node::env::{Listener, Local, Network, PeerIdentity, Stream, network::Address};

use crate::{
    rng::Rng,
    runtime::{Life, Sim},
};

/// Bytes on their way in one direction before the writer has to wait, like a socket's buffers.
const DIRECTION_BYTES_MAX: usize = 256 * 1024;

/// How the network behaves; the plan changes it while the world runs.
#[derive(Debug)]
pub struct NetworkFaults {
    /// A chunk takes up to this many milliseconds.
    pub delay_ms_max: Cell<u64>,
    /// Nothing arrives before this time.
    pub stalled_until_ms: Cell<u64>,
}

impl Default for NetworkFaults {
    fn default() -> Self {
        Self { delay_ms_max: Cell::new(1), stalled_until_ms: Cell::new(0) }
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
    waiting: RefCell<VecDeque<End>>,
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
        let wire = Rc::new(Wire { wires: Rc::clone(self), directions: [Direction::default(), Direction::default()] });
        self.live.borrow_mut().retain(|wire| wire.strong_count() > 0);
        self.live.borrow_mut().push(Rc::downgrade(&wire));
        queue.waiting.borrow_mut().push_back(End {
            wire: Rc::clone(&wire),
            side: 1,
            life: Some(Rc::clone(&queue.life)),
        });
        queue.arrived.notify_one();
        Ok(End { wire, side: 0, life: None })
    }

    /// Cuts one live connection, chosen by chance; `false` when there is none.
    pub fn cut_one(&self) -> bool {
        let live: Vec<_> = self.live.borrow().iter().filter_map(std::rc::Weak::upgrade).collect();
        if live.is_empty() {
            return false;
        }
        self.sim.event("cut", "network", &[live.len() as u64]);
        self.rng.pick(&live).cut();
        true
    }
}

/// One connection.
struct Wire {
    wires: Rc<Wires>,
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

    /// Sends to the other side, to arrive after everything sent before.
    fn send(self: &Rc<Self>, side: usize, parcel: Parcel) {
        let (wires, direction) = (&self.wires, &self.directions[side]);
        let now_ms = wires.sim.now_ms();
        let delay_ms = wires.rng.below(wires.faults.delay_ms_max.get() + 1);
        let before_ms = direction.parcels.borrow().back().map_or(0, |(at_ms, _)| *at_ms);
        let at_ms = (now_ms + delay_ms).max(before_ms).max(wires.faults.stalled_until_ms.get());
        direction.parcels.borrow_mut().push_back((at_ms, parcel));
        if at_ms == now_ms {
            direction.land(now_ms);
        } else {
            let wire = Rc::clone(self);
            wires.sim.later(at_ms - now_ms, move || wire.directions[side].land(wire.wires.sim.now_ms()));
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
        if self.is_dead() && self.wire.wires.rng.chance(500_000) {
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

impl Network for NodeNetwork {
    fn listen(&self, address: &Address) -> Local<io::Result<Rc<dyn Listener>>> {
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
        let result: io::Result<Rc<dyn Listener>> = if listeners.get(&key).is_some_and(|queue| queue.life.is_alive()) {
            Err(io::ErrorKind::AddrInUse.into())
        } else {
            let queue =
                Rc::new(Queue { life: Rc::clone(&self.life), waiting: RefCell::default(), arrived: Notify::new() });
            listeners.insert(key.clone(), Rc::clone(&queue));
            Ok(Rc::new(NodeListener { queue, wires: Rc::clone(&self.wires), key }))
        };
        Box::pin(async move { result })
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
                if let Some(end) = next {
                    let stream: Box<dyn Stream> = Box::new(end);
                    return Ok((stream, peer));
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
