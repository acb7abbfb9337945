//! What a node asks of the owner of a volume on behalf of its own guests, and what the owner answers.
//!
//! A *stream* goes from the node that asks to the owner: it is opened anew, under a higher number, whenever something of it may be
//! lost, and with it all its sessions end. Within a stream nothing is lost and nothing overtakes.

use bytes::Bytes;

use super::{Kind, share, zeros};
use crate::{
    format::reader::{ReadError, Reader},
    id::{Epoch, Handle, Lineage, Pass, VolumeId},
    nbd::PAYLOAD_BYTES_MAX,
};

/// The most bytes of a payload in one frame. Longer payloads travel in several, so that others come between.
pub const FORWARD_PIECE_BYTES_MAX: usize = 1 << 20;

/// The most extents of one answer.
pub const FORWARD_EXTENTS_MAX: usize = 16 << 10;

/// The longest name of a principal.
pub const PRINCIPAL_BYTES_MAX: usize = 128;

/// What a request or a reply counts for beside its payload.
const OVERHEAD_BYTES: u64 = 64;

/// What an extent of a reply counts for.
const EXTENT_BYTES: u64 = 9;

const FUA: u8 = 1;
const NO_HOLE: u8 = 2;
const BURST_END: u8 = 4;

/// One frame about forwarded requests. `session` is the asking node's number for a session, never used again by its process;
/// `tag` the session's number for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forward {
    /// To the owner: a stream begins. Everything of earlier ones is over.
    Open {
        /// Random, of the asking process; not zero.
        life: [u8; 16],
        /// Rises with every stream of that process; not zero.
        stream: u64,
    },
    /// From the owner: it has.
    Opened {
        /// Which.
        stream: u64,
    },
    /// From the owner: the stream is over, for replies may be lost.
    Closed {
        /// Which.
        stream: u64,
    },
    /// To the owner: a session begins.
    Attach {
        /// Its number.
        session: u64,
        /// On this volume.
        volume: VolumeId,
        /// Only if the volume still has the lineage that the session began under.
        lineage: Option<Lineage>,
        /// By what it was let in where it began, if somebody is attached to the volume.
        pass: Option<Pass>,
        /// On whose behalf.
        principal: String,
    },
    /// From the owner: it may go on.
    Attached {
        /// Which.
        session: u64,
        /// The owner's epoch.
        epoch: Epoch,
        /// The volume's lineage.
        lineage: Lineage,
    },
    /// From the owner: it is over, or does not begin. What it asked and was not answered may or may not be done, but for
    /// [`Ended::Undone`].
    Ended {
        /// Which.
        session: u64,
        /// Why.
        why: Ended,
    },
    /// To the owner: it is over. Nothing of it that is not in the journal takes effect any more.
    Detach {
        /// Which.
        session: u64,
    },
    /// To the owner: a request of a guest.
    Request {
        /// Whose.
        session: u64,
        /// Names it within the session.
        tag: u64,
        /// What is asked.
        ask: Ask,
        /// No more are at hand.
        burst_end: bool,
    },
    /// To the owner: more of the payload of the session's last write. No other request of the session comes between.
    Payload {
        /// Whose.
        session: u64,
        /// Of which request.
        tag: u64,
        /// 1 byte to [`FORWARD_PIECE_BYTES_MAX`].
        bytes: Bytes,
    },
    /// From the owner: the answer to a request, or a part of it.
    Reply {
        /// Whose.
        session: u64,
        /// To which request.
        tag: u64,
        /// The answer.
        told: Told,
    },
    /// From the owner: how much of the stream it has taken, by [`Forward::credit_bytes`].
    TookRequests {
        /// Since the stream began.
        bytes: u64,
    },
    /// To the owner: how much of the replies the asking node has taken.
    TookReplies {
        /// Since the stream began.
        bytes: u64,
    },
}

