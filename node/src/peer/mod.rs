//! Links between nodes: one outgoing connection to each peer, and a door at which theirs come in.
//!
//! Frames travel one way on a link, in order within their kind: what is short and waited for overtakes records and guests' data,
//! and no more is on its way than what the way carries in a moment. Answers come on the other node's link. What a link may lose
//! it loses by closing: nothing of a closed link is sent again, and nothing of it is taken once a newer one of the same node has
//! begun. Whoever needs more says it again, as raft does.
//!
//! Who the other side is, the transport vouches for. It must be the node that its first frame names and that every message
//! names, and one that the receiver still listens to, asked for every frame: a node that was removed is told so and cut off
//! wherever it is connected. So is one that belongs to an older life of the cluster, and one that meets a newer life knows by
//! that that its own is over.

mod door;
mod frames;
mod incoming;
mod lanes;
mod outgoing;
mod shell;
mod window;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::oneshot;
use velum_protocol::{
    id::{Incarnation, NodeId},
    peer::{Frame, Verdict, agreement::Message},
};

use crate::{
    actor::{self, Handle},
    env::{Credentials, Env, Instant, Listener, Local, network::Address},
    limits::PEERS_MAX,
};
use door::Door;
use outgoing::{Input, Machine};
use shell::Shell;

pub use outgoing::LinkState;

/// Takes what peers say.
pub trait Receiver {
    /// Whether the node is one to listen to: not removed.
    fn hears(&self, node: NodeId) -> bool;
    /// A frame of `from`'s; with the head of a snapshot comes its whole state, else nothing.
    fn receive(&self, from: NodeId, frame: Frame, state: Bytes);
    /// What was sent to the peer last may be lost.
    fn lost(&self, to: NodeId);
    /// The life of the cluster that this node belongs to; zero while it does not know.
    fn incarnation(&self) -> Incarnation;
    /// This node is no part of the cluster any more: it was removed, or its life of the cluster is over.
    fn refused(&self, verdict: Verdict);
    /// What the peer sent last may be lost: its link to this node is over. Called before anything of a newer one is taken.
    fn parted(&self, from: NodeId);
}

/// What happened on all links.
#[derive(Debug, Default)]
pub struct Counts {
    /// Frames that were not sent: no link, or no room in its queue.
    pub dropped_frames: Cell<u64>,
    /// Connections that were refused or cut off for what they said.
    pub refused_connections: Cell<u64>,
    /// Bytes of frames sent.
    pub sent_bytes: Cell<u64>,
    /// Bytes of frames taken.
    pub received_bytes: Cell<u64>,
}

impl Counts {
    fn add(count: &Cell<u64>, more: usize) {
        count.set(count.get().saturating_add(u64::try_from(more).unwrap_or(u64::MAX)));
    }
}

/// How the link to a peer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// The peer.
    pub node: NodeId,
    /// Where it is, when that is known.
    pub address: Option<String>,
    /// The link.
    pub state: LinkState,
    /// Why the last one ended.
    pub last_error: Option<String>,
}

/// All links of a node. Cheap to clone.
#[derive(Clone)]
pub struct Links(Rc<Inner>);

struct Inner {
    env: Env,
    own: Rc<Own>,
    links: RefCell<BTreeMap<NodeId, Link>>,
    door: RefCell<Option<Door>>,
    next_ticket: Cell<u64>,
}

/// What all links of a node have in common.
struct Own {
    credentials: Rc<Credentials>,
    life: [u8; 16],
    /// Where peers find this node.
    address: RefCell<String>,
    receiver: Rc<dyn Receiver>,
    counts: Rc<Counts>,
    /// Snapshots on their way, by ticket.
    sending: RefCell<BTreeMap<u64, oneshot::Sender<bool>>>,
}

struct Link {
    handle: Handle<Input>,
    status: Rc<RefCell<LinkStatus>>,
    /// When the peer last said something on it.
    heard: Rc<Cell<Instant>>,
    /// Given by the settings or the cluster, not only heard of.
    is_known: bool,
}

impl Links {
    /// A node's links; none yet.
    #[must_use]
    pub fn new(env: &Env, credentials: Credentials, receiver: Rc<dyn Receiver>) -> Self {
        let own = Rc::new(Own {
            credentials: Rc::new(credentials),
            life: env.entropy.fresh16(),
            address: RefCell::default(),
            receiver,
            counts: Rc::default(),
            sending: RefCell::default(),
        });
        Self(Rc::new(Inner {
            env: env.clone(),
            own,
            links: RefCell::default(),
            door: RefCell::default(),
            next_ticket: Cell::new(1),
        }))
    }

