//! Transmission as a pure machine: bytes in, requests for the volume and replies out.
//!
//! The driver reads the socket into [`Transmission::space`], calls [`Transmission::advance`] to have every complete
//! request judged and handed out, and brings the volume's answers to [`Transmission::reply`] in any order.
//!
//! **Copies.** The payload of a write is copied once from the read buffer into memory of its own size, so that a payload
//! that stays dirty for seconds does not pin the 256 KiB buffer it came in, and the buffer stays in the processor's cache.
//! The part of a payload that has not arrived with the buffer is read from the socket straight into its place.
//!
//! **Bounds.** A request is taken only while the bytes of requests in flight and of replies not yet sent stay within
//! [`SESSION_BYTES_MAX`]; else the socket is left unread until there is room. Payloads of refused writes are dropped as
//! they come. A write whose payload never completes has no effect: it was never handed out.

use bytes::{Buf, BufMut, Bytes, BytesMut, buf::Limit};
use velum_protocol::nbd::{
    ErrorCode, Malformed, PAYLOAD_SKIP_BYTES_MAX,
    flags::{CommandFlags, StatusFlags},
    reply::{Descriptor, encode_data, encode_error, encode_none, encode_simple, encode_status},
    request::{Command, REQUEST_BYTES, Request},
};

use super::{
    handshake::ALLOCATION_CONTEXT,
    judge::{Conditions, Objection, Terms, cost, error_of, judge, kind_of, message_of, operation},
    outgoing::Outgoing,
};
use crate::{
    audit::{Action, ByteRange},
    env::{FixedMap, Instant},
    limits::{SESSION_BYTES_MAX, SESSION_READ_BYTES, SESSION_REQUESTS_MAX, STATUS_EXTENTS_MAX},
    metrics::{GuestOutcome, GuestRequest},
    volume::messages::{Operation, Outcome, Refusal, StatusExtent},
};

/// Payloads from this size on are read to their end and not beyond, so that the next request's payload, which is probably as
/// large, can go straight to its place too.
const LARGE_PAYLOAD_BYTES: u32 = 64 << 10;

/// What is read after a large payload: the next head and little of what follows it.
const READ_AFTER_LARGE_BYTES: usize = 4 << 10;

/// What the driver has to do.
#[derive(Debug)]
pub enum Effect {
    /// Hand this to the volume; its answer comes back with the tag.
    Submit {
        /// The session's number for the request.
        tag: u64,
        /// What is asked.
        operation: Operation,
    },
    /// Gate 1 turned a request down.
    Refused {
        /// What it wanted.
        action: Action,
        /// Where.
        range: ByteRange,
    },
    /// A request is over, for the counters.
    Over(Over),
}

/// A request that has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// What was asked.
    pub kind: GuestRequest,
    /// How it ended.
    pub outcome: GuestOutcome,
    /// Payload bytes that went either way.
    pub bytes: u32,
    /// When it was complete.
    pub since: Instant,
}

/// Why the connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// What follows cannot be understood any more.
    #[error("malformed request: {0}")]
    Malformed(#[from] Malformed),
    /// A payload is too long even to be skipped.
    #[error("a write of {0} bytes")]
    TooLong(u32),
    /// An unknown command that may be followed by a payload.
    #[error("unknown command {0} with a length")]
    Unknown(u16),
}

/// A request that the volume has and that is not answered.
struct Flight {
    request: Request,
    since: Instant,
}

/// A write whose payload is arriving.
struct Arriving {
    request: Request,
    payload: BytesMut,
}

/// A refused write whose payload is dropped as it arrives.
struct Dropping {
    request: Request,
    error: ErrorCode,
    left_bytes: usize,
}

/// One session's requests and replies.
pub struct Transmission {
    terms: Terms,
    input: BytesMut,
    arriving: Option<Arriving>,
    dropping: Option<Dropping>,
    flights: FixedMap<u64, Flight>,
    flight_bytes: u64,
    next_tag: u64,
    read_bytes_max: usize,
    blocked: bool,
    disconnected: bool,
    fenced: bool,
}

