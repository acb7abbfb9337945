//! The keys of a cluster: its own, and its volumes' from the newest catalogue that its clouds have.

use std::{collections::BTreeMap, path::Path};

use velum_node::{
    array::recover,
    config::NodeConfig,
    env::Env,
    keyring::{self, KeySet, Keyring, ProviderSecret},
    node::Layout,
};
use velum_protocol::id::VolumeId;

use crate::{clouds, error::Failure, files, secret, settings};

/// What opens sealed things.
pub(super) struct Keys {
    pub(super) keyring: Keyring,
    volumes: Result<BTreeMap<VolumeId, KeySet>, String>,
}

impl Keys {
    /// Asks the clouds of a config, and when they do not answer, the node's own copies, which know no volume's keys.
    pub(super) async fn of(env: &Env, config: &Path) -> Result<Self, Failure> {
        let config = settings::read_resolved(config)?;
        let secret = secret::fetch(&config.key)?;
        let clouds: Vec<_> = config.placed_clouds().iter().map(clouds::at).collect();
        let (keyring, catalogue) = match recover::catalogue(env, &clouds, &secret).await {
            Ok(found) => found,
            Err(error) => {
                let keyring = own_copies(&config, &secret)?;
                return Ok(Self { keyring, volumes: Err(format!("no cloud gave the volumes' keys: {error}")) });
            }
        };
        let mut volumes = BTreeMap::new();
        for entry in &catalogue.volumes {
            let keys = keyring.key_set(entry.volume, &entry.keys).map_err(|error| Failure::told(&error))?;
            volumes.insert(entry.volume, keys);
        }
        Ok(Self { keyring, volumes: Ok(volumes) })
    }

    /// A volume's keys, or why there are none.
    pub(super) fn volume(&self, volume: VolumeId) -> Result<&KeySet, String> {
        let volumes = self.volumes.as_ref().map_err(Clone::clone)?;
        volumes.get(&volume).ok_or_else(|| format!("the catalogue has no volume {volume}, so there is no key for it"))
    }
}

fn own_copies(config: &NodeConfig, secret: &ProviderSecret) -> Result<Keyring, Failure> {
    let layout = Layout::new(&config.dir);
    let (identity, slots) = (files::read(&layout.identity())?, files::read(&layout.slots())?);
    keyring::open_cluster(&identity, &slots, secret).map_err(|error| {
        Failure::new(format!("the keys in {} do not open: {error}", config.dir.display()), "give the right root key")
    })
}
