//! Commands about nodes. A number names one node for ever: a node that forgot its votes, or was restored from a copy, can not
//! come back as somebody who has not.

use velum_protocol::{
    format::metadata::Command,
    id::{Hash, NodeId, VolumeId},
    peer::ADDRESS_BYTES_MAX,
};

use super::{
    apply::{Answer, Rejection},
    state::{NodeEntry, Offer, State},
};

/// Offers that nobody has taken yet.
const OFFERS_MAX: usize = 64;

/// Nodes of all times that the state remembers.
const NODES_MAX: usize = 4096;

impl State {
    pub(super) fn apply_to_nodes(&mut self, command: &Command) -> Result<Answer, Rejection> {
        match command {
            Command::AdmitNode { node, address } => {
                if self.offers.contains_key(node) {
                    return Err(Rejection::NodeUsed(*node));
                }
                self.admit(*node, address)?;
            }
            Command::MoveNode { node, address } => {
                check(*node, address)?;
                self.node_mut(*node)?.address.clone_from(address);
            }
            Command::RetireNode { node } => {
                self.node_mut(*node)?.retired = true;
                self.offers.remove(node);
                self.leaving.remove(node);
            }
            Command::OfferPlace { node, token } => self.offer(*node, *token)?,
            Command::WithdrawOffer { node } => {
                self.offers.get(node).filter(|offer| offer.taken_by.is_none()).ok_or(Rejection::NoOffer)?;
                self.offers.remove(node);
            }
            Command::TakePlace { node, token, key, address } => {
                check(*node, address)?;
                let offer = self.offers.get(node).filter(|offer| offer.token == *token).ok_or(Rejection::NoOffer)?;
                match offer.taken_by {
                    Some(by) if by != *key => return Err(Rejection::NoOffer),
                    Some(_) => self.node_mut(*node)?.address.clone_from(address),
                    None => {
                        self.admit(*node, address)?;
                        self.offers.insert(*node, Offer { token: *token, taken_by: Some(*key) });
                    }
                }
            }
            Command::DismissNode { node } => self.dismiss(*node)?,
            _ => return Err(Rejection::Unreadable),
        }
        Ok(Answer::Done)
    }

    fn admit(&mut self, node: NodeId, address: &str) -> Result<(), Rejection> {
        check(node, address)?;
        if self.nodes.contains_key(&node) {
            return Err(Rejection::NodeUsed(node));
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(Rejection::TooManyNodes);
        }
        self.nodes.insert(node, NodeEntry { address: address.to_owned(), retired: false });
        Ok(())
    }

    fn offer(&mut self, node: NodeId, token: Hash) -> Result<(), Rejection> {
        if node.0 == 0 {
            return Err(Rejection::BadNode);
        }
        if self.nodes.contains_key(&node) || self.offers.contains_key(&node) {
            return Err(Rejection::NodeUsed(node));
        }
        let open = self.offers.values().filter(|offer| offer.taken_by.is_none()).count();
        if open >= OFFERS_MAX || self.nodes.len() + open >= NODES_MAX {
            return Err(Rejection::TooManyNodes);
        }
        self.offers.insert(node, Offer { token, taken_by: None });
        Ok(())
    }

    fn dismiss(&mut self, node: NodeId) -> Result<(), Rejection> {
        self.node_mut(node)?;
        // What an ensemble keeps, another member takes over.
        let is_stuck = |id: &VolumeId| !self.ensembles.contains_key(id);
        let owned =
            self.volumes.iter().filter(|(id, volume)| !volume.deleted && volume.owner == Some(node) && is_stuck(id));
        let owned = owned.count();
        if owned > 0 {
            return Err(Rejection::OwnsVolumes(node, u64::try_from(owned).unwrap_or(u64::MAX)));
        }
        if !self.nodes.keys().any(|other| *other != node && self.stays(*other)) {
            return Err(Rejection::LastNode(node));
        }
        self.leaving.insert(node);
        Ok(())
    }

    /// Whether a node is one of the cluster's and will be: neither retired nor leaving.
    #[must_use]
    pub fn stays(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|entry| !entry.retired) && !self.leaving.contains(&node)
    }

    fn node_mut(&mut self, node: NodeId) -> Result<&mut NodeEntry, Rejection> {
        self.nodes.get_mut(&node).filter(|entry| !entry.retired).ok_or(Rejection::NoSuchNode(node))
    }

    /// How many nodes the cluster has: those that were not retired.
    #[must_use]
    pub fn present_nodes(&self) -> u64 {
        u64::try_from(self.nodes.values().filter(|entry| !entry.retired).count()).unwrap_or(u64::MAX - 1)
    }

    /// Whether a node keeps the journal of a volume, or may have to be fenced for one.
    #[must_use]
    pub fn keeps(&self, node: NodeId) -> bool {
        self.ensembles.iter().any(|(id, ensemble)| {
            let is_live = self.volumes.get(id).is_some_and(|volume| !volume.deleted);
            is_live && (ensemble.members.contains(&node) || ensemble.opened_members.contains(&node))
        })
    }

    /// Whether a node is one to listen to: everybody who was not retired.
    #[must_use]
    pub fn hears(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_none_or(|entry| !entry.retired)
    }
}

fn check(node: NodeId, address: &str) -> Result<(), Rejection> {
    let fits = (1..=ADDRESS_BYTES_MAX).contains(&address.len());
    if node.0 > 0 && fits && address.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(Rejection::BadNode)
    }
}
