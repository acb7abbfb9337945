//! Replies: simple ones, and structured ones in chunks.

use bytes::{BufMut, BytesMut};

use super::{
    Cookie, ErrorCode, Malformed, PAYLOAD_BYTES_MAX,
    flags::StatusFlags,
    wire::{Reader, length32},
};

/// Marks a simple reply.
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;

/// Marks a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Length of a simple reply without data.
pub const SIMPLE_BYTES: usize = 16;

/// Length of a chunk's header.
pub const CHUNK_BYTES: usize = 20;

/// The largest chunk payload a client reads: the largest payload with its offset.
pub const CHUNK_PAYLOAD_BYTES_MAX: u32 = PAYLOAD_BYTES_MAX + 8;

const DONE: u16 = 1;
const KIND_NONE: u16 = 0;
const KIND_DATA: u16 = 1;
const KIND_HOLE: u16 = 2;
const KIND_STATUS: u16 = 5;
const ERROR_BIT: u16 = 1 << 15;
const KIND_ERROR: u16 = ERROR_BIT | 1;
const KIND_ERROR_OFFSET: u16 = ERROR_BIT | 2;

/// Writes a simple reply; the data of a read follows it.
pub fn encode_simple(cookie: Cookie, error: Option<ErrorCode>, out: &mut BytesMut) {
    out.put_u32(SIMPLE_MAGIC);
    out.put_u32(error.map_or(0, ErrorCode::number));
    out.put_u64(cookie.0);
}

/// Writes the only chunk of a successful reply without data.
pub fn encode_none(cookie: Cookie, out: &mut BytesMut) {
    encode_chunk(cookie, KIND_NONE, 0, out);
}

/// Writes the head of the only chunk of a read's reply; `length` bytes of data follow it.
pub fn encode_data(cookie: Cookie, offset: u64, length: u32, out: &mut BytesMut) {
    encode_chunk(cookie, KIND_DATA, length.checked_add(8).expect("payloads are bounded far below 4 GiB"), out);
    out.put_u64(offset);
}

/// Writes the only chunk of a block status reply.
pub fn encode_status(cookie: Cookie, context: u32, extents: &[Descriptor], out: &mut BytesMut) {
    encode_chunk(cookie, KIND_STATUS, length32(4 + 8 * extents.len()), out);
    out.put_u32(context);
    for extent in extents {
        out.put_u32(extent.length);
        out.put_u32(extent.flags.0);
    }
}

/// Writes the only chunk of a failed reply, with a short sentence for people.
pub fn encode_error(cookie: Cookie, error: ErrorCode, message: &str, out: &mut BytesMut) {
    let message_length = u16::try_from(message.len()).expect("messages are short sentences of our own");
    encode_chunk(cookie, KIND_ERROR, 6 + u32::from(message_length), out);
    out.put_u32(error.number());
    out.put_u16(message_length);
    out.put_slice(message.as_bytes());
}

fn encode_chunk(cookie: Cookie, kind: u16, length: u32, out: &mut BytesMut) {
    out.put_u32(CHUNK_MAGIC);
    out.put_u16(DONE);
    out.put_u16(kind);
    out.put_u64(cookie.0);
    out.put_u32(length);
}

/// An extent and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Length in bytes, not zero.
    pub length: u32,
    /// What is known of it.
    pub flags: StatusFlags,
}

/// What precedes a reply's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply; a successful read's data follows.
    Simple {
        /// The request answered.
        cookie: Cookie,
        /// How it failed, if it did.
        error: Option<ErrorCode>,
    },
    /// A chunk; `length` bytes of payload follow.
    Chunk {
        /// The request answered.
        cookie: Cookie,
        /// True for the last chunk of the reply.
        done: bool,
        /// What the payload is.
        kind: u16,
        /// Length of the payload, within [`CHUNK_PAYLOAD_BYTES_MAX`].
        length: u32,
    },
}

