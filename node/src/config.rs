//! Settings of one node, as they stand in `node.toml`.
//!
//! Settings are what an operator may change; bounds that protect the program stand in [`crate::limits`]. A file is judged
//! as a whole: every fault is reported at once with its key, its line and what to do, and an unknown key stops the start.
//! Nothing is read from disk here; relative paths count from the folder of the file and are resolved by
//! [`NodeConfig::resolve`].

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use url::Url;
use velum_protocol::{admin::Reads, id::NodeId};

mod check;
#[cfg(test)]
mod documented;
mod error;
mod keys;
mod listen;
mod size;
#[cfg(test)]
mod tests;

pub use check::is_in_memory;
pub use error::{ConfigError, Finding};
pub use listen::Listen;
pub use size::{Size, SizeError};

/// Longest config file that is read. Real ones have a few KiB.
pub const CONFIG_FILE_BYTES_MAX: usize = 1 << 20;

/// Everything an operator decides about one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Where the node keeps its journal, raft state and cache.
    pub dir: PathBuf,
    /// This node's id in the cluster, never given twice.
    #[serde(default = "default_node")]
    pub node: NodeId,
    /// Clouds that must hold a write before it counts as cloud-durable; `n / 2 + 1` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<usize>,
    /// One budget for buffer, caches and uploads; at most half of it is dirty.
    #[serde(default = "default_memory")]
    pub memory: Size,
    /// Serve volumes under their own names, and a lone volume under the empty name. There is no other way in yet: without
    /// this nothing is served.
    #[serde(default)]
    pub plain_exports: bool,
    /// How an owner among several nodes knows that it still is one when guests read.
    #[serde(default)]
    pub reads: Reads,
    /// Accept fewer than three clouds, and with them the loss of data when one is lost.
    #[serde(default)]
    pub few_clouds: bool,
    /// Accept listening beyond loopback without TLS and clouds over plain HTTP.
    #[serde(default)]
    pub allow_insecure: bool,
    /// Accept `key.inline_passphrase`: the secret then lies in the config file.
    #[serde(default)]
    pub allow_inline_secret: bool,
    /// The clouds, in the order an operator reads them.
    pub clouds: Vec<CloudConfig>,
    /// Where the root key comes from.
    pub key: KeyConfig,
    /// The door for block devices.
    #[serde(default)]
    pub nbd: NbdConfig,
    /// The door for operators.
    #[serde(default)]
    pub admin: AdminConfig,
    /// The door for the other nodes of the cluster. Without it the node is the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<PeersConfig>,
    /// The write-ahead log.
    #[serde(default)]
    pub journal: JournalConfig,
    /// When dirty extents go to the clouds.
    #[serde(default)]
    pub flush: FlushConfig,
    /// Clean extents on local disk.
    #[serde(default)]
    pub cache: CacheConfig,
    /// When the extent map is saved in the clouds.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// When unreferenced objects are deleted.
    #[serde(default)]
    pub reclaim: ReclaimConfig,
    /// When live blocks are moved out of mostly dead segments.
    #[serde(default)]
    pub compact: CompactConfig,
    /// The folder that relative paths count from; empty before [`NodeConfig::resolve`].
    #[serde(skip)]
    pub base: PathBuf,
}

/// One configured bucket at one provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloudConfig {
    /// The operator's name for it, `[a-z0-9._-]{1,63}`.
    pub name: String,
    /// `file:///dir`, `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix` or `memory:///`; `file:dir` counts
    /// from the folder of the config file.
    pub url: String,
    /// The provider's options (`endpoint`, `region`, ...). What is missing comes from its usual environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// Where the root key comes from: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// A file of 32 bytes or 64 hexadecimal digits that only its owner may read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyfile: Option<PathBuf>,
    /// A passphrase from `tty`, `stdin`, `fd:N` or `env:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase: Option<String>,
    /// An environment variable that holds the key as 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// A command that prints the key as 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<Vec<String>>,
    /// The passphrase itself; refused unless `allow_inline_secret` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline_passphrase: Option<String>,
}

/// The door for block devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NbdConfig {
    /// `host:port` or `unix:/path`, one listener each.
    pub listen: Vec<Listen>,
}

