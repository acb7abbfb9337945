//! What the admin API asks and answers: one set of types for the node, the command line and scripts.
//!
//! Everything travels as JSON over HTTP; the routes stand beside each [`Request`]. Unknown fields are refused on the way in
//! and tolerated on the way out, so that an old command reads a newer node. Errors are [`Problem`]s.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{BLOCK_BYTES, VOLUME_BYTES_MAX};

mod attachments;
mod cluster;

pub use attachments::{Attach, AttachmentStatus, Detach, SetPermit};
pub use cluster::{ClusterStatus, MemberRole, MemberStatus, Token, VolumeStanding};

/// True for the names that clouds and volumes may have: `[a-z0-9._-]{1,63}`.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let sane = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    (1..=63).contains(&name.len()) && name.bytes().all(sane)
}

/// True for a size that a volume may have: whole blocks, at least one, at most 64 TiB.
#[must_use]
pub fn is_volume_size(bytes: u64) -> bool {
    bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES) && bytes <= VOLUME_BYTES_MAX
}

/// True for what an ACL line may name: `anonymous`, `uid:NUMBER` or `*`.
#[must_use]
pub fn is_principal(principal: &str) -> bool {
    match principal.strip_prefix("uid:") {
        Some(uid) => uid.parse::<u32>().is_ok_and(|number| number.to_string() == uid),
        None => matches!(principal, "anonymous" | "*"),
    }
}

/// One thing asked of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `GET /v1/version`
    Version,
    /// `GET /v1/node`
    NodeStatus,
    /// `GET /v1/raft`
    RaftStatus,
    /// `GET /v1/volumes`
    ListVolumes,
    /// `POST /v1/volumes`
    CreateVolume(CreateVolume),
    /// `GET /v1/volumes/NAME`
    ShowVolume {
        /// The volume's name.
        name: String,
    },
    /// `POST /v1/volumes/NAME/resize`
    ResizeVolume {
        /// The volume's name.
        name: String,
        /// What is asked.
        resize: ResizeVolume,
    },
    /// `POST /v1/volumes/NAME/move`; answered when the other node serves it.
    MoveVolume {
        /// The volume's name.
        name: String,
        /// What is asked.
        to: MoveVolume,
    },
    /// `POST /v1/volumes/NAME/flush`; answered when every write acked before is cloud-durable.
    FlushVolume {
        /// The volume's name.
        name: String,
    },
    /// `DELETE /v1/volumes/NAME`
    DeleteVolume {
        /// The volume's name.
        name: String,
    },
    /// `GET /v1/volumes/NAME/acl`
    ShowAcl {
        /// The volume's name.
        name: String,
    },
    /// `POST /v1/volumes/NAME/acl`
    SetAcl {
        /// The volume's name.
        name: String,
        /// The line to add; it replaces an earlier one of the same principal and range.
        line: AclLine,
    },
    /// `GET /v1/volumes/NAME/attachments`
    ListAttachments {
        /// The volume's name.
        name: String,
    },
    /// `POST /v1/volumes/NAME/attach`
    Attach {
        /// The volume's name.
        name: String,
        /// What is asked.
        attach: Attach,
    },
    /// `POST /v1/volumes/NAME/detach`; answered when nothing of it takes effect any more.
    Detach {
        /// The volume's name.
        name: String,
        /// Which.
        detach: Detach,
    },
    /// `POST /v1/volumes/NAME/permits`; answered when it is in force.
    SetPermit {
        /// The volume's name.
        name: String,
        /// What is asked.
        permit: SetPermit,
    },
    /// `GET /v1/clouds`
    ListClouds,
    /// `GET /v1/cluster`
    ClusterStatus,
    /// `POST /v1/cluster/tokens`; makes a token with which one new node may join.
    OfferPlace,
    /// `DELETE /v1/cluster/nodes/NODE`; answered when the node is out of the group, or is not yet after some seconds.
    RemoveNode {
        /// The node.
        node: u64,
    },
    /// `POST /v1/cluster/nodes/NODE/lead`; hands the lead over to the node.
    TransferLead {
        /// The node.
        node: u64,
    },
    /// `POST /v1/clouds/check`; writes, reads back and deletes a small object in each cloud.
    CheckClouds,
    /// `POST /v1/clouds/NAME/resync`; believes nothing to be in the cloud any more and brings everything there again.
    ResyncCloud {
        /// The cloud's name.
        name: String,
    },
}

