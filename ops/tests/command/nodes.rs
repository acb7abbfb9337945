//! Several nodes in one process, as `velum up --nodes` runs them: over real sockets, joined with real tokens.

use std::{
    fs,
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    bench::{Bench, Node, settings},
    cluster::wait,
    nbd,
};

/// Counts the runs of ports that tests of this process have taken.
static TAKEN: AtomicU16 = AtomicU16::new(0);

/// An address of loopback with so many free ones behind it, free a moment ago and no other test's. Below the ports that the kernel
/// gives away.
fn free_run(length: u16) -> String {
    let seed = u16::try_from(std::process::id() % 600).unwrap();
    let bases = std::iter::from_fn(|| Some(TAKEN.fetch_add(1, Ordering::Relaxed))).take(600);
    let bases = bases.map(|taken| 20_000 + (seed + taken) % 600 * 20);
    let is_free = |base: &u16| (*base..base + length).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    let mut free = bases.filter(is_free);
    format!("127.0.0.1:{}", free.next().expect("there are free ports"))
}

struct Trio {
    bench: Bench,
    peers: String,
}

impl Trio {
    fn new() -> Self {
        let bench = Bench::new();
        bench.prepare("data", &settings(""));
        Self { bench, peers: free_run(5) }
    }

    fn status(&self, admin: &str) -> Value {
        self.bench.velum(&["--output", "json", "cluster", "status", "--admin", admin]).expect(0, &[]).json()
    }

    /// Every node says that all of them vote and are reached.
    fn expect_votes(&self, up: &Node, numbers: &[u64]) {
        assert_eq!(up.beside.len(), numbers.len(), "{:?}", up.beside);
        let status = self.status(&up.admin);
        let nodes = status["nodes"].as_array().unwrap();
        let votes = |node: &&Value| matches!(node["role"].as_str(), Some("leader" | "voter"));
        let voters: Vec<u64> = nodes.iter().filter(votes).map(|node| node["node"].as_u64().unwrap()).collect();
        assert_eq!(voters, numbers, "{status}");
        for ((_, admin), number) in up.beside.iter().zip(numbers) {
            assert_eq!(self.status(admin)["node"], *number);
        }
    }
}

#[test]
fn three_nodes_live_in_one_process_and_start_again() {
    let trio = Trio::new();
    let up = trio.bench.up("data", &["--nodes", "3", "--peers", &trio.peers]);
    trio.expect_votes(&up, &[1, 2, 3]);
    let said = up.said();
    assert!(said.contains("node 2 joins") && said.contains("node 3 joins"), "{said}");
    let told = [
        "velum_cluster_nodes{role=\"voter\"} 3",
        "velum_raft_has_leader 1",
        "velum_peer_links 2",
        "velum_peer_down_links 0",
    ];
    wait("the metrics tell of the cluster", || {
        let (_, metrics) = up.http(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        told.iter().all(|line| metrics.lines().any(|given| given == *line))
    });
    nbd::write(&up.nbd, "demo", 0, &[7; 4096]);
    trio.bench.velum(&["volume", "flush", "demo", "--admin", &up.admin]).expect(0, &[]);
    up.stop(Signal::TERM).expect(0, &["stopping"]);
    for number in [2, 3] {
        let file = trio.bench.text(&format!("data/node-{number}.toml"));
        trio.bench.velum(&["config", "check", &file]).expect(0, &[]);
    }
    // Later runs start them all, and never fewer.
    let dir = trio.bench.text("data");
    let fewer = ["up", "--dir", &dir, "--nodes", "1"];
    trio.bench.velum(&fewer).expect(2, &["--nodes says 1", "has 3 nodes", "velum cluster remove"]);
    let up = trio.bench.up("data", &[]);
    trio.expect_votes(&up, &[1, 2, 3]);
    assert_eq!(up.stop(Signal::KILL).code, None);
    let up = trio.bench.up("data", &["--nodes", "3"]);
    trio.expect_votes(&up, &[1, 2, 3]);
    // Answered when the volume is open.
    trio.bench.velum(&["volume", "flush", "demo", "--admin", &up.admin]).expect(0, &[]);
    nbd::write(&up.nbd, "demo", 0, &[8; 4096]);
    up.stop(Signal::INT).expect(0, &["stopping"]);
}

/// A process that dies while its nodes join goes on with them; a number that was given for nothing is not given again.
#[test]
fn nodes_that_did_not_come_to_join_are_joined_by_the_next_run() {
    for word in ["made volume", "node 2 joins", "node 3 joins"] {
        let trio = Trio::new();
        let dir = trio.bench.text("data");
        let asked = ["--output", "json", "up", "--dir", &dir, "--nodes", "3", "--peers", &trio.peers];
        let running = trio.bench.spawn(&asked, &[]);
        wait(word, || running.said().contains(word));
        running.signal(Signal::KILL);
        assert_eq!(running.ended().code, None);
        let up = trio.bench.serve(&asked);
        let numbers: Vec<u64> =
            up.beside.iter().map(|(_, admin)| trio.status(admin)["node"].as_u64().unwrap()).collect();
        assert_eq!((numbers.len(), numbers[0]), (3, 1), "{word}");
        trio.expect_votes(&up, &numbers);
        up.stop(Signal::TERM).expect(0, &["stopping"]);
        let settings = fs::read_dir(&dir)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".toml"));
        assert_eq!(settings.count(), 3, "{word}: settings of a node that was never made are gone");
    }
}

#[test]
fn a_node_that_was_alone_gets_others_beside_it() {
    let trio = Trio::new();
    trio.bench.up("data", &[]).stop(Signal::TERM).expect(0, &[]);
    let path = trio.bench.path("data/node.toml");
    let before = fs::read_to_string(&path).unwrap();
    let dir = trio.bench.text("data");
    let taken = TcpListener::bind(&trio.peers).unwrap();
    trio.bench
        .velum(&["up", "--dir", &dir, "--nodes", "3", "--peers", &trio.peers])
        .expect(1, &[&trio.peers, "peers.listen"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), before, "a run that is refused changes nothing");
    drop(taken);
    let up = trio.bench.up("data", &["--nodes", "3", "--peers", &trio.peers]);
    trio.expect_votes(&up, &[1, 2, 3]);
    assert!(fs::read_to_string(&path).unwrap().starts_with(&before));
    // A node that is removed stops, and the others go on.
    trio.bench.velum(&["cluster", "remove", "3", "--admin", &up.admin]).expect(0, &[]);
    nbd::write(&up.nbd, "demo", 0, &[7; 4096]);
    wait("the removed node stops", || up.said().contains("the other nodes go on"));
    nbd::write(&up.nbd, "demo", 0, &[8; 4096]);
    up.stop(Signal::TERM).expect(1, &["node 3: the cluster has removed this node", "stopping"]);
    trio.bench.velum(&["up", "--dir", &dir]).expect(1, &["node 3 was removed", "for ever"]);
}
