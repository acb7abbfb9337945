//! Does what the machine of an outgoing link says: connects, writes, reads.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{AbortHandle, abortable},
};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use velum_protocol::{
    id::NodeId,
    peer::{Frame, Hello},
    version::PEER_FRAME,
};

use super::{
    Counts, LinkStatus, Own, frames,
    outgoing::{BEAT, Effect, Input, Machine},
};
use crate::{
    actor::{Handle, Shell as ActorShell, spawn},
    env::{Env, Instant, Stream, network::Address},
};

impl Own {
    /// Who this node is, as the first frame of a link.
    pub(super) fn hello(&self, to: NodeId, link: u64) -> Frame {
        Frame::Hello(Hello {
            cluster: self.credentials.cluster,
            from: self.credentials.node,
            to,
            version_min: 1,
            version_max: PEER_FRAME.version,
            life: self.life,
            link,
            incarnation: self.receiver.incarnation(),
            address: self.address.borrow().clone(),
        })
    }
}

type Writer = WriteHalf<Box<dyn Stream>>;

/// A connection, with what reads and writes it.
#[derive(Default)]
struct Connection {
    writer: Option<Writer>,
    tasks: Vec<AbortHandle>,
}

impl Connection {
    fn close(&mut self) {
        self.writer = None;
        self.tasks.drain(..).for_each(|task| task.abort());
    }
}

/// The shell.
pub(super) struct Shell {
    env: Env,
    own: Rc<Own>,
    peer: NodeId,
    status: Rc<RefCell<LinkStatus>>,
    heard: Rc<Cell<Instant>>,
    connection: Rc<RefCell<Connection>>,
}

/// What others may see of a link: how it stands, and when the peer last said something on it.
type Seen = (Rc<RefCell<LinkStatus>>, Rc<Cell<Instant>>);

impl Shell {
    pub(super) fn new(env: &Env, own: Rc<Own>, peer: NodeId, (status, heard): Seen) -> Self {
        Self { env: env.clone(), own, peer, status, heard, connection: Rc::default() }
    }

    fn dial(&self, link: u64, address: &Address, handle: &Handle<Input>) {
        let connecting = self.env.network.connect_peer(address, Rc::clone(&self.own.credentials), self.peer);
        let (connection, own, receiver) = (Rc::clone(&self.connection), handle.clone(), Rc::clone(&self.own.receiver));
        let (clock, heard) = (Rc::clone(&self.env.clock), Rc::clone(&self.heard));
        self.run(async move {
            match connecting.await {
                Ok(stream) => {
                    let (reader, writer) = split(stream);
                    connection.borrow_mut().writer = Some(writer);
                    own.call(Input::Connected { link, incarnation: receiver.incarnation() });
                    let hear = |frame| {
                        heard.set(clock.now());
                        own.call(Input::Heard { link, frame });
                    };
                    let broken = listen(reader, hear).await;
                    own.call(Input::Broken { link, why: broken });
                }
                Err(error) => own.call(Input::Broken { link, why: error.to_string() }),
            }
        });
    }

    /// Runs beside the actor for as long as the connection stays.
    fn run(&self, work: impl Future<Output = ()> + 'static) {
        let (work, handle) = abortable(work);
        let mut connection = self.connection.borrow_mut();
        connection.tasks.retain(|task| !task.is_aborted());
        connection.tasks.push(handle.clone());
        spawn(async move {
            // Ended or aborted, all the same.
            let _ = work.await;
            // So that it is taken off the list.
            handle.abort();
        });
    }

    fn write(&self, link: u64, bytes: Bytes, greets: bool, handle: &Handle<Input>) {
        let Some(mut writer) = self.connection.borrow_mut().writer.take() else { return };
        let (connection, own, counts) = (Rc::clone(&self.connection), handle.clone(), Rc::clone(&self.own.counts));
        let mut work = Box::pin(async move {
            let written: io::Result<()> = async {
                writer.write_all(&bytes).await?;
                writer.flush().await
            }
            .await;
            match written {
                Ok(()) => {
                    Counts::add(&counts.sent_bytes, bytes.len());
                    connection.borrow_mut().writer = Some(writer);
                    if !greets {
                        own.call(Input::Written { link });
                    }
                }
                Err(error) => own.call(Input::Broken { link, why: error.to_string() }),
            }
        });
        // Mostly the stream takes it at once: what waits for the peer is on its way before this node does anything else.
        if (&mut work).now_or_never().is_none() {
            self.run(work);
        }
    }
}

/// Hands on what the peer says on a link, until it ends; says why.
async fn listen(mut reader: ReadHalf<Box<dyn Stream>>, hear: impl Fn(Frame)) -> String {
    loop {
        match frames::read(&mut reader).await {
            Ok((frame, _)) => hear(frame),
            Err(fault) => return fault.to_string(),
        }
    }
}

impl ActorShell<Machine> for Shell {
    fn perform(&mut self, effect: Effect, handle: &Handle<Input>) {
        match effect {
            Effect::Dial { link, address } => self.dial(link, &address, handle),
            Effect::Greet { link } => {
                let hello = self.own.hello(self.peer, link).encode();
                self.write(link, hello, true, handle);
            }
            Effect::Write { link, bytes } => self.write(link, bytes, false, handle),
            Effect::Close => std::mem::take(&mut self.connection).borrow_mut().close(),
            Effect::DialAfter { link, wait } => handle.after(&*self.env.clock, wait, Input::Dial { link }),
            Effect::ArmBeat => handle.after(&*self.env.clock, BEAT, Input::Beat),
            Effect::Sent { ticket, whole } => {
                let done = self.own.sending.borrow_mut().remove(&ticket);
                if let Some(done) = done {
                    // Whoever sent it may have gone away.
                    let _ = done.send(whole);
                }
            }
            Effect::Dropped(frames) => Counts::add(&self.own.counts.dropped_frames, frames),
            Effect::Lost => self.own.receiver.lost(self.peer),
            Effect::Refused(verdict) => self.own.receiver.refused(verdict),
            Effect::Report { state, why } => {
                let mut status = self.status.borrow_mut();
                if let Some(why) = why {
                    tracing::debug!(peer = %self.peer, why, "the link to a peer ended");
                    status.last_error = Some(why);
                }
                status.state = state;
            }
        }
    }
}
