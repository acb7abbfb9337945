//! Several nodes as processes of their own, over loopback: how they become a cluster and what an operator sees of it.

use std::{
    fs,
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    bench::{Bench, Node, settings},
    nbd::{self, Client, EPERM, Gone, WRITE},
};

/// Longer than an election, a snapshot and a change of the group take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of a node whose door for others is at `address`.
fn with_peers(address: &str) -> String {
    format!("{}[peers]\nlisten = \"{address}\"\n", settings(""))
}

/// An address that was free a moment ago.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Waits until something is so.
pub(crate) fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Hosts that share clouds and the root key, and nothing else. Unless said otherwise their doors are on ports of the kernel's
/// choice, so that a node that is started again is found elsewhere.
struct Hosts {
    bench: Bench,
    fixed_ports: bool,
}

impl Hosts {
    fn new() -> Self {
        let bench = Bench::new();
        bench.velum(&["key", "init", "--keyfile", "root.key"]).expect(0, &[]);
        Self { bench, fixed_ports: false }
    }

    /// The settings of a node on a host of its own.
    fn prepare(&self, node: u64) -> String {
        let clouds = format!("url = \"file://{}/", self.bench.text("clouds"));
        let door = if self.fixed_ports { free_address() } else { "127.0.0.1:0".to_owned() };
        let settings = with_peers(&door)
            .replace("url = \"file:clouds/", &clouds)
            .replace("\"root.key\"", "\"../root.key\"")
            .replace("memory =", &format!("node = {node}\nmemory ="));
        self.bench.prepare(&format!("host-{node}"), &settings);
        self.config(node)
    }

    fn config(&self, node: u64) -> String {
        self.bench.text(&format!("host-{node}/node.toml"))
    }

    fn start(&self, node: u64) -> Node {
        self.bench.serve(&["--output", "json", "node", "--config", &self.config(node)])
    }

    /// The first node of a cluster.
    fn found(&self) -> Node {
        let config = self.prepare(1);
        self.bench.velum(&["cluster", "init", "--config", &config]).expect(0, &["velum node --config"]);
        self.start(1)
    }

    fn token(&self, at: &Node) -> (u64, String) {
        let token = self.ask(at, &["cluster", "token"]).json();
        (token["node"].as_u64().unwrap(), token["token"].as_str().unwrap().to_owned())
    }

    /// Another node, let in by `at`.
    fn add(&self, at: &Node) -> (u64, Node) {
        let (number, token) = self.token(at);
        let config = self.prepare(number);
        self.bench
            .velum(&["cluster", "join", "--config", &config, "--token", &token])
            .expect(0, &["asks to be let in"]);
        (number, self.start(number))
    }

    fn ask(&self, at: &Node, what: &[&str]) -> crate::bench::Ended {
        self.bench.velum(&[&["--output", "json"], what, &["--admin", &at.admin]].concat()).expect(0, &[])
    }

    fn refused(&self, at: &Node, what: &[&str], words: &[&str]) {
        self.bench.velum(&[what, &["--admin", &at.admin]].concat()).expect(1, words);
    }

    fn status(&self, at: &Node) -> Value {
        self.ask(at, &["cluster", "status"]).json()
    }

    /// Numbers of the nodes that vote and are reached, as a node sees it.
    fn voters(&self, at: &Node) -> Vec<u64> {
        let votes =
            |node: &&Value| matches!(node["role"].as_str(), Some("leader" | "voter")) && node["reached"] == true;
        let status = self.status(at);
        status["nodes"].as_array().unwrap().iter().filter(votes).map(|node| node["node"].as_u64().unwrap()).collect()
    }

    fn await_voters(&self, at: &[&Node], voters: &[u64]) {
        for node in at {
            wait(&format!("voters {voters:?}"), || self.voters(node) == voters);
        }
    }

