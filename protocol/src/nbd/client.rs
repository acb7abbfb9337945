//! The client's side as two pure machines: [`Handshake`] until an export is chosen, then [`Session`].
//!
//! Bytes from the server go in, bytes for the server and answers come out; whoever drives them owns the socket. They are
//! strict: whatever a correct server would not send ends the session with an error, so that a guest built on them is a
//! check of the server too.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};

use super::{
    BASE_ALLOCATION, Cookie, ErrorCode, Malformed, PAYLOAD_BYTES_MAX,
    flags::{ClientFlags, CommandFlags, HandshakeFlags},
    handshake::{ExportInfo, GREETING_BYTES, decode_greeting, encode_client_flags},
    option::{Choice, Contexts, InfoKind, OptionCode, OptionRequest},
    option_reply::{Info, OPTION_REPLY_HEADER_BYTES, OptionError, OptionReply, OptionReplyHeader},
    reply::{Chunk, Descriptor, ReplyHeader},
    request::{Command, Request},
};

/// Why a client gives a connection up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The server sent bytes that mean nothing.
    #[error("the server sent bytes that mean nothing: {0}")]
    Malformed(#[from] Malformed),
    /// The server refused an option that the client cannot do without.
    #[error("the server refused: {error:?} {message}")]
    Refused {
        /// Why.
        error: OptionError,
        /// The server's words.
        message: String,
    },
    /// The server broke a rule of the protocol.
    #[error("the server broke the protocol: {0}")]
    Broken(&'static str),
}

/// What a client wants of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// The export's name; empty for the default one.
    pub export: String,
    /// Structured replies; needed for `allocation`.
    pub structured: bool,
    /// The metadata context `base:allocation`.
    pub allocation: bool,
}

/// What the handshake ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Size and abilities of the export.
    pub export: ExportInfo,
    /// True when replies to reads are structured.
    pub structured: bool,
    /// The number of `base:allocation`, when it was granted.
    pub allocation: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Structured,
    Allocation,
    Go,
    Over,
}

/// The handshake, from the greeting to the choice of an export.
#[derive(Debug)]
pub struct Handshake {
    wishes: Wishes,
    phase: Phase,
    structured: bool,
    allocation: Option<u32>,
    export: Option<ExportInfo>,
}

impl Handshake {
    /// A handshake that has seen nothing yet.
    #[must_use]
    pub const fn new(wishes: Wishes) -> Self {
        Self { wishes, phase: Phase::Greeting, structured: false, allocation: None, export: None }
    }

    /// Takes what has arrived, appends what is to be sent, and says when transmission begins. Bytes of a message that is
    /// not complete stay in `input`.
    ///
    /// # Errors
    /// When the server refuses or breaks the protocol; the connection is of no more use.
    pub fn step(&mut self, input: &mut BytesMut, out: &mut BytesMut) -> Result<Option<Negotiated>, ClientError> {
        loop {
            if self.phase == Phase::Greeting {
                let Some(greeting) = input.first_chunk::<GREETING_BYTES>() else { return Ok(None) };
                let flags = decode_greeting(greeting)?;
                input.advance(GREETING_BYTES);
                self.greeted(flags, out)?;
                continue;
            }
            let Some(head) = input.first_chunk::<OPTION_REPLY_HEADER_BYTES>() else { return Ok(None) };
            let header = OptionReplyHeader::decode(head)?;
            let total = OPTION_REPLY_HEADER_BYTES
                .saturating_add(usize::try_from(header.length).map_err(|_| Malformed::TooLong)?);
            if input.len() < total {
                return Ok(None);
            }
            let message = input.split_to(total);
            let reply = OptionReply::decode(header, message.get(OPTION_REPLY_HEADER_BYTES..).unwrap_or_default())?;
            if let Some(negotiated) = self.replied(header.option, reply, out)? {
                return Ok(Some(negotiated));
            }
        }
    }

    fn greeted(&mut self, flags: HandshakeFlags, out: &mut BytesMut) -> Result<(), ClientError> {
        if !flags.has(HandshakeFlags::FIXED_NEWSTYLE) {
            return Err(ClientError::Broken("it does not speak fixed newstyle"));
        }
        let no_zeroes = flags.has(HandshakeFlags::NO_ZEROES);
        encode_client_flags(ClientFlags::FIXED_NEWSTYLE.with_if(no_zeroes, ClientFlags::NO_ZEROES), out);
        self.ask_next(Phase::Structured, out);
        Ok(())
    }

