//! Connections between nodes: TLS 1.3 in which both sides show a certificate of the cluster's own authority.

use std::{future::poll_fn, io, rc::Rc, sync::Arc};

use futures_util::{FutureExt, select_biased};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use tokio::{
    io::BufReader,
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore, mpsc},
    task::{AbortHandle, spawn_local},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use velum_protocol::id::NodeId;
use webpki::EndEntityCert;

use super::{
    certificate::{self, Certificates, NodeName},
    clock::RealClock,
};
use crate::{
    env::{Clock, Credentials, Listener, Local, PeerIdentity, Stream, network::Address},
    limits::{HANDSHAKE_TIME_MAX, PEER_HANDSHAKES_MAX},
};

/// Bytes that are read from a connection at once: TLS by itself asks for 4 KiB, a call to the system for each block of a guest.
const READ_BYTES: usize = 64 << 10;

type Accepted = (Box<dyn Stream>, PeerIdentity);

/// Listens for nodes of the cluster.
pub(super) async fn listen(address: &Address, credentials: &Credentials) -> io::Result<Rc<dyn Listener>> {
    let acceptor = TlsAcceptor::from(Arc::new(server(credentials)?));
    let listener = TcpListener::bind(tcp(address)?).await?;
    let address = Address::Tcp(listener.local_addr()?.to_string());
    let (accepted, waiting) = mpsc::channel(PEER_HANDSHAKES_MAX);
    let loop_of_door = spawn_local(accept_all(listener, acceptor, accepted)).abort_handle();
    Ok(Rc::new(PeerDoor { address, waiting: Rc::new(Mutex::new(waiting)), loop_of_door }))
}

/// A connection to `node`, which has shown that it is that node.
pub(super) async fn connect(address: &Address, credentials: &Credentials, node: NodeId) -> io::Result<Box<dyn Stream>> {
    let connector = TlsConnector::from(Arc::new(client(credentials)?));
    let name = NodeName(credentials.cluster, node).to_string();
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let address = tcp(address)?.to_owned();
    let connect = async move {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        connector.connect(name, buffered(stream)).await.map_err(|error| match error.kind() {
            // What rustls has against the other side.
            io::ErrorKind::InvalidData => io::Error::new(io::ErrorKind::PermissionDenied, error),
            _ => error,
        })
    };
    let stream: Box<dyn Stream> = Box::new(in_time(connect).await?);
    Ok(stream)
}

fn buffered(stream: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(READ_BYTES, stream)
}

/// Gives up after the time that a handshake may take.
async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let mut late = RealClock::start().sleep(HANDSHAKE_TIME_MAX).fuse();
    let mut work = Box::pin(work.fuse());
    select_biased! {
        result = work => result,
        () = late => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn tcp(address: &Address) -> io::Result<&str> {
    match address {
        Address::Tcp(address) => Ok(address),
        Address::Unix(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "nodes speak over TCP")),
    }
}

struct PeerDoor {
    address: Address,
    waiting: Rc<Mutex<mpsc::Receiver<Accepted>>>,
    loop_of_door: AbortHandle,
}

impl Listener for PeerDoor {
    fn accept(&self) -> Local<io::Result<(Box<dyn Stream>, PeerIdentity)>> {
        let waiting = Rc::clone(&self.waiting);
        Box::pin(async move {
            let mut waiting = waiting.lock().await;
            let next = poll_fn(|context| waiting.poll_recv(context)).await;
            next.ok_or_else(|| io::Error::other("nobody listens for peers any more"))
        })
    }

    fn address(&self) -> Address {
        self.address.clone()
    }
}

impl Drop for PeerDoor {
    fn drop(&mut self) {
        self.loop_of_door.abort();
    }
}

/// Accepts for ever. Handshakes run beside one another, a bounded number of them.
async fn accept_all(listener: TcpListener, acceptor: TlsAcceptor, accepted: mpsc::Sender<Accepted>) {
    let places = Arc::new(Semaphore::new(PEER_HANDSHAKES_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let (stream, from) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "a peer's connection cannot be accepted");
                RealClock::start().sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
        spawn_local(async move {
            let _place = place;
            match in_time(greet(acceptor, stream)).await {
                // The door may have been closed meanwhile.
                Ok(connection) => drop(accepted.send(connection).await),
                Err(error) => {
                    tracing::debug!(%from, %error, "a connection to the peers' door has shown no node of the cluster")
                }
            }
        });
    }
}

async fn greet(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<Accepted> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(buffered(stream)).await?;
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let NodeName(cluster, node) = certificate
        .and_then(name_in)
        .ok_or_else(|| io::Error::new(io::ErrorKind::PermissionDenied, "the certificate names no node"))?;
    let stream: Box<dyn Stream> = Box::new(stream);
    Ok((stream, PeerIdentity::Node { cluster, node }))
}

/// The one node that a certificate is made out to.
fn name_in(certificate: &CertificateDer<'_>) -> Option<NodeName> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate.valid_dns_names();
    let name = NodeName::parse(names.next()?)?;
    names.next().is_none().then_some(name)
}

fn server(credentials: &Credentials) -> io::Result<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let made = certificate::make(credentials);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&made)?, Arc::clone(&provider)).build();
    let verifier = verifier.map_err(io::Error::other)?;
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(io::Error::other)?.with_client_cert_verifier(verifier);
    let (chain, key) = shown(made);
    let mut config = builder.with_single_cert(chain, key).map_err(io::Error::other)?;
    // Each connection proves anew who is there.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(credentials: &Credentials) -> io::Result<ClientConfig> {
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    let made = certificate::make(credentials);
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(io::Error::other)?.with_root_certificates(roots(&made)?);
    let (chain, key) = shown(made);
    let mut config = builder.with_client_auth_cert(chain, key).map_err(io::Error::other)?;
    config.resumption = Resumption::disabled();
    // The name would travel in the clear.
    config.enable_sni = false;
    Ok(config)
}

fn roots(made: &Certificates) -> io::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(made.authority.clone())).map_err(io::Error::other)?;
    Ok(Arc::new(roots))
}

fn shown(made: Certificates) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = PrivatePkcs8KeyDer::from(made.key.to_vec());
    (vec![CertificateDer::from(made.node)], PrivateKeyDer::Pkcs8(key))
}
