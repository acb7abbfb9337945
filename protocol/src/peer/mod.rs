//! What nodes say to each other: frames with a header, and what they carry. Drawn in `docs/format.md`.
//!
//! The bytes come from an authenticated peer and are judged all the same: a header says how long the body is before
//! anything is allocated for it, and decoding is total. Raft's own protobuf never travels; see [`agreement`].

mod admission;
pub mod agreement;
pub mod ensemble;
pub mod forward;
mod hello;
mod proposal;

#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use admission::{Join, Verdict};
pub use agreement::Piece;
pub use hello::{ADDRESS_BYTES_MAX, Beat, Hello};
pub use proposal::{Placed, Placement, Propose};

use crate::{
    checksum::crc32c,
    format::reader::{ReadError, Reader},
    version::{LEAD_BYTES, LeadError, PEER_FRAME},
};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 16;

/// The longest body.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// Room for the fields of most frames.
const FIELDS_BYTES: usize = 240;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Who speaks, first on every link and in both directions.
    Hello = 1,
    /// A sign of life, and how much was taken.
    Beat = 2,
    /// A message of raft.
    Raft = 3,
    /// A piece of a raft snapshot's state.
    Piece = 4,
    /// A proposal for the leader.
    Propose = 5,
    /// What became of it.
    Placed = 6,
    /// A newcomer asks to be let into the cluster.
    Join = 7,
    /// Whether it is, or is no more.
    Verdict = 8,
    /// Records for a member of an ensemble.
    Append = 16,
    /// What became of them.
    Appended = 17,
    /// Nothing of earlier epochs any more.
    Fence = 18,
    /// So it is, and what is held.
    Fenced = 19,
    /// What was held, please.
    ReadTail = 20,
    /// Here it is.
    Tail = 21,
    /// Has a later epoch been promised?
    Confirm = 22,
    /// The one that has.
    Confirmed = 23,
    /// No lease is used any more.
    Release = 24,
    /// A stream of forwarded requests begins.
    Open = 32,
    /// It has.
    Opened = 33,
    /// It is over.
    Closed = 34,
    /// A guest's session begins.
    Attach = 35,
    /// It may go on.
    Attached = 36,
    /// It is over.
    Ended = 37,
    /// It is to be over.
    Detach = 38,
    /// A guest's request.
    Request = 39,
    /// More of a write's payload.
    Payload = 40,
    /// The answer to a request, or a part of it.
    Reply = 41,
    /// How many bytes of requests were taken.
    TookRequests = 42,
    /// How many bytes of replies were taken.
    TookReplies = 43,
}