/// A new volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// `[a-z0-9._-]{1,63}`; also its NBD export name.
    pub name: String,
    /// Whole blocks of 4 KiB, at most 64 TiB.
    pub size_bytes: u64,
}

/// A new size for a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// Whole blocks of 4 KiB, at most 64 TiB.
    pub size_bytes: u64,
    /// Allow a smaller size: what lies beyond it is lost.
    #[serde(default)]
    pub force: bool,
}

/// Another owner for a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveVolume {
    /// The node.
    pub node: u64,
}

/// What a principal may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Nothing, whatever wider lines say.
    None,
    /// Read.
    Read,
    /// Read and write.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// One line of a volume's ACL. Of the lines that match a request, the one that stands last decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AclLine {
    /// `anonymous`, `uid:1000`, or `*` for everyone.
    pub principal: String,
    /// What is allowed.
    pub access: Access,
    /// The bytes it holds for, on bounds of 64 MiB regions; the whole volume when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<ByteRange>,
}

/// Bytes `start..end` of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// The answer to a [`Request`]; on the wire only what is inside.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Response {
    /// To `Version`.
    Version(Version),
    /// To `NodeStatus`.
    Node(NodeStatus),
    /// To `RaftStatus`.
    Raft(RaftStatus),
    /// To `ListVolumes`.
    Volumes(Vec<VolumeSummary>),
    /// To `CreateVolume`, `ShowVolume`, `ResizeVolume`, `MoveVolume` and `FlushVolume`.
    Volume(VolumeStatus),
    /// To `ShowAcl` and `SetAcl`.
    Acl(Vec<AclLine>),
    /// To `Attach`.
    Attachment(AttachmentStatus),
    /// To `ListAttachments`, `Detach` and `SetPermit`.
    Attachments(Vec<AttachmentStatus>),
    /// To `DeleteVolume`.
    Deleted(Deleted),
    /// To `ClusterStatus`, `RemoveNode` and `TransferLead`.
    Cluster(ClusterStatus),
    /// To `OfferPlace`.
    Token(Token),
    /// To `ListClouds`.
    Clouds(Vec<CloudStatus>),
    /// To `CheckClouds`.
    Checks(Vec<CloudCheck>),
    /// To `ResyncCloud`.
    Cloud(CloudStatus),
}

/// Which program answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The program's version.
    pub version: String,
    /// The version of this API.
    pub api: u32,
}

/// How a node is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The cluster, in hexadecimal.
    pub cluster: String,
    /// This node's id.
    pub node: u64,
    /// The life of the cluster; each recovery from clouds alone starts the next one.
    pub incarnation: u32,
    /// What an acked write, an acked barrier and a finished flush survive here, in plain words.
    pub durability: Durability,
    /// Dirty bytes of all volumes.
    pub dirty_bytes: u64,
    /// More than this is never dirty: guests wait instead.
    pub dirty_bytes_max: u64,
    /// The journal.
    pub journal: JournalStatus,
    /// Where it serves volumes.
    pub nbd: Vec<String>,
    /// Seconds since it started.
    pub uptime_seconds: u64,
}

/// What survives what, in plain words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durability {
    /// d0: an acked write.
    pub write: String,
    /// d1: an acked barrier.
    pub barrier: String,
    /// d2: a finished flush.
    pub flush: String,
}

impl Durability {
    /// The words for volumes whose journals `nodes` nodes keep, with `clouds` clouds of which `quorum` must answer.
    #[must_use]
    pub fn of(nodes: usize, clouds: usize, quorum: usize) -> Self {
        let spare = clouds.saturating_sub(quorum);
        let in_clouds = format!("in {quorum} of {clouds} clouds");
        let any = format!("any {spare} cloud{}", if spare == 1 { "" } else { "s" });
        if nodes < 2 {
            return Self {
                write: "in this node's journal: survives a crash of the process, not a power cut".to_owned(),
                barrier: "synced to this node's disk: survives a power cut, not the loss of the disk".to_owned(),
                flush: format!("{in_clouds}: survives the loss of this node and of {any}"),
            };
        }
        let kept = nodes / 2 + 1;
        let lost = if kept == 2 { "any one node".to_owned() } else { format!("any {} nodes", kept - 1) };
        Self {
            write: format!(
                "in the journals of {kept} of {nodes} nodes: survives the loss of {lost}, not a power cut of all"
            ),
            barrier: format!(
                "synced to the disks of {kept} of {nodes} nodes: survives a power cut of all and the loss of {lost}"
            ),
            flush: format!("{in_clouds}: survives the loss of all nodes and of {any}"),
        }
    }
}