impl Transmission {
    /// A session on agreed terms; `input` is what the client has sent beyond the handshake.
    #[must_use]
    pub fn new(terms: Terms, input: BytesMut) -> Self {
        Self {
            terms,
            input,
            arriving: None,
            dropping: None,
            flights: FixedMap::default(),
            flight_bytes: 0,
            next_tag: 0,
            read_bytes_max: SESSION_READ_BYTES,
            blocked: false,
            disconnected: false,
            fenced: false,
        }
    }

    /// True when the socket is to be read: there is room for what comes.
    #[must_use]
    pub const fn wants_input(&self) -> bool {
        !self.blocked && !self.disconnected
    }

    /// True when a request waits for room that may have come since.
    #[must_use]
    pub const fn is_blocked(&self) -> bool {
        self.blocked && !self.disconnected
    }

    /// True when the client has ended the session.
    #[must_use]
    pub const fn is_disconnected(&self) -> bool {
        self.disconnected
    }

    /// True when the volume has said that it is no longer served here.
    #[must_use]
    pub const fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Requests that are not answered yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Where the next bytes from the socket belong.
    pub fn space(&mut self) -> Limit<&mut BytesMut> {
        if let Some(arriving) = &mut self.arriving {
            let whole = usize::try_from(arriving.request.length).unwrap_or(usize::MAX);
            let missing = whole.saturating_sub(arriving.payload.len());
            return (&mut arriving.payload).limit(missing);
        }
        // The buffer is alone in its memory, so this moves what is left to the front instead of growing.
        self.input.reserve(SESSION_READ_BYTES);
        (&mut self.input).limit(self.read_bytes_max)
    }