    /// The node that owns a volume, once it serves it.
    fn serving<'a>(&self, nodes: &[(u64, &'a Node)], name: &str) -> &'a Node {
        let mut found = None;
        wait(&format!("a node serves {name}"), || {
            let serves = |node: &Node, number: u64| {
                let status = self.status(node);
                let volumes = status["volumes"].as_array().unwrap();
                volumes
                    .iter()
                    .any(|volume| volume["name"] == name && volume["owner"] == number && volume["current"].is_array())
            };
            found = nodes.iter().find(|(number, node)| serves(node, *number)).map(|(_, node)| *node);
            found.is_some()
        });
        found.unwrap()
    }

    /// Makes a volume on a node, writes to it, and has it flushed.
    fn use_volume(&self, at: &Node, name: &str, byte: u8) {
        let known = self.ask(at, &["volume", "list"]).stdout.contains(&format!("\"{name}\""));
        if !known {
            self.ask(at, &["volume", "create", name, "--size", "4MiB"]);
        }
        // Answered when the volume is open.
        self.ask(at, &["volume", "flush", name]);
        nbd::write(&at.nbd, name, 0, &[byte; 4096]);
        let flushed = self.ask(at, &["volume", "flush", name]).json();
        assert_eq!((&flushed["exposure"]["dirty_bytes"], &flushed["name"]), (&0.into(), &name.into()));
    }
}

