//! Streams carry bytes in order, both ways, and end when the other side ends them.

use std::{io::ErrorKind, rc::Rc};

use futures_util::future::join;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use velum_node::env::{Credentials, Env, Listener, Local, PeerIdentity, Stream, network::Address};
use velum_protocol::id::{ClusterId, NodeId};

/// Connects to an address of the environment under test, as a guest would.
pub type Connect<'a> = &'a dyn Fn(Address) -> Local<std::io::Result<Box<dyn Stream>>>;

/// Runs the suite on an address that is free.
///
/// # Panics
/// When the network breaks its contract.
pub async fn run(env: &Env, address: &Address, connect: Connect<'_>) {
    bytes_arrive_in_order_both_ways(env, address, connect).await;
    an_address_in_use_is_refused_and_free_again_later(env, address).await;
    many_connections_do_not_mix(env, address, connect).await;
}

async fn listen(env: &Env, address: &Address) -> Rc<dyn Listener> {
    env.network.listen(address).await.expect("the address is free")
}

async fn pair(listener: &Rc<dyn Listener>, connect: Connect<'_>) -> (Box<dyn Stream>, Box<dyn Stream>, PeerIdentity) {
    let (accepted, connected) = join(listener.accept(), connect(listener.address())).await;
    let (inside, identity) = accepted.expect("the connection is accepted");
    (inside, connected.expect("the connection is made"), identity)
}

async fn bytes_arrive_in_order_both_ways(env: &Env, address: &Address, connect: Connect<'_>) {
    let listener = listen(env, address).await;
    let (mut inside, mut outside, identity) = pair(&listener, connect).await;
    let fits = match address {
        Address::Tcp(_) => matches!(identity, PeerIdentity::Unknown(_)),
        Address::Unix(_) => matches!(identity, PeerIdentity::Unix { .. }),
    };
    assert!(fits, "a connection to {address:?} has identity {identity:?}");
    // More than any socket buffer holds, so that writing and reading must overlap.
    let sent: Vec<u8> =
        (0..4_000_000_u32).map(|number| number.to_le_bytes().into_iter().fold(7, u8::wrapping_add)).collect();
    let mut received = vec![0; sent.len()];
    let (written, read) = join(outside.write_all(&sent), inside.read_exact(&mut received)).await;
    written.expect("the bytes are taken");
    read.expect("the bytes arrive");
    assert!(sent == received, "bytes arrived otherwise than they were sent");
    inside.write_all(b"reply").await.expect("the reply is taken");
    let mut reply = [0; 5];
    outside.read_exact(&mut reply).await.expect("the reply arrives");
    assert_eq!(&reply, b"reply");
    drop(outside);
    let mut rest = Vec::new();
    let ended = inside.read_to_end(&mut rest).await;
    assert!(ended.is_ok() && rest.is_empty(), "after the other side left: {ended:?}, {} bytes", rest.len());
}

async fn an_address_in_use_is_refused_and_free_again_later(env: &Env, address: &Address) {
    let listener = listen(env, address).await;
    let bound = listener.address();
    let second = env.network.listen(&bound).await;
    assert_eq!(second.err().map(|error| error.kind()), Some(ErrorKind::AddrInUse));
    drop(listener);
    listen(env, &bound).await;
}

async fn many_connections_do_not_mix(env: &Env, address: &Address, connect: Connect<'_>) {
    let listener = listen(env, address).await;
    let mut streams = Vec::new();
    for number in 0..20_u8 {
        let (inside, mut outside, _) = pair(&listener, connect).await;
        outside.write_all(&[number]).await.expect("the byte is taken");
        streams.push((number, inside, outside));
    }
    for (number, inside, _outside) in streams.iter_mut().rev() {
        assert_eq!(inside.read_u8().await.expect("the byte arrives"), *number);
    }
}