    /// Takes every complete request there is room for.
    ///
    /// # Errors
    /// When the connection must be cut; nothing of the malformed request was handed out.
    pub fn advance(
        &mut self,
        conditions: &Conditions,
        out: &mut Outgoing,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Cut> {
        self.blocked = false;
        while !self.disconnected {
            if self.arriving.is_some() {
                if !self.finish_payload(conditions, out, effects) {
                    break;
                }
            } else if self.dropping.is_some() {
                if !self.drop_payload(conditions, out, effects) {
                    break;
                }
            } else if !self.next_request(conditions, out, effects)? {
                break;
            }
        }
        Ok(())
    }

    /// Judges the next request; false when it is not there or there is no room for it.
    fn next_request(
        &mut self,
        conditions: &Conditions,
        out: &mut Outgoing,
        effects: &mut Vec<Effect>,
    ) -> Result<bool, Cut> {
        let Some(head) = self.input.first_chunk::<REQUEST_BYTES>() else { return Ok(false) };
        let request = Request::decode(head)?;
        if !self.has_room(&request, out) {
            self.blocked = true;
            return Ok(false);
        }
        self.input.advance(REQUEST_BYTES);
        match request.command {
            Command::Disconnect => {
                self.disconnected = true;
                return Ok(true);
            }
            Command::Unknown(number) if request.length > 0 => return Err(Cut::Unknown(number)),
            Command::Write if request.length > PAYLOAD_SKIP_BYTES_MAX => return Err(Cut::TooLong(request.length)),
            _ => {}
        }
        match (request.command, self.judge(&request, conditions)) {
            (Command::Write, Ok(())) => self.await_payload(request),
            (Command::Write, Err(objection)) => {
                let error = settle(&request, objection, effects);
                let left_bytes = usize::try_from(request.length).map_err(|_| Cut::TooLong(request.length))?;
                self.dropping = Some(Dropping { request, error, left_bytes });
            }
            (_, Ok(())) => self.accept(request, Bytes::new(), conditions, out, effects),
            (_, Err(objection)) => {
                let error = settle(&request, objection, effects);
                self.fail(&request, error, conditions.now, out, effects);
            }
        }
        Ok(true)
    }

    /// True when the request and its reply fit into what a session may hold. A session that holds nothing takes any request.
    fn has_room(&self, request: &Request, out: &Outgoing) -> bool {
        let held = self.flight_bytes.saturating_add(out.len() as u64);
        let requests = self.flights.len() < SESSION_REQUESTS_MAX;
        requests && held.saturating_add(cost(request)) <= SESSION_BYTES_MAX
    }

    fn await_payload(&mut self, request: Request) {
        let whole = usize::try_from(request.length).unwrap_or(usize::MAX);
        let mut payload = BytesMut::with_capacity(whole);
        let here = whole.min(self.input.len());
        if let Some(arrived) = self.input.get(..here) {
            payload.extend_from_slice(arrived);
        }
        self.input.advance(here);
        let large = request.length >= LARGE_PAYLOAD_BYTES;
        self.read_bytes_max = if large { READ_AFTER_LARGE_BYTES } else { SESSION_READ_BYTES };
        self.arriving = Some(Arriving { request, payload });
    }

    /// Hands a write out once its payload is whole; false while it is not. It is judged again, for a right may have been
    /// taken away and the volume may have changed its size while the payload was on its way.
    fn finish_payload(&mut self, conditions: &Conditions, out: &mut Outgoing, effects: &mut Vec<Effect>) -> bool {
        let whole = |arriving: &mut Arriving| u64::from(arriving.request.length) == arriving.payload.len() as u64;
        let Some(Arriving { request, payload }) = self.arriving.take_if(whole) else { return false };
        match self.judge(&request, conditions) {
            Ok(()) => self.accept(request, payload.freeze(), conditions, out, effects),
            Err(objection) => {
                let error = settle(&request, objection, effects);
                self.fail(&request, error, conditions.now, out, effects);
            }
        }
        true
    }

    /// Drops what has come of a refused write's payload; answers it at its end. False while more is to come.
    fn drop_payload(&mut self, conditions: &Conditions, out: &mut Outgoing, effects: &mut Vec<Effect>) -> bool {
        if let Some(dropping) = &mut self.dropping {
            let here = dropping.left_bytes.min(self.input.len());
            self.input.advance(here);
            dropping.left_bytes -= here;
        }
        let Some(Dropping { request, error, .. }) = self.dropping.take_if(|dropping| dropping.left_bytes == 0) else {
            return false;
        };
        self.fail(&request, error, conditions.now, out, effects);
        true
    }

    /// Says what is wrong with a request, if anything.
    fn judge(&self, request: &Request, conditions: &Conditions) -> Result<(), Objection> {
        let conditions = Conditions { stopping: conditions.stopping || self.fenced, ..*conditions };
        judge(request, self.terms, &conditions)
    }

    /// Hands a request out, or answers it at once when it asks for nothing.
    fn accept(
        &mut self,
        request: Request,
        payload: Bytes,
        conditions: &Conditions,
        out: &mut Outgoing,
        effects: &mut Vec<Effect>,
    ) {
        let since = conditions.now;
        let Some(operation) = operation(&request, payload) else {
            let over = Over { kind: kind_of(request.command), outcome: GuestOutcome::Done, bytes: 0, since };
            self.done(&request, out);
            effects.push(Effect::Over(over));
            return;
        };
        let tag = self.next_tag;
        self.next_tag = tag.wrapping_add(1);
        self.flight_bytes = self.flight_bytes.saturating_add(cost(&request));
        self.flights.insert(tag, Flight { request, since });
        effects.push(Effect::Submit { tag, operation });
    }

    /// Writes the reply to a request. A tag that is not in flight is ignored: it can only come from a request answered before.
    pub fn reply(&mut self, tag: u64, outcome: Outcome, out: &mut Outgoing) -> Option<Over> {
        let Flight { request, since } = self.flights.remove(&tag)?;
        self.flight_bytes = self.flight_bytes.saturating_sub(cost(&request));
        let kind = kind_of(request.command);
        let error = match outcome {
            Outcome::Data(pieces) if request.command == Command::Read => self.send_data(&request, pieces, out),
            Outcome::Status(extents) if request.command == Command::BlockStatus => {
                Self::send_status(&request, &extents, out)
            }
            Outcome::Done if !matches!(request.command, Command::Read | Command::BlockStatus) => {
                self.done(&request, out);
                None
            }
            Outcome::Refused(refusal) => {
                self.fenced |= refusal == Refusal::Closing;
                Some(error_of(request.command, refusal))
            }
            // An answer that does not fit its request is a fault of this node; the guest must not take it for data.
            Outcome::Data(_) | Outcome::Status(_) | Outcome::Done => Some(ErrorCode::Io),
        };
        let outcome = match error {
            None => GuestOutcome::Done,
            Some(ErrorCode::Io | ErrorCode::Shutdown) => GuestOutcome::Failed,
            Some(_) => GuestOutcome::Refused,
        };
        if let Some(error) = error {
            self.send_error(&request, error, out);
        }
        let moved = error.is_none() && matches!(request.command, Command::Read | Command::Write);
        Some(Over { kind, outcome, bytes: if moved { request.length } else { 0 }, since })
    }

    /// Answers a request that never reached the volume.
    fn fail(&self, request: &Request, error: ErrorCode, since: Instant, out: &mut Outgoing, effects: &mut Vec<Effect>) {
        self.send_error(request, error, out);
        if !matches!(request.command, Command::Unknown(_)) {
            let over = Over { kind: kind_of(request.command), outcome: GuestOutcome::Refused, bytes: 0, since };
            effects.push(Effect::Over(over));
        }
    }

    fn done(&self, request: &Request, out: &mut Outgoing) {
        // A read must be answered in its own form even when it brings nothing.
        let structured = self.terms.structured && request.command == Command::Read;
        out.head(|head| {
            if structured { encode_none(request.cookie, head) } else { encode_simple(request.cookie, None, head) }
        });
    }

    fn send_error(&self, request: &Request, error: ErrorCode, out: &mut Outgoing) {
        let structured = self.terms.structured;
        out.head(|head| {
            if structured {
                encode_error(request.cookie, error, message_of(error), head);
            } else {
                encode_simple(request.cookie, Some(error), head);
            }
        });
    }

    fn send_data(&self, request: &Request, pieces: Vec<Bytes>, out: &mut Outgoing) -> Option<ErrorCode> {
        let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if length != u64::from(request.length) {
            return Some(ErrorCode::Io);
        }
        let structured = self.terms.structured;
        out.head(|head| {
            if structured {
                encode_data(request.cookie, request.offset, request.length, head);
            } else {
                encode_simple(request.cookie, None, head);
            }
        });
        pieces.into_iter().for_each(|piece| out.data(piece));
        None
    }

    /// Extents never reach beyond what was asked for, and with REQ_ONE there is one.
    fn send_status(request: &Request, extents: &[StatusExtent], out: &mut Outgoing) -> Option<ErrorCode> {
        let count_max = if request.flags.has(CommandFlags::REQ_ONE) { 1 } else { STATUS_EXTENTS_MAX };
        let mut left = request.length;
        let mut descriptors: Vec<Descriptor> = Vec::with_capacity(extents.len().min(count_max));
        for extent in extents {
            let length = u32::try_from(extent.length).unwrap_or(u32::MAX).min(left);
            if length == 0 || descriptors.len() == count_max {
                break;
            }
            left -= length;
            let flags = StatusFlags::NONE.with_if(extent.hole, StatusFlags::HOLE.with(StatusFlags::ZERO));
            descriptors.push(Descriptor { length, flags });
        }
        if descriptors.is_empty() {
            return Some(ErrorCode::Io);
        }
        out.head(|head| encode_status(request.cookie, ALLOCATION_CONTEXT, &descriptors, head));
        None
    }
}

/// The error of an objection; has gate 1's refusals recorded.
fn settle(request: &Request, objection: Objection, effects: &mut Vec<Effect>) -> ErrorCode {
    match objection {
        Objection::Error(error) => error,
        Objection::Gate(action) => {
            let range = ByteRange { offset: request.offset, length: u64::from(request.length) };
            effects.push(Effect::Refused { action, range });
            ErrorCode::NotPermitted
        }
    }
}

#[cfg(test)]
mod tests;
