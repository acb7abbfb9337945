//! A cluster brought back from its clouds and one key, with every node gone.
//!
//! Nothing is known but URLs and a secret. The steps, each of which trusts only what opens under the keys:
//!
//! 1. [`keys`]: identity and key slots from all clouds; the newest generation that the secret opens.
//! 2. [`lives`]: the incarnation claims, then the newest catalogue record of the last life that wrote one.
//! 3. [`volume`]: per volume the newest checkpoint whose root can be read, then the chain of records behind it, as long as
//!    any cloud holds the next authentic link.
//! 4. [`verify`]: whether what that state names is there; [`Verify`] says how much of it is looked at.
//! 5. [`claim`]: the next incarnation, created on a quorum of clouds and read back from all, so that of two recoveries at the
//!    same time at most one goes on and nodes of the old life stop for good.
//!
//! The head of a volume is the longest authentic chain that any cloud answers with: a record reaches a cloud only after the
//! nodes agreed on it, so every authentic record counts, and a cloud that lies can only hold back. With all clouds
//! answering, one of three may lie; with one missing (named in `accept_missing`) none may. The report says which assumption
//! was used. Two authentic records of one place are a fork, and stop the recovery. A cloud that has a later record without
//! the one before has lost something: more of those than may lie are a gap, and stop the recovery too.
//!
//! A cloud that was given and does not answer every question is a missing one, whatever it answered before: what it did not
//! say may be the head.
//!
//! Recovery only reads until its last step; it can be broken off and repeated at any point. What it gives back is handed to
//! the node assembly, which writes it to a new directory.

mod claim;
mod keys;
mod lives;
mod report;
mod source;
mod verify;
mod volume;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use velum_protocol::{
    format::{catalogue::Catalogue, metadata::CloudName},
    id::{Hash, Incarnation},
};

pub use report::{CloudReport, Report, VolumeReport};
use source::Sources;

use crate::{
    cloud::identity::Identity,
    env::Env,
    keyring::{KeyError, Keyring, ProviderSecret},
    metadata::{State, state::CloudEntry},
};

/// A cloud to recover from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudAt {
    /// The operator's name for it.
    pub name: CloudName,
    /// Where it is.
    pub url: String,
    /// The provider's options.
    pub options: BTreeMap<String, String>,
}

/// How much of what was found is looked at before the volumes are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Nothing beyond what was read to find the state: volumes are readable at once, whatever their size. What is damaged shows
    /// when it is read.
    Chain,
    /// Every object that the recovered state names must be there, with its length, in at least one cloud.
    #[default]
    Present,
    /// Every such object is read from every cloud and opened.
    Full,
}

impl Verify {
    const fn in_words(self) -> &'static str {
        match self {
            Self::Chain => "only what leads to the volumes' state",
            Self::Present => "every object is there with its length",
            Self::Full => "every object is read from every cloud and opened",
        }
    }
}

/// What is asked of a recovery.
pub struct Plan {
    /// The clouds.
    pub clouds: Vec<CloudAt>,
    /// Opens the key slots.
    pub secret: ProviderSecret,
    /// Clouds of the catalogue that may be absent.
    pub accept_missing: BTreeSet<CloudName>,
    /// How much to look at.
    pub verify: Verify,
}

/// A cluster as it was at its last cloud-durable point, or later, in a new incarnation.
pub struct Recovered {
    /// The objects that name the cluster and hold its keys.
    pub identity: Identity,
    /// Its keys.
    pub keyring: Keyring,
    /// Its metadata, ready to be the first raft snapshot of a new group.
    pub state: State,
    /// What was found where.
    pub report: Report,
}