/// The door for operators: API and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// `host:port`.
    pub listen: Listen,
}

/// The door for the other nodes of the cluster. What passes is sealed, and nobody without the root key is let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeersConfig {
    /// `host:port`.
    pub listen: Listen,
    /// Where the others find this node, when that is not where it listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<Listen>,
}

/// The write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JournalConfig {
    /// Size of one file of the ring.
    pub file_bytes: Size,
    /// Files written in advance at the first start.
    pub files_initial: u32,
    /// The ring's largest size; guests wait when it is full of dirty records.
    pub bytes_max: Size,
}

impl JournalConfig {
    /// Files the ring must be allowed to have: one that is written to, two that are left to raft, and room for a guest's longest
    /// write (32 MiB) with what surrounds it.
    #[must_use]
    pub fn files_min(&self) -> u64 {
        3 + Size::mib(36).bytes().div_ceil(self.file_bytes.bytes().max(1))
    }
}

/// When dirty extents go to the clouds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlushConfig {
    /// Dirty bytes of a volume that start a flush.
    pub bytes: Size,
    /// Age of the oldest dirty byte that starts a flush.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

/// Clean extents on local disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Bytes of sealed extents kept on disk; `0` keeps none.
    pub disk_bytes: Size,
}

/// When the extent map is saved in the clouds: at whichever comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Sequence records since the last one.
    pub records: u64,
    /// Bytes of sealed sequence records since the last one.
    pub bytes: Size,
}

/// When unreferenced objects are deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReclaimConfig {
    /// Shortest time between the checkpoint that drops an object and its deletion.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

/// When live blocks are moved out of mostly dead segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompactConfig {
    /// Percent of the bytes of a volume's segments that must be live; with fewer they are compacted. `0` never does.
    pub live_percent: u8,
}

impl CloudConfig {
    /// The URL with a path from the root, for a `file:` URL whose path counts from `base`.
    fn placed(&self, base: &Path) -> String {
        let relative = self.url.strip_prefix("file:").filter(|path| !path.is_empty() && !path.starts_with('/'));
        match (relative, Url::from_directory_path(base)) {
            (Some(relative), Ok(base)) => format!("{base}{relative}"),
            _ => self.url.clone(),
        }
    }

    /// The URL as it is best written in a config in `base`: a directory below is named by its path from there, so that the
    /// folder may be moved with all that is in it.
    #[must_use]
    pub fn movable(self, base: &Path) -> Self {
        let below = Url::from_directory_path(base).ok().and_then(|base| {
            let path = self.url.strip_prefix(base.as_str())?.trim_end_matches('/');
            (!path.is_empty()).then(|| format!("file:{path}"))
        });
        Self { url: below.unwrap_or(self.url), ..self }
    }
}

impl Default for NbdConfig {
    fn default() -> Self {
        Self { listen: vec![Listen::tcp("127.0.0.1:10809")] }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: Listen::tcp("127.0.0.1:9890") }
    }
}

impl Default for PeersConfig {
    fn default() -> Self {
        Self { listen: Listen::tcp("127.0.0.1:9891"), advertise: None }
    }
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { file_bytes: Size::mib(64), files_initial: 4, bytes_max: Size::mib(2048) }
    }
}

impl Default for FlushConfig {
    fn default() -> Self {
        Self { bytes: Size::mib(8), interval: Duration::from_secs(5) }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { disk_bytes: Size::mib(4096) }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { records: 1024, bytes: Size::mib(4) }
    }
}

impl Default for ReclaimConfig {
    fn default() -> Self {
        Self { grace: Duration::from_secs(3600) }
    }
}

impl Default for CompactConfig {
    fn default() -> Self {
        Self { live_percent: 50 }
    }
}

fn default_node() -> NodeId {
    NodeId(1)
}

fn default_memory() -> Size {
    Size::mib(512)
}

