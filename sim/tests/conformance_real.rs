//! The real environment keeps what the simulated one promises the node.

#![expect(clippy::disallowed_methods, reason = "the test looks at the machine from outside the environment")]

use std::{
    collections::BTreeMap,
    io,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    time::Duration,
};

use tokio::net::{TcpStream, UnixStream};
use velum_node::env::{
    Env, Local, OpenMode, Stream,
    network::Address,
    real::{RealSettings, real_env},
};
use velum_sim::conformance::{clock, clouds, compute, disk, entropy, network};

fn env() -> Env {
    real_env(RealSettings::default()).expect("threads can be started")
}

fn connect(address: Address) -> Local<io::Result<Box<dyn Stream>>> {
    Box::pin(async move {
        let stream: Box<dyn Stream> = match address {
            Address::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        Ok(stream)
    })
}

#[tokio::test]
async fn clock_conforms() {
    clock::run(&env()).await;
}

/// Nothing that a process could notice tells a suspended machine from a thread that stands still.
#[tokio::test]
async fn time_goes_on_while_the_thread_stands_still() {
    let env = env();
    let before = env.clock.now();
    std::thread::sleep(Duration::from_millis(30));
    assert!(env.clock.now().since(before) >= Duration::from_millis(30));
}

#[tokio::test]
async fn entropy_conforms() {
    entropy::run(&env());
}

#[tokio::test]
async fn compute_conforms() {
    compute::run(&env()).await;
}

#[tokio::test]
async fn disk_conforms() {
    let dir = tempfile::tempdir().unwrap();
    disk::run(&env(), dir.path()).await;
}

#[tokio::test]
async fn files_and_directories_are_private_to_their_owner() {
    let dir = tempfile::tempdir().unwrap();
    let env = env();
    env.disk.create_dir_all(&dir.path().join("d")).await.unwrap();
    env.disk.open(&dir.path().join("d/f"), OpenMode::CreateNew).await.unwrap();
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("d"), mode("d/f")), (0o700, 0o600));
}

#[tokio::test]
async fn tcp_conforms() {
    network::run(&env(), &Address::Tcp("127.0.0.1:0".into()), &connect).await;
}

#[tokio::test]
async fn peers_conform() {
    let suite = async { network::run_peers(&env(), &Address::Tcp("127.0.0.1:0".into()), &connect).await };
    tokio::task::LocalSet::new().run_until(suite).await;
}

#[tokio::test]
async fn unix_sockets_conform() {
    let dir = tempfile::tempdir().unwrap();
    network::run(&env(), &Address::Unix(dir.path().join("socket")), &connect).await;
}

#[tokio::test]
async fn a_socket_left_by_a_killed_node_is_replaced_and_other_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let env = env();
    let stale = dir.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    let listener = env.network.listen(&Address::Unix(stale.clone())).await.unwrap();
    drop(listener);
    assert!(!stale.exists(), "the name goes with the listener");

    let file = dir.path().join("file");
    std::fs::write(&file, b"mine").unwrap();
    assert!(env.network.listen(&Address::Unix(file.clone())).await.is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[tokio::test]
async fn file_clouds_conform() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/cloud", dir.path().display());
    clouds::run(&env(), &url, &BTreeMap::new(), clouds::Abilities { decides_races: true }).await;
}

#[tokio::test]
async fn memory_clouds_conform() {
    clouds::run(&env(), "memory:///conformance", &BTreeMap::new(), clouds::Abilities { decides_races: true }).await;
}

#[tokio::test]
async fn a_file_cloud_whose_directory_is_gone_is_away_and_is_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (here, away) = (dir.path().join("cloud"), dir.path().join("away"));
    let store = env().clouds.open(&format!("file://{}", here.display()), &BTreeMap::new()).unwrap();
    store.put("a", "x".into()).await.unwrap();
    std::fs::rename(&here, &away).unwrap();
    assert!(store.put("b", "x".into()).await.is_err());
    assert!(store.head("a").await.is_err());
    assert!(!here.exists());
    std::fs::rename(&away, &here).unwrap();
    assert_eq!(store.head("a").await.unwrap(), 1);
}
