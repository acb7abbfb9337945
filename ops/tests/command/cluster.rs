//! Several nodes as processes of their own, over loopback: how they become a cluster and what an operator sees of it.

use std::net::TcpListener;

use rustix::process::Signal;

use crate::bench::{Bench, settings};

/// Settings of a node whose door for others is at `address`.
fn with_peers(address: &str) -> String {
    format!("{}[peers]\nlisten = \"{address}\"\n", settings(""))
}

#[test]
fn a_node_that_may_be_joined_serves_like_one_alone() {
    let bench = Bench::new();
    bench.prepare("data", &with_peers("127.0.0.1:0"));
    for _ in 0..2 {
        let node = bench.up("data", &[]);
        bench.velum(&["volume", "flush", "demo", "--admin", &node.admin]).expect(0, &[]);
        let (_, metrics) = node.http(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert!(metrics.contains("velum_raft_voters 1") && metrics.contains("velum_peer_links 0"), "{metrics}");
        node.stop(Signal::TERM).expect(0, &["stopping"]);
    }
}

#[test]
fn a_door_for_other_nodes_that_is_taken_is_named() {
    let bench = Bench::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    bench.prepare("data", &with_peers(&address));
    let dir = bench.text("data");
    bench.velum(&["up", "--dir", &dir]).expect(1, &[&address, "peers.listen"]);
}
