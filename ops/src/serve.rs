//! Runs a node in this process until it is told to stop.

use std::{path::Path, pin::pin, rc::Rc, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::LocalSet,
};
use velum_node::{
    actor,
    config::{NodeConfig, Size},
    env::{
        Env,
        network::Address,
        real::{RealSettings, keep_memory_private, real_env},
    },
    keyring::ProviderSecret,
    node::{self, Layout, Node},
    server::admin::{AdminLimits, AdminListener, AdminServer, Backend, answer},
};
use velum_protocol::{
    admin::{Access, AclLine, CreateVolume, Durability, Request, Response, VolumeSummary},
    id::NodeId,
    peer::Verdict,
};

use crate::{
    error::Failure,
    files,
    output::{self, Format, bytes},
    preflight, secret, settings,
};

/// How long a node whose journal failed still answers operators: four scrapes, so that the alert says what happened.
const FAILED_LINGER: Duration = Duration::from_secs(60);

/// Who commands of the same process are.
const OWN_PRINCIPAL: &str = "anonymous";

/// The environment of this machine.
pub(crate) fn environment() -> Result<Env, Failure> {
    real_env(RealSettings::default()).map_err(|error| {
        Failure::new(format!("cannot start threads: {error}"), "look at the process limits (ulimit -u)")
    })
}

/// Runs `work` as a node's thread runs: one thread, local futures, real time.
pub(crate) fn on_node_thread<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::new(format!("cannot start a runtime: {error}"), "look at the process limits"))?;
    Ok(LocalSet::new().block_on(&runtime, work))
}

/// What `up` asks for besides a running node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    /// Make the cluster when the directory holds none.
    pub(crate) create: bool,
    /// The volume to be there, if one was named.
    pub(crate) volume: Option<String>,
    /// Its size, if one was given.
    pub(crate) size: Option<Size>,
    /// The volume of a cluster that has never had one, when none was named.
    pub(crate) first_volume: Option<(String, Size)>,
}

/// `velum node`.
pub(crate) fn with_config(path: &Path, format: Format) -> Result<(), Failure> {
    let config = settings::read_resolved(path)?;
    let secret = secret::fetch(&config.key)?;
    run(config, &secret, &Wishes::default(), format)
}

/// Starts a node, says where it serves, and runs it until SIGINT or SIGTERM.
pub(crate) fn run(config: NodeConfig, secret: &ProviderSecret, wishes: &Wishes, format: Format) -> Result<(), Failure> {
    expect_private_memory();
    on_node_thread(async {
        let (_give, mut word) = listen()?;
        let serving = |served| announce(&[served], format);
        serve(&config, secret, Some(wishes), &mut word, serving).await
    })?
}

/// Warns when other processes can read this one's memory.
pub(crate) fn expect_private_memory() {
    if let Err(error) = keep_memory_private() {
        output::say(&format!("warning: this process's memory can be read by others of the same user: {error}"));
    }
}

/// Starts a node, tells what it serves, and runs it until the word to stop. That is heard from the beginning: a start may wait
/// long for clouds or other nodes.
pub(crate) async fn serve(
    config: &NodeConfig,
    secret: &ProviderSecret,
    wishes: Option<&Wishes>,
    word: &mut Word,
    serving: impl FnOnce(Served),
) -> Result<(), Failure> {
    let started = match select(pin!(start(config, secret, wishes)), pin!(word.next())).await {
        Either::Left((started, _)) => Some(started?),
        Either::Right(_) => None,
    };
    let Some((node, _door, served)) = started else {
        word.say("stopped before anything was served; the next start goes on from here");
        return Ok(());
    };
    serving(served);
    until_stopped(node, word).await
}

/// Where a running node is reached, and what it serves.
#[derive(Debug)]
pub(crate) struct Served {
    node: NodeId,
    nbd: Vec<Address>,
    pub(crate) admin: String,
    /// None are looked for unless they are wished for.
    volumes: Vec<VolumeSummary>,
    took: Duration,
    durability: Durability,
}