/// The life of a cluster of three: made, grown, one node killed at a time, removed and replaced. Volumes on the living nodes are
/// made and flushed all the while.
#[test]
fn three_nodes_become_a_cluster_that_lives_on_while_one_is_gone() {
    let hosts = Hosts::new();
    let one = hosts.found();
    hosts.use_volume(&one, "first", 1);
    let (two_number, two) = hosts.add(&one);
    let (three_number, three) = hosts.add(&two);
    assert_eq!((two_number, three_number), (2, 3));
    hosts.await_voters(&[&one, &two, &three], &[1, 2, 3]);
    let status = hosts.status(&three);
    assert_eq!((&status["node"], &status["advice"]), (&3.into(), &Value::Array(Vec::new())));
    hosts.use_volume(&two, "second", 2);
    assert_eq!(hosts.status(&one)["nodes"][1]["volumes"], serde_json::json!(["second"]));
    hosts.refused(&one, &["volume", "flush", "second"], &["owned by node 2", "--admin"]);
    let second = |at| hosts.status(at)["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "second").cloned();
    let (seen, own) = (second(&one).unwrap(), second(&two).unwrap());
    assert_eq!(
        (&seen["owner"], &seen["members"], &seen["exposure"]),
        (&2.into(), &serde_json::json!([1, 2, 3]), &Value::Null)
    );
    assert_eq!((&own["exposure"]["dirty_bytes"], own["clouds"].as_array().unwrap().len()), (&0.into(), 3));
    // Every node knows how far it is itself, and the leader how far the others are.
    let leader = hosts.status(&one)["leader"].as_u64().unwrap();
    for (number, node) in (1..).zip([&one, &two, &three]) {
        let status = hosts.status(node);
        let told = status["nodes"].as_array().unwrap().iter().filter(|node| node["lag_entries"].is_u64()).count();
        assert_eq!(told, if number == leader { 3 } else { 1 }, "{status}");
    }
    hosts.refused(&one, &["volume", "create", "second", "--size", "4MiB"], &["exists already"]);

    // The lead goes where it is sent, and away when its node is killed.
    let leader = hosts.status(&one)["leader"].as_u64().unwrap();
    if leader != 3 {
        let asked = if leader == 1 { &one } else { &two };
        assert_eq!(hosts.ask(asked, &["cluster", "transfer", "3"]).json()["leader"], 3);
    }
    assert_eq!(three.stop(Signal::KILL).code, None);
    hosts.use_volume(&two, "second", 3);
    hosts.use_volume(&one, "later", 4);
    wait("the dead node is seen", || hosts.voters(&one) == [1, 2]);
    assert!(hosts.status(&one)["advice"][0].as_str().unwrap().contains("node 3 is not reached"));
    let three = hosts.start(3);
    hosts.await_voters(&[&one, &two, &three], &[1, 2, 3]);

    // A node goes for good, and hears of it.
    hosts.refused(&one, &["cluster", "remove", "9"], &["no node 9", "cluster status"]);
    let left = hosts.ask(&one, &["cluster", "remove", "3"]).json();
    assert_eq!(left["nodes"].as_array().unwrap().len(), 2, "{left}");
    three.ended().expect(1, &["removed this node", "new number"]);
    let again = hosts.config(3);
    hosts.bench.velum(&["node", "--config", &again]).expect(1, &["node 3 was removed", "for ever", "cluster token"]);
    hosts.refused(&one, &["cluster", "remove", "3"], &["removed already"]);
    let (four_number, four) = hosts.add(&one);
    assert_eq!(four_number, 4, "a number is never used again");
    hosts.await_voters(&[&one, &two, &four], &[1, 2, 4]);
    hosts.use_volume(&four, "fourth", 5);

    // The volumes of a node that goes are taken over by others first.
    hosts.ask(&one, &["cluster", "remove", "2"]);
    two.ended().expect(1, &["removed this node"]);
    let nodes = [(1, &one), (4, &four)];
    let served = hosts.serving(&nodes, "second");
    hosts.use_volume(served, "second", 6);
    let standing = hosts.status(&one)["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "second").cloned();
    assert_eq!(standing.unwrap()["members"], serde_json::json!([1, 4]));
    for node in [four, one] {
        node.stop(Signal::TERM).expect(0, &["stopping"]);
    }
}

/// Nodes that all start again find each other where they were, and their volumes.
#[test]
fn a_cluster_whose_nodes_were_all_killed_comes_back() {
    let hosts = Hosts { fixed_ports: true, ..Hosts::new() };
    let one = hosts.found();
    let (_, two) = hosts.add(&one);
    let (_, three) = hosts.add(&one);
    hosts.await_voters(&[&one, &two, &three], &[1, 2, 3]);
    hosts.use_volume(&two, "second", 1);
    for node in [one, two, three] {
        node.stop(Signal::KILL);
    }
    // One of three has nobody to agree with, and says so.
    let one = hosts.start(1);
    wait("what is wrong", || {
        hosts.status(&one)["advice"][0].as_str().unwrap_or_default().contains("there is no leader")
    });
    assert_eq!(hosts.voters(&one), [1]);
    one.stop(Signal::KILL);
    let running: Vec<_> = [1, 2, 3]
        .map(|node| hosts.bench.spawn(&["--output", "json", "node", "--config", &hosts.config(node)], &[]))
        .into();
    let [one, two, three]: [Node; 3] =
        running.into_iter().map(Node::ready).collect::<Vec<_>>().try_into().ok().unwrap();
    hosts.await_voters(&[&one, &two, &three], &[1, 2, 3]);
    hosts.use_volume(&two, "second", 2);
}

/// A recovery from the clouds alone begins a new life of the cluster. A node of the life before that comes back meets it where its
/// old peer was.
#[test]
fn a_node_of_the_life_before_a_recovery_stops_for_good() {
    let hosts = Hosts { fixed_ports: true, ..Hosts::new() };
    let one = hosts.found();
    let (_, two) = hosts.add(&one);
    hosts.await_voters(&[&one, &two], &[1, 2]);
    hosts.use_volume(&one, "first", 1);
    one.stop(Signal::KILL);
    two.stop(Signal::KILL);
    let clouds = ["a", "b", "c"].map(|name| format!("--cloud={name}=file://{}/{name}", hosts.bench.text("clouds")));
    let fixed = ["recover", "--keyfile", "root.key", "--dir", "new"];
    let arguments: Vec<&str> = fixed.into_iter().chain(clouds.iter().map(String::as_str)).collect();
    hosts.bench.velum(&arguments).expect(0, &["velum up --dir new"]);
    fs::copy(hosts.config(1), hosts.bench.path("new/node.toml")).unwrap();
    let new = hosts.bench.serve(&["--output", "json", "node", "--config", &hosts.bench.text("new/node.toml")]);
    let old = hosts.config(2);
    let words = ["belongs to an older life", "recovered since", "velum inspect journal"];
    hosts.bench.velum(&["node", "--config", &old]).expect(1, &words);
    hosts.bench.velum(&["node", "--config", &old]).expect(1, &["node 2 belongs to an older life"]);
    hosts.use_volume(&new, "first", 2);
    // A newcomer under the number of that node learns to which life it has come, and belongs to it from then on.
    let (number, token) = hosts.token(&new);
    assert_eq!(number, 2);
    let text = fs::read_to_string(&old).unwrap();
    let newcomer = hosts.bench.prepare("newcomer", &text).join("node.toml").display().to_string();
    hosts.bench.velum(&["cluster", "join", "--config", &newcomer, "--token", &token]).expect(0, &[]);
    for _ in 0..2 {
        let two = hosts.bench.serve(&["--output", "json", "node", "--config", &newcomer]);
        hosts.await_voters(&[&new, &two], &[1, 2]);
        two.stop(Signal::KILL);
    }
    new.stop(Signal::TERM).expect(0, &["stopping"]);
    hosts.bench.velum(&["node", "--config", &old]).expect(1, &["node 2 belongs to an older life"]);
}

/// A node alone has no peer to meet: the clouds tell it.
#[test]
fn a_node_alone_that_was_recovered_from_stops_for_good() {
    let bench = Bench::new();
    bench.prepare("data", &settings(""));
    let node = bench.up("data", &[]);
    nbd::write(&node.nbd, "demo", 0, &[1; 4096]);
    bench.velum(&["volume", "flush", "demo", "--admin", &node.admin]).expect(0, &[]);
    node.stop(Signal::KILL);
    let key = bench.text("data/root.key");
    let clouds = ["a", "b", "c"].map(|name| format!("--cloud={name}=file://{}/{name}", bench.text("data/clouds")));
    let fixed = ["recover", "--keyfile", &key, "--dir", "new"];
    let arguments: Vec<&str> = fixed.into_iter().chain(clouds.iter().map(String::as_str)).collect();
    bench.velum(&arguments).expect(0, &["velum up --dir new"]);
    let dir = bench.text("data");
    bench.velum(&["up", "--dir", &dir]).expect(1, &["belongs to an older life", "velum inspect journal"]);
    bench.velum(&["up", "--dir", &dir]).expect(1, &["node 1 belongs to an older life", "never starts again"]);
    // What it alone held can still be looked at.
    bench.velum(&["inspect", "journal", &bench.text("data/node-1/journal/0000.journal")]).expect(0, &[]);
}

/// The value of a metric at a node.
fn metric(at: &Node, name: &str) -> u64 {
    let (_, metrics) = at.http(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).trim().parse().unwrap()
}

/// Refusals of the gates 1 and 2 at a node.
fn refusals(at: &Node) -> [u64; 2] {
    ["volume", "region"].map(|gate| metric(at, &format!("velum_audit_refusals_total{{gate=\"{gate}\"}}")))
}

/// Bytes that tell where they were written.
fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| seed ^ u8::try_from(at / 4096 % 251).unwrap()).collect()
}

