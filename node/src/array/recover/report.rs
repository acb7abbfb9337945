//! What a recovery found, for people and for programs.

use std::collections::BTreeMap;

use serde::Serialize;
use velum_protocol::id::{ClusterId, Incarnation};

/// The whole report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The cluster; in hexadecimal, as everywhere people and programs read it.
    #[serde(serialize_with = "in_hex")]
    pub cluster: ClusterId,
    /// The incarnation that begins.
    pub incarnation: Incarnation,
    /// What must be true of the clouds for the result to be the newest cloud-durable state.
    pub assumption: String,
    /// How much of what the volumes name was looked at.
    pub verified: &'static str,
    /// Per cloud.
    pub clouds: Vec<CloudReport>,
    /// Per volume.
    pub volumes: Vec<VolumeReport>,
}

/// What a cloud turned out to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It holds objects of the cluster. Some may be damaged or missing.
    #[default]
    Good,
    /// It holds nothing.
    Empty,
    /// Its identity and whatever else told whose it is cannot be read.
    Damaged,
    /// It holds another cluster.
    Foreign,
    /// It did not answer every question.
    Silent,
    /// It was not given.
    Absent,
}

/// What one cloud answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CloudReport {
    /// The operator's name for it.
    pub name: String,
    /// What it turned out to be. All but a good one count as holding nothing.
    pub standing: Standing,
    /// What tells so, if it is not good.
    pub why: String,
    /// What becomes of it now.
    pub follows: &'static str,
    /// Objects read from it that opened, by kind.
    pub authentic: BTreeMap<&'static str, u64>,
    /// Objects that other clouds have and this one does not, by kind.
    pub missing: BTreeMap<&'static str, u64>,
    /// Objects that are there but damaged, forged or another object, by kind.
    pub corrupt: BTreeMap<&'static str, u64>,
    /// Damaged objects that were replaced by whole copies.
    pub mended: u64,
    /// Damaged objects that could not be replaced.
    pub unmended: u64,
    /// The first damaged or missing objects, by name; see `DETAILS_MAX`.
    pub details: Vec<String>,
}

/// What was found of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeReport {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The sequence record it stands at.
    pub seq: u64,
    /// The checkpoint it was read from; zero when there was none.
    pub checkpoint: u64,
    /// Objects of it that no cloud can give any more.
    pub lost: Vec<String>,
}

fn in_hex<S: serde::Serializer>(cluster: &ClusterId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(cluster)
}

/// Lines of detail kept per cloud; the counts go on.
pub(super) const DETAILS_MAX: usize = 100;

impl Report {
    /// True when something was found damaged or missing anywhere.
    #[must_use]
    pub fn shows_damage(&self) -> bool {
        self.volumes.iter().any(|volume| !volume.lost.is_empty())
            || self
                .clouds
                .iter()
                .any(|cloud| cloud.standing != Standing::Good || !cloud.missing.is_empty() || !cloud.corrupt.is_empty())
    }
}