/// A node that serves guests and operators.
async fn start(
    config: &NodeConfig,
    secret: &ProviderSecret,
    wishes: Option<&Wishes>,
) -> Result<(Node, AdminServer, Served), Failure> {
    let env = environment()?;
    expect_idle(&env, config).await?;
    preflight::doors(&env, config).await?;
    let listener = AdminListener::bind(&config.admin.listen.to_string()).map_err(|error| Failure::told(&error))?;
    if wishes.is_some_and(|wishes| wishes.create) {
        create(&env, config, secret).await?;
    }
    let clock = Rc::clone(&env.clock);
    let began = clock.now();
    let node = Node::start(env, config.clone(), secret).await.map_err(|error| Failure::told(&error))?;
    // Operators first: a volume that is to be made may wait for clouds, and they can see for which.
    let (door, inbox) = AdminServer::start(listener, Arc::clone(node.metrics()), AdminLimits::default())
        .map_err(|error| Failure::told(&error))?;
    let backend = node.backend();
    actor::spawn(answer(inbox, Rc::clone(&backend)));
    let volumes = match wishes {
        Some(wishes) => volumes(&*backend, wishes, node.is_untouched()).await?,
        None => Vec::new(),
    };
    let (nbd, admin) = (node.nbd_addresses(), format!("http://{}", door.address()));
    let served = Served {
        node: config.node,
        nbd,
        admin,
        volumes,
        took: clock.now().since(began),
        durability: node.durability(),
    };
    Ok((node, door, served))
}

/// Refuses a directory that a running node uses: that says more than that its addresses are taken.
pub(crate) async fn expect_idle(env: &Env, config: &NodeConfig) -> Result<(), Failure> {
    if !files::exists(&Layout::new(&config.dir).lock()) {
        return Ok(());
    }
    node::expect_idle(env, &config.dir).await.map_err(|error| Failure::told(&error))
}

/// Waits for the word to stop, or for the end of the journal, and stops.
async fn until_stopped(node: Node, word: &mut Word) -> Result<(), Failure> {
    let ended = {
        let (failed, parted) = (pin!(node.failed()), pin!(node.ended()));
        let (by_itself, told) = (select(failed, parted), pin!(word.next()));
        match select(told, by_itself).await {
            Either::Left(_) => Ok(None),
            Either::Right((Either::Left((cause, _)), _)) => Ok(Some(cause)),
            Either::Right((Either::Right((verdict, _)), _)) => Err(verdict),
        }
    };
    let failed = match ended {
        Ok(failed) => failed,
        Err(verdict) => {
            select(pin!(node.stop()), pin!(word.next())).await;
            return Err(no_part(verdict));
        }
    };
    let Some(cause) = failed else {
        word.say("stopping; once more stops at once, and loses nothing that was acked");
        select(pin!(node.stop()), pin!(word.next())).await;
        return Ok(());
    };
    output::say(&format!("the journal failed: {cause}. Nothing is acked any more"));
    #[expect(clippy::disallowed_methods, reason = "the command is no part of the node; this only delays its end")]
    let linger = tokio::time::sleep(FAILED_LINGER);
    select(pin!(linger), pin!(word.next())).await;
    let what = format!("the journal failed ({cause}), and with it the node");
    Err(Failure::new(what, "look at the disk and its file system, then start again: a start verifies the journal"))
}

/// Why a node that is no part of the cluster any more has stopped.
fn no_part(verdict: Verdict) -> Failure {
    let remedy = "it never starts again; delete its directory and join under a new number to use the machine again";
    match verdict {
        Verdict::Outlived => Failure::new(
            "the cluster was recovered since; this node belongs to an older life of it",
            format!("what it held that no cloud has is still in its journal (`velum inspect journal`); {remedy}"),
        ),
        Verdict::Removed | Verdict::NoPlace | Verdict::Welcome => {
            Failure::new("the cluster has removed this node", remedy)
        }
    }
}

/// Makes the cluster unless it is there; says so.
async fn create(env: &Env, config: &NodeConfig, secret: &ProviderSecret) -> Result<(), Failure> {
    if !node::is_created(env, config).await.map_err(|error| Failure::told(&error))? {
        let cluster = node::create(env, config, secret).await.map_err(|error| Failure::told(&error))?;
        output::say(&format!("made cluster {cluster} on {} clouds", config.clouds.len()));
    }
    Ok(())
}