/// Why a cluster could not be brought back. Nothing has been changed anywhere, except that a claim may stand in the clouds.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RecoverError {
    /// A URL or option that is not understood.
    #[error("cloud {0} cannot be opened: {1}; correct its URL, or leave it out and say `--accept-missing {0}`")]
    Open(String, String),
    /// Not one cloud has an identity object and slots that the secret opens.
    #[error(
        "no cloud holds a cluster that this key opens: {0}; check the URLs, and that it is this cluster's root key"
    )]
    NoCluster(String),
    /// The clouds belong to different clusters that the same secret opens.
    #[error("clouds {0} and {1} hold different clusters; recover from the clouds of one cluster only")]
    TwoClusters(String, String),
    /// The keys in the clouds are damaged.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No cloud has a readable catalogue record.
    #[error("no cloud has a readable catalogue record; there is nothing that says which volumes there were")]
    NoCatalogue,
    /// A cloud of the catalogue cannot be counted on, and was not accepted as missing.
    #[error(
        "the catalogue lists cloud {cloud}, and {why}; give it, or say `--accept-missing {cloud}`: then no other cloud may be faulty"
    )]
    Missing {
        /// The cloud.
        cloud: String,
        /// What is wrong with it.
        why: String,
    },
    /// Fewer clouds than hold every cloud-durable write for sure.
    #[error(
        "{given} of {all} clouds answered, and a cloud-durable write may lie on {quorum} others; at least {needed} are needed"
    )]
    TooFew {
        /// Clouds that answered.
        given: usize,
        /// Clouds in the catalogue.
        all: usize,
        /// How many clouds hold what is cloud-durable.
        quorum: usize,
        /// How many must answer.
        needed: usize,
    },
    /// Two authentic records for one place.
    #[error(
        "volume {volume}: clouds {left} and {right} hold different authentic records number {seq}: the sequence is forked; recover from the clouds of one side only"
    )]
    Fork {
        /// The volume's name.
        volume: String,
        /// The place.
        seq: u64,
        /// A cloud with one of them.
        left: String,
        /// A cloud with the other.
        right: String,
    },
    /// Later records exist, the next one does not.
    #[error(
        "volume {volume}: no cloud has a readable record {seq}, although record {later} exists; bring back the clouds that hold it"
    )]
    Gap {
        /// The volume's name.
        volume: String,
        /// The missing place.
        seq: u64,
        /// A later record that is there.
        later: u64,
    },
    /// There is a checkpoint, but its root cannot be read anywhere, nor an older one's.
    #[error("volume {0}: no checkpoint root can be read from any cloud; bring back the clouds that hold one")]
    NoRoot(String),
    /// Another recovery has claimed the incarnation.
    #[error("another recovery has claimed incarnation {0} of this cluster; stop it, or serve what it recovered")]
    Claimed(Incarnation),
    /// The claim could not be stored on a quorum of clouds.
    #[error(
        "the claim of the new incarnation was stored on {stored} clouds only, {quorum} are needed; try again when more answer"
    )]
    ClaimNotStored {
        /// Clouds that have it.
        stored: usize,
        /// Clouds needed.
        quorum: usize,
    },
}

/// Recovers a cluster. `progress` is told in words what is being done.
///
/// # Errors
/// See [`RecoverError`].
pub async fn recover(env: &Env, plan: &Plan, progress: &dyn Fn(&str)) -> Result<Recovered, RecoverError> {
    let sources = Sources::open(env, &plan.clouds)?;
    progress("reading identity and key slots");
    let (keyring, identity) = keys::find(&sources, &plan.secret).await?;
    progress("looking for the newest catalogue record");
    let history = lives::find(&sources, &keyring).await?;
    sources.leave_out_useless();
    let presence = judge_presence(&sources, &history, plan)?;
    let mut sequences = Vec::new();
    for entry in &history.catalogue.volumes {
        progress(&format!("reading the sequence of volume {}", entry.name));
        sequences.push((entry, volume::find(&sources, &keyring, &history, entry, presence.spare).await?));
    }
    // Once more: a cloud that fell silent meanwhile may have kept the head to itself.
    let assumption = judge_presence(&sources, &history, plan)?.in_words();
    let change = history.catalogue.change.saturating_add(1);
    let incarnation = history.incarnation.next();
    let mut volumes = BTreeMap::new();
    let mut reports = Vec::new();
    for (entry, found) in sequences {
        progress(&format!("checking the objects of volume {}", entry.name));
        let damaged = verify::check(&sources, &keyring, &found, plan.verify).await;
        reports.push(found.report(entry, damaged));
        volumes.insert(entry.volume, found.into_state(env, &keyring, entry, (incarnation, change)));
    }
    progress(&format!("claiming incarnation {incarnation}"));
    claim::claim(env, &sources, &keyring, &history, &volumes).await?;
    let mut state = State::new(keyring.cluster(), entries(&plan.clouds), new_quorum(plan.clouds.len()));
    state.incarnation = incarnation;
    state.volumes = volumes;
    state.catalogue = (history.catalogue.number, history.hash);
    state.catalogue_wanted = change;
    state.answered = VecDeque::new();
    let report = Report {
        cluster: keyring.cluster(),
        incarnation,
        assumption,
        verified: plan.verify.in_words(),
        clouds: sources.reports(),
        volumes: reports,
    };
    Ok(Recovered { identity, keyring, state, report })
}