impl ReplyHeader {
    /// Reads a reply header from the front of `bytes` and says how long it is; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the magic number is wrong or the payload is longer than any legal one.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let mut reader = Reader::new(bytes);
        let Ok(magic) = reader.u32() else { return Ok(None) };
        match magic {
            SIMPLE_MAGIC if bytes.len() >= SIMPLE_BYTES => {
                let error = ErrorCode::from_number(reader.u32()?);
                let cookie = Cookie(reader.u64()?);
                Ok(Some((Self::Simple { cookie, error }, SIMPLE_BYTES)))
            }
            CHUNK_MAGIC if bytes.len() >= CHUNK_BYTES => {
                let (flags, kind) = (reader.u16()?, reader.u16()?);
                let (cookie, length) = (Cookie(reader.u64()?), reader.u32()?);
                if length > CHUNK_PAYLOAD_BYTES_MAX {
                    return Err(Malformed::TooLong);
                }
                Ok(Some((Self::Chunk { cookie, done: flags & DONE != 0, kind, length }, CHUNK_BYTES)))
            }
            SIMPLE_MAGIC | CHUNK_MAGIC => Ok(None),
            _ => Err(Malformed::Magic),
        }
    }
}

/// The payload of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Nothing.
    None,
    /// Data at an offset.
    Data {
        /// First byte.
        offset: u64,
        /// The bytes, at least one.
        contents: &'a [u8],
    },
    /// Zeros at an offset.
    Hole {
        /// First byte.
        offset: u64,
        /// Number of bytes, not zero.
        length: u32,
    },
    /// Extents of a metadata context.
    Status {
        /// The context.
        context: u32,
        /// Its extents, at least one, none of length zero.
        extents: Vec<Descriptor>,
    },
    /// The request failed.
    Error {
        /// How.
        error: ErrorCode,
        /// For people.
        message: &'a str,
        /// Where, if known.
        offset: Option<u64>,
    },
}

impl<'a> Chunk<'a> {
    /// Reads a chunk's payload.
    ///
    /// # Errors
    /// When the payload is not what its kind says it must be.
    pub fn decode(kind: u16, payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let chunk = match kind {
            KIND_NONE => Self::None,
            KIND_DATA => {
                let offset = reader.u64()?;
                let contents = reader.rest();
                if contents.is_empty() {
                    return Err(Malformed::Short);
                }
                Self::Data { offset, contents }
            }
            KIND_HOLE => {
                let (offset, length) = (reader.u64()?, reader.u32()?);
                if length == 0 {
                    return Err(Malformed::Value);
                }
                Self::Hole { offset, length }
            }
            KIND_STATUS => decode_status(&mut reader)?,
            kind if kind & ERROR_BIT != 0 => decode_error(kind, &mut reader)?,
            _ => return Err(Malformed::Value),
        };
        reader.end()?;
        Ok(chunk)
    }
}

fn decode_status<'a>(reader: &mut Reader<'a>) -> Result<Chunk<'a>, Malformed> {
    let context = reader.u32()?;
    let mut extents = Vec::with_capacity(reader.left() / 8);
    while reader.left() > 0 {
        let (length, flags) = (reader.u32()?, StatusFlags(reader.u32()?));
        if length == 0 {
            return Err(Malformed::Value);
        }
        extents.push(Descriptor { length, flags });
    }
    if extents.is_empty() { Err(Malformed::Short) } else { Ok(Chunk::Status { context, extents }) }
}

fn decode_error<'a>(kind: u16, reader: &mut Reader<'a>) -> Result<Chunk<'a>, Malformed> {
    let error = ErrorCode::from_number(reader.u32()?).ok_or(Malformed::Value)?;
    let message_length = reader.u16()?;
    let message = reader.text(u32::from(message_length))?;
    let offset = match kind {
        KIND_ERROR => None,
        KIND_ERROR_OFFSET => Some(reader.u64()?),
        _ => {
            reader.rest();
            None
        }
    };
    Ok(Chunk::Error { error, message, offset })
}
