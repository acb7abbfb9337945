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
//! A cloud that answers and shows nothing of the cluster is a liar found out: empty, damaged from its identity on, or another
//! cluster's. It counts as holding nothing and takes its place among those that may lie, without a word of the operator, who
//! could not do better by waiting. A cloud that was given and does not answer every question is a missing one, whatever it
//! answered before: what it did not say may be the head, so the operator must accept that.
//!
//! Recovery only reads until it claims; it can be broken off and repeated at any point. After that [`mend`] replaces what was
//! seen to be damaged, a damaged identity included, so that the node can bring each cloud the rest; what is another cluster's
//! is never written over. What recovery gives back is handed to the node assembly, which writes it to a new directory.

mod claim;
mod keys;
mod lives;
mod mend;
mod report;
mod source;
mod verify;
mod volume;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use velum_protocol::{
    format::{catalogue::Catalogue, metadata::CloudName},
    id::{Hash, Incarnation},
};

pub use report::{CloudReport, Report, Standing, VolumeReport};
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
    /// A cloud to be accepted as missing is none of the cluster's.
    #[error("the catalogue lists no cloud {cloud} that could be missing; it lists {known}")]
    NotListed {
        /// The name.
        cloud: String,
        /// The catalogue's names.
        known: String,
    },
    /// A cloud of the catalogue is absent or silent, and was not accepted as missing.
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
        "{given} of {all} clouds can be counted on, and a cloud-durable write may lie on {quorum} others; at least {needed} are needed: {why}; bring one of them back"
    )]
    TooFew {
        /// Clouds that are good.
        given: usize,
        /// Clouds in the catalogue.
        all: usize,
        /// How many clouds hold what is cloud-durable.
        quorum: usize,
        /// How many must be good.
        needed: usize,
        /// What is wrong with each of the others.
        why: String,
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
    sources.sort_out();
    let presence = judge_presence(&sources, &history, plan)?;
    let mut sequences = Vec::new();
    for entry in &history.catalogue.volumes {
        progress(&format!("reading the sequence of volume {}", entry.name));
        sequences.push((entry, volume::find(&sources, &keyring, &history, entry, presence.spare()).await?));
    }
    // Once more: a cloud that fell silent meanwhile may have kept the head to itself.
    let assumption = judge_presence(&sources, &history, plan)?.in_words();
    let change = history.catalogue.change.saturating_add(1);
    let incarnation = history.incarnation.next();
    let mut volumes = BTreeMap::new();
    let mut reports = Vec::new();
    for (entry, found) in sequences {
        progress(&format!("checking the objects of volume {}", entry.name));
        let damaged = verify::check(&sources, &keyring, &found, plan).await;
        reports.push(found.report(entry, damaged));
        volumes.insert(entry.volume, found.into_state(env, &keyring, entry, (incarnation, change)));
    }
    progress(&format!("claiming incarnation {incarnation}"));
    claim::claim(env, &sources, &keyring, &history, &volumes).await?;
    progress("putting right what is damaged");
    mend::mend(&sources, &identity).await;
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
        clouds: mend::reports(&sources, &history, plan),
        volumes: reports,
    };
    Ok(Recovered { identity, keyring, state, report })
}

/// The keys of a cluster, for a node that joins it. Changes nothing.
///
/// # Errors
/// When no cloud has a cluster that the secret opens.
pub async fn keys(env: &Env, clouds: &[CloudAt], secret: &ProviderSecret) -> Result<(Keyring, Identity), RecoverError> {
    keys::find(&Sources::open(env, clouds)?, secret).await
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

/// The catalogue's clouds as a recovery finds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Presence {
    good: usize,
    /// How many must be good.
    needed: usize,
    /// Those that answer and hold nothing of the cluster.
    bad: Vec<String>,
    /// Those that are absent or silent, and accepted as missing.
    missing: Vec<String>,
}

/// Compares the clouds that answered with the catalogue's.
fn judge_presence(sources: &Sources, history: &History, plan: &Plan) -> Result<Presence, RecoverError> {
    let clouds = &history.catalogue.clouds;
    if let Some(stranger) = plan.accept_missing.iter().find(|name| clouds.iter().all(|cloud| cloud.name != **name)) {
        let known = clouds.iter().map(|cloud| cloud.name.0.as_str()).collect::<Vec<_>>().join(", ");
        return Err(RecoverError::NotListed { cloud: stranger.0.clone(), known });
    }
    let (all, quorum) = (clouds.len(), usize::try_from(history.catalogue.quorum).unwrap_or(usize::MAX));
    // What is cloud-durable is on a quorum of clouds, so that many must be good to hear of it from one that is honest.
    let faulty = all.saturating_sub(quorum);
    let mut presence = Presence { needed: all.saturating_sub(faulty), ..Presence::default() };
    let (mut reasons, mut unaccepted) = (Vec::new(), None);
    for cloud in clouds {
        let (standing, why) = sources.standing(&cloud.name);
        let name = cloud.name.0.clone();
        if standing != Standing::Good {
            reasons.push(format!("of cloud {name}, {why}"));
        }
        match standing {
            Standing::Good => presence.good += 1,
            Standing::Empty | Standing::Damaged | Standing::Foreign => presence.bad.push(name),
            Standing::Silent | Standing::Absent if plan.accept_missing.contains(&cloud.name) => {
                presence.missing.push(name);
            }
            Standing::Silent | Standing::Absent => {
                unaccepted.get_or_insert(RecoverError::Missing { cloud: name, why });
            }
        }
    }
    if presence.good < presence.needed {
        let (given, needed) = (presence.good, presence.needed);
        return Err(RecoverError::TooFew { given, all, quorum, needed, why: reasons.join("; ") });
    }
    unaccepted.map_or(Ok(presence), Err)
}

impl Presence {
    /// How many of the good clouds may lie or be stale.
    const fn spare(&self) -> usize {
        self.good.saturating_sub(self.needed)
    }

    /// The assumption that the result rests on.
    fn in_words(&self) -> String {
        let all = self.good + self.bad.len() + self.missing.len();
        let mut found = Vec::new();
        if !self.missing.is_empty() {
            found.push(format!("{} of {all} clouds missing ({})", self.missing.len(), self.missing.join(", ")));
        }
        if !self.bad.is_empty() {
            let (count, names) = (self.bad.len(), self.bad.join(", "));
            found.push(format!("{count} of {all} clouds found faulty and counted as holding nothing ({names})"));
        }
        let rests = match (found.is_empty(), self.spare()) {
            (true, spare) => {
                return format!(
                    "all {all} clouds answered; the result holds as long as at most {spare} of them lie or are stale"
                );
            }
            (false, 0) => "the result holds only if none of the others lies or is stale".to_owned(),
            (false, spare) => {
                format!("the result holds as long as at most {spare} of the others lie or are stale")
            }
        };
        format!("{}; {rests}", found.join(", "))
    }
}

fn entries(clouds: &[CloudAt]) -> Vec<CloudEntry> {
    clouds.iter().map(|cloud| CloudEntry { name: cloud.name.clone(), url: cloud.url.clone() }).collect()
}

/// The quorum of the clouds that the cluster goes on with.
fn new_quorum(clouds: usize) -> u32 {
    u32::try_from(clouds / 2 + 1).unwrap_or(u32::MAX)
}