/// What is asked.
#[expect(missing_docs, reason = "offsets and lengths are in bytes; the variant says what they bound")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Read {
        offset: u64,
        length: u32,
    },
    /// `payload` is the first piece of `length` bytes.
    Write {
        offset: u64,
        length: u32,
        fua: bool,
        payload: Bytes,
    },
    Trim {
        offset: u64,
        length: u64,
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        length: u64,
        no_hole: bool,
        fua: bool,
    },
    Barrier,
    Prefetch {
        offset: u64,
        length: u32,
    },
    Status {
        offset: u64,
        length: u32,
        extents_max: u32,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Done as asked.
    Done,
    /// Not done; nothing has changed.
    Refused(Refused),
    /// The next bytes of a read.
    Data {
        /// 1 byte to [`FORWARD_PIECE_BYTES_MAX`].
        bytes: Bytes,
        /// No more follow.
        last: bool,
    },
    /// Lengths of consecutive extents, and whether each is a hole.
    Status(Vec<(u64, bool)>),
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refused {
    /// A gate said no.
    NotAllowed = 1,
    /// The range leaves the volume.
    OutOfRange = 2,
    /// The owner does not serve the volume any more; ask the next one.
    Closing = 3,
    /// It cannot be done.
    Failed = 4,
}

impl Refused {
    const ALL: [Self; 4] = [Self::NotAllowed, Self::OutOfRange, Self::Closing, Self::Failed];
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Ended {
    /// The node does not serve the volume, at least not yet or not any more.
    #[error("the node does not serve the volume")]
    NotHere = 1,
    /// Gate 1 said no.
    #[error("the principal may not use the volume")]
    NotAllowed = 2,
    /// Acked writes may have been lost since the session began.
    #[error("the volume's lineage has changed")]
    OtherLineage = 3,
    /// The owner has as many sessions of the asking node as it takes.
    #[error("the owner has too many sessions")]
    Full = 4,
    /// What was asked cannot be.
    #[error("a request makes no sense")]
    Malformed = 5,
    /// The node does not serve the volume any more, and of what the session asked nothing was begun that is not answered before
    /// this frame. Nothing of it takes effect there any more: it may be asked of the next owner.
    #[error("the node has let the volume go; nothing unanswered was begun")]
    Undone = 6,
    /// The attachment or the connection is over.
    #[error("the attachment is over, or another connection has taken this one's place")]
    NotAttached = 7,
}

impl Ended {
    const ALL: [Self; 7] = [
        Self::NotHere,
        Self::NotAllowed,
        Self::OtherLineage,
        Self::Full,
        Self::Malformed,
        Self::Undone,
        Self::NotAttached,
    ];
}

impl Forward {
    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Open { .. } => Kind::Open,
            Self::Opened { .. } => Kind::Opened,
            Self::Closed { .. } => Kind::Closed,
            Self::Attach { .. } => Kind::Attach,
            Self::Attached { .. } => Kind::Attached,
            Self::Ended { .. } => Kind::Ended,
            Self::Detach { .. } => Kind::Detach,
            Self::Request { .. } => Kind::Request,
            Self::Payload { .. } => Kind::Payload,
            Self::Reply { .. } => Kind::Reply,
            Self::TookRequests { .. } => Kind::TookRequests,
            Self::TookReplies { .. } => Kind::TookReplies,
        }
    }

    /// What it counts for in the credit of its stream and direction: 64 and its payload; nothing for what is neither request nor
    /// reply. Both sides count alike.
    #[must_use]
    pub fn credit_bytes(&self) -> u64 {
        let payload = match self {
            Self::Reply { told: Told::Status(extents), .. } => length_of(extents.len()).saturating_mul(EXTENT_BYTES),
            Self::Request { .. } | Self::Payload { .. } | Self::Reply { .. } => length_of(self.carried_bytes()),
            _ => return 0,
        };
        payload.saturating_add(OVERHEAD_BYTES)
    }

    /// Bytes of its payload.
    pub(super) fn carried_bytes(&self) -> usize {
        match self {
            Self::Request { ask: Ask::Write { payload: bytes, .. }, .. }
            | Self::Payload { bytes, .. }
            | Self::Reply { told: Told::Data { bytes, .. }, .. } => bytes.len(),
            _ => 0,
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Open { life, stream } => {
                out.extend_from_slice(life);
                put64(*stream, out);
            }
            Self::Opened { stream } | Self::Closed { stream } => put64(*stream, out),
            Self::Attach { session, volume, lineage, pass, principal } => {
                put64(*session, out);
                out.extend_from_slice(&volume.0);
                put64(lineage.map_or(0, |lineage| lineage.0), out);
                let (handle, connection) = pass.map_or(([0; 10], 0), |pass| (pass.handle.0, pass.connection));
                out.extend_from_slice(&handle);
                put64(connection, out);
                out.push(u8::try_from(principal.len()).expect("names of principals are bounded"));
                out.extend_from_slice(principal.as_bytes());
            }
            Self::Attached { session, epoch, lineage } => {
                put64(*session, out);
                put64(epoch.0, out);
                put64(lineage.0, out);
            }
            Self::Ended { session, why } => {
                put64(*session, out);
                out.push(*why as u8);
            }
            Self::Detach { session } => put64(*session, out),
            Self::Request { session, tag, ask, burst_end } => {
                put64(*session, out);
                put64(*tag, out);
                ask.put(*burst_end, out);
            }
            Self::Payload { session, tag, bytes } => {
                put64(*session, out);
                put64(*tag, out);
                out.extend_from_slice(bytes);
            }
            Self::Reply { session, tag, told } => {
                put64(*session, out);
                put64(*tag, out);
                told.put(out);
            }
            Self::TookRequests { bytes } | Self::TookReplies { bytes } => put64(*bytes, out),
        }
    }

    pub(super) fn read(kind: Kind, body: &Bytes, fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        Ok(match kind {
            Kind::Open => {
                let life: [u8; 16] = fields.array()?;
                if life == [0; 16] {
                    return Err(ReadError::Field("life"));
                }
                Self::Open { life, stream: stream(fields)? }
            }
            Kind::Opened => Self::Opened { stream: stream(fields)? },
            Kind::Closed => Self::Closed { stream: stream(fields)? },
            Kind::Attach => Self::read_attach(fields)?,
            Kind::Attached => {
                let (session, epoch, lineage) = (fields.u64()?, Epoch(fields.u64()?), Lineage(fields.u64()?));
                if epoch.0 == 0 || lineage.0 == 0 {
                    return Err(ReadError::Field("epoch or lineage"));
                }
                Self::Attached { session, epoch, lineage }
            }
            Kind::Ended => {
                let session = fields.u64()?;
                let [why] = fields.array()?;
                let why = Ended::ALL.into_iter().find(|known| *known as u8 == why).ok_or(ReadError::Field("why"))?;
                Self::Ended { session, why }
            }
            Kind::Detach => Self::Detach { session: fields.u64()? },
            Kind::Request => {
                let (session, tag) = (fields.u64()?, fields.u64()?);
                let (ask, burst_end) = Ask::read(body, fields)?;
                Self::Request { session, tag, ask, burst_end }
            }
            Kind::Payload => Self::Payload { session: fields.u64()?, tag: fields.u64()?, bytes: piece(body, fields)? },
            Kind::Reply => Self::Reply { session: fields.u64()?, tag: fields.u64()?, told: Told::read(body, fields)? },
            Kind::TookRequests => Self::TookRequests { bytes: fields.u64()? },
            Kind::TookReplies => Self::TookReplies { bytes: fields.u64()? },
            _ => return Err(ReadError::Field("kind")),
        })
    }

    fn read_attach(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (session, volume) = (fields.u64()?, VolumeId(fields.array()?));
        let lineage = Some(Lineage(fields.u64()?)).filter(|lineage| lineage.0 != 0);
        let (handle, connection) = (Handle(fields.array()?), fields.u64()?);
        if connection == 0 && handle.0 != [0; 10] {
            return Err(ReadError::Field("connection"));
        }
        let pass = (connection > 0).then_some(Pass { handle, connection });
        let [length] = fields.array()?;
        let name = fields.take(usize::from(length))?;
        let name = std::str::from_utf8(name).map_err(|_| ReadError::Field("principal"))?;
        let is_name = !name.is_empty() && name.len() <= PRINCIPAL_BYTES_MAX && !name.chars().any(char::is_control);
        if !is_name {
            return Err(ReadError::Field("principal"));
        }
        Ok(Self::Attach { session, volume, lineage, pass, principal: name.to_owned() })
    }
}

