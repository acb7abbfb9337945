//! One NBD connection of a guest: the project's pure client over a simulated stream.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    rc::Rc,
};

use bytes::BytesMut;
use futures_util::future::{Either, select};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Notify, oneshot},
};
use velum_protocol::nbd::{
    Cookie, ErrorCode,
    client::{Answer, Ask, ClientError, Handshake, Negotiated, Session, Wishes},
};

use crate::{env::network::End, runtime::Sim};

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The server answered with an error.
    Refused(ErrorCode),
    /// The connection ended first.
    Lost,
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The stream failed.
    #[error("the stream failed: {0}")]
    Stream(#[from] io::Error),
    /// The server refused or broke the protocol.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// An open connection. Cheap to clone; ends when the server or the network ends it, or by [`Connection::hang_up`].
#[derive(Clone)]
pub struct Connection {
    shared: Rc<Shared>,
}

struct Shared {
    sim: Rc<Sim>,
    session: RefCell<Session>,
    out: RefCell<BytesMut>,
    ready: Notify,
    hung_up: Notify,
    waiting: RefCell<BTreeMap<Cookie, oneshot::Sender<Result<Answer, ErrorCode>>>>,
    ended: Cell<bool>,
}

impl Connection {
    /// Shakes hands on `end` and starts the connection.
    ///
    /// # Errors
    /// When the stream fails, the server refuses the export or breaks the protocol.
    pub async fn open(sim: &Rc<Sim>, end: End, wishes: Wishes) -> Result<Self, ConnectError> {
        let (mut reader, mut writer) = tokio::io::split(end);
        let mut input = BytesMut::new();
        let negotiated = shake_hands(&mut reader, &mut writer, &mut input, Handshake::new(wishes)).await?;
        let shared = Rc::new(Shared {
            sim: Rc::clone(sim),
            session: RefCell::new(Session::new(negotiated)),
            out: RefCell::default(),
            ready: Notify::new(),
            hung_up: Notify::new(),
            waiting: RefCell::default(),
            ended: Cell::new(false),
        });
        let driven = Rc::clone(&shared);
        sim.spawn(async move {
            let receive = Box::pin(receive(Rc::clone(&driven), reader, input));
            let send = Box::pin(send(Rc::clone(&driven), writer));
            let hung_up = Box::pin(driven.hung_up.notified());
            drop(select(select(receive, send), hung_up).await);
            driven.ended.set(true);
            driven.waiting.borrow_mut().clear();
        });
        Ok(Self { shared })
    }

    /// Size and abilities of the export.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.shared.session.borrow().negotiated().clone()
    }

    /// False when the connection has ended.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.shared.ended.get()
    }

    /// Ends the connection without a word, as when a guest is killed.
    pub fn hang_up(&self) {
        self.shared.hung_up.notify_one();
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When the server refuses or the connection ends.
    pub async fn ask(&self, ask: &Ask) -> Result<Answer, NoAnswer> {
        if !self.is_open() {
            return Err(NoAnswer::Lost);
        }
        let (answer, answered) = oneshot::channel();
        let cookie = self.shared.session.borrow_mut().ask(ask, &mut self.shared.out.borrow_mut());
        self.shared.waiting.borrow_mut().insert(cookie, answer);
        self.shared.ready.notify_one();
        match answered.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(code)) => Err(NoAnswer::Refused(code)),
            Err(_) => Err(NoAnswer::Lost),
        }
    }
}

async fn shake_hands(
    reader: &mut ReadHalf<End>,
    writer: &mut WriteHalf<End>,
    input: &mut BytesMut,
    mut handshake: Handshake,
) -> Result<Negotiated, ConnectError> {
    let mut out = BytesMut::new();
    loop {
        if reader.read_buf(input).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let negotiated = handshake.step(input, &mut out)?;
        writer.write_all(&out).await?;
        out.clear();
        if let Some(negotiated) = negotiated {
            return Ok(negotiated);
        }
    }
}

/// Takes replies until the connection ends. A server that breaks the protocol fails the run.
async fn receive(shared: Rc<Shared>, mut reader: ReadHalf<End>, mut input: BytesMut) {
    let mut over = Vec::new();
    loop {
        if let Err(error) = shared.session.borrow_mut().receive(&mut input, &mut over) {
            shared.sim.fail(format!("NBD: {error}"));
            return;
        }
        for (cookie, result) in over.drain(..) {
            if let Some(answer) = shared.waiting.borrow_mut().remove(&cookie) {
                drop(answer.send(result));
            }
        }
        match reader.read_buf(&mut input).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Sends what is asked until the connection ends.
async fn send(shared: Rc<Shared>, mut writer: WriteHalf<End>) {
    loop {
        let out = shared.out.borrow_mut().split();
        if out.is_empty() {
            shared.ready.notified().await;
        } else if writer.write_all(&out).await.is_err() {
            return;
        }
    }
}

/// Waits for `work`, but at most `ms` simulated milliseconds.
pub async fn within<T>(sim: &Sim, ms: u64, work: impl Future<Output = T>) -> Option<T> {
    match select(Box::pin(work), Box::pin(sim.sleep_ms(ms))).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}
