//! What operators ask about the nodes of the cluster.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use velum_protocol::{
    admin::{ClusterStatus, MemberRole, MemberStatus, Problem, ProblemKind, Response, Token, VolumeStanding},
    format::metadata::Command,
    id::{NodeId, VolumeId},
    invitation::{Invitation, TokenSecret},
};

use super::{
    Assembly,
    members::OFFER_TIME,
    owning::{Owning, Standing},
    views,
};
use crate::{
    consensus::ProposeError,
    metadata::{State, state::VolumeState},
    peer::{LinkState, LinkStatus},
};

/// How long an answer waits for the group to have changed.
const CHANGE_WAIT: Duration = Duration::from_secs(15);

/// How often it looks.
const CHANGE_LOOK: Duration = Duration::from_millis(50);

impl Assembly {
    /// The nodes as this one sees them.
    pub(super) fn cluster_status(&self) -> ClusterStatus {
        let leader = self.consensus.status().leader;
        let (nodes, volumes) = self.metadata.with(|state| (self.members(state), self.standings(state)));
        let offered = self.metadata.with(|state| {
            let open = state.offers.iter().filter(|(_, offer)| offer.taken_by.is_none());
            open.map(|(node, _)| node.0).collect()
        });
        let advice = advice(leader, &nodes, &volumes, &self.waits());
        let cluster = self.keyring.cluster().to_string();
        ClusterStatus { cluster, node: self.node.0, leader, nodes, volumes, offered, advice }
    }

    /// Volumes that this node is to take over and cannot, and why.
    fn waits(&self) -> Vec<(String, String)> {
        self.metadata.with(|state| {
            let live = state.volumes.iter().filter(|(_, volume)| !volume.deleted);
            live.filter_map(|(id, volume)| Some((volume.name.clone(), self.waiting.reason(*id)?))).collect()
        })
    }

    fn standings(&self, state: &State) -> Vec<VolumeStanding> {
        let live = state.volumes.iter().filter(|(_, volume)| !volume.deleted);
        let standing = |(id, volume): (&VolumeId, &VolumeState)| VolumeStanding {
            name: volume.name.clone(),
            owner: volume.owner.map(|owner| owner.0),
            epoch: volume.epoch.0,
            members: match state.ensembles.get(id) {
                Some(ensemble) => ensemble.members.iter().map(|member| member.0).collect(),
                None => Vec::new(),
            },
            current: self.open.get(*id).and_then(|open| Some(current(open.owning.as_ref()?))),
            clouds: state.clouds.iter().map(|cloud| views::lag(volume, &cloud.name)).collect(),
            exposure: (volume.owner == Some(self.node)).then(|| views::exposure(self, *id, volume)),
        };
        live.map(standing).collect()
    }