impl Ask {
    fn put(&self, burst_end: bool, out: &mut Vec<u8>) {
        let burst_end = if burst_end { BURST_END } else { 0 };
        let fua_of = |fua: bool| if fua { FUA } else { 0 };
        let (operation, flags, extents_max, offset, length) = match *self {
            Self::Read { offset, length } => (1, 0, 0, offset, u64::from(length)),
            Self::Write { offset, length, fua, .. } => (2, fua_of(fua), 0, offset, u64::from(length)),
            Self::Trim { offset, length, fua } => (3, fua_of(fua), 0, offset, length),
            Self::WriteZeroes { offset, length, no_hole, fua } => {
                (4, fua_of(fua) | if no_hole { NO_HOLE } else { 0 }, 0, offset, length)
            }
            Self::Barrier => (5, 0, 0, 0, 0),
            Self::Prefetch { offset, length } => (6, 0, 0, offset, u64::from(length)),
            Self::Status { offset, length, extents_max } => (7, 0, extents_max, offset, u64::from(length)),
        };
        out.extend_from_slice(&[operation, flags | burst_end, 0, 0]);
        out.extend_from_slice(&u32::to_le_bytes(extents_max));
        put64(offset, out);
        put64(length, out);
        if let Self::Write { payload, .. } = self {
            out.extend_from_slice(payload);
        }
    }