/// The node's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Bytes of records that are still needed.
    pub live_bytes: u64,
    /// The ring's largest size.
    pub bytes_max: u64,
    /// True after a failed write or sync: nothing is acked any more until the node is restarted.
    pub poisoned: bool,
}

/// The group of one or more nodes that agrees on metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftStatus {
    /// This node.
    pub node: u64,
    /// `leader`, `follower` or `candidate`.
    pub role: String,
    /// The leader as far as this node knows.
    pub leader: Option<u64>,
    /// Its term.
    pub term: u64,
    /// Last committed index.
    pub commit: u64,
    /// Last applied index.
    pub applied: u64,
    /// The members.
    pub members: Vec<u64>,
    /// Why raft has stopped until the node is restarted, if it has: nothing is agreed on meanwhile, and nothing flushed.
    pub halted: Option<String>,
}

/// A volume in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeSummary {
    /// Its name.
    pub name: String,
    /// Its id, in hexadecimal.
    pub id: String,
    /// Its size.
    pub size_bytes: u64,
    /// How much is at risk now.
    pub exposure: Exposure,
}

/// What would be lost with this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exposure {
    /// Bytes that are not cloud-durable yet.
    pub dirty_bytes: u64,
    /// Age of the oldest of them; `null` when there are none.
    pub oldest_dirty_seconds: Option<f64>,
    /// The volume's newest sequence record.
    pub head_seq: u64,
    /// The newest one that is in enough clouds.
    pub durable_seq: u64,
}

/// Everything about one volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its id, in hexadecimal.
    pub id: String,
    /// Its size.
    pub size_bytes: u64,
    /// The fencing number of its owner.
    pub epoch: u64,
    /// Changes only when acked writes may have been lost.
    pub lineage: u64,
    /// NBD sessions attached now.
    pub sessions: u64,
    /// The newest checkpoint's seq.
    pub checkpoint_seq: Option<u64>,
    /// How much is at risk now.
    pub exposure: Exposure,
    /// What its segments hold, as of the last look; none before the first one.
    #[serde(default)]
    pub holdings: Option<Holdings>,
    /// How the node knows that it is the owner still when guests read; none where nobody else can be, or another node is.
    #[serde(default)]
    pub reads: Option<Reads>,
    /// How far each cloud is.
    pub clouds: Vec<CloudLag>,
}

/// How an owner among several nodes knows that it still is one when guests read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reads {
    /// By leases of a second, which the nodes that keep the journal grant, where one guest is attached to a volume and does not share
    /// it. Elsewhere it asks them.
    #[default]
    Lease,
    /// It asks them each time.
    Strict,
}

/// What a volume's segments hold, in each cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// Bytes of the segments that something refers to.
    pub stored_bytes: u64,
    /// Bytes of live blocks in them; compaction keeps their share above a bound.
    pub live_bytes: u64,
}

/// How far one cloud is with one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudLag {
    /// The cloud.
    pub cloud: String,
    /// It holds everything up to this sequence record.
    pub cursor_seq: u64,
    /// Sequence records that it lacks.
    pub lag_records: u64,
    /// Bytes that it lacks.
    pub lag_bytes: u64,
}

/// A volume that is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Its name.
    pub name: String,
}

/// What can be done with a cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloudState {
    /// It answers and takes what is stored.
    Up,
    /// It does not answer, or refuses the credentials.
    Away,
    /// It answers and does not take what is stored.
    ReadOnly,
    /// Its identity object is gone: somebody emptied it, or its URL leads elsewhere now.
    Emptied,
    /// It holds another cluster's data.
    Foreign,
    /// It was emptied or foreign, and is the cluster's again; how far it reaches is looked at.
    Returned,
}

