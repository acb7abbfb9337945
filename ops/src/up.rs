//! `velum up`: everything in one process and one directory, with no config to write first.
//!
//! The first run makes a cluster: a root key, `node.toml`, a node and a volume. All that can be checked is checked before the
//! first of them is made. A run that is broken off is gone on with by the next one, which may correct its flags, until the
//! node is there. Later runs carry on with what `node.toml` says; a flag that says otherwise is refused by name, so that
//! nobody believes to have changed something. With `--nodes` there are several nodes (see [`crate::nodes`]); more may be asked for
//! at any time, fewer never: a node leaves by `velum cluster remove`.

use std::path::{Path, PathBuf};

use clap::Args;
use velum_node::{
    config::{CloudConfig, KeyConfig, Listen, NodeConfig, PeersConfig, Size},
    env::Env,
    node::{self, Layout},
};
use velum_protocol::id::NodeId;

use crate::{
    clouds::{self, CloudArgs},
    error::Failure,
    files,
    nodes::{self, Group},
    output::{self, Format},
    preflight, secret,
    serve::{self, Wishes},
    settings::{self, CONFIG_NAME, KEYFILE_NAME, NODE_DIR_NAME},
    volume::{volume_name, volume_size},
};

/// The volume of a first run that names none.
const VOLUME_DEFAULT: &str = "demo";
/// Its size.
const SIZE_DEFAULT: Size = Size::mib(1024);

/// Where the first of several nodes listens for the others; the default of a settings file would be another node's admin door.
const PEERS_DEFAULT: &str = "127.0.0.1:9900";

/// How `up` is asked.
#[derive(Args, Debug)]
pub(crate) struct Up {
    /// Where everything is kept
    #[arg(long, default_value = "velum-data", value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    clouds: CloudArgs,
    /// Accept fewer than three clouds, and that losing one may lose data
    #[arg(long)]
    few_clouds: bool,
    /// The volume to make on the first run [default: demo]
    #[arg(long, value_parser = volume_name, value_name = "NAME")]
    volume: Option<String>,
    /// Its size, whole blocks of 4 KiB, at most 64TiB [default: 1GiB]
    #[arg(long, value_parser = volume_size)]
    size: Option<Size>,
    /// Where to serve volumes: HOST:PORT or unix:PATH, once for each [default: 127.0.0.1:10809]
    ///
    /// A relative PATH counts from DIR.
    #[arg(long, value_parser = listen, value_name = "ADDRESS")]
    nbd: Vec<Listen>,
    /// Where to answer operators [default: 127.0.0.1:9890]
    #[arg(long, value_parser = listen, value_name = "HOST:PORT")]
    admin: Option<Listen>,
    /// Memory for buffer and caches of each node [default: 512MiB]
    #[arg(long)]
    memory: Option<Size>,
    /// How many nodes there should be: 1, 3 or 5, in this process [default: those there are, at first 1]
    ///
    /// The doors of the others are at the next ports; of a socket PATH, at PATH-2 and so on.
    #[arg(long, value_parser = node_count, value_name = "NUMBER")]
    nodes: Option<usize>,
    /// Where several nodes meet: the first one's door for the others [default: 127.0.0.1:9900]
    #[arg(long, value_parser = listen, value_name = "HOST:PORT")]
    peers: Option<Listen>,
}

/// Runs until it is told to stop.
pub(crate) fn run(up: &Up, format: Format) -> Result<(), Failure> {
    let dir = files::absolute(&up.dir)?;
    let group = serve::on_node_thread(settle(up, &dir))??;
    let mut first = group.first.clone();
    first.resolve(&dir);
    let secret = secret::fetch(&first.key)?;
    let wishes = Wishes {
        create: true,
        volume: up.volume.clone(),
        size: up.size,
        first_volume: Some((VOLUME_DEFAULT.to_owned(), SIZE_DEFAULT)),
    };
    if group.wanted == 1 {
        return serve::run(first, &secret, &wishes, format);
    }
    serve::expect_private_memory();
    nodes::run(&group, &secret, &wishes, format)
}