/// Sees to it that the volume asked for is there, and in an `untouched` cluster the first one; gives all volumes.
async fn volumes(backend: &dyn Backend, wishes: &Wishes, untouched: bool) -> Result<Vec<VolumeSummary>, Failure> {
    let present = list(backend).await?;
    let (name, size) = match (&wishes.volume, &wishes.first_volume) {
        (Some(name), first) => (name, wishes.size.or_else(|| first.as_ref().map(|(_, size)| *size))),
        (None, Some((name, size))) if untouched => (name, Some(wishes.size.unwrap_or(*size))),
        (None, _) => {
            if present.is_empty() {
                output::say("there is no volume yet: make one with `velum volume create NAME --size SIZE`");
            }
            return no_other_size(present, wishes.size);
        }
    };
    if let Some(found) = present.iter().find(|volume| volume.name == *name) {
        let size_bytes = found.size_bytes;
        return match wishes.size {
            Some(size) if size.bytes() != size_bytes => Err(Failure::usage(
                format!("--size says {size}, volume {name} has {}", Size::from_bytes(size_bytes)),
                format!("leave the flag out, then `velum volume resize {name} --size {size}`"),
            )),
            Some(_) | None => Ok(present),
        };
    }
    if !present.is_empty() {
        let names: Vec<_> = present.iter().map(|volume| volume.name.as_str()).collect();
        return Err(Failure::usage(
            format!("--volume says {name}, the cluster has {}", names.join(", ")),
            format!("leave the flag out, then `velum volume create {name} --size ...`"),
        ));
    }
    let Some(size) = size else {
        return Err(Failure::usage(format!("there is no volume {name}"), "give its size with --size"));
    };
    let create = CreateVolume { name: name.clone(), size_bytes: size.bytes() };
    backend.handle(OWN_PRINCIPAL, Request::CreateVolume(create)).await?;
    // On a unix socket guests have names, and whoever runs the node is the first to want in.
    let principal = format!("uid:{}", rustix::process::geteuid().as_raw());
    let line = AclLine { principal, access: Access::Write, range: None };
    backend.handle(OWN_PRINCIPAL, Request::SetAcl { name: name.clone(), line }).await?;
    output::say(&format!("made volume {name} of {size}"));
    list(backend).await
}

/// A size without a name is meant for the lone volume there is.
fn no_other_size(present: Vec<VolumeSummary>, size: Option<Size>) -> Result<Vec<VolumeSummary>, Failure> {
    let differs = size.filter(|size| !present.iter().any(|volume| volume.size_bytes == size.bytes()));
    match differs {
        Some(size) => Err(Failure::usage(
            format!("--size says {size}, no volume here has that size"),
            "leave the flag out, then `velum volume resize`",
        )),
        None => Ok(present),
    }
}

async fn list(backend: &dyn Backend) -> Result<Vec<VolumeSummary>, Failure> {
    match backend.handle(OWN_PRINCIPAL, Request::ListVolumes).await? {
        Response::Volumes(volumes) => Ok(volumes),
        other => Err(Failure::new(format!("the node listed its volumes as {other:?}"), "report this")),
    }
}

/// What programs are told of nodes that serve.
#[derive(Serialize)]
struct Ready<'a> {
    /// The first node's.
    nbd: Vec<String>,
    /// The first node's.
    admin: &'a str,
    volumes: Vec<&'a str>,
    start_seconds: f64,
    nodes: Vec<ReadyNode<'a>>,
}

/// One of them.
#[derive(Serialize)]
struct ReadyNode<'a> {
    node: u64,
    nbd: Vec<String>,
    admin: &'a str,
}

