//! The door for peers: accepts, learns who is there, keeps one link of each, and hands on what they say.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{AbortHandle, Fuse, abortable},
    select_biased,
};
use tokio::{
    io::{AsyncWriteExt, ReadHalf, WriteHalf, split},
    sync::Notify,
};
use velum_protocol::{
    id::NodeId,
    peer::{Beat, Frame, Hello, Verdict},
};

use super::{
    Counts, Own, frames,
    incoming::{Machine, Refusal, Step},
    outgoing::SILENCE_MAX,
};
use crate::{
    actor::spawn,
    audit::Throttle,
    env::{Clock, Env, Instant, Listener, Local, PeerIdentity, Stream},
    limits::HANDSHAKE_TIME_MAX,
};

/// Pause after a failed accept, so that a lack of file descriptors is not answered by spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Told where a peer that came says it is found.
type Met = Rc<dyn Fn(NodeId, String)>;

/// An open door. Dropped, nobody comes in any more and all that did are gone.
pub(super) struct Door {
    tasks: Rc<RefCell<Vec<AbortHandle>>>,
    lobby: Rc<Lobby>,
}

impl Door {
    /// When a peer last said something on its link to this node, if it has one.
    pub(super) fn heard(&self, peer: NodeId) -> Option<Instant> {
        self.lobby.newest.borrow().get(&peer).map(|guest| guest.heard.get())
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.tasks.borrow().iter().for_each(AbortHandle::abort);
    }
}

/// What all links that come in have in common.
struct Lobby {
    clock: Rc<dyn Clock>,
    own: Rc<Own>,
    met: Met,
    /// The newest link of each peer.
    newest: RefCell<BTreeMap<NodeId, Rc<Guest>>>,
    throttle: Throttle,
}

/// A peer that has said who it is.
struct Guest {
    life: [u8; 16],
    link: u64,
    heard: Cell<Instant>,
    /// A newer link of the same peer has begun.
    replaced: Notify,
}

