//! Option replies: what a server answers before transmission.

use bytes::{BufMut, BytesMut};

use super::{
    Malformed, OPTION_REPLY_BYTES_MAX,
    flags::TransmissionFlags,
    handshake::ExportInfo,
    option::{InfoKind, OptionCode},
    wire::{Reader, length32},
};

/// Marks an option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Length of an option reply's header.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const ERROR_BIT: u32 = 1 << 31;

/// Why an option is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OptionError {
    /// The option is not known.
    Unsupported,
    /// The option is known but not allowed here.
    Policy,
    /// The option's data is wrong, or it comes at the wrong time.
    Invalid,
    /// The option needs something this machine does not have.
    Platform,
    /// TLS comes first.
    TlsRequired,
    /// No such export, as far as this client may know.
    UnknownExport,
    /// The server is going away.
    Shutdown,
    /// The client must agree to block sizes first.
    BlockSizeRequired,
    /// The option is too large to look at.
    TooBig,
    /// Any other error.
    Other(u32),
}

impl OptionError {
    /// The number on the wire without the error bit.
    const fn number(self) -> u32 {
        match self {
            Self::Unsupported => 1,
            Self::Policy => 2,
            Self::Invalid => 3,
            Self::Platform => 4,
            Self::TlsRequired => 5,
            Self::UnknownExport => 6,
            Self::Shutdown => 7,
            Self::BlockSizeRequired => 8,
            Self::TooBig => 9,
            Self::Other(number) => number & !ERROR_BIT,
        }
    }

    const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Unsupported,
            2 => Self::Policy,
            3 => Self::Invalid,
            4 => Self::Platform,
            5 => Self::TlsRequired,
            6 => Self::UnknownExport,
            7 => Self::Shutdown,
            8 => Self::BlockSizeRequired,
            9 => Self::TooBig,
            other => Self::Other(other),
        }
    }
}

/// One item of information about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Info {
    /// Size and abilities.
    Export(ExportInfo),
    /// The canonical name.
    Name(String),
    /// A description for people.
    Description(String),
    /// Block sizes in bytes.
    BlockSize {
        /// Smallest unit that can be addressed.
        minimum: u32,
        /// Smallest unit that is served without extra work.
        preferred: u32,
        /// Largest payload.
        maximum: u32,
    },
    /// A kind this side does not know.
    Unknown(InfoKind),
}

/// One reply to an option. A list ends with [`OptionReply::Ack`] or an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionReply {
    /// Granted, or the end of a list.
    Ack,
    /// An export.
    Server {
        /// Its name.
        name: String,
    },
    /// Something about an export.
    Info(Info),
    /// A metadata context.
    MetaContext {
        /// Its number on this connection; zero in a listing.
        id: u32,
        /// Its name.
        name: String,
    },
    /// Not granted.
    Error {
        /// Why.
        error: OptionError,
        /// For people.
        message: String,
    },
}

impl OptionReply {
    /// A refusal with a sentence for people.
    #[must_use]
    pub fn error(error: OptionError, message: &str) -> Self {
        Self::Error { error, message: message.to_owned() }
    }

    /// Writes the reply to `option`, header and data.
    pub fn encode(&self, option: OptionCode, out: &mut BytesMut) {
        let mut data = BytesMut::new();
        let kind = match self {
            Self::Ack => ACK,
            Self::Server { name } => {
                data.put_u32(length32(name.len()));
                data.put_slice(name.as_bytes());
                SERVER
            }
            Self::Info(info) => {
                encode_info(info, &mut data);
                INFO
            }
            Self::MetaContext { id, name } => {
                data.put_u32(*id);
                data.put_slice(name.as_bytes());
                META_CONTEXT
            }
            Self::Error { error, message } => {
                data.put_slice(message.as_bytes());
                ERROR_BIT | error.number()
            }
        };
        out.put_u64(OPTION_REPLY_MAGIC);
        out.put_u32(option.0);
        out.put_u32(kind);
        out.put_u32(length32(data.len()));
        out.put_slice(&data);
    }

    /// Reads the data of a reply whose header said `header`.
    ///
    /// # Errors
    /// When the data is not what the kind of reply says it must be.
    pub fn decode(header: OptionReplyHeader, data: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(data);
        Ok(match header.kind {
            ACK => {
                reader.end()?;
                Self::Ack
            }
            SERVER => {
                let length = reader.u32()?;
                let name = reader.text(length)?.to_owned();
                // What follows is for people and has no form.
                Self::Server { name }
            }
            INFO => Self::Info(decode_info(&mut reader)?),
            META_CONTEXT => Self::MetaContext { id: reader.u32()?, name: reader.rest_text()?.to_owned() },
            kind if kind & ERROR_BIT != 0 => Self::Error {
                error: OptionError::from_number(kind & !ERROR_BIT),
                message: reader.rest_text()?.to_owned(),
            },
            _ => return Err(Malformed::Value),
        })
    }
}

/// What precedes an option reply's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option answered.
    pub option: OptionCode,
    /// Which reply.
    pub kind: u32,
    /// Length of its data in bytes, within [`OPTION_REPLY_BYTES_MAX`].
    pub length: u32,
}

impl OptionReplyHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// When the magic number is wrong or the data is longer than any legal reply.
    pub fn decode(bytes: &[u8; OPTION_REPLY_HEADER_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        reader.magic(OPTION_REPLY_MAGIC)?;
        let header = Self { option: OptionCode(reader.u32()?), kind: reader.u32()?, length: reader.u32()? };
        if header.length > OPTION_REPLY_BYTES_MAX { Err(Malformed::TooLong) } else { Ok(header) }
    }
}

fn encode_info(info: &Info, data: &mut BytesMut) {
    match info {
        Info::Export(export) => {
            data.put_u16(InfoKind::EXPORT.0);
            export.encode(true, data);
        }
        Info::Name(name) => {
            data.put_u16(InfoKind::NAME.0);
            data.put_slice(name.as_bytes());
        }
        Info::Description(description) => {
            data.put_u16(InfoKind::DESCRIPTION.0);
            data.put_slice(description.as_bytes());
        }
        Info::BlockSize { minimum, preferred, maximum } => {
            data.put_u16(InfoKind::BLOCK_SIZE.0);
            data.put_u32(*minimum);
            data.put_u32(*preferred);
            data.put_u32(*maximum);
        }
        Info::Unknown(kind) => data.put_u16(kind.0),
    }
}

fn decode_info(reader: &mut Reader<'_>) -> Result<Info, Malformed> {
    let kind = InfoKind(reader.u16()?);
    let info = match kind {
        InfoKind::EXPORT => {
            Info::Export(ExportInfo { size_bytes: reader.u64()?, flags: TransmissionFlags(reader.u16()?) })
        }
        InfoKind::NAME => Info::Name(reader.rest_text()?.to_owned()),
        InfoKind::DESCRIPTION => Info::Description(reader.rest_text()?.to_owned()),
        InfoKind::BLOCK_SIZE => {
            Info::BlockSize { minimum: reader.u32()?, preferred: reader.u32()?, maximum: reader.u32()? }
        }
        _ => {
            reader.rest();
            Info::Unknown(kind)
        }
    };
    reader.end()?;
    Ok(info)
}