/// The nodes. For a first run, or one that did not get to its end, everything is checked before any of it is written
/// down: so a run that is refused has changed nothing, and one that is broken off is gone on with.
async fn settle(up: &Up, dir: &Path) -> Result<Group, Failure> {
    let env = serve::environment()?;
    let path = dir.join(CONFIG_NAME);
    let written = if files::exists(&path) { Some(settings::read(&path)?) } else { None };
    let written = match written {
        Some(config) if is_made(&env, &config, dir).await? => {
            unchanged(up, &config, dir, &path)?;
            return grown(up, &env, config, dir).await;
        }
        unfinished => unfinished,
    };
    if written.is_some() {
        output::say(&format!("the first run in {} did not get to its end: going on with it", dir.display()));
    }
    let config = first(up, dir, written)?;
    let wanted = up.nodes.unwrap_or(1);
    let mut resolved = config.clone();
    resolved.resolve(dir);
    settings::warn(&resolved.check("the command line")?);
    nodes::doors(&env, dir, &expected(&config, 1, wanted)?).await?;
    let key = keyfile(&resolved)?;
    let identity = Layout::new(&resolved.dir).identity();
    let own = if files::exists(&identity) { Some(files::read(&identity)?) } else { None };
    preflight::places(&env, &resolved, own.as_deref()).await?;
    begin(&config, dir, &path)?;
    if let Some(keyfile) = key {
        secret::create_keyfile(&keyfile, &*env.entropy)?;
        output::say(&format!(
            "made the root key {} (mode 0600). Keep a copy elsewhere: without it no cloud's data can be read again",
            keyfile.display()
        ));
    }
    Ok(Group { dir: dir.to_owned(), first: config, others: Vec::new(), wanted })
}

/// The settings of nodes that are to be, as far as their numbers can be foreseen.
fn expected(first: &NodeConfig, from: u64, count: usize) -> Result<Vec<NodeConfig>, Failure> {
    let numbers = (from..).map(NodeId).take(count);
    numbers.map(|number| if number == first.node { Ok(first.clone()) } else { nodes::beside(first, number) }).collect()
}

/// The nodes of a cluster that has been made, and how many more are to join them. One that was alone gets its door for them.
async fn grown(up: &Up, env: &Env, mut first: NodeConfig, dir: &Path) -> Result<Group, Failure> {
    let others = nodes::others(env, dir).await?;
    let present = 1 + others.len();
    let wanted = up.nodes.unwrap_or(present);
    if wanted < present {
        let what = format!("--nodes says {wanted}, {} has {present} nodes", dir.display());
        let remedy = "leave the flag out to run them all; `velum cluster remove` takes one out of the cluster for good, then \
                      delete its directory and its settings";
        return Err(Failure::usage(what, remedy));
    }
    if wanted > present {
        if first.node != NodeId(1) {
            let what = format!("the node of {} is no first one of a cluster", dir.display());
            return Err(Failure::usage(what, "leave --nodes out; more nodes join by `velum cluster join`"));
        }
        let was_alone = first.peers.is_none();
        if was_alone {
            first.peers = Some(peers(up)?);
        }
        let last = others.last().map_or(first.node, |config| config.node);
        let more = expected(&first, last.0 + 1, wanted - present)?;
        nodes::doors(env, dir, &[std::slice::from_ref(&first), &others, &more].concat()).await?;
        if was_alone {
            add_peers(dir, &first)?;
        }
    }
    Ok(Group { dir: dir.to_owned(), first, others, wanted })
}

/// Adds the table that opens the door for other nodes to the settings, and leaves all else as it is written there.
fn add_peers(dir: &Path, config: &NodeConfig) -> Result<(), Failure> {
    let path = dir.join(CONFIG_NAME);
    let listen = &config.peers.as_ref().expect("the door was just chosen").listen;
    let mut text = files::read(&path)?;
    text.extend_from_slice(format!("\n[peers]\nlisten = \"{listen}\"\n").as_bytes());
    files::replace(&path, &text)
}

/// The door for other nodes. Nodes that all start again find each other where they were, so it is not the system's choice.
fn peers(up: &Up) -> Result<PeersConfig, Failure> {
    let listen = up.peers.clone().unwrap_or_else(|| Listen::tcp(PEERS_DEFAULT));
    if listen.to_string().ends_with(":0") {
        let remedy = "give a port that stays free: nodes that start again find each other where they were";
        return Err(Failure::usage(format!("--peers says {listen}"), remedy));
    }
    Ok(PeersConfig { listen, advertise: None })
}

/// True when the settings' node is there and not running.
async fn is_made(env: &Env, config: &NodeConfig, dir: &Path) -> Result<bool, Failure> {
    let mut resolved = config.clone();
    resolved.resolve(dir);
    serve::expect_idle(env, &resolved).await?;
    node::is_created(env, &resolved).await.map_err(|error| Failure::told(&error))
}

/// Writes the settings down: the first thing that is made.
fn begin(config: &NodeConfig, dir: &Path, path: &Path) -> Result<(), Failure> {
    if !files::exists(path) {
        output::say(&format!("making a new cluster in {}", dir.display()));
    }
    files::create_folder(dir)?;
    files::replace(path, settings::written("velum up", config).as_bytes())
}

