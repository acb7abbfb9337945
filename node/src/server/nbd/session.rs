//! One NBD session over one stream: handshake, attach, transmission, detach.
//!
//! The data path is one hand-written poll: send what waits in one vectored write, read what has come in one read, then
//! judge and submit all of it and let the volume write its journal once. No task, channel or timer per request. One sleep
//! is armed only while the guest takes none of its replies.
//!
//! A session that ends for whatever reason detaches from its volume, so that none of its requests that are not in the
//! journal takes effect any more. Dropping the future instead, as a crash does, tells nobody anything.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use velum_protocol::{
    id::{Pass, SessionId},
    nbd::{OPTION_BYTES_MAX, option_reply::OptionError},
};

use super::{
    handshake::{Agreed, Handshake, Leave, Step, Visitor},
    judge::{Conditions, Terms},
    outgoing::{Outgoing, SLICES_MAX},
    transmission::{Cut, Effect, Over, Transmission},
};
use crate::{
    audit::Throttle,
    env::{Clock, Instant, Local, Stream},
    limits::{HANDSHAKE_REPLY_BYTES_MAX, HANDSHAKE_TIME_MAX, SESSION_STALL_MAX},
    metrics::{GuestOutcome, Metrics, RefusedInput},
    server::{
        gate::{Export, Gate},
        session::{Mailbox, Ticket},
    },
    volume::messages::{Entrant, Origin, Principal, Replies, Reply, Request},
};

/// Read at once during the handshake: the longest option with its header fits.
const HANDSHAKE_READ_BYTES: usize = 16 << 10;
const _: () = assert!(HANDSHAKE_READ_BYTES > OPTION_BYTES_MAX as usize + 16);