/// A volume is used through each node's door: big writes, many at once, refusals; and by whoever held a session when its owner was
/// killed and started again.
#[test]
fn any_nodes_door_serves_any_volume() {
    let hosts = Hosts { fixed_ports: true, ..Hosts::new() };
    let one = hosts.found();
    let (_, two) = hosts.add(&one);
    let (_, three) = hosts.add(&one);
    hosts.await_voters(&[&one, &two, &three], &[1, 2, 3]);
    hosts.ask(&one, &["volume", "create", "shared", "--size", "192MiB"]);
    wait("the volume is known everywhere", || {
        [&two, &three].iter().all(|node| hosts.ask(node, &["volume", "list"]).stdout.contains("shared"))
    });

    // Big writes, beyond a piece and beyond the credit, come whole to whoever reads, wherever.
    let (mut here, mut there) = (Client::connect(&two.nbd, "shared"), Client::connect(&three.nbd, "shared"));
    let big = pattern(7, 9 << 20);
    assert_eq!(here.write(1 << 20, &big), Ok(0));
    assert_eq!(here.flush(), Ok(0));
    assert!(there.read(1 << 20, 9 << 20).unwrap() == big, "what one node took another one reads");
    assert!(Client::connect(&one.nbd, "shared").read(1 << 20, 9 << 20).unwrap() == big);

    // Many at once.
    let mut asked: Vec<u64> =
        (0..200_u8).map(|at| there.ask(WRITE, u64::from(at) * 4096, 4096, &[at; 4096]).unwrap()).collect();
    for _ in 0..asked.len() {
        let (error, cookie) = there.reply().unwrap();
        assert_eq!(error, 0);
        asked.remove(asked.iter().position(|asked| *asked == cookie).unwrap());
    }
    let read = here.read(0, 200 * 4096).unwrap();
    assert!(read.chunks(4096).zip(0..200_u8).all(|(block, at)| *block == [at; 4096]));
    assert!(metric(&one, "velum_forward_requests_total{side=\"serving\"}") >= 204);
    assert!(metric(&two, "velum_forward_bytes_total{side=\"asking\"}") >= 9 << 20);
    assert_eq!(metric(&one, "velum_forward_sessions{side=\"serving\"}"), 2);

    // A gate says no at the owner, once.
    hosts.ask(&one, &["volume", "allow", "shared", "*", "read", "--range", "64MiB..128MiB"]);
    let before = [&one, &two, &three].map(refusals);
    assert_eq!(here.write(70 << 20, &[1; 4096]), Ok(EPERM));
    assert_eq!(here.write(60 << 20, &[1; 4096]), Ok(0), "elsewhere it may still write");
    let after = [&one, &two, &three].map(refusals);
    assert_eq!(after[0], [before[0][0], before[0][1] + 1]);
    assert_eq!(after[1..], before[1..]);

    // The owner is killed: who has something under way hears the connection end; who has not goes on at whoever takes over.
    let two_nbd = two.nbd.clone();
    let busy = thread::spawn(move || {
        let mut busy = Client::connect(&two_nbd, "shared");
        for round in 0_u64.. {
            if busy.write(round % 16 * 4096, &[9; 4096]) == Err(Gone) {
                return round;
            }
        }
        unreachable!("it is killed before")
    });
    thread::sleep(Duration::from_millis(300));
    let killed = Instant::now();
    assert_eq!(one.stop(Signal::KILL).code, None);
    assert!(busy.join().unwrap() > 0, "it wrote before");
    assert!(killed.elapsed() < Duration::from_secs(8), "nobody waits for what may never come");
    assert!(there.read(1 << 20, 9 << 20).unwrap() == big, "a session with nothing under way goes on");
    let owner = hosts.serving(&[(2, &two), (3, &three)], "shared");
    hosts.use_volume(owner, "shared", 3);
    assert_eq!(Client::connect(&three.nbd, "shared").read(0, 1), Ok(vec![3]));

    // An owner that is stopped hands over: sessions of other nodes' guests go on, whatever they have under way.
    let one = hosts.start(1);
    let to_two = ["volume", "move", "shared", "--to", "2"];
    if owner.admin == three.admin {
        hosts.ask(&three, &to_two);
    }
    wait("node 1 keeps a whole copy again", || {
        let status = hosts.status(hosts.serving(&[(2, &two)], "shared"));
        status["volumes"][0]["current"] == serde_json::json!([1, 2, 3])
    });
    two.stop(Signal::TERM).expect(0, &["stopping"]);
    assert_eq!(there.write(0, &[5; 4096]), Ok(0));
    drop(here);
    let owner = hosts.serving(&[(1, &one), (3, &three)], "shared");
    hosts.ask(owner, &["volume", "flush", "shared"]);
    let two = hosts.start(2);
    if owner.admin == three.admin {
        hosts.ask(&three, &["volume", "move", "shared", "--to", "1"]);
    }
    hosts.serving(&[(1, &one)], "shared");
    // A node that is gone leaves no session behind.
    assert_eq!(three.stop(Signal::KILL).code, None);
    wait("nobody uses it", || metric(&one, "velum_forward_sessions{side=\"serving\"}") == 0);
    wait("the others agree", || hosts.status(&one)["leader"].as_u64().is_some_and(|leader| leader != 3));
    hosts.ask(&one, &["volume", "delete", "shared", "--confirm", "shared"]);
    wait("it is gone everywhere", || nbd::ask_for(&two.nbd, "shared").1 == nbd::UNKNOWN);
}

