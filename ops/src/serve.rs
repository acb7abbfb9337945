//! Runs a node in this process until it is told to stop.

use std::{path::Path, pin::pin, rc::Rc, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use serde::Serialize;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
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

/// Starts a node, says where it serves, and runs it until SIGINT or SIGTERM. The word to stop is heard from the beginning:
/// a start may wait long for clouds.
pub(crate) fn run(config: NodeConfig, secret: &ProviderSecret, wishes: &Wishes, format: Format) -> Result<(), Failure> {
    if let Err(error) = keep_memory_private() {
        output::say(&format!("warning: this process's memory can be read by others of the same user: {error}"));
    }
    on_node_thread(async {
        let mut signals = Signals::listen()?;
        let started = match select(pin!(start(&config, secret, wishes, format)), pin!(signals.next())).await {
            Either::Left((started, _)) => Some(started?),
            Either::Right(_) => None,
        };
        match started {
            Some((node, _door)) => until_stopped(node, &mut signals).await,
            None => {
                output::say("stopped before anything was served; the next start goes on from here");
                Ok(())
            }
        }
    })?
}

/// A node that serves guests and operators.
async fn start(
    config: &NodeConfig,
    secret: &ProviderSecret,
    wishes: &Wishes,
    format: Format,
) -> Result<(Node, AdminServer), Failure> {
    let env = environment()?;
    expect_idle(&env, config).await?;
    preflight::doors(&env, config).await?;
    let listener = AdminListener::bind(&config.admin.listen.to_string()).map_err(|error| Failure::told(&error))?;
    if wishes.create {
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
    let volumes = volumes(&*backend, wishes, node.is_untouched()).await?;
    announce(&node, config, &door, &volumes, clock.now().since(began), format);
    Ok((node, door))
}

/// Refuses a directory that a running node uses: that says more than that its addresses are taken.
pub(crate) async fn expect_idle(env: &Env, config: &NodeConfig) -> Result<(), Failure> {
    if !files::exists(&Layout::new(&config.dir).lock()) {
        return Ok(());
    }
    node::expect_idle(env, &config.dir).await.map_err(|error| Failure::told(&error))
}

/// Waits for the word to stop, or for the end of the journal, and stops.
async fn until_stopped(node: Node, signals: &mut Signals) -> Result<(), Failure> {
    let ended = {
        let (failed, parted) = (pin!(node.failed()), pin!(node.ended()));
        let (by_itself, told) = (select(failed, parted), pin!(signals.next()));
        match select(told, by_itself).await {
            Either::Left(_) => Ok(None),
            Either::Right((Either::Left((cause, _)), _)) => Ok(Some(cause)),
            Either::Right((Either::Right((verdict, _)), _)) => Err(verdict),
        }
    };
    let failed = match ended {
        Ok(failed) => failed,
        Err(verdict) => {
            select(pin!(node.stop()), pin!(signals.next())).await;
            return Err(no_part(verdict));
        }
    };
    let Some(cause) = failed else {
        output::say("stopping; once more stops at once, and loses nothing that was acked");
        select(pin!(node.stop()), pin!(signals.next())).await;
        return Ok(());
    };
    output::say(&format!("the journal failed: {cause}. Nothing is acked any more"));
    #[expect(clippy::disallowed_methods, reason = "the command is no part of the node; this only delays its end")]
    let linger = tokio::time::sleep(FAILED_LINGER);
    select(pin!(linger), pin!(signals.next())).await;
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

/// Where a running node is reached.
#[derive(Serialize)]
struct Ready {
    nbd: Vec<String>,
    admin: String,
    volumes: Vec<String>,
    start_seconds: f64,
}

/// Says where everything is, and what to type next.
fn announce(
    node: &Node,
    config: &NodeConfig,
    door: &AdminServer,
    volumes: &[VolumeSummary],
    took: Duration,
    format: Format,
) {
    let addresses = node.nbd_addresses();
    let admin = format!("http://{}", door.address());
    let first = volumes.first().map_or("", |volume| volume.name.as_str());
    let uris: Vec<String> = addresses.iter().map(|address| uri(address, first)).collect();
    if format == Format::Json {
        let volumes = volumes.iter().map(|volume| volume.name.clone()).collect();
        output::json(&Ready { nbd: uris, admin, volumes, start_seconds: took.as_secs_f64() });
        return;
    }
    for volume in volumes {
        for address in &addresses {
            output::line(&format!(
                "volume {} ({}) at {}",
                volume.name,
                bytes(volume.size_bytes),
                uri(address, &volume.name)
            ));
        }
    }
    output::line(&format!("admin and metrics at {admin}"));
    let durability = Durability::one_node(config.clouds.len(), config.cloud_quorum());
    output::line(&format!("\nwhat is acked is {}", durability.write));
    output::line(&format!("after a barrier it is {}", durability.barrier));
    output::line(&format!("within seconds it is {}", durability.flush));
    if let Some(uri) = uris.first().filter(|_| !volumes.is_empty()) {
        output::line(&format!("\n{}", next_steps(uri, first, &admin)));
    }
    output::line("\nCtrl-C stops");
}

/// What to type next.
fn next_steps(uri: &str, volume: &str, admin: &str) -> String {
    let target = if admin == "http://127.0.0.1:9890" { String::new() } else { format!(" --admin {admin}") };
    format!(
        "what to type next:\n  \
         nbdinfo '{uri}'\n  \
         nbdcopy disk.img '{uri}'\n  \
         nbdfuse mnt/disk '{uri}' &\n  \
         qemu-system-x86_64 -drive 'format=raw,file={uri}'\n  \
         velum volume flush {volume}{target}\n  \
         velum volume show {volume}{target}"
    )
}

/// The address as NBD clients take it.
fn uri(address: &Address, volume: &str) -> String {
    match address {
        Address::Tcp(address) => format!("nbd://{address}/{volume}"),
        Address::Unix(path) => format!("nbd+unix:///{volume}?socket={}", path.display()),
    }
}

/// What ends a node: Ctrl-C, or the system's word.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::told(&error));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        let (interrupt, terminate) = (pin!(self.interrupt.recv()), pin!(self.terminate.recv()));
        select(interrupt, terminate).await;
    }
}
