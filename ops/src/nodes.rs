//! Several real nodes in one process, each on a thread of its own: what `velum up --nodes` runs.
//!
//! The first node is the one of `node.toml`; node N has its settings beside it in `node-N.toml` and its directory in `node-N`.
//! They know nothing of being neighbours: they meet over sockets, prove the root key to each other, and the later ones join with
//! tokens that the first one gives through its admin API, as on hosts of their own. `velum node --config` runs any of them alone.

use std::{
    cell::Cell,
    collections::BTreeSet,
    path::{Path, PathBuf},
    pin::pin,
    thread,
    time::Duration,
};

use futures_util::future::{Either, select, try_join_all};
use tokio::sync::{mpsc, oneshot, watch};
use velum_node::{
    config::{Listen, NodeConfig},
    env::{Env, network::Address},
    keyring::ProviderSecret,
    node,
};
use velum_protocol::{
    admin::{ClusterStatus, MemberRole, Token},
    id::NodeId,
    invitation::Invitation,
};

use crate::{
    client::{Client, Target},
    error::Failure,
    files,
    output::{self, Format},
    preflight,
    serve::{self, Served, Wishes, Word},
    settings,
};

/// How many nodes one process may run.
pub(crate) const NODES_MAX: usize = 5;

/// As much as the first thread of a process has; a thread is given less unless it asks.
const STACK_BYTES: usize = 8 << 20;

/// How often it is looked whether every node has a vote.
const LOOK: Duration = Duration::from_millis(100);

/// What a node's thread came to.
type End = (NodeId, Result<(), Failure>);

/// The nodes of a directory.
pub(crate) struct Group {
    /// Where they are.
    pub(crate) dir: PathBuf,
    /// The settings of the first one, as they are written.
    pub(crate) first: NodeConfig,
    /// Those of the others that are there.
    pub(crate) others: Vec<NodeConfig>,
    /// How many there should be.
    pub(crate) wanted: usize,
}

/// The settings of the nodes beside the first that are there. Settings of a node that was never made are taken away: its number
/// is not given again.
pub(crate) async fn others(env: &Env, dir: &Path) -> Result<Vec<NodeConfig>, Failure> {
    let mut found = Vec::new();
    for name in files::names(dir)? {
        let number = name.strip_prefix("node-").and_then(|rest| rest.strip_suffix(".toml")?.parse::<u64>().ok());
        if number.is_none_or(|number| number < 2) {
            continue;
        }
        let path = dir.join(&name);
        let config = settings::read(&path)?;
        let resolved = resolved(&config, dir);
        if node::is_created(env, &resolved).await.map_err(|error| Failure::told(&error))? {
            found.push(config);
        } else {
            files::remove(&path)?;
        }
    }
    found.sort_by_key(|config| config.node);
    Ok(found)
}

/// The settings of another node beside the first: all the same but for its number, its directory and its doors.
pub(crate) fn beside(first: &NodeConfig, number: NodeId) -> Result<NodeConfig, Failure> {
    let by = number.0 - first.node.0.min(number.0);
    let mut config = NodeConfig { dir: format!("node-{number}").into(), node: number, ..first.clone() };
    for listen in &mut config.nbd.listen {
        *listen = shifted(listen, by)?;
    }
    config.admin.listen = shifted(&config.admin.listen, by)?;
    if let Some(peers) = &mut config.peers {
        peers.listen = shifted(&peers.listen, by)?;
    }
    Ok(config)
}

/// The address of the same door, so many nodes further: the next ports, or sockets with a number in their name. Port 0 is the
/// system's choice for each.
fn shifted(listen: &Listen, by: u64) -> Result<Listen, Failure> {
    match listen.address() {
        Address::Unix(path) => {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
            Ok(Listen::unix(path.with_file_name(format!("{stem}-{}{ending}", by + 1))))
        }
        Address::Tcp(address) => {
            let split = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
            let Some((host, port)) = split.filter(|(_, port)| *port != 0) else { return Ok(listen.clone()) };
            match u16::try_from(u64::from(port) + by) {
                Ok(port) => Ok(Listen::tcp(&format!("{host}:{port}"))),
                Err(_) => {
                    let what = format!("there are not {by} ports behind {listen} for the other nodes");
                    Err(Failure::usage(what, "give a lower port with --nbd, --admin or --peers"))
                }
            }
        }
    }
}

