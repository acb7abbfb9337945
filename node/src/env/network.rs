//! Listening and streams.

use std::{io, path::PathBuf};

use tokio::io::{AsyncRead, AsyncWrite};

use super::Local;

/// Where to listen, or where to connect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// `host:port`.
    Tcp(String),
    /// A unix socket's path.
    Unix(PathBuf),
}

/// What the transport itself says of the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// Nothing but an address, for log lines.
    Unknown(String),
    /// A local process, by the kernel's word (`SO_PEERCRED`).
    Unix {
        /// User id of the peer process.
        uid: u32,
        /// Group id of the peer process.
        gid: u32,
        /// Process id, for log lines.
        pid: i32,
    },
}

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A listening socket.
pub trait Listener {
    /// The next connection.
    fn accept(&self) -> Local<io::Result<(Box<dyn Stream>, PeerIdentity)>>;
    /// The address bound, with the port chosen when port 0 was asked for.
    fn address(&self) -> Address;
}

/// The network as seen from one node.
pub trait Network {
    /// Binds and listens.
    fn listen(&self, address: &Address) -> Local<io::Result<std::rc::Rc<dyn Listener>>>;
}
