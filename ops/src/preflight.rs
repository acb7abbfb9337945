//! What can be looked at before anything is made: addresses, directories, clouds.
//!
//! A first run that cannot succeed ends here, with everything as it was: nothing in the directory, nothing in any cloud.
//! Each check reports all that it finds, not the first fault alone.

use std::{fmt::Write, net::TcpListener, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::future::{Either, join_all, select};
use velum_node::{
    config::{CloudConfig, NodeConfig},
    env::{CloudStore, CloudStoreError, Env, network::Address},
    keyring::IDENTITY_NAME,
};

use crate::{clouds, error::Failure, files, output};

/// An identity object has some tens of bytes.
const IDENTITY_BYTES_MAX: u64 = 64 << 10;

/// What a look writes into each cloud, and takes away again.
const PROBE: &[u8] = b"velum looked whether this place can be written; this object may be deleted\n";

/// A cloud that has not answered a request by then counts as away.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Whether every door can be opened. Holds each address for a moment only.
pub(crate) async fn doors(env: &Env, config: &NodeConfig) -> Result<(), Failure> {
    let mut faults = Vec::new();
    for listen in &config.nbd.listen {
        // A socket in a directory that is yet to be made is in nobody's way.
        let unmade = matches!(listen.address(), Address::Unix(path) if path.parent().is_some_and(|folder| {
            !files::exists(folder) && folder.starts_with(&config.base)
        }));
        if !unmade && let Err(error) = env.network.listen(listen.address()).await {
            faults.push(format!("cannot listen on {listen} for guests (nbd.listen, --nbd): {error}"));
        }
    }
    let admin = &config.admin.listen;
    if let Err(error) = TcpListener::bind(admin.to_string()) {
        faults.push(format!("cannot listen on {admin} for operators (admin.listen, --admin): {error}"));
    }
    if let Some(peers) = &config.peers
        && let Err(error) = TcpListener::bind(peers.listen.to_string())
    {
        faults.push(format!("cannot listen on {} for other nodes (peers.listen): {error}", peers.listen));
    }
    if faults.is_empty() {
        return Ok(());
    }
    let remedy = "stop what listens there, or give another address: by its flag on a first run, later in node.toml";
    Err(Failure::new(faults.join("\n"), remedy))
}

/// Whether a new cluster can be made in these clouds: each answers, none is another cluster's, each takes an object and gives
/// it back, and no two are the same place. `own` is the identity that an unfinished first run has left on disk.
pub(crate) async fn places(env: &Env, config: &NodeConfig, own: Option<&[u8]>) -> Result<(), Failure> {
    let mut faults = Vec::new();
    let mut stores: Vec<(CloudConfig, Rc<dyn CloudStore>)> = Vec::new();
    for cloud in config.placed_clouds() {
        match open(env, &cloud) {
            Ok(Some(store)) => stores.push((cloud, store)),
            Ok(None) => {}
            Err(fault) => faults.push(fault),
        }
    }
    let looks = stores.iter().map(|(cloud, store)| whose(env, cloud, &**store, own));
    faults.extend(join_all(looks).await.into_iter().filter_map(Result::err));
    refuse(faults)?;
    refuse(probe(env, &stores).await)
}

fn refuse(faults: Vec<String>) -> Result<(), Failure> {
    if faults.is_empty() {
        return Ok(());
    }
    let remedy = "correct it and run the command again; nothing was made";
    Err(Failure::new(faults.join("\n"), remedy))
}

/// The store; none for a directory that is yet to be made.
fn open(env: &Env, cloud: &CloudConfig) -> Result<Option<Rc<dyn CloudStore>>, String> {
    if let Some(folder) = clouds::folder(cloud).filter(|folder| !files::exists(folder)) {
        return match files::can_be_made(&folder) {
            Ok(()) => Ok(None),
            Err(why) => Err(format!("cloud {} ({}): the directory cannot be made: {why}", cloud.name, cloud.url)),
        };
    }
    let store = env.clouds.open(&cloud.url, &cloud.options);
    store.map(Some).map_err(|error| format!("cloud {} ({}): {error}", cloud.name, cloud.url))
}

/// Looks whose a cloud is.
async fn whose(env: &Env, cloud: &CloudConfig, store: &dyn CloudStore, own: Option<&[u8]>) -> Result<(), String> {
    match in_time(env, store.get(IDENTITY_NAME, IDENTITY_BYTES_MAX)).await {
        Err(CloudStoreError::NotFound) => Ok(()),
        Ok(found) if own.is_some_and(|own| *own == *found) => Ok(()),
        Ok(_) => Err(format!(
            "cloud {} ({}) holds a cluster already; `velum recover` brings it back, or name another bucket or prefix",
            cloud.name, cloud.url
        )),
        Err(error) => Err(format!("cloud {} ({}): {error}", cloud.name, cloud.url)),
    }
}

/// Writes a small object into each cloud, reads it back, and takes it away. What one cloud was given must not show in
/// another: then they are one place under two names, and losing it would lose both.
async fn probe(env: &Env, stores: &[(CloudConfig, Rc<dyn CloudStore>)]) -> Vec<String> {
    let names: Vec<String> = stores.iter().map(|_| probe_name(env)).collect();
    let written = join_all(stores.iter().zip(&names).map(|((cloud, store), name)| async move {
        let fault =
            |what: &str, error: &CloudStoreError| format!("cloud {} ({}): {what}: {error}", cloud.name, cloud.url);
        in_time(env, store.put(name, Bytes::from_static(PROBE))).await.map_err(|error| fault("writing", &error))?;
        match in_time(env, store.get(name, IDENTITY_BYTES_MAX)).await {
            Ok(found) if found == PROBE => Ok(()),
            Ok(_) => Err(format!("cloud {} ({}) gave back other bytes than were stored", cloud.name, cloud.url)),
            Err(error) => Err(fault("reading back what was written", &error)),
        }
    }));
    let mut faults: Vec<String> = written.await.into_iter().filter_map(Result::err).collect();
    if faults.is_empty() {
        for (index, (cloud, store)) in stores.iter().enumerate() {
            let others = stores.iter().zip(&names).take(index);
            for ((other, _), name) in others {
                if in_time(env, store.head(name)).await.is_ok() {
                    let (left, right) = (&other.name, &cloud.name);
                    faults
                        .push(format!("clouds {left} and {right} are the same place under two URLs; name another one"));
                }
            }
        }
    }
    for ((cloud, store), name) in stores.iter().zip(&names) {
        if let Err(error) = in_time(env, store.delete(name)).await {
            let what = "may be deleted by hand, and what is no longer needed will stay there";
            output::say(&format!("warning: cloud {} does not delete: {error}; {name} {what}", cloud.name));
        }
    }
    faults
}

fn probe_name(env: &Env) -> String {
    let mut name = "velum/check/".to_owned();
    for byte in env.entropy.fresh16() {
        write!(name, "{byte:02x}").expect("a string takes all that is written");
    }
    name
}

async fn in_time<T>(
    env: &Env,
    request: impl Future<Output = Result<T, CloudStoreError>>,
) -> Result<T, CloudStoreError> {
    let late = env.clock.sleep(ANSWER_MAX);
    match select(std::pin::pin!(request), late).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => Err(CloudStoreError::Unavailable(format!("no answer within {} s", ANSWER_MAX.as_secs()))),
    }
}