/// The keyfile that is to be made. One that is there is looked at; one that a node knows and that is gone is not replaced.
fn keyfile(config: &NodeConfig) -> Result<Option<PathBuf>, Failure> {
    let Some(keyfile) = &config.key.keyfile else { return Ok(None) };
    if files::exists(keyfile) {
        secret::from_keyfile(keyfile)?;
        return Ok(None);
    }
    if files::exists(&Layout::new(&config.dir).identity()) {
        let what =
            format!("the root key {} is gone, and the node in {} needs it", keyfile.display(), config.dir.display());
        return Err(Failure::new(what, "put the copy of it back; a new key opens nothing"));
    }
    files::can_be_made(keyfile).map_err(|why| {
        let what = format!("the root key {} cannot be made: {why}", keyfile.display());
        Failure::new(what, "name a directory that you may write to with --dir")
    })?;
    Ok(Some(keyfile.clone()))
}

/// Settings of a run that makes the cluster, with paths that count from `dir`: what an unfinished one has `written`, and what
/// the flags say now.
fn first(up: &Up, dir: &Path, written: Option<NodeConfig>) -> Result<NodeConfig, Failure> {
    let mut config = match written {
        Some(config) => config,
        None => fresh(up, dir)?,
    };
    if !up.clouds.clouds.is_empty() {
        config.clouds = given(up, dir)?;
    }
    config.few_clouds |= up.few_clouds;
    if !up.nbd.is_empty() {
        config.nbd.listen.clone_from(&up.nbd);
    }
    if let Some(admin) = &up.admin {
        config.admin.listen = admin.clone();
    }
    if let Some(memory) = up.memory {
        config.memory = memory;
    }
    if up.nodes.is_some_and(|nodes| nodes > 1) || up.peers.is_some() {
        config.peers = Some(peers(up)?);
    }
    Ok(config)
}

/// Settings with every default, for a directory that is empty or new.
fn fresh(up: &Up, dir: &Path) -> Result<NodeConfig, Failure> {
    let others: Vec<String> = files::names(dir)?.into_iter().filter(|name| name != KEYFILE_NAME).collect();
    if !others.is_empty() {
        let what = format!("{} is not empty, and no {CONFIG_NAME} in it says that `velum up` made it", dir.display());
        return Err(Failure::new(what, "name a new or empty directory with --dir"));
    }
    let clouds = if up.clouds.clouds.is_empty() { clouds::local() } else { Vec::new() };
    let key = KeyConfig { keyfile: Some(KEYFILE_NAME.into()), ..KeyConfig::default() };
    let mut config = NodeConfig::new(NODE_DIR_NAME.into(), clouds, key);
    config.plain_exports = true;
    Ok(config)
}

/// The clouds of the command line. Those in `dir` are named by their path from there, so that it can be moved.
fn given(up: &Up, dir: &Path) -> Result<Vec<CloudConfig>, Failure> {
    Ok(clouds::named(&up.clouds.clouds)?.into_iter().map(|cloud| cloud.movable(dir)).collect())
}

/// Refuses, by name, flags that say otherwise than the settings of a cluster that has been made.
fn unchanged(up: &Up, config: &NodeConfig, dir: &Path, path: &Path) -> Result<(), Failure> {
    let places = |clouds: Vec<CloudConfig>| {
        let mut placed = NodeConfig { clouds, ..config.clone() };
        placed.resolve(dir);
        placed.placed_clouds().into_iter().map(|cloud| (cloud.name, cloud.url)).collect::<Vec<_>>()
    };
    let other_clouds =
        !up.clouds.clouds.is_empty() && places(clouds::named(&up.clouds.clouds)?) != places(config.clouds.clone());
    let told = config.peers.as_ref().map(|peers| &peers.listen);
    let other_peers = up.peers.as_ref().is_some_and(|peers| told.map_or(up.nodes.is_none(), |told| told != peers));
    let contradictions = [
        ("--cloud", other_clouds),
        ("--few-clouds", up.few_clouds && !config.few_clouds),
        ("--nbd", !up.nbd.is_empty() && up.nbd != config.nbd.listen),
        ("--admin", up.admin.as_ref().is_some_and(|admin| *admin != config.admin.listen)),
        ("--memory", up.memory.is_some_and(|memory| memory != config.memory)),
        ("--peers", other_peers),
    ];
    let flags: Vec<&str> = contradictions.iter().filter(|(_, differs)| *differs).map(|(flag, _)| *flag).collect();
    if flags.is_empty() {
        return Ok(());
    }
    let verb = if flags.len() == 1 { "says" } else { "say" };
    let what = format!("{} {verb} otherwise than {}", flags.join(", "), path.display());
    Err(Failure::usage(what, "leave the flag out to carry on as before, or edit the file while nothing runs"))
}

