//! The handshake as a pure machine: client flags, then options until one chooses an export.
//!
//! It takes one message per step, so that its driver can bound what waits to be sent. No volume is opened here: choosing
//! an export passes gate 1 and ends the handshake; the session attaches afterwards. TLS is not offered, and says so.

use bytes::{Buf, BytesMut};
use velum_protocol::{
    format::metadata::Right,
    id::{BLOCK_BYTES, VolumeId},
    nbd::{
        BASE_ALLOCATION, Malformed, OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, PAYLOAD_BYTES_MAX,
        flags::{ClientFlags, HandshakeFlags, TransmissionFlags},
        handshake::{CLIENT_FLAGS_BYTES, ExportInfo, decode_client_flags, encode_greeting},
        option::{Choice, Contexts, InfoKind, OPTION_HEADER_BYTES, OptionCode, OptionHeader, OptionRequest},
        option_reply::{Info, OptionError, OptionReply},
    },
};

use crate::{
    audit::Action,
    limits::HANDSHAKE_OPTIONS_MAX,
    server::gate::{Export, Gate},
    volume::messages::Principal,
};

/// The number `base:allocation` gets on every connection.
pub const ALLOCATION_CONTEXT: u32 = 1;

/// Who is at the door and what is behind it.
#[derive(Clone, Copy)]
pub struct Visitor<'a> {
    /// Gate 1.
    pub gate: &'a Gate,
    /// The user.
    pub principal: &'a Principal,
    /// True when the node is stopping: options are turned away.
    pub stopping: bool,
}

/// What the two sides agreed on.
pub struct Agreed {
    /// The volume.
    pub export: Export,
    /// Replies to reads are structured.
    pub structured: bool,
    /// The guest may ask for block status.
    pub allocation: bool,
}

/// What a step came to.
pub enum Step {
    /// The message is not complete yet.
    NeedInput,
    /// A message was dealt with.
    Again,
    /// Transmission begins after what is to be sent.
    Enter(Box<Agreed>),
    /// The connection ends after what is to be sent.
    Leave(Leave),
}

