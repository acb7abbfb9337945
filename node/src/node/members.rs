//! A node among others: raft with links to them, and where each is found, as the replicated metadata says.
//!
//! Every node of the cluster has an entry in the metadata with its address. A node whose own entry is missing or out of date
//! sees to that itself, so that an address may change with a restart. Links follow the entries; so does raft's group, which
//! the keeper changes step by step.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    pin::pin,
    rc::{Rc, Weak},
    time::Duration,
};

use futures_util::future::{Either, select};
use velum_protocol::{
    format::metadata::Command,
    id::{Hash, NodeId},
    invitation::JoinFile,
    peer::{Frame, Join, Verdict},
};

use super::{
    Assembly,
    desk::Desk,
    group::{self, Ears, Found, Group},
    start::StartError,
    steps::{self, Step},
};
use crate::{
    actor,
    config::PeersConfig,
    consensus::Consensus,
    env::{Clock, Credentials, Env, Instant, Listener, network::Address},
    metadata::{MetadataError, State},
    peer::{LinkState, Links},
};

/// How often links, entries and the group are compared.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long an offer stands. Measured by the keeper, so it begins again when another node becomes it.
pub(super) const OFFER_TIME: Duration = Duration::from_secs(3600);

/// A node's way to the others.
#[derive(Clone)]
pub(super) struct Peers {
    pub(super) links: Links,
    pub(super) desk: Rc<Desk>,
    pub(super) ears: Rc<Ears>,
}

/// Starts raft with links to the nodes that the state at hand knows, or that the newcomer was told of. Returns when all that
/// this node knows to be agreed is applied; for a newcomer that takes a leader who lets it in.
pub(super) async fn begin(
    env: &Env,
    settings: &PeersConfig,
    (listener, credentials): (Rc<dyn Listener>, Credentials),
    found: Found,
    (state, join): (&Rc<RefCell<State>>, Option<&JoinFile>),
) -> Result<(Consensus, Peers), StartError> {
    let node = credentials.node;
    let desk = Rc::new(Desk::new(Rc::clone(state), join.is_some()));
    let Group { consensus, links, ears } = group::begin(env, credentials, found, desk.clone()).await?;
    links.open(listener, settings.advertise.as_ref().map(ToString::to_string));
    let contacts = join.map(contacts).unwrap_or_default();
    links.set_peers(&contacts.into_iter().chain(addresses(&state.borrow())).collect());
    match join {
        Some(_) => tracing::info!("asking to be let into the cluster"),
        None => tracing::info!("waiting for a leader of the cluster's nodes"),
    }
    let peers = Peers { links, desk, ears };
    let asking = async {
        match join {
            Some(join) => ask(&*env.clock, &peers.links, join).await,
            None => std::future::pending().await,
        }
    };
    let refused = {
        let (refusal, asking) = (pin!(peers.desk.refusal()), pin!(asking));
        match select(pin!(consensus.caught_up()), select(refusal, asking)).await {
            Either::Left((caught_up, _)) => {
                return caught_up.map(|()| (consensus.clone(), peers.clone())).map_err(Into::into);
            }
            Either::Right((Either::Left((why, _)) | Either::Right((why, _)), _)) => why,
        }
    };
    Err(StartError::NotTaken { node, why: refused })
}

fn contacts(join: &JoinFile) -> BTreeMap<NodeId, Address> {
    let contacts = join.invitation.contacts.iter();
    contacts.map(|(node, address)| (*node, Address::Tcp(address.clone()))).collect()
}