/// Lets peers in.
pub(super) fn start(env: &Env, listener: Rc<dyn Listener>, own: Rc<Own>, met: Met) -> Door {
    let lobby = Rc::new(Lobby {
        clock: Rc::clone(&env.clock),
        own,
        met,
        newest: RefCell::default(),
        throttle: Throttle::default(),
    });
    let tasks: Rc<RefCell<Vec<AbortHandle>>> = Rc::default();
    let door = Door { tasks: Rc::clone(&tasks), lobby: Rc::clone(&lobby) };
    let own_tasks = Rc::downgrade(&tasks);
    run(&tasks, async move {
        loop {
            match listener.accept().await {
                Ok((stream, PeerIdentity::Node { node, cluster })) if cluster == lobby.own.credentials.cluster => {
                    let Some(tasks) = own_tasks.upgrade() else { return };
                    run(&tasks, serve(Rc::clone(&lobby), stream, node));
                }
                Ok(_) => Counts::add(&lobby.own.counts.refused_connections, 1),
                Err(error) => {
                    tracing::warn!(%error, "a peer's connection cannot be accepted");
                    lobby.clock.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    door
}

fn run(tasks: &RefCell<Vec<AbortHandle>>, work: impl Future<Output = ()> + 'static) {
    let (work, handle) = abortable(work);
    let mut tasks = tasks.borrow_mut();
    tasks.retain(|task| !task.is_aborted());
    tasks.push(handle.clone());
    spawn(async move {
        // Ended or aborted, all the same.
        let _ = work.await;
        // So that it is taken off the list.
        handle.abort();
    });
}

/// Serves one link until it ends.
async fn serve(lobby: Rc<Lobby>, stream: Box<dyn Stream>, peer: NodeId) {
    let mut guest = None;
    let end = converse(&lobby, stream, peer, &mut guest).await;
    if let Some(guest) = guest {
        let mut newest = lobby.newest.borrow_mut();
        if newest.get(&peer).is_some_and(|newest| Rc::ptr_eq(newest, &guest)) {
            newest.remove(&peer);
            drop(newest);
            lobby.own.receiver.parted(peer);
        }
    }
    if let Some(why) = end {
        Counts::add(&lobby.own.counts.refused_connections, 1);
        if let Some(held) = lobby.throttle.admit(lobby.clock.now()) {
            tracing::warn!(%peer, why, held, "a peer's connection was refused");
        }
    }
}

/// How long a peer may be silent, with one timer however much it says.
struct Patience<'a> {
    clock: &'a dyn Clock,
    limit: Duration,
    heard: Instant,
    timer: Fuse<Local<()>>,
}

impl<'a> Patience<'a> {
    fn new(clock: &'a dyn Clock, limit: Duration) -> Self {
        Self { clock, limit, heard: clock.now(), timer: clock.sleep(limit).fuse() }
    }

    /// Completes when the peer was silent for too long.
    async fn end(&mut self) {
        loop {
            (&mut self.timer).await;
            let silence = self.clock.now().since(self.heard);
            if silence >= self.limit {
                return;
            }
            self.timer = self.clock.sleep(self.limit - silence).fuse();
        }
    }
}

/// Takes frames and does what they call for; gives the reason when the peer is cut off for what it said.
async fn converse(
    lobby: &Lobby,
    stream: Box<dyn Stream>,
    peer: NodeId,
    guest: &mut Option<Rc<Guest>>,
) -> Option<String> {
    let (mut reader, mut writer) = split(stream);
    let credentials = &lobby.own.credentials;
    let incarnation = lobby.own.receiver.incarnation();
    let mut machine = Machine::new(credentials.cluster, incarnation, credentials.node, peer);
    let mut patience = Patience::new(&*lobby.clock, HANDSHAKE_TIME_MAX);
    loop {
        let (frame, frame_bytes) = match next(&mut reader, &mut patience, guest.as_deref()).await? {
            Ok(next) => next,
            Err(why) => return Some(why),
        };
        if !lobby.own.receiver.hears(peer) {
            // It stops for good when it hears of it; one that does not listen is cut off all the same.
            let _ = tell(lobby, &mut writer, &Frame::Verdict(Verdict::Removed)).await;
            return Some(Verdict::Removed.to_string());
        }
        Counts::add(&lobby.own.counts.received_bytes, frame_bytes);
        let steps = match machine.take(frame, frame_bytes) {
            Ok(steps) => steps,
            Err(refusal) => return Some(lobby.refuse(&mut writer, &refusal).await),
        };
        patience.heard = lobby.clock.now();
        if let Some(guest) = guest {
            guest.heard.set(patience.heard);
        }
        for step in steps {
            let answer = match step {
                Step::Deliver(frame, state) => {
                    lobby.own.receiver.receive(peer, frame, state);
                    continue;
                }
                Step::Tell(taken_bytes) => Frame::Beat(Beat { taken_bytes }),
                Step::Greeted(hello) => {
                    match lobby.admit(peer, &hello) {
                        Ok(admitted) => *guest = Some(admitted),
                        Err(why) => return Some(why.to_owned()),
                    }
                    (lobby.met)(peer, hello.address);
                    patience = Patience::new(&*lobby.clock, SILENCE_MAX);
                    lobby.own.hello(peer, hello.link)
                }
            };
            tell(lobby, &mut writer, &answer).await?;
        }
    }
}

/// The next frame; `None` when the link ends without anybody's fault.
async fn next(
    reader: &mut ReadHalf<Box<dyn Stream>>,
    patience: &mut Patience<'_>,
    guest: Option<&Guest>,
) -> Option<Result<(Frame, usize), String>> {
    let replaced = async {
        match guest {
            Some(guest) => guest.replaced.notified().await,
            None => std::future::pending().await,
        }
    };
    let mut replaced = Box::pin(replaced.fuse());
    let mut frame = Box::pin(frames::read(reader).fuse());
    let mut late = Box::pin(patience.end().fuse());
    select_biased! {
        () = replaced => None,
        frame = frame => match frame {
            Ok(frame) => Some(Ok(frame)),
            Err(frames::ReadFault::Io(_)) => None,
            Err(frames::ReadFault::Frame(fault)) => Some(Err(fault.to_string())),
        },
        () = late => None,
    }
}

/// Writes an answer; `None` when the peer does not take it.
async fn tell(lobby: &Lobby, writer: &mut WriteHalf<Box<dyn Stream>>, frame: &Frame) -> Option<()> {
    let bytes = frame.encode();
    let mut late = lobby.clock.sleep(HANDSHAKE_TIME_MAX).fuse();
    let write = async {
        writer.write_all(&bytes).await?;
        writer.flush().await
    };
    let mut write = Box::pin(write.fuse());
    select_biased! {
        written = write => written.ok(),
        () = late => None,
    }
}

impl Lobby {
    /// Acts on what is wrong with what a peer says, and gives it in words.
    async fn refuse(&self, writer: &mut WriteHalf<Box<dyn Stream>>, refusal: &Refusal) -> String {
        match refusal {
            Refusal::Outlived => {
                // It stops for good when it hears of it; one that does not listen is cut off all the same.
                let _ = tell(self, writer, &Frame::Verdict(Verdict::Outlived)).await;
            }
            Refusal::Outlives => self.own.receiver.refused(Verdict::Outlived),
            _ => {}
        }
        refusal.to_string()
    }

    /// Makes the link the peer's newest, unless it is a stale one, or another process under the same number lives.
    fn admit(&self, peer: NodeId, hello: &Hello) -> Result<Rc<Guest>, &'static str> {
        let now = self.clock.now();
        let mut newest = self.newest.borrow_mut();
        if let Some(current) = newest.get(&peer) {
            if current.life == hello.life && hello.link <= current.link {
                return Err("it is older than another link of the same node");
            }
            if current.life != hello.life && now.since(current.heard.get()) < SILENCE_MAX {
                return Err("two nodes use the same number, or the other one has only just gone; they must not");
            }
            current.replaced.notify_one();
            self.own.receiver.parted(peer);
        }
        let guest =
            Rc::new(Guest { life: hello.life, link: hello.link, heard: Cell::new(now), replaced: Notify::new() });
        newest.insert(peer, Rc::clone(&guest));
        Ok(guest)
    }
}
