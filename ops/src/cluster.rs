//! `velum cluster`: the nodes of a cluster, how they come and go.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;
use velum_node::node;
use velum_protocol::{
    admin::{CloudLag, ClusterStatus, MemberStatus, Token, VolumeStanding},
    invitation::Invitation,
};

use crate::{
    client::{self, Client, Target},
    error::Failure,
    output::{self, Format, Table, bytes, optional, seconds},
    secret, serve, settings,
};

/// What can be done with the nodes of a cluster.
#[derive(Subcommand, Debug)]
pub(crate) enum Cluster {
    /// Make a new cluster of one node, in an empty directory and empty clouds
    Init {
        /// The node's settings
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Make a token with which one new node may join, once and within an hour
    Token,
    /// Prepare a new node of a cluster that there is; started with `velum node`, it asks to be let in
    Join {
        /// The node's settings
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// What `velum cluster token` gave
        #[arg(long)]
        token: String,
    },
    /// Show the nodes, who leads, who owns which volumes, and what to do next
    Status,
    /// Remove a node for good; its number is never used again
    Remove {
        /// The node
        node: u64,
    },
    /// Hand the lead over to another node
    Transfer {
        /// The node
        node: u64,
    },
}

/// Does it.
pub(crate) fn run(cluster: &Cluster, target: &Target, format: Format) -> Result<(), Failure> {
    let ask = |work: &dyn Fn(Client) -> Asked| Client::new(target).and_then(|client| client::run(work(client)));
    match cluster {
        Cluster::Init { config } => init(config, format),
        Cluster::Join { config, token } => join(config, token, format),
        Cluster::Token => ask(&|client| Box::pin(token(client, format))),
        Cluster::Status => ask(&|client| Box::pin(status(client, format))),
        Cluster::Remove { node } => ask(&|client| Box::pin(remove(client, *node, format))),
        Cluster::Transfer { node } => ask(&|client| Box::pin(transfer(client, *node, format))),
    }
}

/// What is asked of a running node.
type Asked = std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>>>>;

async fn token(client: Client, format: Format) -> Result<(), Failure> {
    let token: Token = client.post::<(), _>(&["cluster", "tokens"], None).await?;
    output::say(&format!(
        "set node = {} in the settings of the new node and give it the root key; there, within {} minutes:\n  \
         velum cluster join --config node.toml --token TOKEN\n  \
         velum node --config node.toml",
        token.node,
        token.expires_seconds / 60
    ));
    output::print(format, &Shown(token));
    Ok(())
}

async fn status(client: Client, format: Format) -> Result<(), Failure> {
    show(format, client.get(&["cluster"]).await?);
    Ok(())
}

async fn remove(client: Client, node: u64, format: Format) -> Result<(), Failure> {
    let status: ClusterStatus = client.delete(&["cluster", "nodes", &node.to_string()]).await?;
    let is_gone = status.nodes.iter().all(|member| member.node != node);
    show(format, status);
    if is_gone {
        return Ok(());
    }
    let remedy = "it leaves when a majority of the nodes that stay is reached; `velum cluster status` shows them";
    Err(Failure::new(format!("node {node} is to leave and has not yet"), remedy))
}

async fn transfer(client: Client, node: u64, format: Format) -> Result<(), Failure> {
    let path = ["cluster", "nodes", &node.to_string(), "lead"];
    show(format, client.post::<(), _>(&path, None).await?);
    Ok(())
}

fn init(path: &Path, format: Format) -> Result<(), Failure> {
    let config = settings::read_resolved(path)?;
    let secret = secret::fetch(&config.key)?;
    serve::on_node_thread(async {
        let env = serve::environment()?;
        serve::expect_idle(&env, &config).await?;
        let cluster = node::create(&env, &config, &secret).await.map_err(|error| Failure::told(&error))?;
        output::say(&format!("start its first node with `velum node --config {}`", path.display()));
        output::print(format, &Made { cluster: cluster.to_string(), node: config.node.0 });
        Ok(())
    })?
}

fn join(path: &Path, token: &str, format: Format) -> Result<(), Failure> {
    let Some(invitation) = Invitation::parse(token.trim()) else {
        return Err(Failure::usage("the token is none", "give all of what `velum cluster token` printed"));
    };
    let config = settings::read_resolved(path)?;
    let secret = secret::fetch(&config.key)?;
    serve::on_node_thread(async {
        let env = serve::environment()?;
        serve::expect_idle(&env, &config).await?;
        let cluster = invitation.cluster.to_string();
        node::join(&env, &config, &secret, invitation).await.map_err(|error| match error {
            node::JoinError::NoPeers | node::JoinError::OtherNode { .. } => {
                Failure::usage(error.to_string(), format!("correct {}", path.display()))
            }
            error => Failure::told(&error),
        })?;
        output::say(&format!("start it with `velum node --config {}`: it asks to be let in", path.display()));
        output::print(format, &Made { cluster, node: config.node.0 });
        Ok(())
    })?
}

/// The nodes and volumes on stdout; beside them, for people, what is to be done.
fn show(format: Format, status: ClusterStatus) {
    if format == Format::Table {
        for node in &status.offered {
            output::say(&format!("node {node} may join: a token was made for it"));
        }
        for advice in &status.advice {
            output::say(&format!("next: {advice}"));
        }
    }
    output::print(format, &Status(&status));
    if format == Format::Table && !status.volumes.is_empty() {
        output::line("");
        output::print(format, &Volumes(&status.volumes));
    }
}

/// A node that was made.
#[derive(Serialize)]
struct Made {
    cluster: String,
    node: u64,
}

impl Table for Made {
    fn rows(&self) -> Vec<Vec<String>> {
        vec![vec!["cluster".to_owned(), self.cluster.clone()], vec!["node".to_owned(), self.node.to_string()]]
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Shown(Token);

impl Table for Shown {
    fn rows(&self) -> Vec<Vec<String>> {
        let Token { node, token, .. } = &self.0;
        vec![vec!["node".to_owned(), node.to_string()], vec!["token".to_owned(), token.clone()]]
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Status<'a>(&'a ClusterStatus);

impl Table for Status<'_> {
    fn rows(&self) -> Vec<Vec<String>> {
        let head = ["NODE", "ROLE", "REACHED", "LAG", "ADDRESS", "VOLUMES", "LAST ERROR"].map(str::to_owned).to_vec();
        let row = |member: &MemberStatus| {
            vec![
                member.node.to_string(),
                member.role.to_string(),
                (if member.reached { "yes" } else { "no" }).to_owned(),
                optional(member.lag_entries, |entries| entries.to_string()),
                optional(member.address.clone(), |address| address),
                member.volumes.join(","),
                optional(member.last_error.clone(), |error| error),
            ]
        };
        std::iter::once(head).chain(self.0.nodes.iter().map(row)).collect()
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Volumes<'a>(&'a [VolumeStanding]);

impl Table for Volumes<'_> {
    fn rows(&self) -> Vec<Vec<String>> {
        let head = ["VOLUME", "OWNER", "EPOCH", "KEPT BY", "WHOLE AT", "CLOUDS BEHIND", "NOT IN CLOUDS", "FOR"];
        let row = |volume: &VolumeStanding| {
            let behind = volume.clouds.iter().filter(|cloud| cloud.lag_records > 0);
            let behind: Vec<String> =
                behind.map(|CloudLag { cloud, lag_records, .. }| format!("{cloud} by {lag_records}")).collect();
            let numbers = |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
            let exposure = volume.exposure.as_ref();
            vec![
                volume.name.clone(),
                optional(volume.owner, |owner| owner.to_string()),
                volume.epoch.to_string(),
                if volume.members.is_empty() { "owner alone".to_owned() } else { numbers(&volume.members) },
                volume.current.as_deref().map_or_else(|| "-".to_owned(), numbers),
                if behind.is_empty() { "none".to_owned() } else { behind.join(", ") },
                exposure.map_or_else(|| "ask its owner".to_owned(), |exposure| bytes(exposure.dirty_bytes)),
                optional(exposure.and_then(|exposure| exposure.oldest_dirty_seconds), seconds),
            ]
        };
        std::iter::once(head.map(str::to_owned).to_vec()).chain(self.0.iter().map(row)).collect()
    }
}

#[cfg(test)]
mod tests {
    use velum_protocol::admin::Exposure;

    use super::*;

    #[test]
    fn a_volume_shows_who_keeps_it_and_what_is_at_risk() {
        let cloud = |lag_records| CloudLag { cloud: "c".to_owned(), cursor_seq: 1, lag_records, lag_bytes: 0 };
        let exposure = Exposure { dirty_bytes: 4096, oldest_dirty_seconds: Some(2.0), head_seq: 3, durable_seq: 2 };
        let own = VolumeStanding {
            name: "v".to_owned(),
            owner: Some(2),
            epoch: 7,
            members: vec![1, 2, 3],
            current: Some(vec![1, 3]),
            clouds: vec![cloud(0), cloud(5)],
            exposure: Some(exposure),
        };
        let other = VolumeStanding {
            members: Vec::new(),
            current: None,
            clouds: vec![cloud(0)],
            exposure: None,
            ..own.clone()
        };
        let rows = Volumes(&[own, other]).rows();
        assert_eq!(rows[1], ["v", "2", "7", "1,2,3", "1,3", "c by 5", "4.0 KiB", "2.0 s"]);
        assert_eq!(rows[2], ["v", "2", "7", "owner alone", "-", "none", "ask its owner", "-"]);
    }
}