    /// Asks for the first thing wished for from `phase` on.
    fn ask_next(&mut self, phase: Phase, out: &mut BytesMut) {
        if phase == Phase::Structured && (self.wishes.structured || self.wishes.allocation) {
            self.phase = Phase::Structured;
            OptionRequest::StructuredReply.encode(out);
        } else if phase != Phase::Go && self.wishes.allocation && self.structured {
            self.phase = Phase::Allocation;
            let queries = vec![BASE_ALLOCATION.to_owned()];
            OptionRequest::SetMetaContext(Contexts { name: self.wishes.export.clone(), queries }).encode(out);
        } else {
            self.phase = Phase::Go;
            let wanted = vec![InfoKind::BLOCK_SIZE];
            OptionRequest::Go(Choice { name: self.wishes.export.clone(), wanted }).encode(out);
        }
    }

    fn replied(
        &mut self,
        option: OptionCode,
        reply: OptionReply,
        out: &mut BytesMut,
    ) -> Result<Option<Negotiated>, ClientError> {
        let (asked, next) = match self.phase {
            Phase::Structured => (OptionCode::STRUCTURED_REPLY, Phase::Allocation),
            Phase::Allocation => (OptionCode::SET_META_CONTEXT, Phase::Go),
            Phase::Go => (OptionCode::GO, Phase::Over),
            Phase::Greeting | Phase::Over => return Err(ClientError::Broken("a reply to nothing")),
        };
        if option != asked {
            return Err(ClientError::Broken("a reply to another option"));
        }
        match (self.phase, reply) {
            (Phase::Go, OptionReply::Error { error, message }) => return Err(ClientError::Refused { error, message }),
            (Phase::Go, OptionReply::Info(Info::Export(export))) => self.export = Some(export),
            (Phase::Go, OptionReply::Info(_)) => {}
            (Phase::Go, OptionReply::Ack) => {
                self.phase = Phase::Over;
                let export = self.export.ok_or(ClientError::Broken("an export without its size"))?;
                return Ok(Some(Negotiated { export, structured: self.structured, allocation: self.allocation }));
            }
            (Phase::Structured, OptionReply::Ack) => {
                self.structured = true;
                self.ask_next(next, out);
            }
            (Phase::Allocation, OptionReply::MetaContext { id, name }) if name == BASE_ALLOCATION => {
                self.allocation = Some(id);
            }
            (Phase::Allocation, OptionReply::Ack) => self.ask_next(next, out),
            // The client can do without either of the two.
            (Phase::Structured | Phase::Allocation, OptionReply::Error { .. }) => {
                self.allocation = None;
                self.ask_next(next, out);
            }
            _ => return Err(ClientError::Broken("a reply that does not fit its option")),
        }
        Ok(None)
    }
}

/// Something a guest asks of an export. Offsets and lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of the request and say themselves what they are")]
pub enum Ask {
    /// Bytes at an offset.
    Read { offset: u64, length: u32 },
    /// Store bytes at an offset; `fua`: answer when they are durable.
    Write { offset: u64, payload: Bytes, fua: bool },
    /// Make everything answered before durable.
    Flush,
    /// Give a range up.
    Trim { offset: u64, length: u32, fua: bool },
    /// Make a range read as zeros: kept allocated with `no_hole`, only if it is quick with `fast`.
    WriteZeroes { offset: u64, length: u32, no_hole: bool, fast: bool, fua: bool },
    /// Bring a range near.
    Cache { offset: u64, length: u32 },
    /// Which parts of a range hold data; with `one`, only the first.
    BlockStatus { offset: u64, length: u32, one: bool },
}

/// What a successful request brings back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The bytes read.
    Data(Bytes),
    /// Done.
    Done,
    /// Extents from the start of the range.
    Status(Vec<Descriptor>),
}

/// A request that is over: its cookie, and its answer or error.
pub type Completion = (Cookie, Result<Answer, ErrorCode>);

#[derive(Debug)]
struct Waiting {
    command: Command,
    offset: u64,
    length: u32,
    one: bool,
    contents: BytesMut,
    covered: Vec<(u64, u64)>,
    status: Vec<Descriptor>,
    error: Option<ErrorCode>,
}

/// Transmission: requests out, replies in, in any order.
#[derive(Debug)]
pub struct Session {
    negotiated: Negotiated,
    waiting: BTreeMap<Cookie, Waiting>,
    next_cookie: u64,
}

impl Session {
    /// A session on what the handshake ended with.
    #[must_use]
    pub const fn new(negotiated: Negotiated) -> Self {
        Self { negotiated, waiting: BTreeMap::new(), next_cookie: 1 }
    }

