//! A new cluster: keys made, clouds claimed, the first raft snapshot written.
//!
//! The order lets a crash at any point be followed by the same call: keys are on disk before a cloud sees the identity, and
//! the raft snapshot comes last. A directory with a snapshot is a cluster; one without is finished or refused.

use std::io;

use futures_util::future::join_all;
use velum_protocol::{format::metadata::CloudName, id::ClusterId};

use super::{files, layout::Layout, start::StartError};
use crate::{
    cloud::identity::{Guard, Identity, Place},
    config::NodeConfig,
    consensus::{self, Member},
    env::{CloudStoreError, Env},
    keyring::{self, Keyring, ProviderSecret},
    metadata::{State, state::CloudEntry},
};

/// The longest identity or slots file; real ones have a few KiB.
const KEY_FILE_BYTES_MAX: u64 = 1 << 20;

/// True when `config.dir` holds a cluster's node already.
///
/// # Errors
/// When the directory cannot be read.
pub async fn is_created(env: &Env, config: &NodeConfig) -> Result<bool, StartError> {
    Ok(consensus::is_bootstrapped(env, &Layout::new(&config.dir).raft()).await?)
}

/// Makes a new cluster of one node in an empty (or unfinished) directory and in empty clouds.
///
/// # Errors
/// When the directory is a node's already, when a cloud holds another cluster, or when fewer than the quorum of clouds can be
/// reached: then nothing but key files and identity objects has been written, and the same call goes on from there.
pub async fn create(env: &Env, config: &NodeConfig, secret: &ProviderSecret) -> Result<ClusterId, StartError> {
    let layout = Layout::new(&config.dir);
    env.disk.create_dir_all(layout.dir()).await.map_err(|error| StartError::disk(layout.dir(), error))?;
    let _lock = super::start::lock(env, &layout).await?;
    if is_created(env, config).await? {
        return Err(StartError::AlreadyCreated(config.dir.clone()));
    }
    let (keyring, identity) = make_keys(env, &layout, secret).await?;
    claim_clouds(env, config, &identity).await?;
    let state = State::new(keyring.cluster(), cloud_entries(config), quorum(config));
    consensus::bootstrap(env, &layout.raft(), member(config, &keyring), state.save()).await?;
    Ok(keyring.cluster())
}

/// Stores what a recovery found as a node that [`super::Node::start`] starts.
///
/// # Errors
/// When the directory is a node's already or cannot be written.
pub async fn adopt(
    env: &Env,
    config: &NodeConfig,
    identity: &Identity,
    keyring: &Keyring,
    state: &State,
) -> Result<(), StartError> {
    let layout = Layout::new(&config.dir);
    env.disk.create_dir_all(layout.dir()).await.map_err(|error| StartError::disk(layout.dir(), error))?;
    let _lock = super::start::lock(env, &layout).await?;
    if is_created(env, config).await? {
        return Err(StartError::AlreadyCreated(config.dir.clone()));
    }
    write_keys(env, &layout, identity).await?;
    consensus::bootstrap(env, &layout.raft(), member(config, keyring), state.save()).await?;
    Ok(())
}

/// This node in its raft group.
pub(super) fn member(config: &NodeConfig, keyring: &Keyring) -> Member {
    Member { node: config.node, cluster: keyring.cluster(), seal: keyring.state().clone() }
}

/// The clouds as the replicated metadata names them.
#[must_use]
pub fn cloud_entries(config: &NodeConfig) -> Vec<CloudEntry> {
    let entry =
        |cloud: &crate::config::CloudConfig| CloudEntry { name: CloudName(cloud.name.clone()), url: cloud.url.clone() };
    config.clouds.iter().map(entry).collect()
}

/// How many clouds must hold something.
#[must_use]
pub fn quorum(config: &NodeConfig) -> u32 {
    u32::try_from(config.cloud_quorum()).expect("the config bounds the number of clouds")
}

async fn make_keys(env: &Env, layout: &Layout, secret: &ProviderSecret) -> Result<(Keyring, Identity), StartError> {
    if let Some(found) = read_keys(env, layout, secret).await? {
        return Ok(found);
    }
    let made = keyring::create_cluster(&*env.entropy, secret)?;
    let generation = made.keyring.generation();
    let identity = Identity { object: made.identity_object, slots: made.slots_object, generation };
    write_keys(env, layout, &identity).await?;
    Ok((made.keyring, identity))
}

pub(super) async fn write_keys(env: &Env, layout: &Layout, identity: &Identity) -> Result<(), StartError> {
    let keys = layout.keys();
    env.disk.create_dir_all(&keys).await.map_err(|error| StartError::disk(&keys, error))?;
    for (path, contents) in [(layout.slots(), &identity.slots), (layout.identity(), &identity.object)] {
        files::replace(&*env.disk, &path, contents).await.map_err(|error| StartError::disk(&path, error))?;
    }
    env.disk.sync_dir(layout.dir()).await.map_err(|error| StartError::disk(layout.dir(), error))
}

/// The node's copies of the key objects, opened; `None` when there are none yet.
pub(super) async fn read_keys(
    env: &Env,
    layout: &Layout,
    secret: &ProviderSecret,
) -> Result<Option<(Keyring, Identity)>, StartError> {
    let read = async |path: std::path::PathBuf| {
        files::read(&*env.disk, &path, KEY_FILE_BYTES_MAX).await.map_err(|error| StartError::disk(&path, error))
    };
    // The slots are written first, so an identity without slots is damage and shows as a missing file below.
    let Some(object) = read(layout.identity()).await? else { return Ok(None) };
    let slots =
        read(layout.slots()).await?.ok_or_else(|| StartError::disk(&layout.slots(), io::ErrorKind::NotFound.into()))?;
    let keyring = keyring::open_cluster(&object, &slots, secret)?;
    let generation = keyring.generation();
    Ok(Some((keyring, Identity { object, slots, generation })))
}

/// Claims every cloud that answers; a quorum must, and none may be another cluster's.
async fn claim_clouds(env: &Env, config: &NodeConfig, identity: &Identity) -> Result<(), StartError> {
    let clouds = config.placed_clouds();
    let claims = clouds.iter().map(|cloud| async move {
        let store = env.clouds.open(&cloud.url, &cloud.options)?;
        let place = Place { may_be_new: true, is_shared: false };
        Guard::new(store, identity.clone(), place).look().await
    });
    let mut claimed = 0;
    let mut first_error = None;
    for (cloud, claim) in config.clouds.iter().zip(join_all(claims).await) {
        match claim {
            Ok(()) => claimed += 1,
            Err(error @ (CloudStoreError::Refused(_) | CloudStoreError::NotOurs(_))) => {
                return Err(StartError::Cloud { name: cloud.name.clone(), error });
            }
            Err(error) => {
                first_error.get_or_insert(StartError::Cloud { name: cloud.name.clone(), error });
            }
        }
    }
    match first_error {
        Some(error) if claimed < config.cloud_quorum() => Err(error),
        _ => Ok(()),
    }
}
