//! Three members on this machine: real disks, real TLS over loopback, one thread. They find each other, agree, and go on
//! without their leader.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops at the first surprise")]

use std::{cell::RefCell, collections::BTreeMap, path::Path, rc::Rc, time::Duration};

use bytes::Bytes;
use velum_node::{
    consensus::{Applier, Change, Consensus, Member, ProposeError, RestoreError, bootstrap, join},
    env::{
        Env,
        network::Address,
        real::{RealSettings, real_env},
    },
    journal::{Journal, JournalIdentity, JournalSettings},
    keyring::{Keyring, ProviderSecret, create_cluster, new_keyfile},
    node::group::{self, Found, Group},
    peer::LinkState,
};
use velum_protocol::id::NodeId;

/// Everything it was given, one entry behind the other.
#[derive(Default)]
struct Text(Vec<u8>);

impl Applier for Text {
    fn apply(&mut self, _index: u64, entry: &[u8]) -> Bytes {
        self.0.extend_from_slice(entry);
        Bytes::new()
    }

    fn snapshot(&self) -> Bytes {
        self.0.clone().into()
    }

    fn check(&self, _snapshot: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.0 = snapshot.to_vec();
        Ok(())
    }
}

struct Node {
    group: Group,
    text: Rc<RefCell<Text>>,
    address: Address,
}

async fn start(env: &Env, keyring: &Keyring, dir: &Path, node: u64) -> Node {
    let (node, dir) = (NodeId(node), dir.join(format!("node-{node}")));
    let member = || Member { node, cluster: keyring.cluster(), seal: keyring.state().clone() };
    if node.0 == 1 {
        // Long enough for several pieces.
        let state = Bytes::from(vec![b'.'; 3 << 20]);
        bootstrap(env, &dir.join("raft"), member(), state).await.unwrap();
    } else {
        join(env, &dir.join("raft"), member()).await.unwrap();
    }
    let identity = JournalIdentity { cluster: keyring.cluster(), node };
    let settings = JournalSettings { file_bytes: 1 << 20, files_at_start: 2, bytes_max: 16 << 20 };
    let (journal, mut replay) = Journal::examine(env, &dir.join("journal"), settings, identity).await.unwrap();
    let text: Rc<RefCell<Text>> = Rc::default();
    let raft = dir.join("raft");
    let examined = Consensus::examine(env, &raft, member(), (&journal, &mut replay), &*text).await.unwrap();
    let found = Found { examined, journal: journal.begin().await.unwrap(), applier: text.clone() };
    let group = group::begin(env, keyring.credentials(node), found, Rc::new(|_: NodeId| true)).await.unwrap();
    let address = group.links.listen(&Address::Tcp("127.0.0.1:0".into()), None).await.unwrap();
    Node { group, text, address }
}

async fn wait(env: &Env, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..200 {
        if is_so().await {
            return;
        }
        env.clock.sleep(Duration::from_millis(50)).await;
    }
    panic!("waited in vain for: {what}");
}

async fn change(env: &Env, node: &Node, change: Change) {
    wait(env, "a change of the membership", async || match node.group.consensus.change(change).await {
        Ok(()) => true,
        Err(error) => {
            assert!(matches!(error, ProposeError::NotPossible(_)), "{error}");
            false
        }
    })
    .await;
}

async fn live(dir: &Path) {
    let env = real_env(RealSettings::default()).unwrap();
    let secret = ProviderSecret::from_keyfile(0o600, new_keyfile(&*env.entropy).to_vec()).unwrap();
    let keyring = create_cluster(&*env.entropy, &secret).unwrap().keyring;
    let mut nodes = Vec::new();
    for node in 1..=3 {
        nodes.push(start(&env, &keyring, dir, node).await);
    }
    nodes[0].group.consensus.caught_up().await.unwrap();
    let numbered = (1..).map(NodeId).zip(nodes.iter().map(|node| node.address.clone()));
    let addresses: BTreeMap<NodeId, Address> = numbered.collect();
    // The founder knows the others; they learn from it where it is.
    nodes[0].group.links.set_peers(&addresses);
    for node in [2, 3] {
        change(&env, &nodes[0], Change::AddLearner(NodeId(node))).await;
        change(&env, &nodes[0], Change::Promote(NodeId(node))).await;
    }
    nodes.iter().for_each(|node| node.group.links.set_peers(&addresses));
    wait(&env, "all links", async || {
        nodes.iter().all(|node| {
            let status = node.group.links.status();
            status.len() == 2 && status.iter().all(|link| link.state == LinkState::Up)
        })
    })
    .await;
    nodes[1].group.consensus.propose(Bytes::from_static(b"from the second")).await.unwrap();
    nodes[2].group.consensus.read().await.unwrap();
    assert!(nodes[2].text.borrow().0.ends_with(b"from the second"));
    assert_eq!(nodes[2].text.borrow().0.len(), (3 << 20) + 15);
    // The leader falls silent: the other two go on.
    let leader = nodes.remove(0);
    leader.group.links.close();
    wait(&env, "another leader", async || nodes.iter().any(|node| node.group.consensus.status().is_leader)).await;
    wait(&env, "a proposal without the first leader", async || {
        nodes[0].group.consensus.propose(Bytes::from_static(b"!")).await.is_ok()
    })
    .await;
    nodes[1].group.consensus.read().await.unwrap();
    assert!(nodes[1].text.borrow().0.ends_with(b"!"));
}

#[test]
fn three_members_over_tls_agree_and_go_on_without_their_leader() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, live(dir.path()));
}