impl fmt::Display for CloudState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "up",
            Self::Away => "away",
            Self::ReadOnly => "read-only",
            Self::Emptied => "emptied",
            Self::Foreign => "foreign",
            Self::Returned => "returned",
        })
    }
}

/// How a cloud is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloudStatus {
    /// The operator's name for it.
    pub name: String,
    /// Where it is, without credentials.
    pub url: String,
    /// What can be done with it; only one that is up counts for what is flushed.
    pub state: CloudState,
    /// It keeps what is stored in the memory of the node's process, and nothing when that ends.
    pub in_memory: bool,
    /// The kind of its last fault, without the cloud's own words.
    pub last_error: Option<String>,
    /// Typical time of a read, when there was one.
    pub read_seconds: Option<f64>,
    /// Typical time of a write, when there was one.
    pub write_seconds: Option<f64>,
    /// Sequence records that it lacks, over all volumes.
    pub lag_records: u64,
    /// Bytes that it lacks, over all volumes.
    pub lag_bytes: u64,
}

/// What a probe of one cloud showed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloudCheck {
    /// The cloud.
    pub name: String,
    /// True when an object could be written, read back equal and deleted.
    pub ok: bool,
    /// What went wrong and what to do.
    pub detail: Option<String>,
    /// Time of the write.
    pub write_seconds: Option<f64>,
    /// Time of the read.
    pub read_seconds: Option<f64>,
}

/// Why a request was not done, as `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}; {remedy}")]
pub struct Problem {
    /// The kind, for programs.
    pub kind: ProblemKind,
    /// What happened, to what. Never a secret, a path or a cloud's own words.
    pub detail: String,
    /// What to do.
    pub remedy: String,
}

/// Kinds of problems and with them HTTP statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The request itself is at fault.
    Invalid,
    /// Host, Origin or credentials do not match.
    Forbidden,
    /// No such thing, or none that the caller may know of.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The body did not arrive in time.
    Timeout,
    /// It contradicts the present state.
    Conflict,
    /// The body is too long.
    TooLarge,
    /// The node has too much to do; ask again.
    Busy,
    /// It cannot be done now.
    Unavailable,
    /// A fault of the node.
    Internal,
}

impl ProblemKind {
    /// The HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Internal => 500,
            Self::Busy | Self::Unavailable => 503,
        }
    }
}

impl Problem {
    /// A problem of a kind.
    #[must_use]
    pub fn new(kind: ProblemKind, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), remedy: remedy.into() }
    }

    /// There is no such volume, or none that the caller may know of: both get the same words.
    #[must_use]
    pub fn no_volume(name: &str) -> Self {
        let remedy = "`velum volume list` shows the volumes there are";
        Self::new(ProblemKind::NotFound, format!("there is no volume `{}`", name.escape_default()), remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_no_room_for_paths() {
        for name in ["a", "demo", "vol-1.old_2", &"x".repeat(63)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "A", "a/b", "a b", "ä", "a\0", &"x".repeat(64)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn principals_have_one_spelling() {
        for principal in ["anonymous", "*", "uid:0", "uid:4294967295"] {
            assert!(is_principal(principal), "{principal}");
        }
        for principal in ["", "root", "uid:", "uid:01", "uid:+1", "uid:-1", "uid:4294967296", "Anonymous", "gid:1"] {
            assert!(!is_principal(principal), "{principal}");
        }
    }

    #[test]
    fn volumes_have_whole_blocks_up_to_64_tib() {
        for bytes in [4096, 1 << 30, 64 << 40] {
            assert!(is_volume_size(bytes), "{bytes}");
        }
        for bytes in [0, 1, 4095, 4097, (64 << 40) + 4096, u64::MAX] {
            assert!(!is_volume_size(bytes), "{bytes}");
        }
    }

    #[test]
    fn the_words_for_three_clouds_name_what_may_be_lost() {
        let words = Durability::of(1, 3, 2);
        assert!(words.flush.contains("2 of 3 clouds") && words.flush.ends_with("any 1 cloud"), "{}", words.flush);
        let words = Durability::of(3, 3, 2);
        assert!(words.barrier.contains("2 of 3 nodes") && words.barrier.ends_with("any one node"), "{}", words.barrier);
        // Two of two must have it, so either may be lost.
        assert!(Durability::of(2, 3, 2).write.contains("2 of 2 nodes: survives the loss of any one node"));
    }
}
