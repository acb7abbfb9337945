//! `velum cloud`: the clouds of a node.

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use velum_protocol::admin::{CloudCheck, CloudStatus};

use crate::{
    client::{self, Client, Target},
    error::Failure,
    output::{self, Format, Table, bytes, optional, seconds},
};

/// What can be done with clouds.
#[derive(Subcommand, Debug)]
pub(crate) enum Cloud {
    /// List the clouds: whether they answer, how fast, how far behind they are
    List,
    /// Write, read back and delete a small object in each cloud
    Check,
    /// Bring everything to a cloud again, for one that was emptied or lost objects
    ///
    /// Until that is done nothing counts as stored there. An empty place becomes the cluster's; another's is refused.
    Resync {
        /// The cloud's name
        name: String,
    },
}

/// Does it.
pub(crate) fn run(cloud: &Cloud, target: &Target, format: Format) -> Result<(), Failure> {
    let client = Client::new(target)?;
    client::run(async {
        match cloud {
            Cloud::List => output::print(format, &Listed(client.get(&["clouds"]).await?)),
            Cloud::Resync { name } => {
                let begun: CloudStatus = client.post::<(), _>(&["clouds", name, "resync"], None).await?;
                output::print(format, &Listed(vec![begun]));
                output::say(&format!("cloud {name} is brought up to date; `velum cloud list` shows what it lacks yet"));
            }
            Cloud::Check => {
                let checks = Checked(client.post::<(), _>(&["clouds", "check"], None).await?);
                output::print(format, &checks);
                let failed: Vec<_> =
                    checks.0.iter().filter(|check| !check.ok).map(|check| check.name.as_str()).collect();
                if !failed.is_empty() {
                    let remedy = "the table says why; writes go on while a quorum of clouds answers";
                    return Err(Failure::new(format!("cloud {} failed the check", failed.join(", ")), remedy));
                }
            }
        }
        Ok(())
    })
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Listed(Vec<CloudStatus>);

impl Table for Listed {
    fn rows(&self) -> Vec<Vec<String>> {
        let head =
            ["NAME", "STATE", "WRITE", "READ", "LAG RECORDS", "LAG", "LAST ERROR", "URL"].map(str::to_owned).to_vec();
        let row = |cloud: &CloudStatus| {
            vec![
                cloud.name.clone(),
                if cloud.in_memory { format!("{}, in memory only", cloud.state) } else { cloud.state.to_string() },
                optional(cloud.write_seconds, seconds),
                optional(cloud.read_seconds, seconds),
                cloud.lag_records.to_string(),
                bytes(cloud.lag_bytes),
                optional(cloud.last_error.clone(), |error| error),
                cloud.url.clone(),
            ]
        };
        std::iter::once(head).chain(self.0.iter().map(row)).collect()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Checked(Vec<CloudCheck>);

impl Table for Checked {
    fn rows(&self) -> Vec<Vec<String>> {
        let head = ["NAME", "RESULT", "WRITE", "READ", "DETAIL"].map(str::to_owned).to_vec();
        let row = |check: &CloudCheck| {
            vec![
                check.name.clone(),
                if check.ok { "ok" } else { "failed" }.to_owned(),
                optional(check.write_seconds, seconds),
                optional(check.read_seconds, seconds),
                optional(check.detail.clone(), |detail| detail),
            ]
        };
        std::iter::once(head).chain(self.0.iter().map(row)).collect()
    }
}