    fn read(body: &Bytes, fields: &mut Reader<'_>) -> Result<(Self, bool), ReadError> {
        let [operation, flags] = fields.array()?;
        zeros::<2>(fields)?;
        let (extents_max, offset, length) = (fields.u32()?, fields.u64()?, fields.u64()?);
        let (fua, no_hole) = (flags & FUA != 0, flags & NO_HOLE != 0);
        let known = match operation {
            2 | 3 => FUA,
            4 => FUA | NO_HOLE,
            _ => 0,
        };
        if flags & !(known | BURST_END) != 0 {
            return Err(ReadError::Field("flags"));
        }
        if (operation == 7) != (extents_max != 0) {
            return Err(ReadError::Field("extents"));
        }
        let is_long = if operation == 5 { offset == 0 && length == 0 } else { length > 0 };
        if !is_long || offset.checked_add(length).is_none() {
            return Err(ReadError::Field("length"));
        }
        let short = u32::try_from(length).map_err(|_| ReadError::Field("length"));
        let payload_length = || short.and_then(bounded);
        let ask = match operation {
            1 => Self::Read { offset, length: payload_length()? },
            2 => {
                let length = payload_length()?;
                let payload = piece(body, fields)?;
                if length_of(payload.len()) > u64::from(length) {
                    return Err(ReadError::Field("payload"));
                }
                Self::Write { offset, length, fua, payload }
            }
            3 => Self::Trim { offset, length, fua },
            4 => Self::WriteZeroes { offset, length, no_hole, fua },
            5 => Self::Barrier,
            6 => Self::Prefetch { offset, length: short? },
            7 => Self::Status { offset, length: short?, extents_max },
            _ => return Err(ReadError::Field("operation")),
        };
        Ok((ask, flags & BURST_END != 0))
    }
}

impl Told {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Done => out.push(1),
            Self::Refused(why) => out.extend_from_slice(&[2, *why as u8]),
            Self::Data { bytes, last } => {
                out.push(if *last { 4 } else { 3 });
                out.extend_from_slice(bytes);
            }
            Self::Status(extents) => {
                out.push(5);
                let count = u32::try_from(extents.len()).expect("extents are bounded where they are told");
                out.extend_from_slice(&count.to_le_bytes());
                for (length, hole) in extents {
                    put64(*length, out);
                    out.push(u8::from(*hole));
                }
            }
        }
    }

    fn read(body: &Bytes, fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let [outcome] = fields.array()?;
        Ok(match outcome {
            1 => Self::Done,
            2 => {
                let [why] = fields.array()?;
                let why = Refused::ALL.into_iter().find(|known| *known as u8 == why);
                Self::Refused(why.ok_or(ReadError::Field("refusal"))?)
            }
            3 | 4 => Self::Data { bytes: piece(body, fields)?, last: outcome == 4 },
            5 => {
                let count = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
                if count > FORWARD_EXTENTS_MAX {
                    return Err(ReadError::Field("extents"));
                }
                let extent = |fields: &mut Reader<'_>| {
                    let length = fields.u64()?;
                    match fields.array()? {
                        [hole @ (0 | 1)] => Ok((length, hole == 1)),
                        [_] => Err(ReadError::Field("hole")),
                    }
                };
                Self::Status((0..count).map(|_| extent(fields)).collect::<Result<_, _>>()?)
            }
            _ => return Err(ReadError::Field("outcome")),
        })
    }
}

fn stream(fields: &mut Reader<'_>) -> Result<u64, ReadError> {
    let stream = fields.u64()?;
    if stream == 0 { Err(ReadError::Field("stream")) } else { Ok(stream) }
}

fn bounded(length: u32) -> Result<u32, ReadError> {
    if length > PAYLOAD_BYTES_MAX { Err(ReadError::Field("length")) } else { Ok(length) }
}

/// The rest of a body, as a piece of a payload.
fn piece(body: &Bytes, fields: &mut Reader<'_>) -> Result<Bytes, ReadError> {
    match fields.left() {
        0 => Err(ReadError::Truncated),
        length if length > FORWARD_PIECE_BYTES_MAX => Err(ReadError::Field("payload")),
        length => share(body, fields, length),
    }
}

fn put64(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn length_of(length: usize) -> u64 {
    u64::try_from(length).expect("a length in memory fits 64 bits")
}