fn node_count(text: &str) -> Result<usize, String> {
    let count = text.parse::<usize>().ok().filter(|count| matches!(*count, 1 | 3 | nodes::NODES_MAX));
    count.ok_or_else(|| "give 1, 3 or 5: with an even number no more may be lost than with one fewer".to_owned())
}

fn listen(text: &str) -> Result<Listen, String> {
    Listen::parse(text).ok_or_else(|| "write HOST:PORT or unix:/PATH".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        up: Up,
    }

    fn asked(arguments: &[&str]) -> Up {
        Line::parse_from(["up"].iter().chain(arguments)).up
    }

    #[test]
    fn a_first_run_needs_an_empty_directory() {
        let folder = tempfile::tempdir().unwrap();
        first(&asked(&[]), folder.path(), None).unwrap();
        files::replace(&folder.path().join(KEYFILE_NAME), b"key").unwrap();
        first(&asked(&[]), folder.path(), None).unwrap();
        files::replace(&folder.path().join("thesis.tex"), b"years of work").unwrap();
        let refused = first(&asked(&[]), folder.path(), None).unwrap_err().to_string();
        assert!(refused.contains("is not empty") && refused.contains("--dir"), "{refused}");
    }

    #[test]
    fn a_first_run_lays_three_clouds_beside_the_node_and_names_them_from_there() {
        let folder = tempfile::tempdir().unwrap();
        let config = first(&asked(&["--nbd", "unix:velum.sock"]), folder.path(), None).unwrap();
        let urls: Vec<_> = config.clouds.iter().map(|cloud| cloud.url.as_str()).collect();
        assert_eq!(urls, ["file:clouds/a", "file:clouds/b", "file:clouds/c"]);
        assert_eq!((config.cloud_quorum(), config.plain_exports), (2, true));
        assert_eq!(config.nbd.listen, [Listen::unix("velum.sock".into())]);
        let own = format!("file://{}/near", folder.path().display());
        let config = first(&asked(&["--cloud", &own, "--cloud", "file:///far"]), folder.path(), None).unwrap();
        let urls: Vec<_> = config.clouds.iter().map(|cloud| cloud.url.as_str()).collect();
        assert_eq!(urls, ["file:near", "file:///far"]);
    }

    #[test]
    fn several_nodes_meet_at_a_door_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let door = |arguments: &[&str]| {
            first(&asked(arguments), folder.path(), None).unwrap().peers.map(|peers| peers.listen.to_string())
        };
        assert_eq!(door(&["--nodes", "1"]), None);
        assert_eq!(door(&["--nodes", "3"]).as_deref(), Some(PEERS_DEFAULT));
        assert_eq!(door(&["--nodes", "3", "--peers", "127.0.0.1:7"]).as_deref(), Some("127.0.0.1:7"));
        let refused = first(&asked(&["--peers", "127.0.0.1:0"]), folder.path(), None).unwrap_err().to_string();
        assert!(refused.contains("port that stays free"), "{refused}");
        let config = first(&asked(&["--nodes", "5"]), folder.path(), None).unwrap();
        let numbers: Vec<u64> = expected(&config, 1, 5).unwrap().iter().map(|config| config.node.0).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn an_unfinished_run_takes_what_the_flags_say_now() {
        let folder = tempfile::tempdir().unwrap();
        let written = first(&asked(&["--admin", "127.0.0.1:9000", "--memory", "1GiB"]), folder.path(), None).unwrap();
        let config = first(&asked(&["--admin", "127.0.0.1:9001"]), folder.path(), Some(written.clone())).unwrap();
        assert_eq!(config, NodeConfig { admin: config.admin.clone(), ..written });
        assert_eq!(config.admin.listen, Listen::tcp("127.0.0.1:9001"));
    }

    #[test]
    fn a_later_flag_that_contradicts_the_settings_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONFIG_NAME);
        let config = first(&asked(&["--admin", "127.0.0.1:9000"]), folder.path(), None).unwrap();
        let judge = |arguments: &[&str]| unchanged(&asked(arguments), &config, folder.path(), &path);
        judge(&[]).unwrap();
        judge(&["--admin", "127.0.0.1:9000"]).unwrap();
        let local = ["a", "b", "c"].map(|name| format!("--cloud=file://{}/clouds/{name}", folder.path().display()));
        judge(&local.each_ref().map(String::as_str)).unwrap();
        for (arguments, flag) in [
            (["--cloud", "memory:///"], "--cloud"),
            (["--nbd", "127.0.0.1:1"], "--nbd"),
            (["--admin", "127.0.0.1:1"], "--admin"),
            (["--memory", "1GiB"], "--memory"),
            (["--peers", "127.0.0.1:1"], "--peers"),
        ] {
            let refused = judge(&arguments).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("{flag} says otherwise")), "{refused}");
        }
    }
}