    /// Lets peers in at `address`, until [`Links::close`]. Peers are told to find this node at `advertised`, or else where it
    /// listens.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn listen(&self, address: &Address, advertised: Option<String>) -> io::Result<Address> {
        let listener = self.0.env.network.listen_peers(address, Rc::clone(&self.0.own.credentials)).await?;
        let bound = listener.address();
        self.open(listener, advertised);
        Ok(bound)
    }

    /// The same with a listener that is bound already.
    pub fn open(&self, listener: Rc<dyn Listener>, advertised: Option<String>) {
        let text = if let Address::Tcp(text) = listener.address() { text } else { String::new() };
        *self.0.own.address.borrow_mut() = advertised.unwrap_or(text);
        let links = Rc::downgrade(&self.0);
        let met = move |node: NodeId, address: String| {
            if let Some(inner) = links.upgrade() {
                Self(inner).meet(node, address);
            }
        };
        *self.0.door.borrow_mut() = Some(door::start(&self.0.env, listener, Rc::clone(&self.0.own), Rc::new(met)));
    }

    /// Where peers are told to find this node.
    #[must_use]
    pub fn address(&self) -> String {
        self.0.own.address.borrow().clone()
    }

    /// Has links to these nodes, and to no others that were given before.
    pub fn set_peers(&self, peers: &BTreeMap<NodeId, Address>) {
        let own = self.0.own.credentials.node;
        let is_kept = |node: &NodeId, link: &Link| peers.contains_key(node) || !link.is_known;
        let gone = self.take_links(|node, link| !is_kept(node, link));
        gone.into_iter().for_each(|handle| handle.call(Input::Stop));
        for (node, address) in peers.iter().filter(|(node, _)| **node != own) {
            self.reach(*node, address.clone(), true);
        }
    }

    /// A peer has come by itself and says where it is found. What is known otherwise counts more as long as it leads there: a
    /// node that was restarted elsewhere must be heard from before the cluster can know of its new address.
    fn meet(&self, node: NodeId, address: String) {
        let links_there = |link: &Link| link.is_known && link.status.borrow().state == LinkState::Up;
        let is_found = self.0.links.borrow().get(&node).is_some_and(links_there);
        if !is_found && !address.is_empty() {
            self.reach(node, Address::Tcp(address), false);
        }
    }

    fn reach(&self, node: NodeId, address: Address, is_known: bool) {
        let mut links = self.0.links.borrow_mut();
        if !links.contains_key(&node) && links.len() >= PEERS_MAX {
            tracing::warn!(%node, "no link to a further peer: there are too many");
            return;
        }
        let link = links.entry(node).or_insert_with(|| self.begin(node));
        link.is_known |= is_known;
        let text = if let Address::Tcp(text) = &address { text.clone() } else { String::new() };
        link.status.borrow_mut().address = Some(text);
        link.handle.call(Input::Address(address));
    }

    fn begin(&self, node: NodeId) -> Link {
        let status = LinkStatus { node, address: None, state: LinkState::Down, last_error: None };
        let status = Rc::new(RefCell::new(status));
        let heard = Rc::<Cell<Instant>>::default();
        let shell = Shell::new(&self.0.env, Rc::clone(&self.0.own), node, (Rc::clone(&status), Rc::clone(&heard)));
        let machine = Machine::new(self.0.own.credentials.node, node);
        let handle = actor::start(Rc::clone(&self.0.env.clock), machine, shell);
        handle.call(Input::Begin);
        Link { handle, status, heard, is_known: false }
    }

    /// Sends a frame, or drops it when there is no link or no room.
    pub fn send(&self, to: NodeId, frame: Frame) {
        let handle = self.0.links.borrow().get(&to).map(|link| link.handle.clone());
        match handle {
            Some(handle) => handle.call(Input::Send(frame)),
            None => {
                Counts::add(&self.0.own.counts.dropped_frames, 1);
                self.0.own.receiver.lost(to);
            }
        }
    }

    /// Sends a snapshot's head and then its state in pieces, between other frames. True when the peer has taken all of it.
    pub fn send_snapshot(&self, to: NodeId, head: Message, state: Bytes) -> Local<bool> {
        let handle = self.0.links.borrow().get(&to).map(|link| link.handle.clone());
        let Some(handle) = handle else { return async { false }.boxed_local() };
        let ticket = self.0.next_ticket.get();
        self.0.next_ticket.set(ticket + 1);
        let (done, sent) = oneshot::channel();
        self.0.own.sending.borrow_mut().insert(ticket, done);
        handle.call(Input::SendSnapshot { ticket, head: Box::new(head), state });
        async move { sent.await.unwrap_or(false) }.boxed_local()
    }

    /// How each link stands.
    #[must_use]
    pub fn status(&self) -> Vec<LinkStatus> {
        self.0.links.borrow().values().map(|link| link.status.borrow().clone()).collect()
    }

    /// The nodes that frames travelled to and from within this time: on this node's link to them, and on theirs to this one. One way
    /// alone is of no use to anybody.
    #[must_use]
    pub fn heard(&self, within: Duration) -> BTreeSet<NodeId> {
        let now = self.0.env.clock.now();
        let door = self.0.door.borrow();
        let comes = |node: &NodeId| {
            let heard = door.as_ref().and_then(|door| door.heard(*node));
            heard.is_some_and(|heard| now.since(heard) < within)
        };
        let goes = |link: &Link| link.status.borrow().state == LinkState::Up && now.since(link.heard.get()) < within;
        let links = self.0.links.borrow();
        links.iter().filter(|(node, link)| goes(link) && comes(node)).map(|(node, _)| *node).collect()
    }

    /// What happened on all links.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.0.own.counts
    }

    /// Ends all links and lets nobody in any more.
    pub fn close(&self) {
        drop(self.0.door.borrow_mut().take());
        self.take_links(|_, _| true).into_iter().for_each(|handle| handle.call(Input::Stop));
    }

    /// Takes links away. They are stopped outside of the look at the table: whoever hears that something is lost may send.
    fn take_links(&self, is_taken: impl Fn(&NodeId, &Link) -> bool) -> Vec<Handle<Input>> {
        let mut links = self.0.links.borrow_mut();
        let taken = links.extract_if(.., |node, link| is_taken(node, link));
        taken.map(|(_, link)| link.handle).collect()
    }
}
