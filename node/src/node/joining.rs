//! A new node of a cluster that there is: keys from the clouds, a token, a raft log that knows nothing.
//!
//! The root key opens the cluster's keys wherever their objects lie, so nothing secret comes from a member. What is written is
//! the keys, the token with a key of the node's own, and last a raft snapshot that knows nothing: a directory with one is a
//! node, and its start asks for the place that the token stands for until it is let in.

use std::io;

use velum_protocol::{
    format::metadata::CloudName,
    invitation::{Invitation, JoinFile, TOKEN_BYTES_MAX},
};

use super::{create, files, layout::Layout, start, start::StartError};
use crate::{
    array::recover::{self, CloudAt},
    config::NodeConfig,
    consensus,
    env::Env,
    keyring::ProviderSecret,
};

/// Why a node is not made to join; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its settings say nothing of other nodes.
    #[error("the settings have no [peers] table; add one with listen, so that the other nodes find this one")]
    NoPeers,
    /// The token is for another node.
    #[error("the token is for node {token}, the settings say node {settings}; set node = {token}")]
    OtherNode {
        /// The token's.
        token: u64,
        /// The settings'.
        settings: u64,
    },
    /// The clouds hold another cluster than the token is for.
    #[error(
        "the clouds of the settings hold cluster {found}, the token is for {token}; configure the cluster's own clouds"
    )]
    OtherCluster {
        /// In the clouds.
        found: String,
        /// The token's.
        token: String,
    },
    /// The keys are not to be had.
    #[error("the cluster's keys cannot be read from the clouds: {0}")]
    Keys(#[from] recover::RecoverError),
    /// As for any start.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Makes the node of `config` in an empty directory, to join with a token when it is started.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(
    env: &Env,
    config: &NodeConfig,
    secret: &ProviderSecret,
    invitation: Invitation,
) -> Result<(), JoinError> {
    if config.peers.is_none() {
        return Err(JoinError::NoPeers);
    }
    if config.node != invitation.node {
        return Err(JoinError::OtherNode { token: invitation.node.0, settings: config.node.0 });
    }
    if create::is_created(env, config).await? {
        return Err(StartError::AlreadyCreated(config.dir.clone()).into());
    }
    let at = |cloud: crate::config::CloudConfig| CloudAt {
        name: CloudName(cloud.name),
        url: cloud.url,
        options: cloud.options,
    };
    let clouds: Vec<CloudAt> = config.placed_clouds().into_iter().map(at).collect();
    let (keyring, identity) = recover::keys(env, &clouds, secret).await?;
    if keyring.cluster() != invitation.cluster {
        let (found, token) = (keyring.cluster().to_string(), invitation.cluster.to_string());
        return Err(JoinError::OtherCluster { found, token });
    }
    let layout = Layout::new(&config.dir);
    let failed = |error| StartError::disk(layout.dir(), error);
    env.disk.create_dir_all(layout.dir()).await.map_err(failed)?;
    let _lock = start::lock(env, &layout).await?;
    create::write_keys(env, &layout, &identity).await?;
    let file = JoinFile { key: env.entropy.fresh32(), invitation };
    files::replace(&*env.disk, &layout.join(), &file.encode()).await.map_err(failed)?;
    let member = create::member(config, &keyring);
    consensus::join(env, &layout.raft(), member).await.map_err(StartError::from)?;
    Ok(())
}

/// The token of a node that has not joined yet.
pub(super) async fn read(env: &Env, layout: &Layout) -> Result<Option<JoinFile>, StartError> {
    let path = layout.join();
    let failed = |error| StartError::disk(&path, error);
    let Some(bytes) = files::read(&*env.disk, &path, TOKEN_BYTES_MAX as u64 + 64).await.map_err(failed)? else {
        return Ok(None);
    };
    let file = JoinFile::decode(&bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    Ok(Some(file))
}

/// The node has joined, and its token is worth nothing any more.
pub(super) async fn forget(env: &Env, layout: &Layout) -> Result<(), StartError> {
    let path = layout.join();
    env.disk.remove(&path).await.map_err(|error| StartError::disk(&path, error))?;
    env.disk.sync_dir(layout.dir()).await.map_err(|error| StartError::disk(layout.dir(), error))
}
