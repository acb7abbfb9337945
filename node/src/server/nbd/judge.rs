//! What a request may be and what becomes of it: the rules of transmission as functions, without state.

use bytes::Bytes;
use velum_protocol::{
    format::metadata::Right,
    nbd::{
        ErrorCode, PAYLOAD_BYTES_MAX,
        flags::CommandFlags,
        request::{Command, Request},
    },
};

use crate::{
    audit::Action,
    env::Instant,
    limits::STATUS_EXTENTS_MAX,
    metrics::GuestRequest,
    volume::messages::{Operation, Refusal},
};

/// What a request costs beside its payload: its entry among those in flight and its head in the queue of replies.
const REQUEST_OVERHEAD_BYTES: u64 = 128;

/// What an extent costs while it is answered: as the volume tells it and as it is sent.
const EXTENT_BYTES: u64 = 24;

/// What the handshake agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Replies to reads are structured.
    pub structured: bool,
    /// Block status may be asked for.
    pub allocation: bool,
}

/// How things stand while a burst of requests is judged.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// The volume's size now.
    pub size_bytes: u64,
    /// What gate 1 lets the session do now.
    pub right: Right,
    /// True when the session is to end: everything is answered with a shutdown error.
    pub stopping: bool,
    /// Now.
    pub now: Instant,
}

/// Why a request goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Objection {
    /// It makes no sense, or not now.
    Error(ErrorCode),
    /// Gate 1 says no to this.
    Gate(Action),
}

/// Says what is wrong with a request, if anything. What the rules below do not name is for the volume to decide.
pub(super) fn judge(request: &Request, terms: Terms, conditions: &Conditions) -> Result<(), Objection> {
    if conditions.stopping {
        return Err(Objection::Error(ErrorCode::Shutdown));
    }
    if !request.flags.only(flags_of(request.command, terms)) {
        return Err(Objection::Error(ErrorCode::Invalid));
    }
    let needed = if request.command.writes() { Right::Write } else { Right::Read };
    if conditions.right < needed {
        return Err(Objection::Gate(action_of(request.command)));
    }
    let length = request.length;
    let fits = request.offset.checked_add(u64::from(length)).is_some_and(|end| end <= conditions.size_bytes);
    let wrong = match request.command {
        Command::Read if length > PAYLOAD_BYTES_MAX && request.flags.has(CommandFlags::DF) => Some(ErrorCode::Overflow),
        Command::Read | Command::Write if length > PAYLOAD_BYTES_MAX => Some(ErrorCode::Invalid),
        Command::Write | Command::WriteZeroes if !fits => Some(ErrorCode::NoSpace),
        Command::Read | Command::Trim | Command::Cache | Command::BlockStatus if !fits => Some(ErrorCode::Invalid),
        // A block status must describe at least one byte, so there is no answer to one of length zero.
        Command::BlockStatus if length == 0 || !terms.allocation => Some(ErrorCode::Invalid),
        Command::Flush if length != 0 || request.offset != 0 => Some(ErrorCode::Invalid),
        // Zeros that must stay allocated are written as data, which is not faster than a write.
        Command::WriteZeroes if request.flags.has(CommandFlags::FAST_ZERO.with(CommandFlags::NO_HOLE)) => {
            Some(ErrorCode::NotSupported)
        }
        Command::Unknown(_) | Command::Disconnect => Some(ErrorCode::Invalid),
        _ => None,
    };
    wrong.map_or(Ok(()), |error| Err(Objection::Error(error)))
}

/// The flags a command may carry. The protocol lets force unit access stand on every command.
const fn flags_of(command: Command, terms: Terms) -> CommandFlags {
    let fua = CommandFlags::FUA;
    match command {
        Command::Read => fua.with_if(terms.structured, CommandFlags::DF),
        Command::WriteZeroes => fua.with(CommandFlags::NO_HOLE).with(CommandFlags::FAST_ZERO),
        Command::BlockStatus => fua.with(CommandFlags::REQ_ONE),
        _ => fua,
    }
}

/// Bytes a request holds from its acceptance to its reply.
pub(super) fn cost(request: &Request) -> u64 {
    let payload = match request.command {
        Command::Read | Command::Write => u64::from(request.length.min(PAYLOAD_BYTES_MAX)),
        Command::BlockStatus => EXTENT_BYTES.saturating_mul(STATUS_EXTENTS_MAX as u64),
        _ => 0,
    };
    payload.saturating_add(REQUEST_OVERHEAD_BYTES)
}

/// What the volume is asked; nothing for a length of zero, which is done at once and without effect.
pub(super) fn operation(request: &Request, payload: Bytes) -> Option<Operation> {
    let Request { offset, length, flags, .. } = *request;
    let fua = flags.has(CommandFlags::FUA);
    if length == 0 && request.command != Command::Flush {
        return None;
    }
    Some(match request.command {
        Command::Read => Operation::Read { offset, length },
        Command::Write => Operation::Write { offset, payload, fua },
        Command::Flush => Operation::Barrier,
        Command::Trim => Operation::Trim { offset, length: u64::from(length), fua },
        Command::Cache => Operation::Prefetch { offset, length },
        Command::WriteZeroes => {
            let no_hole = flags.has(CommandFlags::NO_HOLE);
            Operation::WriteZeroes { offset, length: u64::from(length), no_hole, fua }
        }
        Command::BlockStatus => {
            let extents_max = if flags.has(CommandFlags::REQ_ONE) { 1 } else { STATUS_EXTENTS_MAX };
            Operation::Status { offset, length, extents_max }
        }
        Command::Disconnect | Command::Unknown(_) => return None,
    })
}

/// The counter's word for a command.
pub(super) const fn kind_of(command: Command) -> GuestRequest {
    match command {
        Command::Write => GuestRequest::Write,
        Command::Flush => GuestRequest::Barrier,
        Command::Trim => GuestRequest::Trim,
        Command::Cache => GuestRequest::Prefetch,
        Command::WriteZeroes => GuestRequest::WriteZeroes,
        Command::BlockStatus => GuestRequest::Status,
        Command::Read | Command::Disconnect | Command::Unknown(_) => GuestRequest::Read,
    }
}

/// The audit's word for a command.
pub(super) const fn action_of(command: Command) -> Action {
    if command.writes() { Action::Write } else { Action::Read }
}

/// How the volume's refusal of a command is told to the client.
pub(super) const fn error_of(command: Command, refusal: Refusal) -> ErrorCode {
    match (refusal, command) {
        (Refusal::NotAllowed, _) => ErrorCode::NotPermitted,
        (Refusal::OutOfRange, Command::Write | Command::WriteZeroes) => ErrorCode::NoSpace,
        (Refusal::OutOfRange, _) => ErrorCode::Invalid,
        (Refusal::Closing, _) => ErrorCode::Shutdown,
        (Refusal::Failed, _) => ErrorCode::Io,
    }
}

/// An error in words, for people.
pub(super) const fn message_of(error: ErrorCode) -> &'static str {
    match error {
        ErrorCode::NotPermitted => "not permitted",
        ErrorCode::Io => "the volume cannot serve this now",
        ErrorCode::NoMemory => "no memory",
        ErrorCode::Invalid => "the request makes no sense for this export",
        ErrorCode::NoSpace => "the range ends beyond the export",
        ErrorCode::Overflow => "too long to be answered in one piece",
        ErrorCode::NotSupported => "this would not be faster than a write",
        ErrorCode::Shutdown => "the server is going away",
        ErrorCode::Other(_) => "failed",
    }
}
