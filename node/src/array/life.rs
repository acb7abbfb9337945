//! Whether this life of the cluster is still the newest.
//!
//! A recovery from clouds alone claims the next incarnation on a quorum of clouds. Nodes of the life before may come back
//! afterwards, not knowing; what they would write is void, and what they would delete the new life may need. So nothing is
//! flushed before a quorum of clouds has answered that there is no such claim, the question is repeated for ever, and it is
//! asked once more before each round of deletions. A quorum of answers meets the quorum of the claim in at least one cloud.
//!
//! A cloud that was away or empty when a life was claimed gets the claim before anything of that life: with it, each cloud
//! alone tells which records of an old life are void and where the new one goes on.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    time::Duration,
};

use futures_util::future::join_all;
use velum_protocol::{
    format::{claim::CLAIM_BYTES_MAX, metadata::CloudName},
    id::Incarnation,
};

use super::{
    context::ArrayContext,
    copies::{CopyError, fits_in},
};
use crate::{
    actor,
    cloud::{Cloud, CloudError},
    keyring::Keyring,
};

/// How often the clouds are asked while all is well.
const INTERVAL: Duration = Duration::from_secs(30);

/// Pause before they are asked again when too few answered.
const PAUSE: Duration = Duration::from_secs(1);

/// What is known of this life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    /// Too few clouds have answered since the node started.
    #[default]
    Unknown,
    /// It was the newest when a quorum of clouds was asked last.
    Newest,
    /// A later one has begun. This one never goes on.
    Over,
}

/// What is known of this life and of who knows of it, shared by all that ask.
#[derive(Default)]
pub(crate) struct Known {
    newest: Cell<Life>,
    /// Clouds that hold all claims up to this life's.
    told: RefCell<BTreeSet<CloudName>>,
}

impl Known {
    pub(crate) fn life(&self) -> Life {
        self.newest.get()
    }

    /// Forgets that a cloud holds claims.
    pub(crate) fn forget_cloud(&self, cloud: &CloudName) {
        self.told.borrow_mut().remove(cloud);
    }
}

/// Keeps asking, until this life is over. Runs as long as the `LocalSet` it was started on; nothing is flushed without it.
pub fn watch(array: &ArrayContext) {
    let array = array.clone();
    actor::spawn(async move {
        loop {
            match ask(&array).await {
                Life::Over => return,
                Life::Newest => array.env.clock.sleep(INTERVAL).await,
                Life::Unknown => array.env.clock.sleep(PAUSE).await,
            }
        }
    });
}

/// Brings the claims up to this life's to a cloud. To be done before anything else of this life is stored there.
///
/// # Errors
/// When the cloud does not take one, or no other can give it.
pub(crate) async fn tell(array: &ArrayContext, cloud: &Cloud) -> Result<(), CopyError> {
    if array.known.told.borrow().contains(cloud.name()) {
        return Ok(());
    }
    for life in (2..=array.incarnation().0).map(Incarnation) {
        let id = Keyring::claim_id(life);
        if !array.copies.is_there(cloud, &id).await? {
            let opens = |stored: &bytes::Bytes| array.keyring.open_claim(life, stored).is_ok();
            match array.copies.read_where(&id, fits_in(CLAIM_BYTES_MAX), Some(cloud.name()), opens).await {
                Ok(stored) => array.copies.put(cloud, &id, stored).await?,
                Err(CopyError::Gone) => {
                    tracing::warn!(incarnation = %life, "no cloud has the claim of a life any more")
                }
                Err(error) => return Err(error),
            }
        }
    }
    array.known.told.borrow_mut().insert(cloud.name().clone());
    Ok(())
}

/// Asks all clouds now. [`Life::Unknown`] when too few answer.
pub(crate) async fn ask(array: &ArrayContext) -> Life {
    if array.known.life() == Life::Over {
        return Life::Over;
    }
    let next = array.incarnation().next();
    let name = array.keyring.object_name(&Keyring::claim_id(next));
    let set = array.copies.clouds();
    let answers = join_all(set.clouds.iter().map(|cloud| {
        let name = &name;
        async move {
            let answer = cloud.get(name, fits_in(CLAIM_BYTES_MAX)).await;
            if matches!(answer, Err(CloudError::NotFound)) {
                // A place that was emptied has no claim either, and that says nothing.
                cloud.confirm().await?;
            }
            answer
        }
    }))
    .await;
    let claimed = answers.iter().flatten().any(|stored| array.keyring.open_claim(next, stored).is_ok());
    let without = answers.iter().filter(|answer| matches!(answer, Err(CloudError::NotFound))).count();
    if claimed {
        tracing::error!(incarnation = %next, "the cluster was recovered elsewhere; this node stops flushing for good");
        array.known.newest.set(Life::Over);
        Life::Over
    } else if without >= set.quorum {
        array.known.newest.set(Life::Newest);
        Life::Newest
    } else {
        Life::Unknown
    }
}