#[test]
fn a_token_lets_one_node_in_and_no_other() {
    let hosts = Hosts::new();
    let one = hosts.found();
    let (number, token) = hosts.token(&one);
    let config = hosts.prepare(number);
    let join = |config: &str, token: &str, code, words: &[&str]| {
        hosts.bench.velum(&["cluster", "join", "--config", config, "--token", token]).expect(code, words);
    };
    join(&config, "velum1.nonsense", 2, &["the token is none", "velum cluster token"]);
    let other = hosts.prepare(7);
    join(&other, &token, 2, &["the token is for node 2", "set node = 2"]);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.split("[peers]").next().unwrap()).unwrap();
    join(&config, &token, 2, &["[peers]"]);
    hosts.prepare(number);
    // A second host with the same settings and the same token.
    let copy =
        hosts.bench.prepare("copy", &fs::read_to_string(&config).unwrap()).join("node.toml").display().to_string();
    join(&copy, &token, 0, &["asks to be let in"]);
    join(&config, &token, 0, &["asks to be let in"]);
    join(&config, &token, 1, &["there is a node here already"]);
    let two = hosts.start(number);
    hosts.await_voters(&[&one, &two], &[1, 2]);
    two.stop(Signal::KILL);
    hosts
        .bench
        .velum(&["node", "--config", &copy])
        .expect(1, &["does not take node 2", "used by another node", "cluster token"]);
    let two = hosts.start(number);
    hosts.await_voters(&[&one, &two], &[1, 2]);
    let advice = hosts.status(&one)["advice"].to_string();
    assert!(advice.contains("2 voters bear no more losses than 1"), "{advice}");
}

/// The settings to begin with differ in number, directory and address alone, and are in order but for the key, which nobody else
/// can give.
#[test]
fn the_example_of_three_hosts_is_in_order() {
    let bench = Bench::new();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("three-hosts");
    bench.velum(&["key", "init", "--keyfile", "root.key"]).expect(0, &[]);
    let mut alike = Vec::new();
    for number in 1..=3 {
        let text = fs::read_to_string(folder.join(format!("host-{number}.toml"))).unwrap();
        let copy = bench.path("node.toml");
        fs::write(&copy, &text).unwrap();
        bench.velum(&["config", "check", &bench.text("node.toml")]).expect(0, &[]);
        assert!(text.contains(&format!("node = {number}\n")));
        let rest = text.lines().skip(1).collect::<Vec<_>>().join("\n");
        alike.push(rest.replace(&format!("-{number}"), "-N").replace(&format!("node = {number}"), "node = N"));
    }
    assert!(alike.windows(2).all(|pair| pair[0] == pair[1]), "{alike:?}");
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
