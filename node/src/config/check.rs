//! The rules that settings must meet together.

use std::{collections::BTreeMap, time::Duration};

use url::{Host, Url};
use velum_protocol::id::NodeId;

use super::{CloudConfig, Finding, KeyConfig, NodeConfig, Size, keys::Lines};
use crate::env::network::Address;

/// A cloud for each of the two that a write needs, and one to lose.
const CLOUDS_MIN: usize = 3;
/// One probe per cloud and flush is affordable up to here.
const CLOUDS_MAX: usize = 16;
/// Below this the buffer is smaller than two segments.
const MEMORY_MIN: Size = Size::mib(64);
/// A record of 8 MiB must fit in a journal file beside its header.
const JOURNAL_FILE_MIN: Size = Size::mib(16);
/// A flush fills at most this many bytes of segments at once.
const FLUSH_MAX: Size = Size::mib(1024);

/// The door for the other nodes.
const PEERS_LISTEN: &str = "peers.listen";

/// Here four bytes are moved for each that is freed.
const LIVE_PERCENT_MAX: u8 = 80;

/// Faults and warnings of `config`, with lines where the file gave them.
pub(super) fn judge(config: &NodeConfig, lines: &Lines) -> (Vec<Finding>, Vec<Finding>) {
    let mut judge = Judge { lines, faults: Vec::new(), warnings: Vec::new() };
    judge.node(config);
    judge.clouds(config);
    judge.quorum(config);
    judge.key(&config.key, config.allow_inline_secret);
    judge.doors(config);
    judge.quantities(config);
    judge.faults.sort_by_key(|finding| finding.line);
    (judge.faults, judge.warnings)
}

/// True for a cloud that keeps what is stored in the memory of the process.
#[must_use]
pub fn is_in_memory(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.scheme() == "memory")
}

