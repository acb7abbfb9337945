//! Commands about nodes. A number names one node for ever: a node that forgot its votes, or was restored from a copy, can not
//! come back as somebody who has not.

use velum_protocol::{format::metadata::Command, id::NodeId, peer::ADDRESS_BYTES_MAX};

use super::{
    apply::{Answer, Rejection},
    state::{NodeEntry, State},
};

/// Nodes of all times that the state remembers.
const NODES_MAX: usize = 4096;

impl State {
    pub(super) fn apply_to_nodes(&mut self, command: &Command) -> Result<Answer, Rejection> {
        match command {
            Command::AdmitNode { node, address } => {
                check(*node, address)?;
                if self.nodes.contains_key(node) {
                    return Err(Rejection::NodeUsed(*node));
                }
                if self.nodes.len() >= NODES_MAX {
                    return Err(Rejection::TooManyNodes);
                }
                self.nodes.insert(*node, NodeEntry { address: address.clone(), retired: false });
            }
            Command::MoveNode { node, address } => {
                check(*node, address)?;
                self.node_mut(*node)?.address.clone_from(address);
            }
            Command::RetireNode { node } => self.node_mut(*node)?.retired = true,
            _ => return Err(Rejection::Unreadable),
        }
        Ok(Answer::Done)
    }

    fn node_mut(&mut self, node: NodeId) -> Result<&mut NodeEntry, Rejection> {
        self.nodes.get_mut(&node).filter(|entry| !entry.retired).ok_or(Rejection::NoSuchNode(node))
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
