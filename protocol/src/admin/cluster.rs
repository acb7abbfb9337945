//! What operators are told of the cluster: its nodes, and where its volumes stand.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CloudLag, Exposure};

/// The nodes of the cluster as one of them sees them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster, in hexadecimal.
    pub cluster: String,
    /// The node that answers.
    pub node: u64,
    /// The leader as far as this node knows.
    pub leader: Option<u64>,
    /// Every node that was not removed.
    pub nodes: Vec<MemberStatus>,
    /// Every volume that is not deleted.
    #[serde(default)]
    pub volumes: Vec<VolumeStanding>,
    /// Numbers of nodes that may join with a token and have not yet.
    pub offered: Vec<u64>,
    /// What an operator should do next, the most urgent first.
    pub advice: Vec<String>,
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its number.
    pub node: u64,
    /// Where the others find it; none before it has said so.
    pub address: Option<String>,
    /// What it is in the group.
    pub role: MemberRole,
    /// Whether the node that answers reaches it.
    pub reached: bool,
    /// Why it was not reached last.
    pub last_error: Option<String>,
    /// Agreed entries that it has not applied, told of itself by the node that answers, or is not known to have, told of the others
    /// by the leader; `null` for others when the node that answers does not lead.
    #[serde(default)]
    pub lag_entries: Option<u64>,
    /// Volumes it owns.
    pub volumes: Vec<String>,
}

/// Where one volume stands in the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStanding {
    /// Its name.
    pub name: String,
    /// The node that owns it; `null` before the first one.
    pub owner: Option<u64>,
    /// The owner's fencing number.
    pub epoch: u64,
    /// The nodes that keep its journal; empty while its owner does so alone.
    pub members: Vec<u64>,
    /// Those of them whose journal holds every acked write; told by the volume's owner only.
    #[serde(default)]
    pub current: Option<Vec<u64>>,
    /// How far each cloud is.
    pub clouds: Vec<CloudLag>,
    /// How much is at risk now; told by the volume's owner only.
    pub exposure: Option<Exposure>,
}

/// What a node is in the group that agrees on metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Leads.
    Leader,
    /// Votes.
    Voter,
    /// Is told everything and has no vote yet.
    Learner,
    /// May join and is not told anything yet.
    Joining,
    /// Is on its way out.
    Leaving,
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Leader => "leader",
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Joining => "joining",
            Self::Leaving => "leaving",
        })
    }
}

/// The right to become one node of the cluster, once. Whoever has it and the root key may join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The number that the new node has, to be set as `node` in its settings.
    pub node: u64,
    /// To be given to `velum cluster join`.
    pub token: String,
    /// How long it is good for.
    pub expires_seconds: u64,
}
