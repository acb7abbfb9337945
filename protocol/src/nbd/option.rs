//! Options: what a client asks for before transmission.

use bytes::{BufMut, BytesMut};

use super::{
    Malformed, QUERIES_MAX,
    handshake::OPTION_MAGIC,
    wire::{Reader, length32, text},
};

/// Length of an option's header.
pub const OPTION_HEADER_BYTES: usize = 16;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;

/// Which option; echoed in every reply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OptionCode(pub u32);

impl OptionCode {
    /// Chooses an export, without an option reply.
    pub const EXPORT_NAME: Self = Self(EXPORT_NAME);
    /// Ends the session.
    pub const ABORT: Self = Self(ABORT);
    /// Lists exports.
    pub const LIST: Self = Self(LIST);
    /// Starts TLS.
    pub const STARTTLS: Self = Self(STARTTLS);
    /// Describes an export.
    pub const INFO: Self = Self(INFO);
    /// Chooses an export.
    pub const GO: Self = Self(GO);
    /// Turns structured replies on.
    pub const STRUCTURED_REPLY: Self = Self(STRUCTURED_REPLY);
    /// Lists metadata contexts.
    pub const LIST_META_CONTEXT: Self = Self(LIST_META_CONTEXT);
    /// Chooses metadata contexts.
    pub const SET_META_CONTEXT: Self = Self(SET_META_CONTEXT);
}

/// What precedes an option's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub code: OptionCode,
    /// Length of its data in bytes; not yet compared with any bound.
    pub length: u32,
}

impl OptionHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// When the magic number is wrong.
    pub fn decode(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        reader.magic(OPTION_MAGIC)?;
        Ok(Self { code: OptionCode(reader.u32()?), length: reader.u32()? })
    }

    /// Writes a header.
    pub fn encode(self, out: &mut BytesMut) {
        out.put_u64(OPTION_MAGIC);
        out.put_u32(self.code.0);
        out.put_u32(self.length);
    }
}

/// A kind of information about an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InfoKind(pub u16);

impl InfoKind {
    /// Size and abilities; always answered.
    pub const EXPORT: Self = Self(0);
    /// The canonical name.
    pub const NAME: Self = Self(1);
    /// A description for people.
    pub const DESCRIPTION: Self = Self(2);
    /// Block sizes.
    pub const BLOCK_SIZE: Self = Self(3);
}

/// An export and what is asked about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The export's name; empty for the default one.
    pub name: String,
    /// The information wanted, without duplicates.
    pub wanted: Vec<InfoKind>,
}

/// An export and the metadata contexts asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contexts {
    /// The export's name; empty for the default one.
    pub name: String,
    /// Queries, each `namespace:leaf`.
    pub queries: Vec<String>,
}

/// An option with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionRequest {
    /// Enter transmission with this export; no reply can say no.
    ExportName(String),
    /// End the session. Data that comes with it is ignored, as the protocol asks.
    Abort,
    /// List the exports.
    List,
    /// Start TLS.
    StartTls,
    /// Describe an export.
    Info(Choice),
    /// Describe an export and enter transmission with it.
    Go(Choice),
    /// Use structured replies from now on.
    StructuredReply,
    /// Which metadata contexts match.
    ListMetaContext(Contexts),
    /// Use these metadata contexts.
    SetMetaContext(Contexts),
    /// An option this side does not know.
    Unknown(OptionCode),
}

impl OptionRequest {
    /// Reads an option's data, which the caller has bounded.
    ///
    /// # Errors
    /// When the data is not what the option says it must be.
    pub fn decode(code: OptionCode, data: &[u8]) -> Result<Self, Malformed> {
        Ok(match code.0 {
            EXPORT_NAME => Self::ExportName(text(data)?.to_owned()),
            ABORT => Self::Abort,
            LIST => none(data, Self::List)?,
            STARTTLS => none(data, Self::StartTls)?,
            INFO => Self::Info(decode_choice(data)?),
            GO => Self::Go(decode_choice(data)?),
            STRUCTURED_REPLY => none(data, Self::StructuredReply)?,
            LIST_META_CONTEXT => Self::ListMetaContext(decode_contexts(data)?),
            SET_META_CONTEXT => Self::SetMetaContext(decode_contexts(data)?),
            _ => Self::Unknown(code),
        })
    }

