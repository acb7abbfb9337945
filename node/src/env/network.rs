//! Listening and streams.

use std::{io, path::PathBuf, rc::Rc};

use tokio::io::{AsyncRead, AsyncWrite};
use velum_protocol::id::{ClusterId, NodeId};
use zeroize::Zeroizing;

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
    /// A node, which has proven that it holds its cluster's root key.
    Node {
        /// Its cluster.
        cluster: ClusterId,
        /// The node it says it is.
        node: NodeId,
    },
}

/// With what a node proves to its peers who it is.
pub struct Credentials {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// A secret that only nodes of the cluster have.
    pub authority: Zeroizing<[u8; 32]>,
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

/// The network as seen from one node. One without a way to other nodes says so.
pub trait Network {
    /// Binds and listens.
    fn listen(&self, address: &Address) -> Local<io::Result<Rc<dyn Listener>>>;
    /// Binds and listens for nodes of the same cluster: accepted are sealed connections whose identity is
    /// [`PeerIdentity::Node`], and nobody who stalls holds up another.
    fn listen_peers(&self, address: &Address, credentials: Rc<Credentials>) -> Local<io::Result<Rc<dyn Listener>>> {
        let _ = (address, credentials);
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
    /// A sealed connection to `node` of the same cluster. When somebody else answers there: `PermissionDenied`. The other
    /// side may still refuse this one, which shows as the end of the stream.
    fn connect_peer(
        &self,
        address: &Address,
        credentials: Rc<Credentials>,
        node: NodeId,
    ) -> Local<io::Result<Box<dyn Stream>>> {
        let _ = (address, credentials, node);
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
}