struct Judge<'a> {
    lines: &'a Lines,
    faults: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl Judge<'_> {
    fn finding(&self, key: &str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        let line = self.lines.get(key).copied();
        Finding { key: key.to_owned(), line, what: what.into(), remedy: remedy.into() }
    }

    fn fault(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let finding = self.finding(key, what, remedy);
        self.faults.push(finding);
    }

    fn warn(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let finding = self.finding(key, what, remedy);
        self.warnings.push(finding);
    }

    fn node(&mut self, config: &NodeConfig) {
        if config.node == NodeId(0) {
            self.fault("node", "node ids start at 1", "give this node a number of its own from 1");
        }
        if config.dir.as_os_str().is_empty() {
            self.fault("dir", "the path is empty", "give the directory that this node owns");
        }
    }

    fn clouds(&mut self, config: &NodeConfig) {
        if config.clouds.is_empty() {
            self.fault("clouds", "no cloud is configured", "add a [[clouds]] table with name and url for each");
        } else if config.clouds.len() < CLOUDS_MIN && !config.few_clouds {
            let what = format!("{} of {CLOUDS_MIN} clouds are configured", config.clouds.len());
            self.fault("clouds", what, "add clouds, or set few_clouds = true and accept that losing one may lose data");
        }
        if config.clouds.len() > CLOUDS_MAX {
            self.fault("clouds", format!("more than {CLOUDS_MAX} clouds"), "keep the best ones");
        }
        let mut names = BTreeMap::new();
        let mut places: Vec<(usize, Place)> = Vec::new();
        for (index, cloud) in config.placed_clouds().iter().enumerate() {
            let key = format!("clouds[{index}]");
            if !is_name(&cloud.name) {
                let remedy = "use 1 to 63 of a-z, 0-9, dot, dash and underscore";
                self.fault(&format!("{key}.name"), format!("`{}` is no name", cloud.name.escape_default()), remedy);
            }
            if let Some(first) = names.insert(cloud.name.clone(), index) {
                let what = format!("clouds[{first}] has the name `{}` too", cloud.name.escape_default());
                self.fault(&format!("{key}.name"), what, "give each cloud a name of its own");
            }
            let Some(place) = self.cloud_url(cloud, &key, config.allow_insecure) else { continue };
            if is_in_memory(&cloud.url) {
                let what = "this cloud lives in the memory of the node's process";
                let remedy = "nothing in it survives a restart; use it to try things out, never for data that matters";
                self.warn(&format!("{key}.url"), what, remedy);
            }
            if let Some((other, _)) = places.iter().find(|(_, other)| other.overlaps(&place)) {
                let what = format!("it lies in the same place as clouds[{other}]");
                self.fault(&format!("{key}.url"), what, "use another bucket or prefix, best at another provider");
            }
            places.push((index, place));
        }
    }

    /// Where a cloud lies; faults of its URL on the way.
    fn cloud_url(&mut self, cloud: &CloudConfig, key: &str, allow_insecure: bool) -> Option<Place> {
        let url_key = format!("{key}.url");
        let kinds = "write file:///dir, s3://bucket/prefix, az://container/prefix, gs://bucket/prefix or memory:///";
        let url = match Url::parse(&cloud.url) {
            Ok(url) => url,
            Err(error) => {
                self.fault(&url_key, format!("the URL cannot be read ({error})"), kinds);
                return None;
            }
        };
        if !url.username().is_empty() || url.password().is_some() {
            self.fault(&url_key, "the URL carries credentials", "put them into options or the provider's environment");
        }
        let has_bucket = url.host_str().is_some_and(|host| !host.is_empty());
        let sane = match url.scheme() {
            "file" => !has_bucket && url.path().len() > 1,
            "memory" => !has_bucket,
            "s3" | "s3a" | "az" | "azure" | "abfs" | "abfss" | "gs" => has_bucket,
            "http" | "https" => has_bucket,
            _ => false,
        };
        if !sane {
            self.fault(&url_key, "the URL names no bucket or directory that Velum knows", kinds);
            return None;
        }
        let endpoint = cloud.options.iter().find(|(name, _)| name.to_ascii_lowercase().ends_with("endpoint"));
        for (what_key, address) in endpoint
            .map(|(name, address)| (format!("{key}.options.{name}"), address.as_str()))
            .into_iter()
            .chain([(url_key, cloud.url.as_str())])
        {
            if !allow_insecure && is_foreign_http(address) {
                let remedy = "use https, or set allow_insecure = true: your credentials then travel readable";
                self.fault(&what_key, "plain HTTP to another machine", remedy);
            }
        }
        Some(Place::of(&url, endpoint.map(|(_, address)| address.as_str())))
    }

    fn quorum(&mut self, config: &NodeConfig) {
        let (clouds, quorum) = (config.clouds.len(), config.cloud_quorum());
        if quorum > clouds {
            self.fault("quorum", format!("{quorum} of {clouds} clouds can never answer"), "lower it or add clouds");
        } else if config.quorum.is_some() && quorum * 2 <= clouds {
            let remedy = format!("set at least {}", clouds / 2 + 1);
            self.fault("quorum", format!("two quorums of {quorum} in {clouds} clouds may share none"), remedy);
        }
        if clouds > 0 && clouds.is_multiple_of(2) {
            let what = format!("{clouds} clouds tolerate no more losses than {}", clouds - 1);
            self.warn("clouds", what, "an odd number is cheaper for the same safety");
        }
    }

    fn key(&mut self, key: &KeyConfig, allow_inline_secret: bool) {
        let given = [
            ("keyfile", key.keyfile.is_some()),
            ("passphrase", key.passphrase.is_some()),
            ("env", key.env.is_some()),
            ("exec", key.exec.is_some()),
            ("inline_passphrase", key.inline_passphrase.is_some()),
        ];
        let names: Vec<&str> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        let remedy = "give exactly one of keyfile, passphrase, env and exec";
        match names.as_slice() {
            [] => self.fault("key", "nothing says where the root key comes from", remedy),
            [_] => {}
            several => self.fault("key", format!("{} are all given", several.join(" and ")), remedy),
        }
        if key.inline_passphrase.is_some() && !allow_inline_secret {
            let remedy = "use key.passphrase = \"env:NAME\", or set allow_inline_secret = true";
            self.fault("key.inline_passphrase", "the secret lies in the config file", remedy);
        }
        if key.passphrase.as_deref().is_some_and(|source| !is_passphrase_source(source)) {
            let remedy = "write tty, stdin, fd:N or env:NAME; the passphrase itself does not belong here";
            self.fault("key.passphrase", "it does not say where the passphrase comes from", remedy);
        }
        if key.exec.as_ref().is_some_and(|command| command.first().is_none_or(String::is_empty)) {
            self.fault("key.exec", "the command is empty", "give the program and its arguments as a list");
        }
        if key.env.is_some() {
            let remedy = "a keyfile of mode 0600 or key.exec leaks less";
            self.warn("key.env", "other processes of the same user can read the environment", remedy);
        }
    }

    fn doors(&mut self, config: &NodeConfig) {
        if !config.plain_exports {
            let remedy = "`velum volume attach` gives the name of an export; plain_exports = true serves each volume under its own, too";
            self.warn(
                "plain_exports",
                "a volume is served to whoever is attached to it, and under no name of its own",
                remedy,
            );
        }
        let named =
            config.nbd.listen.iter().enumerate().map(|(index, listen)| (format!("nbd.listen[{index}]"), listen));
        let peers = config.peers.iter().map(|peers| (PEERS_LISTEN.to_owned(), &peers.listen));
        let doors: Vec<_> = named.chain([("admin.listen".to_owned(), &config.admin.listen)]).chain(peers).collect();
        for (index, (key, listen)) in doors.iter().enumerate() {
            if !listen.is_local() && key != PEERS_LISTEN && !config.allow_insecure {
                let remedy = "listen on 127.0.0.1 or a unix socket, or set allow_insecure = true: \
                              anyone who reaches the port is then let in, and reads what passes";
                self.fault(key, format!("{listen} is reachable from other machines without TLS"), remedy);
            }
            let earlier = doors.iter().take(index).find(|(_, other)| other == listen && !any_port(other.address()));
            if let Some((other, _)) = earlier {
                self.fault(key, format!("`{other}` listens on {listen} too"), "give each door an address of its own");
            }
        }
        if matches!(config.admin.listen.address(), Address::Unix(_)) {
            self.fault("admin.listen", "the admin API speaks HTTP over TCP only", "write host:port");
        }
        self.peers(config);
    }

    fn peers(&mut self, config: &NodeConfig) {
        let Some(peers) = &config.peers else { return };
        let advertised = peers.advertise.iter().map(|advertised| ("peers.advertise", advertised));
        for (key, address) in advertised.chain([(PEERS_LISTEN, &peers.listen)]) {
            if matches!(address.address(), Address::Unix(_)) {
                self.fault(key, "nodes speak over TCP only", "write host:port");
            }
        }
        let found = peers.advertise.as_ref().map_or((PEERS_LISTEN, &peers.listen), |given| ("peers.advertise", given));
        if found.1.is_everywhere() {
            let what = format!("the other nodes cannot find this one at {}", found.1);
            self.fault(found.0, what, "set peers.advertise to the name or address that they reach, as host:port");
        }
    }

    fn quantities(&mut self, config: &NodeConfig) {
        let (memory, dirty, journal) = (config.memory, config.dirty_bytes_max(), &config.journal);
        if memory < MEMORY_MIN {
            self.fault("memory", format!("{memory} is too little to work with"), format!("give at least {MEMORY_MIN}"));
        }
        if journal.file_bytes < JOURNAL_FILE_MIN {
            let remedy = format!("give at least {JOURNAL_FILE_MIN}");
            self.fault("journal.file_bytes", "a large record does not fit", remedy);
        }
        let initial = journal.file_bytes.bytes().saturating_mul(u64::from(journal.files_initial.max(2)));
        if journal.files_initial < 2 || initial > journal.bytes_max.bytes() {
            let what = format!("{} files of {} do not fit", journal.files_initial, journal.file_bytes);
            let remedy = "the ring needs 2 files at least, and all initial files within journal.bytes_max";
            self.fault("journal.files_initial", what, remedy);
        }
        let ring_min = journal.file_bytes.bytes().saturating_mul(journal.files_min());
        if ring_min > journal.bytes_max.bytes() {
            let what = format!("{} has no room for the longest write beside what raft needs", journal.bytes_max);
            let remedy = format!("give at least {}, or smaller journal.file_bytes", Size::from_bytes(ring_min));
            self.fault("journal.bytes_max", what, remedy);
        }
        if dirty > journal.bytes_max.bytes() {
            let what = format!("half of memory ({}) may be dirty, the journal holds less", Size::from_bytes(dirty));
            self.fault("journal.bytes_max", what, "raise it, or lower memory");
        }
        if config.flush.bytes == Size::default() || config.flush.bytes.bytes() > dirty || config.flush.bytes > FLUSH_MAX
        {
            let remedy = format!("give at most half of memory and at most {FLUSH_MAX}");
            self.fault("flush.bytes", format!("{} cannot start a flush", config.flush.bytes), remedy);
        }
        self.duration("flush.interval", config.flush.interval, Duration::from_millis(10), Duration::from_secs(86_400));
        self.duration("reclaim.grace", config.reclaim.grace, Duration::ZERO, Duration::from_secs(10 * 366 * 86_400));
        if config.compact.live_percent > LIVE_PERCENT_MAX {
            let what = format!("{} of each 100 bytes cannot be kept live", config.compact.live_percent);
            let remedy = format!("give at most {LIVE_PERCENT_MAX}: more moves many bytes for each that it frees");
            self.fault("compact.live_percent", what, remedy);
        }
        if config.checkpoint.records == 0 || config.checkpoint.bytes == Size::default() {
            self.fault("checkpoint", "it would never end", "give at least 1 record and 1 byte");
        }
    }

    fn duration(&mut self, key: &str, value: Duration, min: Duration, max: Duration) {
        if value < min || value > max {
            self.fault(key, format!("{value:?} is out of bounds"), format!("give {min:?} to {max:?}"));
        }
    }
}