/// Says where everything is, and what to type next. The first node's volumes are spoken of.
pub(crate) fn announce(nodes: &[Served], format: Format) {
    let Some(Served { nbd, admin, volumes, took, .. }) = nodes.first() else { return };
    let first = volumes.first().map_or("", |volume| volume.name.as_str());
    let uris = |addresses: &[Address]| addresses.iter().map(|address| uri(address, first)).collect::<Vec<_>>();
    if format == Format::Json {
        let nodes = nodes.iter();
        let nodes = nodes.map(|Served { node, nbd, admin, .. }| ReadyNode { node: node.0, nbd: uris(nbd), admin });
        let volumes = volumes.iter().map(|volume| volume.name.as_str()).collect();
        let start_seconds = took.as_secs_f64();
        return output::json(&Ready { nbd: uris(nbd), admin, volumes, start_seconds, nodes: nodes.collect() });
    }
    for volume in volumes {
        for address in nbd {
            let size = bytes(volume.size_bytes);
            output::line(&format!("volume {} ({size}) at {}", volume.name, uri(address, &volume.name)));
        }
    }
    if nodes.len() == 1 {
        output::line(&format!("admin and metrics at {admin}"));
    }
    for Served { node, nbd, admin, .. } in nodes.iter().filter(|_| nodes.len() > 1) {
        let doors: Vec<String> = nbd.iter().map(|address| uri(address, "")).collect();
        output::line(&format!("node {node}: guests at {}, admin and metrics at {admin}", doors.join(" and ")));
    }
    // The node that joined last has heard of all.
    let Some(Served { durability, .. }) = nodes.last() else { return };
    output::line(&format!("\nwhat is acked is {}", durability.write));
    output::line(&format!("after a barrier it is {}", durability.barrier));
    output::line(&format!("within seconds it is {}", durability.flush));
    if let Some(address) = nbd.first().filter(|_| !volumes.is_empty()) {
        output::line(&format!("\n{}", next_steps(&uri(address, first), first, admin, nodes.len() > 1)));
    }
    output::line("\nCtrl-C stops");
}

/// What to type next.
fn next_steps(uri: &str, volume: &str, admin: &str, is_one_of_several: bool) -> String {
    let target = if admin == "http://127.0.0.1:9890" { String::new() } else { format!(" --admin {admin}") };
    let cluster = if is_one_of_several { format!("\n  velum cluster status{target}") } else { String::new() };
    format!(
        "what to type next:\n  \
         nbdinfo '{uri}'\n  \
         nbdcopy disk.img '{uri}'\n  \
         nbdfuse mnt/disk '{uri}' &\n  \
         qemu-system-x86_64 -drive 'format=raw,file={uri}'\n  \
         velum volume flush {volume}{target}\n  \
         velum volume show {volume}{target}{cluster}"
    )
}

/// The address as NBD clients take it.
fn uri(address: &Address, volume: &str) -> String {
    match address {
        Address::Tcp(address) => format!("nbd://{address}/{volume}"),
        Address::Unix(path) => format!("nbd+unix:///{volume}?socket={}", path.display()),
    }
}

/// How often the word to stop was given, as one of those who wait for it hears it.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    #[allow(
        clippy::disallowed_types,
        reason = "nodes of a process may hear the word in any order: it is never simulated"
    )]
    given: watch::Receiver<u32>,
    heard: u32,
    /// Whoever hears it says so: one of several nodes is enough.
    speaks: bool,
}

impl Word {
    /// The same for another node, which does not say that it heard it.
    pub(crate) fn quiet(&self) -> Self {
        Self { speaks: false, ..self.clone() }
    }

    fn say(&self, text: &str) {
        if self.speaks {
            output::say(text);
        }
    }

    /// Completes when it is given once more.
    pub(crate) async fn next(&mut self) {
        let heard = self.heard;
        if self.given.wait_for(|given| *given > heard).await.is_err() {
            // Whoever gives it is gone, and with him the process.
            std::future::pending::<()>().await;
        }
        self.heard += 1;
    }
}

/// Hears what ends nodes: Ctrl-C, or the system's word. The word may be given by other means too.
pub(crate) fn listen() -> Result<(watch::Sender<u32>, Word), Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::told(&error));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let (give, given) = watch::channel(0);
    let giver = give.clone();
    actor::spawn(async move {
        loop {
            select(pin!(interrupt.recv()), pin!(terminate.recv())).await;
            giver.send_modify(|given| *given += 1);
        }
    });
    Ok((give, Word { given, heard: 0, speaks: true }))
}