/// Asks all contacts for the place until somebody stops it.
async fn ask(clock: &dyn Clock, links: &Links, JoinFile { key, invitation }: &JoinFile) -> Verdict {
    loop {
        for (contact, _) in &invitation.contacts {
            let join = Join { secret: invitation.secret, key: *key, address: links.address() };
            links.send(*contact, Frame::Join(join));
        }
        clock.sleep(INTERVAL).await;
    }
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

/// Keeps links, this node's entry and the group as they should be, for as long as the node lives.
pub(super) fn watch(node: &Rc<Assembly>) {
    let Some(peers) = node.peers.clone() else { return };
    let (weak, clock) = (Rc::downgrade(node), Rc::clone(&node.env.clock));
    let mut watcher = Watcher { peers, linked: BTreeMap::new(), offered: BTreeMap::new() };
    actor::spawn(async move {
        while watcher.look(&weak).await {
            clock.sleep(INTERVAL).await;
        }
    });
}

struct Watcher {
    peers: Peers,
    linked: BTreeMap<NodeId, Address>,
    /// Since when the keeper has seen which offers.
    offered: BTreeMap<(NodeId, Hash), Instant>,
}

impl Watcher {
    async fn look(&mut self, node: &Weak<Assembly>) -> bool {
        let Some(node) = node.upgrade() else { return false };
        let wanted = node.metadata.with(addresses);
        if wanted != self.linked {
            self.peers.links.set_peers(&wanted);
            self.linked = wanted;
        }
        let address = self.peers.links.address();
        if let Some(command) = node.metadata.with(|state| entry_wanted(state, node.node, address)) {
            // What is refused, or not known to be agreed, is seen at the next look.
            if let Err(error) = node.metadata.propose(command).await {
                tracing::debug!(%error, "the cluster does not know yet where this node is found");
            }
        }
        for (newcomer, join) in self.peers.desk.take_asks() {
            self.let_in(&node, newcomer, join).await;
        }
        if node.array.is_keeper() {
            self.withdraw_old_offers(&node).await;
            self.arrange(&node).await;
        } else {
            self.offered.clear();
        }
        true
    }

    /// Lets the metadata judge a newcomer's token.
    async fn let_in(&self, node: &Assembly, newcomer: NodeId, join: Join) {
        let (token, key) = (join.secret.hash(), Hash(*blake3::hash(&join.key).as_bytes()));
        let taken_by = node.metadata.with(|state| state.offers.get(&newcomer).and_then(|offer| offer.taken_by));
        if let Some(holder) = taken_by {
            // For ever, so also when nothing can be agreed on: the newcomer's own vote may be what is missing.
            let verdict = if holder == key { Verdict::Welcome } else { Verdict::NoPlace };
            return self.peers.links.send(newcomer, Frame::Verdict(verdict));
        }
        let command = Command::TakePlace { node: newcomer, token, key, address: join.address };
        match node.metadata.propose(command).await {
            Ok(_) => {
                tracing::info!(node = %newcomer, "a node joins the cluster");
                self.peers.links.send(newcomer, Frame::Verdict(Verdict::Welcome));
            }
            Err(MetadataError::Rejected(why)) => {
                tracing::warn!(node = %newcomer, %why, "a node wanted to join and is not let in");
                self.peers.links.send(newcomer, Frame::Verdict(Verdict::NoPlace));
            }
            // It asks again.
            Err(MetadataError::Unknown(_)) => {}
        }
    }

    async fn withdraw_old_offers(&mut self, node: &Assembly) {
        let now = node.env.clock.now();
        let open = node.metadata.with(|state| {
            let open = state.offers.iter().filter(|(_, offer)| offer.taken_by.is_none());
            open.map(|(node, offer)| (*node, offer.token)).collect::<Vec<_>>()
        });
        self.offered.retain(|offer, _| open.contains(offer));
        for offer in open {
            let since = *self.offered.entry(offer).or_insert(now);
            if now.since(since) >= OFFER_TIME {
                // Verdict when it was taken meanwhile; seen at the next look when it is not known.
                let withdrawn = node.metadata.propose(Command::WithdrawOffer { node: offer.0 }).await;
                tracing::info!(node = %offer.0, is_withdrawn = withdrawn.is_ok(), "a token has expired");
            }
        }
    }

    /// Brings the group one step closer to what the metadata says.
    async fn arrange(&self, node: &Assembly) {
        let up: Vec<NodeId> = self
            .peers
            .links
            .status()
            .into_iter()
            .filter(|link| link.state == LinkState::Up)
            .map(|link| link.node)
            .collect();
        let is_live = |other: NodeId| other == node.node || up.contains(&other);
        let members = node.consensus.members();
        for step in node.metadata.with(|state| steps::next(state, &members, node.node, &is_live)) {
            let done = match step {
                Step::Change(change) => node.consensus.change(change).await.map_err(|error| error.to_string()),
                Step::Transfer(to) => node.consensus.transfer(to).await.map_err(|error| error.to_string()),
                Step::Retire(gone) => {
                    let retired = node.metadata.propose(Command::RetireNode { node: gone }).await;
                    retired.map(drop).map_err(|error| error.to_string())
                }
            };
            match done {
                Ok(()) => return tracing::info!(?step, "the group of nodes changes"),
                Err(error) => tracing::debug!(?step, error, "the group of nodes does not change yet"),
            }
        }
    }
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