/// Where a cloud's objects lie, so that two clouds in one place are noticed.
struct Place {
    endpoint: String,
    path: Vec<String>,
    /// Every `memory:///` is a place of its own.
    private: bool,
}

impl Place {
    fn of(url: &Url, endpoint: Option<&str>) -> Self {
        let family = match url.scheme() {
            "s3a" => "s3",
            "azure" | "abfs" | "abfss" => "az",
            other => other,
        };
        let endpoint = endpoint.filter(|_| family != "file").unwrap_or_default();
        let endpoint = endpoint.trim_end_matches('/').to_ascii_lowercase();
        let bucket = url.host_str().map(str::to_ascii_lowercase);
        let segments = url.path_segments().into_iter().flatten().filter(|segment| !segment.is_empty());
        let path = bucket.into_iter().chain(segments.map(str::to_owned)).collect();
        Self { endpoint: format!("{family} {endpoint}"), path, private: family == "memory" }
    }

    /// True when one lies in the other.
    fn overlaps(&self, other: &Self) -> bool {
        let nested = self.path.starts_with(&other.path) || other.path.starts_with(&self.path);
        !self.private && !other.private && self.endpoint == other.endpoint && nested
    }
}

/// True for the names that clouds and volumes may have.
fn is_name(name: &str) -> bool {
    velum_protocol::admin::is_name(name)
}

fn is_foreign_http(address: &str) -> bool {
    Url::parse(address).is_ok_and(|url| {
        let local = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => true,
        };
        url.scheme() == "http" && !local
    })
}

fn is_passphrase_source(source: &str) -> bool {
    match source.split_once(':') {
        None => matches!(source, "tty" | "stdin"),
        Some(("fd", number)) => number.parse::<u16>().is_ok(),
        Some(("env", name)) => !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
        Some(_) => false,
    }
}

fn any_port(address: &Address) -> bool {
    matches!(address, Address::Tcp(address) if address.ends_with(":0"))
}