    /// What the handshake ended with.
    #[must_use]
    pub const fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Requests that have no reply yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    /// Appends a request to what is to be sent.
    pub fn ask(&mut self, ask: &Ask, out: &mut BytesMut) -> Cookie {
        let cookie = Cookie(self.next_cookie);
        self.next_cookie = self.next_cookie.wrapping_add(1);
        let request = Self::request(ask, cookie);
        request.encode(out);
        if let Ask::Write { payload, .. } = ask {
            out.extend_from_slice(payload);
        }
        let waiting = Waiting {
            command: request.command,
            offset: request.offset,
            length: request.length,
            one: request.flags.has(CommandFlags::REQ_ONE),
            contents: BytesMut::new(),
            covered: Vec::new(),
            status: Vec::new(),
            error: None,
        };
        self.waiting.insert(cookie, waiting);
        cookie
    }

    /// Appends the request that ends the session.
    pub fn disconnect(&mut self, out: &mut BytesMut) {
        let (flags, command, cookie) = (CommandFlags::NONE, Command::Disconnect, Cookie(0));
        Request { flags, command, cookie, offset: 0, length: 0 }.encode(out);
    }

    /// The request behind an ask.
    ///
    /// # Panics
    /// When a payload does not fit the protocol's length field.
    fn request(ask: &Ask, cookie: Cookie) -> Request {
        let none = CommandFlags::NONE;
        let (command, offset, length, flags) = match ask {
            Ask::Read { offset, length } => (Command::Read, *offset, *length, none),
            Ask::Write { offset, payload, fua } => {
                let length = u32::try_from(payload.len()).expect("a guest writes less than 4 GiB at once");
                (Command::Write, *offset, length, none.with_if(*fua, CommandFlags::FUA))
            }
            Ask::Flush => (Command::Flush, 0, 0, none),
            Ask::Trim { offset, length, fua } => {
                (Command::Trim, *offset, *length, none.with_if(*fua, CommandFlags::FUA))
            }
            Ask::WriteZeroes { offset, length, no_hole, fast, fua } => {
                let flags = none
                    .with_if(*no_hole, CommandFlags::NO_HOLE)
                    .with_if(*fast, CommandFlags::FAST_ZERO)
                    .with_if(*fua, CommandFlags::FUA);
                (Command::WriteZeroes, *offset, *length, flags)
            }
            Ask::Cache { offset, length } => (Command::Cache, *offset, *length, none),
            Ask::BlockStatus { offset, length, one } => {
                (Command::BlockStatus, *offset, *length, none.with_if(*one, CommandFlags::REQ_ONE))
            }
        };
        Request { flags, command, cookie, offset, length }
    }

    /// Takes what has arrived and appends the requests that are over. Bytes of a reply that is not complete stay in
    /// `input`.
    ///
    /// # Errors
    /// When the server breaks the protocol; the connection is of no more use.
    pub fn receive(&mut self, input: &mut BytesMut, over: &mut Vec<Completion>) -> Result<(), ClientError> {
        while let Some((header, head_length)) = ReplyHeader::decode(input)? {
            let payload_length = self.payload_length(&header)?;
            let total = head_length.saturating_add(payload_length);
            if input.len() < total {
                input.reserve(total - input.len());
                return Ok(());
            }
            let mut message = input.split_to(total);
            message.advance(head_length);
            match header {
                ReplyHeader::Simple { cookie, error } => self.simple(cookie, error, message.freeze(), over)?,
                ReplyHeader::Chunk { cookie, done, kind, .. } => self.chunk(cookie, done, kind, &message, over)?,
            }
        }
        Ok(())
    }

    /// How many bytes follow a header; for a simple reply only the request knows.
    fn payload_length(&self, header: &ReplyHeader) -> Result<usize, ClientError> {
        let length = match header {
            ReplyHeader::Chunk { length, .. } if self.negotiated.structured => *length,
            ReplyHeader::Chunk { .. } => return Err(ClientError::Broken("a chunk without structured replies")),
            ReplyHeader::Simple { cookie, error } => {
                let waiting = self.waiting.get(cookie).ok_or(ClientError::Broken("a reply to no request"))?;
                match waiting.command {
                    Command::Read if self.negotiated.structured => {
                        return Err(ClientError::Broken("a simple reply to a read despite structured replies"));
                    }
                    Command::Read if error.is_none() => waiting.length,
                    _ => 0,
                }
            }
        };
        usize::try_from(length).map_err(|_| ClientError::Malformed(Malformed::TooLong))
    }