impl Kind {
    const ALL: [Self; 29] = [
        Self::Hello,
        Self::Beat,
        Self::Raft,
        Self::Piece,
        Self::Propose,
        Self::Placed,
        Self::Join,
        Self::Verdict,
        Self::Append,
        Self::Appended,
        Self::Fence,
        Self::Fenced,
        Self::ReadTail,
        Self::Tail,
        Self::Confirm,
        Self::Confirmed,
        Self::Release,
        Self::Open,
        Self::Opened,
        Self::Closed,
        Self::Attach,
        Self::Attached,
        Self::Ended,
        Self::Detach,
        Self::Request,
        Self::Payload,
        Self::Reply,
        Self::TookRequests,
        Self::TookReplies,
    ];
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Something else, or a newer version.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// The header's checksum does not match.
    #[error("the frame's header is damaged")]
    Checksum,
    /// A kind this build does not know.
    #[error("frames of kind {0} are not known")]
    Kind(u8),
    /// A body longer than any.
    #[error("a frame's body of {0} bytes is longer than {BODY_BYTES_MAX}")]
    Length(u32),
    /// The body does not decode.
    #[error("the body of a frame does not decode: {0}")]
    Body(#[from] ReadError),
}

/// The first bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Bytes that follow.
    pub body_bytes: usize,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let [magic_and_version @ .., _, _] = PEER_FRAME.lead();
        let length = u32::try_from(self.body_bytes).expect("bodies are bounded").to_le_bytes();
        let fields = magic_and_version.into_iter().chain([self.kind as u8, 0]).chain(length);
        out.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        let (covered, crc) = out.split_at_mut(HEADER_BYTES - 4);
        crc.copy_from_slice(&crc32c(covered).to_le_bytes());
        out
    }

    /// Reads a header; the body's length is bounded then.
    ///
    /// # Errors
    /// When the bytes begin no frame of a version this build speaks.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [a, b, c, d, low, high, kind, reserved, length @ .., e, f, g, h] = *bytes;
        // The magic first: bytes of another protocol are told from damaged ones.
        PEER_FRAME.check(&[a, b, c, d, low, high, 0, 0])?;
        let covered = bytes.first_chunk::<{ HEADER_BYTES - 4 }>().expect("a header is longer than what it covers");
        if crc32c(covered).to_le_bytes() != [e, f, g, h] {
            return Err(FrameError::Checksum);
        }
        if reserved != 0 {
            return Err(LeadError::Damaged.into());
        }
        let length = u32::from_le_bytes(length);
        let body_bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if body_bytes > BODY_BYTES_MAX {
            return Err(FrameError::Length(length));
        }
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind).ok_or(FrameError::Kind(kind))?;
        Ok(Self { kind, body_bytes })
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// See [`Kind::Hello`].
    Hello(Hello),
    /// See [`Kind::Beat`].
    Beat(Beat),
    /// See [`Kind::Raft`].
    Raft(Box<agreement::Message>),
    /// See [`Kind::Piece`].
    Piece(Piece),
    /// See [`Kind::Propose`].
    Propose(Propose),
    /// See [`Kind::Placed`].
    Placed(Placed),
    /// See [`Kind::Join`].
    Join(Join),
    /// See [`Kind::Verdict`].
    Verdict(Verdict),
    /// See [`Kind::Append`].
    Append(ensemble::Append),
    /// See [`Kind::Appended`].
    Appended(ensemble::Appended),
    /// See [`Kind::Fence`].
    Fence(ensemble::Fence),
    /// See [`Kind::Fenced`].
    Fenced(ensemble::Fenced),
    /// See [`Kind::ReadTail`].
    ReadTail(ensemble::ReadTail),
    /// See [`Kind::Tail`].
    Tail(ensemble::Tail),
    /// See [`Kind::Confirm`].
    Confirm(ensemble::Confirm),
    /// See [`Kind::Confirmed`].
    Confirmed(ensemble::Confirmed),
    /// See [`Kind::Release`].
    Release(ensemble::Release),
    /// About forwarded requests: [`Kind::Open`] to [`Kind::TookReplies`].
    Forward(forward::Forward),
}