/// Whether the doors of all these nodes can be opened together. Holds each address for a moment only.
pub(crate) async fn doors(env: &Env, dir: &Path, configs: &[NodeConfig]) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    for config in configs {
        let peers = config.peers.iter().map(|peers| &peers.listen);
        for listen in config.nbd.listen.iter().chain([&config.admin.listen]).chain(peers) {
            let is_free = matches!(listen.address(), Address::Tcp(address) if address.ends_with(":0"));
            if !is_free && !seen.insert(listen) {
                let what = format!("two doors of the nodes would be at {listen}");
                return Err(Failure::usage(what, "give addresses further apart with --nbd, --admin and --peers"));
            }
        }
    }
    for config in configs {
        preflight::doors(env, &resolved(config, dir)).await?;
    }
    Ok(())
}

fn resolved(config: &NodeConfig, dir: &Path) -> NodeConfig {
    let mut resolved = config.clone();
    resolved.resolve(dir);
    resolved
}

/// Runs the nodes until SIGINT or SIGTERM, with as many as are wanted.
pub(crate) fn run(group: &Group, secret: &ProviderSecret, wishes: &Wishes, format: Format) -> Result<(), Failure> {
    thread::scope(|scope| {
        serve::on_node_thread(async {
            let (give, word) = serve::listen()?;
            let (ended, mut ends) = mpsc::channel(NODES_MAX);
            let house = House { group, secret, wishes, scope, word, ended, running: Cell::new(0) };
            let begun = match select(pin!(house.fill(format)), pin!(ends.recv())).await {
                Either::Left((begun, _)) => begun,
                Either::Right((Some((node, end)), _)) => {
                    house.running.set(house.running.get() - 1);
                    end.map_err(|failure| failure.of(&format!("node {node}")))
                }
                Either::Right((None, _)) => unreachable!("the house holds a sender"),
            };
            if begun.is_err() {
                tell_all(&give);
            }
            let mut outcome = begun;
            while house.running.get() > 0 {
                let (node, end) = ends.recv().await.expect("the house holds a sender");
                house.running.set(house.running.get() - 1);
                if let Err(failure) = end {
                    let failure = failure.of(&format!("node {node}"));
                    if house.running.get() > 0 && outcome.is_ok() {
                        output::say(&format!("{failure}\n  the other nodes go on"));
                    }
                    outcome = outcome.and(Err(failure));
                }
            }
            outcome
        })?
    })
}

/// Gives the word to stop to every node.
fn tell_all(give: &watch::Sender<u32>) {
    give.send_modify(|given| *given += 1);
}

/// The process in which the nodes live.
struct House<'scope, 'env> {
    group: &'env Group,
    secret: &'env ProviderSecret,
    wishes: &'env Wishes,
    scope: &'scope thread::Scope<'scope, 'env>,
    word: Word,
    ended: mpsc::Sender<End>,
    /// Threads that have not said their end.
    running: Cell<usize>,
}

impl House<'_, '_> {
    /// Starts what is there, has the missing nodes join, and says where everything is. Nothing more is said when the word to
    /// stop comes first.
    async fn fill(&self, format: Format) -> Result<(), Failure> {
        let Group { dir, first, others, wanted } = self.group;
        let present = std::iter::once(first).chain(others);
        let mut starting = Vec::new();
        for config in present {
            let wishes = (config.node == first.node).then(|| self.wishes.clone());
            starting.push(self.start(resolved(config, dir), wishes)?);
        }
        // A thread that ends before it serves is seen by its end.
        let Ok(mut serving) = try_join_all(starting).await else { return std::future::pending().await };
        let admin = serving.first().expect("the first node is there").admin.clone();
        let client = Client::new(&Target { admin: admin.parse().expect("a node's admin address is a URL") })?;
        let env = serve::environment()?;
        for _ in serving.len()..*wanted {
            let config = self.join(&env, &client).await?;
            output::say(&format!("node {} joins", config.node));
            let Ok(served) = self.start(config, None)?.await else { return std::future::pending().await };
            serving.push(served);
        }
        await_votes(&env, &client, serving.len()).await?;
        serve::announce(&serving, format);
        Ok(())
    }