    fn simple(
        &mut self,
        cookie: Cookie,
        error: Option<ErrorCode>,
        contents: Bytes,
        over: &mut Vec<Completion>,
    ) -> Result<(), ClientError> {
        let waiting = self.waiting.remove(&cookie).ok_or(ClientError::Broken("a reply to no request"))?;
        let result = match (error, waiting.command) {
            (Some(error), _) => Err(error),
            (None, Command::Read) => Ok(Answer::Data(contents)),
            (None, Command::BlockStatus) => return Err(ClientError::Broken("a block status without extents")),
            (None, _) => Ok(Answer::Done),
        };
        over.push((cookie, result));
        Ok(())
    }

    fn chunk(
        &mut self,
        cookie: Cookie,
        done: bool,
        kind: u16,
        payload: &[u8],
        over: &mut Vec<Completion>,
    ) -> Result<(), ClientError> {
        let waiting = self.waiting.get_mut(&cookie).ok_or(ClientError::Broken("a chunk for no request"))?;
        match Chunk::decode(kind, payload)? {
            Chunk::None if done => {}
            Chunk::None => return Err(ClientError::Broken("an empty chunk that is not the last")),
            Chunk::Data { offset, contents } => waiting.fill(offset, contents.len(), Some(contents))?,
            Chunk::Hole { offset, length } => {
                let length = usize::try_from(length).map_err(|_| Malformed::TooLong)?;
                waiting.fill(offset, length, None)?;
            }
            Chunk::Status { context, extents } => waiting.describe(self.negotiated.allocation, context, extents)?,
            Chunk::Error { error, .. } => waiting.error = waiting.error.or(Some(error)),
        }
        if done {
            let waiting = self.waiting.remove(&cookie).ok_or(ClientError::Broken("a chunk for no request"))?;
            over.push((cookie, waiting.finish()?));
        }
        Ok(())
    }
}

impl Waiting {
    /// Puts a content chunk into place; `None` is zeros.
    fn fill(&mut self, offset: u64, length: usize, contents: Option<&[u8]>) -> Result<(), ClientError> {
        const OUTSIDE: ClientError = ClientError::Broken("a content chunk outside its request");
        if self.command != Command::Read {
            return Err(ClientError::Broken("a content chunk for a request that is no read"));
        }
        if self.length > PAYLOAD_BYTES_MAX {
            return Err(OUTSIDE);
        }
        let start = offset.checked_sub(self.offset).ok_or(OUTSIDE)?;
        let end = start.checked_add(length as u64).ok_or(OUTSIDE)?;
        if end > u64::from(self.length) {
            return Err(OUTSIDE);
        }
        if self.covered.iter().any(|&(from, to)| start < to && from < end) {
            return Err(ClientError::Broken("content chunks that overlap"));
        }
        self.covered.push((start, end));
        let whole = usize::try_from(self.length).map_err(|_| Malformed::TooLong)?;
        self.contents.resize(whole, 0);
        let place = usize::try_from(start).ok().and_then(|start| self.contents.get_mut(start..start + length));
        match (place, contents) {
            (Some(place), Some(contents)) => place.copy_from_slice(contents),
            (Some(_), None) => {}
            (None, _) => return Err(OUTSIDE),
        }
        Ok(())
    }

    fn describe(&mut self, allocation: Option<u32>, context: u32, extents: Vec<Descriptor>) -> Result<(), ClientError> {
        if self.command != Command::BlockStatus || allocation != Some(context) || !self.status.is_empty() {
            return Err(ClientError::Broken("a block status that was not asked for"));
        }
        let length = u64::from(self.length);
        let before_last: u64 = extents.iter().rev().skip(1).map(|extent| u64::from(extent.length)).sum();
        let first_fits = extents.first().is_some_and(|extent| u64::from(extent.length) <= length);
        if before_last >= length || (self.one && (extents.len() != 1 || !first_fits)) {
            return Err(ClientError::Broken("a block status with too many extents"));
        }
        self.status = extents;
        Ok(())
    }

    fn finish(self) -> Result<Result<Answer, ErrorCode>, ClientError> {
        if let Some(error) = self.error {
            return Ok(Err(error));
        }
        match self.command {
            Command::Read => {
                let covered: u64 = self.covered.iter().map(|(from, to)| to - from).sum();
                if covered != u64::from(self.length) {
                    return Err(ClientError::Broken("a read that is answered only in part"));
                }
                Ok(Ok(Answer::Data(self.contents.freeze())))
            }
            Command::BlockStatus if self.status.is_empty() => {
                Err(ClientError::Broken("a block status without extents"))
            }
            Command::BlockStatus => Ok(Ok(Answer::Status(self.status))),
            _ => Ok(Ok(Answer::Done)),
        }
    }
}