    fn members(&self, state: &State) -> Vec<MemberStatus> {
        let (members, status) = (self.consensus.members(), self.consensus.status());
        let leader = status.leader;
        let links: BTreeMap<NodeId, LinkStatus> = match &self.peers {
            Some(peers) => peers.links.status().into_iter().map(|link| (link.node, link)).collect(),
            None => BTreeMap::new(),
        };
        let known = state.nodes.iter().filter(|(_, entry)| !entry.retired).map(|(node, _)| node.0);
        let mut numbers: Vec<u64> = known.chain(members.voters.iter().chain(&members.learners).copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let member = |number: u64| {
            let (node, link) = (NodeId(number), links.get(&NodeId(number)));
            let role = match number {
                _ if state.leaving.contains(&node) => MemberRole::Leaving,
                _ if leader == Some(number) => MemberRole::Leader,
                _ if members.voters.contains(&number) => MemberRole::Voter,
                _ if members.learners.contains(&number) => MemberRole::Learner,
                _ => MemberRole::Joining,
            };
            let owned = state.volumes.values().filter(|volume| !volume.deleted && volume.owner == Some(node));
            let reached = node == self.node || link.is_some_and(|link| link.state == LinkState::Up);
            MemberStatus {
                node: number,
                address: state.nodes.get(&node).map(|entry| entry.address.clone()),
                role,
                reached,
                last_error: link.filter(|_| !reached).and_then(|link| link.last_error.clone()),
                lag_entries: if node == self.node {
                    Some(status.commit.saturating_sub(status.applied))
                } else {
                    self.consensus.lag(node)
                },
                volumes: owned.map(|volume| volume.name.clone()).collect(),
            }
        };
        numbers.into_iter().map(member).collect()
    }

    /// A token for a number that no node ever had.
    pub(super) async fn offer_place(&self) -> Result<Response, Problem> {
        let Some(peers) = &self.peers else { return Err(alone()) };
        // A first start tells where it is found a moment after it serves.
        self.wait(|| self.metadata.with(|state| state.nodes.contains_key(&self.node))).await;
        let contacts = self.metadata.with(|state| {
            let staying = state.nodes.iter().filter(|(node, _)| state.stays(**node));
            staying.map(|(node, entry)| (*node, entry.address.clone())).take(8).collect::<Vec<_>>()
        });
        let node = self.metadata.with(|state| {
            let voters = self.consensus.members().voters;
            let used = state.nodes.keys().chain(state.offers.keys()).map(|node| node.0);
            NodeId(used.chain(voters).chain([peers.desk.highest()]).max().unwrap_or_default() + 1)
        });
        peers.desk.offered(node);
        let secret = TokenSecret(self.env.entropy.fresh32());
        self.propose(Command::OfferPlace { node, token: secret.hash() }).await?;
        let invitation = Invitation { cluster: self.keyring.cluster(), node, secret, contacts };
        let expires_seconds = OFFER_TIME.as_secs();
        Ok(Response::Token(Token { node: node.0, token: invitation.to_string(), expires_seconds }))
    }

    /// Has a node leave for good; answered when it has, or could not in a while.
    pub(super) async fn remove_node(self: &Rc<Self>, number: u64) -> Result<Response, Problem> {
        if self.peers.is_none() {
            return Err(alone());
        }
        let node = NodeId(number);
        if self.metadata.with(|state| state.nodes.get(&node).is_some_and(|entry| entry.retired)) {
            let detail = format!("node {number} was removed already");
            return Err(Problem::new(
                ProblemKind::Conflict,
                detail,
                "`velum cluster status` shows the nodes there are",
            ));
        }
        self.propose(Command::DismissNode { node }).await?;
        self.wait(|| self.metadata.with(|state| !state.hears(node))).await;
        Ok(Response::Cluster(self.cluster_status()))
    }

    /// Hands the lead over.
    pub(super) async fn transfer_lead(self: &Rc<Self>, number: u64) -> Result<Response, Problem> {
        if self.peers.is_none() {
            return Err(alone());
        }
        self.consensus.transfer(NodeId(number)).await.map_err(|error| match error {
            ProposeError::NotLeader { leader: Some(leader) } => {
                let detail = format!("node {leader} leads, this is node {}", self.node);
                Problem::new(ProblemKind::Conflict, detail, "ask that node, with --admin or VELUM_ADMIN")
            }
            error => {
                let detail = format!("the lead does not go to node {number}: {error}");
                Problem::new(ProblemKind::Conflict, detail, "`velum cluster status` shows who votes and is reached")
            }
        })?;
        if self.wait(|| self.consensus.status().leader == Some(number)).await {
            return Ok(Response::Cluster(self.cluster_status()));
        }
        let detail = format!("node {number} did not take the lead in time");
        Err(Problem::new(ProblemKind::Unavailable, detail, "`velum cluster status` shows who leads; ask again"))
    }

    /// True when it is so within the time that an answer may wait.
    pub(super) async fn wait(&self, is_so: impl Fn() -> bool) -> bool {
        let clock = &self.env.clock;
        let until = clock.now() + CHANGE_WAIT;
        while !is_so() {
            if clock.now() >= until {
                return false;
            }
            clock.sleep(CHANGE_LOOK).await;
        }
        true
    }
}

pub(super) fn alone() -> Problem {
    let remedy = "add a [peers] table with listen to its settings and restart it";
    Problem::new(ProblemKind::Conflict, "this node is meant to be alone", remedy)
}

/// The members whose copies hold everything acked.
fn current(owning: &Owning) -> Vec<u64> {
    let current = owning.copies().into_iter().filter(|(_, standing)| *standing == Standing::Current);
    current.map(|(member, _)| member.0).collect()
}

/// What an operator should do, the most urgent first.
fn advice(
    leader: Option<u64>,
    nodes: &[MemberStatus],
    volumes: &[VolumeStanding],
    waits: &[(String, String)],
) -> Vec<String> {
    let mut advice = Vec::new();
    if leader.is_none() {
        advice.push(
            "there is no leader, so nothing is agreed on or flushed: start nodes until a majority runs".to_owned(),
        );
    }
    advice.extend(waits.iter().map(|(name, why)| format!("{name} is not served: {why}")));
    for node in nodes.iter().filter(|node| !node.reached && node.role != MemberRole::Joining) {
        let number = node.node;
        advice.push(if node.volumes.is_empty() {
            format!(
                "node {number} is not reached: start it; if it is gone for good, `velum cluster remove {number}`, then \
                 `velum cluster token` and `velum cluster join` for another one"
            )
        } else {
            format!(
                "node {number} is not reached: start it; {} goes on elsewhere when most of those that keep the journal run",
                node.volumes.join(", ")
            )
        });
    }
    for node in nodes.iter().filter(|node| node.role == MemberRole::Joining && !node.reached) {
        advice.push(format!("node {} has a place and is not reached: start it with `velum node --config`", node.node));
    }
    let is_away = |number: &&u64| nodes.iter().any(|node| node.node == **number && !node.reached);
    for VolumeStanding { name, members, .. } in volumes {
        let away: Vec<String> = members.iter().filter(is_away).map(u64::to_string).collect();
        if !away.is_empty() {
            let (all, kept) = (members.len(), members.len() - away.len());
            let who = away.join(" and ");
            advice.push(format!("the journal of {name} is kept by {kept} of {all} nodes: bring back node {who}"));
        }
    }
    let voters = nodes.iter().filter(|node| matches!(node.role, MemberRole::Leader | MemberRole::Voter)).count();
    if voters > 0 && voters.is_multiple_of(2) {
        advice.push(format!(
            "{voters} voters bear no more losses than {}: add one with `velum cluster token`",
            voters - 1
        ));
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(node: u64, role: MemberRole, reached: bool, volumes: &[&str]) -> MemberStatus {
        let volumes = volumes.iter().map(|name| (*name).to_owned()).collect();
        MemberStatus { node, address: None, role, reached, last_error: None, lag_entries: None, volumes }
    }

    fn kept_by(members: &[u64]) -> VolumeStanding {
        let members = members.to_vec();
        VolumeStanding {
            name: "v".to_owned(),
            owner: Some(1),
            epoch: 1,
            members,
            current: None,
            clouds: Vec::new(),
            exposure: None,
        }
    }

    #[test]
    fn advice_names_what_is_wrong_and_what_to_do() {
        use MemberRole::{Joining, Leader, Voter};
        let (one, two) = (node(1, Leader, true, &["a"]), node(2, Voter, true, &[]));
        assert!(
            advice(Some(1), &[one.clone(), two.clone(), node(3, Voter, true, &[])], &[kept_by(&[1, 2, 3])], &[])
                .is_empty()
        );
        assert!(advice(Some(1), std::slice::from_ref(&one), &[kept_by(&[])], &[]).is_empty(), "one node is no fault");
        let waits = [("w".to_owned(), "start node 3".to_owned())];
        assert_eq!(advice(Some(1), std::slice::from_ref(&one), &[], &waits), ["w is not served: start node 3"]);
        let words = |nodes: &[MemberStatus], leader| advice(leader, nodes, &[kept_by(&[1, 3])], &[]).join("\n");
        assert!(words(&[one.clone(), two.clone()], Some(1)).contains("2 voters bear no more losses than 1"));
        let gone = words(&[one.clone(), two.clone(), node(3, Voter, false, &[])], Some(1));
        assert!(gone.contains("velum cluster remove 3"), "{gone}");
        assert!(gone.contains("the journal of v is kept by 1 of 2 nodes: bring back node 3"), "{gone}");
        let owner = words(&[one.clone(), two.clone(), node(3, Voter, false, &["b"])], Some(1));
        assert!(owner.contains("start it; b goes on elsewhere") && !owner.contains("remove"), "{owner}");
        assert!(words(&[one, two, node(3, Joining, false, &[])], None).starts_with("there is no leader"));
    }
}