/// Runs the suite of connections between nodes on a TCP address that is free. `connect` is somebody without a certificate.
///
/// # Panics
/// When the network breaks its contract.
pub async fn run_peers(env: &Env, address: &Address, connect: Connect<'_>) {
    nodes_of_a_cluster_know_each_other(env, address).await;
    a_connection_to_another_node_than_meant_is_refused(env, address).await;
    another_cluster_is_refused_on_either_side(env, address).await;
    somebody_without_a_certificate_gets_nothing_and_holds_nobody_up(env, address, connect).await;
}

fn credentials(node: u64, authority: u8) -> Rc<Credentials> {
    let (cluster, node) = (ClusterId([0xa1; 16]), NodeId(node));
    Rc::new(Credentials { cluster, node, authority: [authority; 32].into() })
}

async fn door(env: &Env, address: &Address) -> Rc<dyn Listener> {
    env.network.listen_peers(address, credentials(1, 1)).await.expect("the address is free")
}

async fn nodes_of_a_cluster_know_each_other(env: &Env, address: &Address) {
    let door = door(env, address).await;
    for node in [2, 3] {
        let connecting = env.network.connect_peer(&door.address(), credentials(node, 1), NodeId(1));
        let (accepted, connected) = join(door.accept(), connecting).await;
        let ((mut inside, identity), mut outside) =
            (accepted.expect("it is accepted"), connected.expect("the node is who it should be"));
        assert_eq!(identity, PeerIdentity::Node { cluster: ClusterId([0xa1; 16]), node: NodeId(node) });
        let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let mut received = vec![0; sent.len()];
        let write = async {
            outside.write_all(&sent).await?;
            outside.flush().await
        };
        let (written, read) = join(write, inside.read_exact(&mut received)).await;
        written.expect("the bytes are taken");
        read.expect("the bytes arrive");
        assert!(sent == received, "bytes arrived otherwise than they were sent");
        inside.write_all(b"reply").await.expect("the reply is taken");
        inside.flush().await.expect("the reply is sent");
        let mut reply = [0; 5];
        outside.read_exact(&mut reply).await.expect("the reply arrives");
        assert_eq!(&reply, b"reply");
    }
}

async fn a_connection_to_another_node_than_meant_is_refused(env: &Env, address: &Address) {
    let door = door(env, address).await;
    let connected = env.network.connect_peer(&door.address(), credentials(2, 1), NodeId(3)).await;
    assert_eq!(connected.err().map(|error| error.kind()), Some(ErrorKind::PermissionDenied));
}

/// A node of another cluster is refused at the latest when it wants to read; it is never accepted.
async fn another_cluster_is_refused_on_either_side(env: &Env, address: &Address) {
    let door = door(env, address).await;
    let strange = env.network.connect_peer(&door.address(), credentials(2, 9), NodeId(1)).await;
    if let Ok(mut stream) = strange {
        let mut byte = [0];
        assert!(!matches!(stream.read(&mut byte).await, Ok(1..)), "a node of another cluster was spoken to");
    }
    let connecting = env.network.connect_peer(&door.address(), credentials(2, 1), NodeId(1));
    let (accepted, connected) = join(door.accept(), connecting).await;
    assert!(connected.is_ok());
    let (_, identity) = accepted.expect("the next one is accepted");
    assert_eq!(identity, PeerIdentity::Node { cluster: ClusterId([0xa1; 16]), node: NodeId(2) });
}

async fn somebody_without_a_certificate_gets_nothing_and_holds_nobody_up(
    env: &Env,
    address: &Address,
    connect: Connect<'_>,
) {
    let door = door(env, address).await;
    // It says nothing at all.
    let silent = connect(door.address()).await.expect("the door can be reached");
    let mut loud = connect(door.address()).await.expect("the door can be reached");
    // It may be sent away before it has said everything.
    drop(loud.write_all(&[7; 4096]).await);
    let connecting = env.network.connect_peer(&door.address(), credentials(2, 1), NodeId(1));
    let (accepted, connected) = join(door.accept(), connecting).await;
    assert!(connected.is_ok() && accepted.is_ok());
    let mut rest = Vec::new();
    drop(loud.read_to_end(&mut rest).await);
    assert!(rest.len() < 64, "somebody without a certificate was told {} bytes", rest.len());
    drop(silent);
}