impl Frame {
    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Beat(_) => Kind::Beat,
            Self::Raft(_) => Kind::Raft,
            Self::Piece(_) => Kind::Piece,
            Self::Propose(_) => Kind::Propose,
            Self::Placed(_) => Kind::Placed,
            Self::Join(_) => Kind::Join,
            Self::Verdict(_) => Kind::Verdict,
            Self::Append(_) => Kind::Append,
            Self::Appended(_) => Kind::Appended,
            Self::Fence(_) => Kind::Fence,
            Self::Fenced(_) => Kind::Fenced,
            Self::ReadTail(_) => Kind::ReadTail,
            Self::Tail(_) => Kind::Tail,
            Self::Confirm(_) => Kind::Confirm,
            Self::Confirmed(_) => Kind::Confirmed,
            Self::Release(_) => Kind::Release,
            Self::Forward(forward) => forward.kind(),
        }
    }

    /// Header and body.
    ///
    /// # Panics
    /// When the body is longer than [`BODY_BYTES_MAX`]; whoever makes frames bounds what they carry.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        // Room for all of it at once: a frame of records that grew as it was written would be copied several times over.
        let mut out = Vec::with_capacity(HEADER_BYTES + FIELDS_BYTES + self.carried_bytes());
        out.resize(HEADER_BYTES, 0);
        match self {
            Self::Hello(hello) => hello.put(&mut out),
            Self::Beat(beat) => beat.put(&mut out),
            Self::Raft(message) => message.put(&mut out),
            Self::Piece(piece) => piece.put(&mut out),
            Self::Propose(propose) => propose.put(&mut out),
            Self::Placed(placed) => placed.put(&mut out),
            Self::Join(join) => join.put(&mut out),
            Self::Verdict(verdict) => verdict.put(&mut out),
            Self::Append(append) => append.put(&mut out),
            Self::Appended(appended) => appended.put(&mut out),
            Self::Fence(fence) => fence.put(&mut out),
            Self::Fenced(fenced) => fenced.put(&mut out),
            Self::ReadTail(read) => read.put(&mut out),
            Self::Tail(tail) => tail.put(&mut out),
            Self::Confirm(confirm) => confirm.put(&mut out),
            Self::Confirmed(confirmed) => confirmed.put(&mut out),
            Self::Release(release) => release.put(&mut out),
            Self::Forward(forward) => forward.put(&mut out),
        }
        let body_bytes = out.len() - HEADER_BYTES;
        assert!(body_bytes <= BODY_BYTES_MAX, "a frame's body is bounded");
        let header = Header { kind: self.kind(), body_bytes }.encode();
        out.iter_mut().zip(header).for_each(|(to, from)| *to = from);
        out.into()
    }

    /// Bytes of what may be long in it.
    fn carried_bytes(&self) -> usize {
        match self {
            Self::Piece(piece) => piece.bytes.len(),
            Self::Append(append) => ensemble::carried_bytes(&append.records),
            Self::Tail(tail) => ensemble::carried_bytes(&tail.records),
            Self::Forward(forward) => forward.carried_bytes(),
            _ => 0,
        }
    }

    /// Reads the body of a frame. What it holds of the body is shared with it, not copied.
    ///
    /// # Errors
    /// When the bytes are no body of that kind.
    pub fn decode(kind: Kind, body: &Bytes) -> Result<Self, FrameError> {
        let mut fields = Reader::new(body);
        let frame = match kind {
            Kind::Hello => Self::Hello(Hello::read(&mut fields)?),
            Kind::Beat => Self::Beat(Beat::read(&mut fields)?),
            Kind::Raft => Self::Raft(Box::new(agreement::Message::read(body, &mut fields)?)),
            Kind::Piece => Self::Piece(Piece::read(body, &mut fields)?),
            Kind::Propose => Self::Propose(Propose::read(body, &mut fields)?),
            Kind::Placed => Self::Placed(Placed::read(&mut fields)?),
            Kind::Join => Self::Join(Join::read(&mut fields)?),
            Kind::Verdict => Self::Verdict(Verdict::read(&mut fields)?),
            Kind::Append => Self::Append(ensemble::Append::read(body, &mut fields)?),
            Kind::Appended => Self::Appended(ensemble::Appended::read(&mut fields)?),
            Kind::Fence => Self::Fence(ensemble::Fence::read(&mut fields)?),
            Kind::Fenced => Self::Fenced(ensemble::Fenced::read(&mut fields)?),
            Kind::ReadTail => Self::ReadTail(ensemble::ReadTail::read(&mut fields)?),
            Kind::Tail => Self::Tail(ensemble::Tail::read(body, &mut fields)?),
            Kind::Confirm => Self::Confirm(ensemble::Confirm::read(&mut fields)?),
            Kind::Confirmed => Self::Confirmed(ensemble::Confirmed::read(&mut fields)?),
            Kind::Release => Self::Release(ensemble::Release::read(&mut fields)?),
            Kind::Open
            | Kind::Opened
            | Kind::Closed
            | Kind::Attach
            | Kind::Attached
            | Kind::Ended
            | Kind::Detach
            | Kind::Request
            | Kind::Payload
            | Kind::Reply
            | Kind::TookRequests
            | Kind::TookReplies => Self::Forward(forward::Forward::read(kind, body, &mut fields)?),
        };
        fields.end()?;
        Ok(frame)
    }
}

/// The next `count` bytes, shared with the body they are in.
fn share(body: &Bytes, fields: &mut Reader<'_>, count: usize) -> Result<Bytes, ReadError> {
    let at = body.len() - fields.left();
    fields.take(count)?;
    Ok(body.slice(at..at + count))
}

/// Bytes that have to be zero.
fn zeros<const N: usize>(fields: &mut Reader<'_>) -> Result<(), ReadError> {
    if fields.array::<N>()? == [0; N] { Ok(()) } else { Err(ReadError::Field("reserved")) }
}

const _: () = assert!(LEAD_BYTES <= HEADER_BYTES, "a header begins like every other thing");