    /// Runs a node on a thread of its own; completes with what it serves.
    fn start(&self, config: NodeConfig, wishes: Option<Wishes>) -> Result<oneshot::Receiver<Served>, Failure> {
        let (ready, served) = oneshot::channel();
        let (node, secret, ended) = (config.node, self.secret, self.ended.clone());
        let mut word = if node == self.group.first.node { self.word.clone() } else { self.word.quiet() };
        let live = move || {
            let _span = tracing::info_span!("node", number = node.0).entered();
            let serving = |served| {
                // Nobody listens any more when the process is told to stop meanwhile.
                let _ = ready.send(served);
            };
            let end = serve::on_node_thread(serve::serve(&config, secret, wishes.as_ref(), &mut word, serving));
            // The receiver lives until every thread has said this.
            let _ = ended.blocking_send((node, end.and_then(|end| end)));
        };
        let thread = thread::Builder::new().name(format!("node-{node}")).stack_size(STACK_BYTES);
        thread.spawn_scoped(self.scope, live).map_err(|error| {
            Failure::new(format!("cannot start a thread: {error}"), "look at the process limits (ulimit -u)")
        })?;
        self.running.set(self.running.get() + 1);
        Ok(served)
    }

    /// Makes another node that will ask to be let in, with a token of the first one's.
    async fn join(&self, env: &Env, client: &Client) -> Result<NodeConfig, Failure> {
        let Group { dir, first, .. } = self.group;
        let token: Token = client.post::<(), _>(&["cluster", "tokens"], None).await?;
        let invitation = Invitation::parse(&token.token).expect("a node gives tokens that are some");
        let config = beside(first, NodeId(token.node))?;
        let path = dir.join(format!("node-{}.toml", token.node));
        files::replace(&path, settings::written("velum up", &config).as_bytes())?;
        let config = resolved(&config, dir);
        node::join(env, &config, self.secret, invitation).await.map_err(|error| Failure::told(&error))?;
        Ok(config)
    }
}

/// Waits until so many nodes vote.
async fn await_votes(env: &Env, client: &Client, wanted: usize) -> Result<(), Failure> {
    loop {
        let status: ClusterStatus = client.get(&["cluster"]).await?;
        let votes = |role| matches!(role, MemberRole::Leader | MemberRole::Voter);
        if status.nodes.iter().filter(|node| votes(node.role)).count() >= wanted {
            return Ok(());
        }
        env.clock.sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use velum_node::config::{KeyConfig, PeersConfig};

    use super::*;

    fn first() -> NodeConfig {
        let mut config = NodeConfig::new("node-1".into(), Vec::new(), KeyConfig::default());
        config.peers = Some(PeersConfig { listen: Listen::tcp("127.0.0.1:9900"), advertise: None });
        config
    }

    #[test]
    fn another_node_has_the_next_doors_and_all_else_the_same() {
        let mut first = first();
        first.nbd.listen.push(Listen::unix("run/velum.sock".into()));
        first.nbd.listen.push(Listen::tcp("127.0.0.1:0"));
        let third = beside(&first, NodeId(3)).unwrap();
        let nbd: Vec<String> = third.nbd.listen.iter().map(ToString::to_string).collect();
        assert_eq!(nbd, ["127.0.0.1:10811", "unix:run/velum-3.sock", "127.0.0.1:0"]);
        assert_eq!(third.admin.listen, Listen::tcp("127.0.0.1:9892"));
        assert_eq!(third.peers.as_ref().unwrap().listen, Listen::tcp("127.0.0.1:9902"));
        assert_eq!((third.dir.as_path(), third.node), (Path::new("node-3"), NodeId(3)));
        let doors = |config: &NodeConfig| (config.nbd.clone(), config.admin.clone(), config.peers.clone());
        let (nbd, admin, peers) = doors(&first);
        assert_eq!(NodeConfig { dir: first.dir.clone(), node: first.node, nbd, admin, peers, ..third }, first);
        first.admin.listen = Listen::tcp("127.0.0.1:65534");
        assert!(beside(&first, NodeId(2)).is_ok());
        assert!(beside(&first, NodeId(3)).unwrap_err().to_string().contains("65534"));
    }

    #[test]
    fn doors_in_one_place_are_named() {
        let mut first = first();
        first.nbd.listen = vec![Listen::tcp("127.0.0.1:1"), Listen::tcp("127.0.0.1:2")];
        let configs = [first.clone(), beside(&first, NodeId(2)).unwrap()];
        let look = async { doors(&serve::environment().unwrap(), Path::new("/nowhere"), &configs).await };
        let refused = serve::on_node_thread(look).unwrap().unwrap_err().to_string();
        assert!(refused.contains("127.0.0.1:2") && refused.contains("further apart"), "{refused}");
    }
}
