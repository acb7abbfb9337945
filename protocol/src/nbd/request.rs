//! Requests: what a client asks of an export.

use super::{Cookie, Malformed, flags::CommandFlags, wire::Reader};

/// Marks a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;

/// Length of a request without its payload.
pub const REQUEST_BYTES: usize = 28;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Command {
    /// Bytes at an offset.
    Read,
    /// Store the payload that follows the request.
    Write,
    /// End the session; there is no reply.
    Disconnect,
    /// Answer when everything answered before is durable.
    Flush,
    /// A range is no longer needed.
    Trim,
    /// A range will be needed soon.
    Cache,
    /// A range is to read as zeros.
    WriteZeroes,
    /// Which parts of a range hold data.
    BlockStatus,
    /// A command this side does not know.
    Unknown(u16),
}

impl Command {
    const fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Unknown(number) => number,
        }
    }

    const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }

    /// True for commands that change the export.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }
}

/// A request; a write's payload follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How it is to be done.
    pub flags: CommandFlags,
    /// What is asked.
    pub command: Command,
    /// Comes back in the reply.
    pub cookie: Cookie,
    /// First byte; not yet compared with any bound.
    pub offset: u64,
    /// Number of bytes; not yet compared with any bound.
    pub length: u32,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// When the magic number is wrong: nothing that follows can be trusted.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u32()? != REQUEST_MAGIC {
            return Err(Malformed::Magic);
        }
        Ok(Self {
            flags: CommandFlags(reader.u16()?),
            command: Command::from_number(reader.u16()?),
            cookie: Cookie(reader.u64()?),
            offset: reader.u64()?,
            length: reader.u32()?,
        })
    }

    /// Writes the request without its payload.
    pub fn encode(&self, out: &mut impl bytes::BufMut) {
        out.put_u32(REQUEST_MAGIC);
        out.put_u16(self.flags.0);
        out.put_u16(self.command.number());
        out.put_u64(self.cookie.0);
        out.put_u64(self.offset);
        out.put_u32(self.length);
    }
}