/// Why a connection ends before transmission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Leave {
    /// The client said so.
    #[error("the client ended the handshake")]
    Aborted,
    /// The client's bytes make no sense, or nothing can answer them.
    #[error("the client's handshake is malformed: {0}")]
    Malformed(#[from] Malformed),
    /// An option is longer than can be skipped.
    #[error("an option is too long")]
    TooLong,
    /// The client keeps asking and never chooses.
    #[error("too many options")]
    TooManyOptions,
    /// The export asked for by name alone is not there for this client.
    #[error("no such export for this client")]
    UnknownExport,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// The handshake of one connection.
pub struct Handshake {
    flags: Option<ClientFlags>,
    structured: bool,
    /// The volume that `base:allocation` was chosen for.
    allocation: Option<VolumeId>,
    options: usize,
    skip_bytes: usize,
    /// Option replies that told the client it is wrong.
    refused: Vec<OptionError>,
}

impl Handshake {
    /// A handshake; appends the greeting to what is to be sent.
    #[must_use]
    pub fn new(out: &mut BytesMut) -> Self {
        encode_greeting(HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES), out);
        Self { flags: None, structured: false, allocation: None, options: 0, skip_bytes: 0, refused: Vec::new() }
    }

    /// The options turned down since the last call, for the counters.
    pub fn take_refused(&mut self) -> Vec<OptionError> {
        std::mem::take(&mut self.refused)
    }

    /// Takes one message from `input` and appends its replies to `out`.
    pub fn step(&mut self, input: &mut BytesMut, visitor: Visitor<'_>, out: &mut BytesMut) -> Step {
        match self.try_step(input, visitor, out) {
            Ok(step) => step,
            Err(leave) => Step::Leave(leave),
        }
    }

    /// The export that the next message asks for, once it is there as a whole.
    #[must_use]
    pub fn asked_for(&self, input: &[u8]) -> Option<String> {
        if self.flags.is_none() || self.skip_bytes > 0 {
            return None;
        }
        let header = OptionHeader::decode(input.first_chunk::<OPTION_HEADER_BYTES>()?).ok()?;
        let length = usize::try_from(header.length.min(OPTION_BYTES_MAX)).ok()?;
        let data = input.get(OPTION_HEADER_BYTES..OPTION_HEADER_BYTES + length)?;
        match OptionRequest::decode(header.code, data).ok()? {
            OptionRequest::ExportName(name) => Some(name),
            OptionRequest::Info(choice) | OptionRequest::Go(choice) => Some(choice.name),
            OptionRequest::ListMetaContext(contexts) | OptionRequest::SetMetaContext(contexts) => Some(contexts.name),
            _ => None,
        }
    }

    fn try_step(&mut self, input: &mut BytesMut, visitor: Visitor<'_>, out: &mut BytesMut) -> Result<Step, Leave> {
        let skipped = self.skip_bytes.min(input.len());
        input.advance(skipped);
        self.skip_bytes -= skipped;
        if self.skip_bytes > 0 {
            return Ok(Step::NeedInput);
        }
        if self.flags.is_none() {
            let Some(flags) = input.first_chunk::<CLIENT_FLAGS_BYTES>() else { return Ok(Step::NeedInput) };
            self.flags = Some(decode_client_flags(*flags)?);
            input.advance(CLIENT_FLAGS_BYTES);
            return Ok(Step::Again);
        }
        let Some(header) = input.first_chunk::<OPTION_HEADER_BYTES>() else { return Ok(Step::NeedInput) };
        let header = OptionHeader::decode(header)?;
        if header.length > OPTION_BYTES_MAX {
            input.advance(OPTION_HEADER_BYTES);
            return self.too_long(header, out);
        }
        let length = usize::try_from(header.length).map_err(|_| Leave::TooLong)?;
        if input.len() < OPTION_HEADER_BYTES + length {
            return Ok(Step::NeedInput);
        }
        input.advance(OPTION_HEADER_BYTES);
        let data = input.split_to(length);
        self.count_option()?;
        self.option(header.code, &data, visitor, out)
    }

    fn count_option(&mut self) -> Result<(), Leave> {
        self.options += 1;
        if self.options > HANDSHAKE_OPTIONS_MAX { Err(Leave::TooManyOptions) } else { Ok(()) }
    }

    /// An option whose data is not looked at: answered and skipped if that is cheap and it can be answered at all.
    fn too_long(&mut self, header: OptionHeader, out: &mut BytesMut) -> Result<Step, Leave> {
        self.count_option()?;
        if header.length > OPTION_SKIP_BYTES_MAX || header.code == OptionCode::EXPORT_NAME {
            return Err(Leave::TooLong);
        }
        self.skip_bytes = usize::try_from(header.length).map_err(|_| Leave::TooLong)?;
        self.refuse(header.code, OptionError::TooBig, "the option is too long", out);
        Ok(Step::Again)
    }

    fn option(
        &mut self,
        code: OptionCode,
        data: &[u8],
        visitor: Visitor<'_>,
        out: &mut BytesMut,
    ) -> Result<Step, Leave> {
        let request = match OptionRequest::decode(code, data) {
            Ok(request) => request,
            // Without an option reply there is no way to say no.
            Err(malformed) if code == OptionCode::EXPORT_NAME => return Err(malformed.into()),
            Err(malformed) => {
                let error = if malformed == Malformed::TooMany { OptionError::TooBig } else { OptionError::Invalid };
                if code == OptionCode::SET_META_CONTEXT {
                    self.allocation = None;
                }
                self.refuse(code, error, &malformed.to_string(), out);
                return Ok(Step::Again);
            }
        };
        if visitor.stopping && request != OptionRequest::Abort {
            if code != OptionCode::EXPORT_NAME {
                self.refuse(code, OptionError::Shutdown, "the server is stopping", out);
            }
            return Err(Leave::Stopping);
        }
        match request {
            OptionRequest::ExportName(name) => return self.export_name(&name, visitor, out),
            OptionRequest::Abort => {
                OptionReply::Ack.encode(code, out);
                return Err(Leave::Aborted);
            }
            OptionRequest::List => {
                for name in visitor.gate.visible(visitor.principal) {
                    OptionReply::Server { name }.encode(code, out);
                }
                OptionReply::Ack.encode(code, out);
            }
            OptionRequest::StructuredReply => {
                self.structured = true;
                OptionReply::Ack.encode(code, out);
            }
            OptionRequest::Info(choice) => drop(self.choose(code, &choice, visitor, Action::Inspect, out)),
            OptionRequest::Go(choice) => {
                if let Some(export) = self.choose(code, &choice, visitor, Action::Attach, out) {
                    return Ok(self.enter(export));
                }
            }
            OptionRequest::ListMetaContext(contexts) | OptionRequest::SetMetaContext(contexts) => {
                self.contexts(code, &contexts, visitor, out);
            }
            OptionRequest::StartTls => self.refuse(code, OptionError::Unsupported, "TLS is not offered here", out),
            OptionRequest::Unknown(_) => self.refuse(code, OptionError::Unsupported, "unknown option", out),
        }
        Ok(Step::Again)
    }

    fn export_name(&self, name: &str, visitor: Visitor<'_>, out: &mut BytesMut) -> Result<Step, Leave> {
        let export = visitor.gate.admit(name, visitor.principal, Action::Attach).ok_or(Leave::UnknownExport)?;
        let no_zeroes = self.flags.is_some_and(|flags| flags.has(ClientFlags::NO_ZEROES));
        self.describe(&export).encode(no_zeroes, out);
        Ok(self.enter(export))
    }

    /// Answers INFO and GO; the export if it is granted.
    fn choose(
        &mut self,
        code: OptionCode,
        choice: &Choice,
        visitor: Visitor<'_>,
        action: Action,
        out: &mut BytesMut,
    ) -> Option<Export> {
        let Some(export) = visitor.gate.admit(&choice.name, visitor.principal, action) else {
            self.refuse(code, OptionError::UnknownExport, "no such export", out);
            return None;
        };
        OptionReply::Info(Info::Export(self.describe(&export))).encode(code, out);
        for wanted in &choice.wanted {
            let info = match *wanted {
                InfoKind::NAME => Info::Name(export.name.clone()),
                InfoKind::BLOCK_SIZE => Info::BlockSize {
                    minimum: 1,
                    preferred: u32::try_from(BLOCK_BYTES).expect("a block is 4 KiB"),
                    maximum: PAYLOAD_BYTES_MAX,
                },
                _ => continue,
            };
            OptionReply::Info(info).encode(code, out);
        }
        OptionReply::Ack.encode(code, out);
        Some(export)
    }

    /// Answers LIST_META_CONTEXT and SET_META_CONTEXT. Setting replaces what was set before, also when it fails.
    fn contexts(&mut self, code: OptionCode, contexts: &Contexts, visitor: Visitor<'_>, out: &mut BytesMut) {
        let set = code == OptionCode::SET_META_CONTEXT;
        if set {
            self.allocation = None;
        }
        if !self.structured {
            return self.refuse(code, OptionError::Invalid, "ask for structured replies first", out);
        }
        let Some(export) = visitor.gate.admit(&contexts.name, visitor.principal, Action::Inspect) else {
            return self.refuse(code, OptionError::UnknownExport, "no such export", out);
        };
        let asked = |query: &String| query == BASE_ALLOCATION || (!set && query == "base:");
        if contexts.queries.iter().any(asked) || (!set && contexts.queries.is_empty()) {
            let id = if set { ALLOCATION_CONTEXT } else { 0 };
            OptionReply::MetaContext { id, name: BASE_ALLOCATION.to_owned() }.encode(code, out);
            if set {
                self.allocation = Some(export.volume);
            }
        }
        OptionReply::Ack.encode(code, out);
    }

    fn refuse(&mut self, code: OptionCode, error: OptionError, message: &str, out: &mut BytesMut) {
        self.refused.push(error);
        OptionReply::error(error, message).encode(code, out);
    }

    fn describe(&self, export: &Export) -> ExportInfo {
        let writable = export.right >= Right::Write;
        let flags = TransmissionFlags::HAS_FLAGS
            .with(TransmissionFlags::SEND_FLUSH)
            .with(TransmissionFlags::SEND_FUA)
            // One cache serves all connections of a volume, so a flush on any of them covers all.
            .with(TransmissionFlags::CAN_MULTI_CONN)
            .with(TransmissionFlags::SEND_CACHE)
            .with_if(self.structured, TransmissionFlags::SEND_DF)
            .with_if(!writable, TransmissionFlags::READ_ONLY)
            .with_if(writable, TransmissionFlags::SEND_TRIM)
            .with_if(writable, TransmissionFlags::SEND_WRITE_ZEROES)
            .with_if(writable, TransmissionFlags::SEND_FAST_ZERO);
        ExportInfo { size_bytes: export.door.size_bytes(), flags }
    }

    fn enter(&self, export: Export) -> Step {
        let allocation = self.allocation == Some(export.volume);
        Step::Enter(Box::new(Agreed { export, structured: self.structured, allocation }))
    }
}

#[cfg(test)]
mod tests;