/// What every session of a node is given.
#[derive(Clone)]
pub struct Surroundings {
    /// Time.
    pub clock: Rc<dyn Clock>,
    /// Gate 1.
    pub gate: Rc<Gate>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// How a session ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The client said goodbye.
    #[error("the client disconnected")]
    Disconnected,
    /// The client closed the connection without a word.
    #[error("the client closed the connection")]
    Closed,
    /// The node is stopping, or the volume is no longer served here.
    #[error("the volume is closing")]
    Stopped,
    /// Whoever served the volume is lost, or it was deleted: what was under way may be done or not.
    #[error("what the client has under way is not answered any more")]
    Lost,
    /// The attachment is over, or the nodes do not agree on anything now.
    #[error("the attachment is over, or no connection can be agreed on")]
    NotAttached,
    /// The client may find the volume at another node.
    #[error("whoever serves the volume is not reached from here")]
    CutOff,
    /// The handshake ended without an export.
    #[error("{0}")]
    Left(#[from] Leave),
    /// The handshake took too long.
    #[error("the handshake took too long")]
    Late,
    /// The client sent what cannot be served.
    #[error("{0}")]
    Cut(#[from] Cut),
    /// The client does not take its replies.
    #[error("the client takes no replies")]
    Stalled,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

impl End {
    /// The counter for ends that are the client's fault.
    #[must_use]
    pub const fn refused_input(&self) -> Option<RefusedInput> {
        match self {
            Self::Left(Leave::Malformed(_)) | Self::Cut(Cut::Malformed(_)) => Some(RefusedInput::Malformed),
            Self::Left(Leave::TooLong) | Self::Cut(Cut::TooLong(_)) => Some(RefusedInput::TooLong),
            Self::Cut(Cut::Unknown(_)) => Some(RefusedInput::Unknown),
            Self::Left(Leave::UnknownExport) => Some(RefusedInput::UnknownExport),
            Self::Left(Leave::TooManyOptions) | Self::Late | Self::Stalled => Some(RefusedInput::Limit),
            Self::Disconnected
            | Self::Closed
            | Self::Stopped
            | Self::Lost
            | Self::CutOff
            | Self::NotAttached
            | Self::Left(Leave::Aborted | Leave::Stopping)
            | Self::Broken(_) => None,
        }
    }
}

/// Serves one connection to its end.
pub async fn serve(around: &Surroundings, ticket: &Ticket, principal: &Principal, mut stream: Box<dyn Stream>) -> End {
    let mut input = BytesMut::new();
    let late = around.clock.sleep(HANDSHAKE_TIME_MAX);
    let agreed = {
        let mut late = late.fuse();
        let haggling = haggle(around, &ticket.mailbox, principal, &mut stream, &mut input);
        let mut haggling = pin!(haggling.fuse());
        futures_util::select_biased! {
            agreed = haggling => agreed,
            () = late => Err(End::Late),
        }
    };
    let end = match agreed {
        Ok((agreed, pass)) => {
            let (volume, entrant) = (agreed.export.volume, Entrant { principal: principal.clone(), pass });
            let end = transmit(around, ticket, &entrant, agreed, &mut stream, input).await;
            if let Some(pass) = pass {
                around.gate.disconnect(volume, pass);
            }
            end
        }
        Err(end) => end,
    };
    if let Some(reason) = end.refused_input() {
        around.metrics.nbd.refused_inputs.of(reason).inc();
    }
    if !matches!(end, End::Stalled | End::Late | End::Broken(_)) {
        // What was sent is followed by an orderly end; that it fails means the client has left already.
        drop(stream.shutdown().await);
    }
    end
}

/// The handshake: a few messages, so plain reads and writes will do.
async fn haggle(
    around: &Surroundings,
    mailbox: &Mailbox,
    principal: &Principal,
    stream: &mut Box<dyn Stream>,
    input: &mut BytesMut,
) -> Result<(Agreed, Option<Pass>), End> {
    let mut out = BytesMut::new();
    let mut handshake = Handshake::new(&mut out);
    let mut is_behind = true;
    loop {
        if is_behind
            && let Some(name) = handshake.asked_for(input)
            && !around.gate.would_admit(&name, principal)
        {
            // What was made or allowed a moment ago may be known elsewhere already. Once is enough: what comes later was not there to be
            // asked for.
            is_behind = false;
            caught_up(mailbox, around.gate.catch_up()).await?;
        }
        let visitor = Visitor { gate: &around.gate, principal, stopping: mailbox.is_stopping() };
        let said_bytes = out.len();
        let step = handshake.step(input, visitor, &mut out);
        for error in handshake.take_refused() {
            around.metrics.nbd.refused_inputs.of(reason_of(error)).inc();
        }
        if matches!(step, Step::Again) && out.len() < HANDSHAKE_REPLY_BYTES_MAX {
            continue;
        }
        let mut pass = None;
        if let Step::Enter(agreed) = &step {
            let Export { volume, door, attachment, .. } = &agreed.export;
            let opening = door.opening();
            if opening.is_some() || attachment.is_some() {
                // What was said before goes out; that the export is there is said when it is.
                let granted = out.split_off(said_bytes);
                stream.write_all_buf(&mut out).await?;
                if let Some(opening) = opening {
                    opened(mailbox, opening).await?;
                }
                if let Some(handle) = attachment {
                    pass = Some(connected(mailbox, around.gate.connect(*volume, *handle)).await?);
                }
                out = granted;
            }
        }
        stream.write_all_buf(&mut out).await?;
        match step {
            Step::Again => {}
            Step::Enter(agreed) => return Ok((*agreed, pass)),
            Step::Leave(leave) => return Err(leave.into()),
            Step::NeedInput => {
                input.reserve(HANDSHAKE_READ_BYTES);
                let mut stopped = pin!(poll_fn(|context| mailbox.poll_stop(context)).fuse());
                let mut reading = pin!(stream.read_buf(input).fuse());
                let read = futures_util::select_biased! {
                    read = reading => read?,
                    () = stopped => return Err(End::Stopped),
                };
                if read == 0 {
                    return Err(End::Closed);
                }
            }
        }
    }
}

/// Waits until this node knows what was agreed on before.
async fn caught_up(mailbox: &Mailbox, catching_up: Local<()>) -> Result<(), End> {
    let mut stopped = pin!(poll_fn(|context| mailbox.poll_stop(context)).fuse());
    futures_util::select_biased! {
        () = catching_up.fuse() => Ok(()),
        () = stopped => Err(End::Stopped),
    }
}

/// Waits until a volume is served; the handshake's own bound ends it.
async fn opened(mailbox: &Mailbox, opening: Local<bool>) -> Result<(), End> {
    let mut stopped = pin!(poll_fn(|context| mailbox.poll_stop(context)).fuse());
    futures_util::select_biased! {
        is_served = opening.fuse() => if is_served { Ok(()) } else { Err(End::CutOff) },
        () = stopped => Err(End::Stopped),
    }
}

const fn reason_of(error: OptionError) -> RefusedInput {
    match error {
        OptionError::TooBig => RefusedInput::TooLong,
        OptionError::UnknownExport => RefusedInput::UnknownExport,
        OptionError::Unsupported => RefusedInput::Unknown,
        _ => RefusedInput::Malformed,
    }
}

/// A connection on an attachment begins: whichever it takes the place of is over before the guest hears that it is in.
async fn connected(mailbox: &Mailbox, connecting: Local<Option<Pass>>) -> Result<Pass, End> {
    let mut stopped = pin!(poll_fn(|context| mailbox.poll_stop(context)).fuse());
    futures_util::select_biased! {
        pass = connecting.fuse() => pass.ok_or(End::NotAttached),
        () = stopped => Err(End::Stopped),
    }
}

/// Attaches, serves until the session ends, detaches.
async fn transmit(
    around: &Surroundings,
    ticket: &Ticket,
    entrant: &Entrant,
    agreed: Agreed,
    stream: &mut Box<dyn Stream>,
    input: BytesMut,
) -> End {
    let Agreed { export, structured, allocation } = agreed;
    let door = Rc::clone(&export.door);
    let replies: Rc<dyn Replies> = Rc::clone(&ticket.mailbox) as Rc<dyn Replies>;
    door.attach(ticket.id, entrant.clone(), replies);
    around.metrics.nbd.sessions_opened.inc();
    let mut pump = Pump {
        around,
        id: ticket.id,
        mailbox: &ticket.mailbox,
        principal: &entrant.principal,
        export,
        stream,
        machine: Transmission::new(Terms { structured, allocation }, input),
        out: Outgoing::default(),
        effects: Vec::new(),
        replies: Vec::new(),
        counted_in_flight: 0,
        stall: None,
        throttle: Throttle::default(),
    };
    let end = pump.run().await;
    pump.count_in_flight(0);
    door.detach(ticket.id);
    end
}

/// Moves bytes between the stream, the machine and the volume.
struct Pump<'a> {
    around: &'a Surroundings,
    id: SessionId,
    mailbox: &'a Mailbox,
    principal: &'a Principal,
    export: Export,
    stream: &'a mut Box<dyn Stream>,
    machine: Transmission,
    out: Outgoing,
    effects: Vec<Effect>,
    replies: Vec<Reply>,
    counted_in_flight: usize,
    /// Armed while the guest takes no bytes.
    stall: Option<Local<()>>,
    /// Of lines about failed requests.
    throttle: Throttle,
}

impl Pump<'_> {
    async fn run(&mut self) -> End {
        loop {
            if let Err(cut) = self.turn() {
                return cut.into();
            }
            if self.mailbox.is_ended() {
                return End::Lost;
            }
            let ending = self.machine.is_disconnected() || self.machine.is_fenced() || self.mailbox.is_stopping();
            if ending && self.machine.in_flight() == 0 && self.out.is_empty() {
                return if self.machine.is_disconnected() { End::Disconnected } else { End::Stopped };
            }
            match poll_fn(|context| self.poll_io(context)).await {
                Ok(()) => self.mailbox.awake(),
                Err(end) => return end,
            }
        }
    }

    /// Everything that can be done without waiting: judge and submit what has come, take the replies there are.
    fn turn(&mut self) -> Result<(), Cut> {
        let now = self.around.clock.now();
        let conditions = Conditions {
            size_bytes: self.export.door.size_bytes(),
            right: self.around.gate.right(self.export.volume, self.principal),
            stopping: self.mailbox.is_stopping(),
            now,
        };
        // Replies first: they make room.
        self.take_replies(now);
        let advanced = self.machine.advance(&conditions, &mut self.out, &mut self.effects);
        let mut submitted = 0;
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Submit { tag, operation } => {
                    submitted += 1;
                    let origin = Origin { session: self.id, tag };
                    self.export.door.submit(Request { origin, operation });
                }
                Effect::Refused { action, range } => {
                    self.around.gate.refused(self.export.volume, self.principal, action, range);
                }
                Effect::Over(over) => self.count(&over, now),
            }
        }
        self.effects = effects;
        if submitted > 0 {
            self.around.gate.passed(submitted);
            self.export.door.end_burst();
            self.take_replies(now);
        }
        self.count_in_flight(self.machine.in_flight());
        advanced
    }

    fn take_replies(&mut self, now: Instant) {
        let mut replies = std::mem::take(&mut self.replies);
        self.mailbox.take(&mut replies);
        for Reply { origin, outcome } in replies.drain(..) {
            debug_assert_eq!(origin.session, self.id, "a volume answers in the mailbox of the session that asked");
            if let Some(over) = self.machine.reply(origin.tag, outcome, &mut self.out) {
                self.count(&over, now);
            }
        }
        self.replies = replies;
    }

    fn count(&self, over: &Over, now: Instant) {
        let nbd = &self.around.metrics.nbd;
        nbd.requests.of(over.kind).of(over.outcome).inc();
        nbd.seconds.of(over.kind).observe(now.since(over.since).as_secs_f64());
        if over.outcome == GuestOutcome::Failed
            && let Some(held_back) = self.throttle.admit(now)
        {
            let (volume, principal) = (self.export.volume, &*self.principal.0);
            tracing::error!(%volume, principal, request = ?over.kind, held_back, "a guest's request failed");
        }
        match over.kind {
            crate::metrics::GuestRequest::Read => nbd.read_bytes.inc_by(u64::from(over.bytes)),
            crate::metrics::GuestRequest::Write => nbd.written_bytes.inc_by(u64::from(over.bytes)),
            _ => {}
        }
    }

    fn count_in_flight(&mut self, now: usize) {
        let change = i64::try_from(now).unwrap_or(i64::MAX) - i64::try_from(self.counted_in_flight).unwrap_or(i64::MAX);
        if change != 0 {
            self.around.metrics.nbd.in_flight.add(change);
            self.counted_in_flight = now;
        }
    }

    /// Ready when something has moved and another turn is worth taking.
    fn poll_io(&mut self, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        let mut moved = self.poll_send(context)?.is_ready();
        moved |= self.poll_receive(context)?.is_ready();
        moved |= self.mailbox.poll_replies(context).is_ready();
        let ending = self.mailbox.is_stopping() && self.machine.in_flight() == 0 && self.out.is_empty();
        if moved || ending || self.mailbox.is_ended() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Sends until nothing waits or the guest takes no more; ready when that has made room for a request that waited.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        let mut any = false;
        while !self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.out.slices(&mut slices);
            let slices = slices.get(..count).unwrap_or_default();
            match AsyncWrite::poll_write_vectored(Pin::new(&mut *self.stream), context, slices)? {
                Poll::Ready(0) => return Poll::Ready(Err(End::Closed)),
                Poll::Ready(sent) => {
                    self.out.sent(sent);
                    self.stall = None;
                    any = true;
                }
                Poll::Pending => {
                    self.poll_stall(context)?;
                    break;
                }
            }
        }
        let done = self.out.is_empty() && (self.machine.is_disconnected() || self.machine.is_fenced());
        if any && (self.machine.is_blocked() || done) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// The guest takes nothing: give it until the deadline.
    fn poll_stall(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        let stall = self.stall.get_or_insert_with(|| self.around.clock.sleep(SESSION_STALL_MAX));
        if stall.poll_unpin(context).is_ready() { Err(End::Stalled) } else { Ok(()) }
    }

    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        if !self.machine.wants_input() {
            return Poll::Pending;
        }
        let mut space = self.machine.space();
        let read = ready!(pin!(self.stream.read_buf(&mut space)).poll(context))?;
        Poll::Ready(if read == 0 { Err(End::Closed) } else { Ok(()) })
    }
}

#[cfg(test)]
mod tests;
