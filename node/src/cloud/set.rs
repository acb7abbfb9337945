//! The configured clouds together.

use std::{rc::Rc, time::Duration};

use futures_util::future::join_all;
use velum_protocol::format::metadata::CloudName;

use super::{
    identity::{Identity, Place, Standing},
    one::Cloud,
};
use crate::{
    config::CloudConfig,
    env::{Clock, CloudStoreError, Env},
    metrics::{CloudState, Metrics},
};

/// How often a cloud that is down, or whose place was found wrong, is asked whether it is back.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// A cloud of the configuration cannot be opened.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cloud `{cloud}` ({url}) cannot be opened: {source}")]
pub struct OpenCloudError {
    /// Its name.
    pub cloud: String,
    /// Its URL, which holds no credentials.
    pub url: String,
    /// Why.
    pub source: CloudStoreError,
}

/// All configured clouds, in the order of the configuration.
#[derive(Clone)]
pub struct CloudSet {
    /// The clouds.
    pub clouds: Vec<Rc<Cloud>>,
    /// w: how many must hold a thing for it to be cloud-durable.
    pub quorum: usize,
}

impl CloudSet {
    /// Opens the clouds of the cluster that `identity` names. `place` says of a URL whether it has been in use before and must
    /// hold that already. No request is made.
    ///
    /// # Errors
    /// When a URL or option is not understood.
    pub fn open(
        env: &Env,
        configs: &[CloudConfig],
        quorum: usize,
        (identity, place): (&Identity, &dyn Fn(&str) -> Place),
        metrics: &Metrics,
    ) -> Result<Self, OpenCloudError> {
        let open = |config: &CloudConfig| {
            let CloudConfig { name, url, options } = config;
            let failed = |source| OpenCloudError { cloud: name.clone(), url: url.clone(), source };
            let store = env.clouds.open(url, options).map_err(failed)?;
            let place = (identity.clone(), place(url));
            Ok(Cloud::new(env, CloudName(name.clone()), store, place, metrics.cloud(name)))
        };
        Ok(Self { clouds: configs.iter().map(open).collect::<Result<_, _>>()?, quorum })
    }

    /// Looks at clouds that are down or not the cluster's now and then, so that they count as up again also when nothing
    /// else is asked of them. To be spawned; never completes.
    pub async fn watch(self, clock: Rc<dyn Clock>) {
        loop {
            clock.sleep(WATCH_INTERVAL).await;
            let looks = self.clouds.iter().filter(|cloud| needs_a_look(cloud)).map(|cloud| cloud.confirm());
            // Whatever comes back is an answer, also that the place is another's.
            drop(join_all(looks).await);
        }
    }

    /// The cloud of a name.
    #[must_use]
    pub fn get(&self, name: &CloudName) -> Option<&Rc<Cloud>> {
        self.clouds.iter().find(|cloud| cloud.name() == name)
    }
}

fn needs_a_look(cloud: &Cloud) -> bool {
    cloud.state() == CloudState::Away
        || matches!(cloud.standing(), Standing::Emptied | Standing::Unclaimed | Standing::Foreign)
}