/// The keys of a cluster and the newest record of which volumes it has, for tools that look at single objects. Changes
/// nothing.
///
/// # Errors
/// When no cloud has a cluster that the secret opens, or none its catalogue.
pub async fn catalogue(
    env: &Env,
    clouds: &[CloudAt],
    secret: &ProviderSecret,
) -> Result<(Keyring, Catalogue), RecoverError> {
    let sources = Sources::open(env, clouds)?;
    let (keyring, _) = keys::find(&sources, secret).await?;
    let history = lives::find(&sources, &keyring).await?;
    Ok((keyring, history.catalogue))
}

/// What is known of a cluster's lives before its volumes are looked at.
struct History {
    /// The last life that was claimed.
    incarnation: Incarnation,
    /// Claims by incarnation; the first life has none.
    claims: BTreeMap<Incarnation, velum_protocol::format::claim::Claim>,
    /// The newest catalogue record.
    catalogue: Catalogue,
    /// The chain hash at it.
    hash: Hash,
}

/// How many of the catalogue's clouds a recovery has, and how many it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Presence {
    all: usize,
    given: usize,
    /// How many of those that were given may lie or be stale.
    spare: usize,
}

/// Compares the clouds that answered with the catalogue's.
fn judge_presence(sources: &Sources, history: &History, plan: &Plan) -> Result<Presence, RecoverError> {
    let all = history.catalogue.clouds.len();
    let quorum = usize::try_from(history.catalogue.quorum).unwrap_or(usize::MAX);
    let mut given: usize = 0;
    for cloud in &history.catalogue.clouds {
        match sources.absence(&cloud.name) {
            None => given += 1,
            Some(_) if plan.accept_missing.contains(&cloud.name) => {}
            Some(why) => return Err(RecoverError::Missing { cloud: cloud.name.0.clone(), why }),
        }
    }
    // What is cloud-durable is on a quorum of clouds, so that many must answer to hear of it from one that is honest.
    let faulty = all.saturating_sub(quorum);
    let needed = all.saturating_sub(faulty);
    match given.checked_sub(needed) {
        Some(spare) => Ok(Presence { all, given, spare }),
        None => Err(RecoverError::TooFew { given, all, quorum, needed }),
    }
}

impl Presence {
    /// The assumption that the result rests on.
    fn in_words(self) -> String {
        let Self { all, given, spare } = self;
        match (all - given, spare) {
            (0, spare) => {
                format!(
                    "all {all} clouds answered; the result holds as long as at most {spare} of them lie or are stale"
                )
            }
            (missing, 0) => format!(
                "{missing} of {all} clouds missing; the result holds only if none of the others lies or is stale"
            ),
            (missing, spare) => format!(
                "{missing} of {all} clouds missing; the result holds as long as at most {spare} of the others lie or are stale"
            ),
        }
    }
}

fn entries(clouds: &[CloudAt]) -> Vec<CloudEntry> {
    clouds.iter().map(|cloud| CloudEntry { name: cloud.name.clone(), url: cloud.url.clone() }).collect()
}

/// The quorum of the clouds that the cluster goes on with.
fn new_quorum(clouds: usize) -> u32 {
    u32::try_from(clouds / 2 + 1).unwrap_or(u32::MAX)
}