    /// Writes the option, header and data.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut data = BytesMut::new();
        match self {
            Self::ExportName(name) => data.put_slice(name.as_bytes()),
            Self::Info(choice) | Self::Go(choice) => encode_choice(choice, &mut data),
            Self::ListMetaContext(contexts) | Self::SetMetaContext(contexts) => encode_contexts(contexts, &mut data),
            Self::Abort | Self::List | Self::StartTls | Self::StructuredReply | Self::Unknown(_) => {}
        }
        OptionHeader { code: self.code(), length: length32(data.len()) }.encode(out);
        out.put_slice(&data);
    }

    /// Which option it is.
    #[must_use]
    pub const fn code(&self) -> OptionCode {
        match self {
            Self::ExportName(_) => OptionCode::EXPORT_NAME,
            Self::Abort => OptionCode::ABORT,
            Self::List => OptionCode::LIST,
            Self::StartTls => OptionCode::STARTTLS,
            Self::Info(_) => OptionCode::INFO,
            Self::Go(_) => OptionCode::GO,
            Self::StructuredReply => OptionCode::STRUCTURED_REPLY,
            Self::ListMetaContext(_) => OptionCode::LIST_META_CONTEXT,
            Self::SetMetaContext(_) => OptionCode::SET_META_CONTEXT,
            Self::Unknown(code) => *code,
        }
    }
}

/// An option that comes without data.
fn none(data: &[u8], option: OptionRequest) -> Result<OptionRequest, Malformed> {
    if data.is_empty() { Ok(option) } else { Err(Malformed::Trailing) }
}

fn decode_choice(data: &[u8]) -> Result<Choice, Malformed> {
    let mut reader = Reader::new(data);
    let name_length = reader.u32()?;
    let name = reader.text(name_length)?.to_owned();
    let count = usize::from(reader.u16()?);
    if reader.left() != count * 2 {
        return Err(if reader.left() < count * 2 { Malformed::Short } else { Malformed::Trailing });
    }
    let mut wanted = Vec::with_capacity(count);
    for _ in 0..count {
        wanted.push(InfoKind(reader.u16()?));
    }
    let mut sorted = wanted.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() == wanted.len() { Ok(Choice { name, wanted }) } else { Err(Malformed::Duplicate) }
}

fn encode_choice(choice: &Choice, data: &mut BytesMut) {
    data.put_u32(length32(choice.name.len()));
    data.put_slice(choice.name.as_bytes());
    data.put_u16(
        u16::try_from(choice.wanted.len()).expect("kinds of information are 16-bit numbers without duplicates"),
    );
    for kind in &choice.wanted {
        data.put_u16(kind.0);
    }
}

fn decode_contexts(data: &[u8]) -> Result<Contexts, Malformed> {
    let mut reader = Reader::new(data);
    let name_length = reader.u32()?;
    let name = reader.text(name_length)?.to_owned();
    let count = usize::try_from(reader.u32()?).map_err(|_| Malformed::TooMany)?;
    if count > QUERIES_MAX {
        return Err(Malformed::TooMany);
    }
    let mut queries = Vec::with_capacity(count);
    for _ in 0..count {
        let query_length = reader.u32()?;
        let query = reader.text(query_length)?;
        if query.split_once(':').is_none_or(|(namespace, _)| namespace.is_empty()) {
            return Err(Malformed::NoNamespace);
        }
        queries.push(query.to_owned());
    }
    reader.end()?;
    Ok(Contexts { name, queries })
}

fn encode_contexts(contexts: &Contexts, data: &mut BytesMut) {
    data.put_u32(length32(contexts.name.len()));
    data.put_slice(contexts.name.as_bytes());
    data.put_u32(length32(contexts.queries.len()));
    for query in &contexts.queries {
        data.put_u32(length32(query.len()));
        data.put_slice(query.as_bytes());
    }
}
