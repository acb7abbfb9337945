//! Streams carry bytes in order, both ways, and end when the other side ends them.

use std::{io::ErrorKind, rc::Rc};

use futures_util::future::join;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use velum_node::env::{Env, Listener, Local, PeerIdentity, Stream, network::Address};

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
