//! A node among others: raft with links to them, and where each is found, as the replicated metadata says.
//!
//! Every node of the cluster has an entry in the metadata with its address. A node whose own entry is missing or out of date
//! sees to that itself, so that an address may change with a restart. Links follow the entries.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::{Rc, Weak},
    time::Duration,
};

use velum_protocol::{format::metadata::Command, id::NodeId};

use super::{
    Assembly,
    group::{self, Found, Group},
};
use crate::{
    actor,
    config::PeersConfig,
    consensus::{Consensus, ConsensusError},
    env::{Credentials, Env, Listener, network::Address},
    metadata::State,
    peer::Links,
};

/// How often links and entries are compared.
const INTERVAL: Duration = Duration::from_millis(500);

/// Starts raft with links to the nodes that the state at hand knows.
pub(super) async fn begin(
    env: &Env,
    peers: &PeersConfig,
    (listener, credentials): (Rc<dyn Listener>, Credentials),
    found: Found,
    state: &Rc<RefCell<State>>,
) -> Result<Group, ConsensusError> {
    let known = Rc::clone(state);
    let hears = Rc::new(move |node| known.borrow().hears(node));
    let group = group::begin(env, credentials, found, hears).await?;
    group.links.open(listener, peers.advertise.as_ref().map(ToString::to_string));
    group.links.set_peers(&addresses(&state.borrow()));
    Ok(group)
}

/// Whether this node is the one that does what is done once per cluster; one alone always is.
pub(super) fn keeper(is_alone: bool, consensus: &Consensus) -> Rc<dyn Fn() -> bool> {
    let consensus = consensus.clone();
    Rc::new(move || is_alone || consensus.status().is_leader)
}

/// Where the nodes are that were not retired.
fn addresses(state: &State) -> BTreeMap<NodeId, Address> {
    let nodes = state.nodes.iter().filter(|(_, entry)| !entry.retired);
    nodes.map(|(node, entry)| (*node, Address::Tcp(entry.address.clone()))).collect()
}

/// Keeps links and this node's entry as they should be, for as long as the node lives.
pub(super) fn watch(node: &Rc<Assembly>) {
    let Some(links) = node.links.clone() else { return };
    let (weak, clock) = (Rc::downgrade(node), Rc::clone(&node.env.clock));
    actor::spawn(async move {
        let mut linked = BTreeMap::new();
        while look(&weak, &links, &mut linked).await {
            clock.sleep(INTERVAL).await;
        }
    });
}

async fn look(node: &Weak<Assembly>, links: &Links, linked: &mut BTreeMap<NodeId, Address>) -> bool {
    let Some(node) = node.upgrade() else { return false };
    let wanted = node.metadata.with(addresses);
    if wanted != *linked {
        links.set_peers(&wanted);
        *linked = wanted;
    }
    if let Some(command) = node.metadata.with(|state| entry_wanted(state, node.node, links.address())) {
        // What is refused, or not known to be agreed, is seen at the next look.
        if let Err(error) = node.metadata.propose(command).await {
            tracing::debug!(%error, "the cluster does not know yet where this node is found");
        }
    }
    true
}

/// What makes the state say where a node is found, when it does not.
fn entry_wanted(state: &State, node: NodeId, address: String) -> Option<Command> {
    match state.nodes.get(&node) {
        None => Some(Command::AdmitNode { node, address }),
        Some(entry) if !entry.retired && entry.address != address => Some(Command::MoveNode { node, address }),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use velum_protocol::{
        format::metadata::{Proposal, RequestId},
        id::ClusterId,
    };

    use super::*;

    #[test]
    fn a_node_makes_its_entry_say_where_it_is_found_and_a_retired_one_does_not() {
        let mut state = State::new(ClusterId([1; 16]), Vec::new(), 2);
        let mut requests = 0;
        let mut run = |state: &mut State, command| {
            requests += 1;
            state.apply(&Proposal { request: RequestId([requests; 16]), command }).unwrap();
        };
        let wanted = |state: &State, address: &str| entry_wanted(state, NodeId(1), address.to_owned());
        let admit = wanted(&state, "a:1").unwrap();
        run(&mut state, admit);
        assert_eq!(wanted(&state, "a:1"), None);
        let moved = wanted(&state, "b:1").unwrap();
        run(&mut state, moved);
        assert_eq!(addresses(&state), BTreeMap::from([(NodeId(1), Address::Tcp("b:1".into()))]));
        run(&mut state, Command::RetireNode { node: NodeId(1) });
        assert_eq!(wanted(&state, "c:1"), None);
        assert!(addresses(&state).is_empty());
    }
}
