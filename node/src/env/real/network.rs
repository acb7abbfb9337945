//! TCP and unix sockets of this machine.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    rc::Rc,
};

use tokio::net::{TcpListener, UnixListener, UnixStream};

use velum_protocol::id::NodeId;

use super::peers;
use crate::env::{Credentials, Listener, Local, Network, PeerIdentity, Stream, network::Address};

pub(super) struct RealNetwork;

impl Network for RealNetwork {
    fn listen(&self, address: &Address) -> Local<io::Result<Rc<dyn Listener>>> {
        let address = address.clone();
        Box::pin(async move {
            let listener: Rc<dyn Listener> = match address {
                Address::Tcp(address) => Rc::new(TcpDoor(Rc::new(TcpListener::bind(address.as_str()).await?))),
                Address::Unix(path) => Rc::new(UnixDoor(Rc::new(UnixSocket::bind(path).await?))),
            };
            Ok(listener)
        })
    }

    fn listen_peers(&self, address: &Address, credentials: Rc<Credentials>) -> Local<io::Result<Rc<dyn Listener>>> {
        let address = address.clone();
        Box::pin(async move { peers::listen(&address, &credentials).await })
    }

    fn connect_peer(
        &self,
        address: &Address,
        credentials: Rc<Credentials>,
        node: NodeId,
    ) -> Local<io::Result<Box<dyn Stream>>> {
        let address = address.clone();
        Box::pin(async move { peers::connect(&address, &credentials, node).await })
    }
}

struct TcpDoor(Rc<TcpListener>);

impl Listener for TcpDoor {
    fn accept(&self) -> Local<io::Result<(Box<dyn Stream>, PeerIdentity)>> {
        let listener = Rc::clone(&self.0);
        Box::pin(async move {
            let (stream, peer) = listener.accept().await?;
            // A reply is written whole; holding it back for more would only add latency.
            stream.set_nodelay(true)?;
            let stream: Box<dyn Stream> = Box::new(stream);
            Ok((stream, PeerIdentity::Unknown(peer.to_string())))
        })
    }

    fn address(&self) -> Address {
        Address::Tcp(self.0.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string()))
    }
}

struct UnixDoor(Rc<UnixSocket>);

/// A listening unix socket; takes its name away when dropped.
struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl UnixSocket {
    async fn bind(path: PathBuf) -> io::Result<Self> {
        clear_stale(&path).await?;
        let listener = UnixListener::bind(&path)?;
        // Owner and group may connect; who they are decides what they may do.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
        let inode = inode(&path)?;
        Ok(Self { listener, path, inode })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // Should it fail, the next node that listens here finds the name stale and removes it.
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Listener for UnixDoor {
    fn accept(&self) -> Local<io::Result<(Box<dyn Stream>, PeerIdentity)>> {
        let socket = Rc::clone(&self.0);
        Box::pin(async move {
            let (stream, _) = socket.listener.accept().await?;
            let peer = stream.peer_cred()?;
            let identity = PeerIdentity::Unix { uid: peer.uid(), gid: peer.gid(), pid: peer.pid().unwrap_or(0) };
            let stream: Box<dyn Stream> = Box::new(stream);
            Ok((stream, identity))
        })
    }

    fn address(&self) -> Address {
        Address::Unix(self.0.path.clone())
    }
}

/// Removes the socket a killed node left behind; refuses when someone listens there or the file is no socket.
async fn clear_stale(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket has this name"));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
