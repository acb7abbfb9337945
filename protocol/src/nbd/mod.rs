//! The NBD protocol: the bytes of its handshake, requests and replies, in both directions.
//!
//! Written on the protocol document of the NetworkBlockDevice project (`doc/proto.md`); names follow it, without the
//! `NBD_` prefixes. Everything is big-endian. The server side decodes options and requests and encodes replies; the client side
//! (for the simulator's guest and for tests) does the reverse, and [`client`] joins it into two pure machines.
//!
//! Decoders are total: every length is compared with a bound of its own before anything is allocated for it, and bad bytes
//! are a [`Malformed`], never a panic. Which of these features a node offers, and how, stands in `docs/nbd.md`.

pub mod client;
pub mod flags;
pub mod handshake;
pub mod option;
pub mod option_reply;
pub mod reply;
pub mod request;
mod wire;

/// The port IANA gave the protocol.
pub const PORT: u16 = 10_809;

/// The protocol's bound on every string: export names, queries, messages.
pub const STRING_BYTES_MAX: usize = 4096;

/// The largest option data that is looked at. A name, the largest legal item, and its dressing fit twice.
pub const OPTION_BYTES_MAX: u32 = 8 << 10;

/// The largest option data that is skipped to keep the connection; more is taken for an attack.
pub const OPTION_SKIP_BYTES_MAX: u32 = 64 << 10;

/// The largest option reply a client looks at.
pub const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

/// Metadata context queries in one option.
pub const QUERIES_MAX: usize = 64;

/// The largest payload of a read or write, as advertised: 32 MiB, the protocol's default.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// The largest payload of a refused write that is read and dropped to keep the connection.
pub const PAYLOAD_SKIP_BYTES_MAX: u32 = 64 << 20;

/// The one metadata context there is: which parts of an export hold data.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Why bytes are not what the protocol says they must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A magic number is wrong.
    #[error("a magic number is wrong")]
    Magic,
    /// The other side set flags that do not exist or were not offered.
    #[error("unknown flags in the handshake")]
    Flags,
    /// A field reaches beyond the end of its message.
    #[error("a field reaches beyond the end of its message")]
    Short,
    /// Bytes are left after the last field.
    #[error("bytes are left after the last field")]
    Trailing,
    /// A string is longer than the protocol allows.
    #[error("a string is longer than the protocol allows")]
    StringTooLong,
    /// A string is not UTF-8 or holds a NUL.
    #[error("a string is not UTF-8 or holds a NUL")]
    NotText,
    /// An item is asked for twice.
    #[error("an item is asked for twice")]
    Duplicate,
    /// A metadata context query has no namespace.
    #[error("a metadata context query has no namespace")]
    NoNamespace,
    /// There are more items than this side is willing to look at.
    #[error("too many items")]
    TooMany,
    /// A message is longer than this side is willing to read.
    #[error("a message is longer than any legal one")]
    TooLong,
    /// A field holds a value that has no meaning there.
    #[error("a field holds a value that has no meaning there")]
    Value,
}

/// The client's name for a request, opaque to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

/// The errors a reply can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorCode {
    /// `EPERM`: not permitted.
    NotPermitted,
    /// `EIO`: the data cannot be had or stored.
    Io,
    /// `ENOMEM`: no memory.
    NoMemory,
    /// `EINVAL`: the request makes no sense.
    Invalid,
    /// `ENOSPC`: a write ends beyond the export.
    NoSpace,
    /// `EOVERFLOW`: too large to answer in one piece.
    Overflow,
    /// `ENOTSUP`: a fast zero would not be fast.
    NotSupported,
    /// `ESHUTDOWN`: the server is going away.
    Shutdown,
    /// Any other number; to be treated like [`ErrorCode::Invalid`].
    Other(u32),
}

impl ErrorCode {
    /// The number on the wire, never zero for a code that [`ErrorCode::from_number`] returned.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
            Self::Other(number) => number,
        }
    }

    /// Reads the number on the wire; zero is success and gives `None`.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => return None,
            1 => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::NoMemory,
            22 => Self::Invalid,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            other => Self::Other(other),
        })
    }
}

#[cfg(test)]
mod tests;