impl NodeConfig {
    /// Settings with every default, for a directory, clouds and a key of the caller's choice.
    #[must_use]
    pub fn new(dir: PathBuf, clouds: Vec<CloudConfig>, key: KeyConfig) -> Self {
        Self {
            dir,
            node: default_node(),
            quorum: None,
            memory: default_memory(),
            plain_exports: false,
            reads: Reads::default(),
            few_clouds: false,
            allow_insecure: false,
            allow_inline_secret: false,
            clouds,
            key,
            nbd: NbdConfig::default(),
            admin: AdminConfig::default(),
            peers: None,
            journal: JournalConfig::default(),
            flush: FlushConfig::default(),
            cache: CacheConfig::default(),
            checkpoint: CheckpointConfig::default(),
            reclaim: ReclaimConfig::default(),
            compact: CompactConfig::default(),
            base: PathBuf::new(),
        }
    }

    /// Reads and judges a config file. `file` is its name for messages. Gives the settings and what an operator should be
    /// warned of.
    ///
    /// # Errors
    /// All faults of the file, each with its key and line as far as they are known.
    pub fn parse(bytes: &[u8], file: &str) -> Result<(Self, Vec<Finding>), ConfigError> {
        let refuse = |findings: Vec<Finding>| ConfigError { file: file.to_owned(), findings };
        let text = keys::text(bytes).map_err(|finding| refuse(vec![finding]))?;
        let lines = keys::walk(text).map_err(refuse)?;
        let config: Self = toml::from_str(text).map_err(|error| refuse(vec![keys::located(text, &error)]))?;
        let (faults, warnings) = check::judge(&config, &lines);
        if faults.is_empty() { Ok((config, warnings)) } else { Err(refuse(faults)) }
    }

    /// Judges settings that did not come from a file (flags of a command, a recovery).
    ///
    /// # Errors
    /// All faults; `origin` stands in the place of the file's name.
    pub fn check(&self, origin: &str) -> Result<Vec<Finding>, ConfigError> {
        let (findings, warnings) = check::judge(self, &BTreeMap::new());
        if findings.is_empty() { Ok(warnings) } else { Err(ConfigError { file: origin.to_owned(), findings }) }
    }

    /// Makes relative paths count from `base`, the folder of the config file. URLs of clouds stay as they are written, for
    /// that is how the cluster knows them wherever the folder lies; [`NodeConfig::placed_clouds`] says where they are.
    pub fn resolve(&mut self, base: &Path) {
        base.clone_into(&mut self.base);
        self.dir = base.join(&self.dir);
        if let Some(keyfile) = &mut self.key.keyfile {
            *keyfile = base.join(&*keyfile);
        }
        for listen in &mut self.nbd.listen {
            listen.resolve(base);
        }
    }

    /// The clouds with URLs that say where they are, to be opened.
    #[must_use]
    pub fn placed_clouds(&self) -> Vec<CloudConfig> {
        let placed = |cloud: &CloudConfig| CloudConfig { url: cloud.placed(&self.base), ..cloud.clone() };
        self.clouds.iter().map(placed).collect()
    }

    /// The file's text, as `up` and `recover` write it; [`NodeConfig::parse`] reads the same settings back.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every setting has a TOML form")
    }

    /// w: clouds that must hold a write before it counts as cloud-durable.
    #[must_use]
    pub fn cloud_quorum(&self) -> usize {
        self.quorum.unwrap_or(self.clouds.len() / 2 + 1)
    }

    /// Most bytes that may be dirty on this node at once; beyond it guests wait.
    #[must_use]
    pub fn dirty_bytes_max(&self) -> u64 {
        self.memory.bytes() / 2
    }

    /// Settings in which every key is given, so that the set of known keys is the set of fields and cannot drift from it.
    fn complete() -> Self {
        let key = KeyConfig {
            keyfile: Some(PathBuf::new()),
            passphrase: Some(String::new()),
            env: Some(String::new()),
            exec: Some(Vec::new()),
            inline_passphrase: Some(String::new()),
        };
        let options = BTreeMap::from([(keys::ANY.to_owned(), String::new())]);
        let cloud = CloudConfig { name: String::new(), url: String::new(), options };
        let peers = PeersConfig { advertise: Some(Listen::tcp("127.0.0.1:9891")), ..PeersConfig::default() };
        Self { quorum: Some(0), peers: Some(peers), ..Self::new(PathBuf::new(), vec![cloud], key) }
    }
}
