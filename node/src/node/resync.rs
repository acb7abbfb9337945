//! A cloud whose contents are not believed any more begins anew: everything is brought to it again from the others.
//!
//! An operator asks for it when a cloud was emptied for good. It comes by itself when a place was found wrong and holds the
//! cluster's identity again: a disk that was not mounted, a bucket put back from a copy. Then it may hold all that it held, or
//! less; what is there is looked at and not sent again. And the keeper of several nodes has a place begin that nothing lies in.
//!
//! The order matters. First nothing may be under way in the cloud that still goes by the old cursors. Then Raft sets the
//! cursors to nothing. Only then may the place be claimed: an identity stands for a place about which the cursors are right.
//! A crash in between leaves cursors at nothing or an identity that is missing, and either is dealt with by the next start.
//!
//! With several nodes any of them may begin. The metadata counts how often a cloud has begun anew; the others see the count
//! rise and start over with it too, and what they still say by the old cursors is refused. None of them takes an empty place for
//! a new one by itself: the owner of a volume may have stored segments there that no cursor tells of yet, and would go on
//! without them when somebody had claimed the place since it was emptied.

use std::{
    rc::{Rc, Weak},
    time::Duration,
};

use velum_protocol::format::metadata::{CloudName, Command};

use super::Assembly;
use crate::{
    actor,
    cloud::{Cloud, CloudError, identity::Standing},
    metadata::Rejection,
};

/// How often places are looked through for one that has come back.
const INTERVAL: Duration = Duration::from_secs(1);

/// Why a cloud was not made to begin anew.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResyncError {
    /// There is no such cloud.
    #[error("there is no cloud of this name")]
    NoCloud,
    /// Somebody else is at it.
    #[error("this has begun already")]
    Begun,
    /// The place is another cluster's, or does not answer.
    #[error("{0}")]
    Cloud(CloudError),
    /// Its cursors could not be set to nothing.
    #[error("its cursors could not be set back: {0}")]
    Metadata(#[from] Rejection),
}

/// Makes clouds that come back begin anew, for as long as the node lives.
pub(super) fn watch(node: &Rc<Assembly>) {
    let (weak, clock) = (Rc::downgrade(node), Rc::clone(&node.env.clock));
    actor::spawn(async move {
        while look(&weak).await {
            clock.sleep(INTERVAL).await;
        }
    });
}

async fn look(node: &Weak<Assembly>) -> bool {
    let Some(node) = node.upgrade() else { return false };
    for cloud in node.clouds.clouds.iter().filter(|cloud| node.array.is_behind(cloud.name())) {
        match node.follow(cloud).await {
            Ok(()) => tracing::info!(cloud = cloud.name().0, "the cloud has begun anew; so does this node with it"),
            Err(error) => {
                tracing::warn!(cloud = cloud.name().0, %error, "the cloud has begun anew and cannot be used yet");
            }
        }
    }
    for cloud in node.clouds.clouds.iter().filter(|cloud| node.may_begin(cloud)) {
        match node.begin_anew(cloud).await {
            Ok(()) => tracing::info!(cloud = cloud.name().0, "the cloud is there; what it lacks is brought to it"),
            Err(error) => {
                tracing::warn!(cloud = cloud.name().0, %error, "the cloud is there and cannot be used yet; trying again");
            }
        }
    }
    true
}

impl Assembly {
    /// Makes a cloud begin anew, unless its place is another cluster's or does not answer.
    pub(super) async fn resync(&self, name: &str) -> Result<(), ResyncError> {
        let cloud = self.clouds.get(&CloudName(name.to_owned())).ok_or(ResyncError::NoCloud)?;
        match cloud.confirm().await {
            // Emptied, or back again: that is what this is for.
            Err(CloudError::NotOurs(_)) if cloud.standing() != Standing::Foreign => {}
            looked => looked.map_err(ResyncError::Cloud)?,
        }
        self.begin_anew(cloud).await?;
        tracing::warn!(cloud = name, "the cloud begins anew, as an operator asked; what it lacks is brought to it");
        Ok(())
    }

    /// Whether a cloud begins anew without being asked to.
    fn may_begin(&self, cloud: &Cloud) -> bool {
        match cloud.standing() {
            Standing::Returned => true,
            // What this node knew when it started may have been old.
            Standing::Unclaimed => self.array.is_keeper() && !self.metadata.with(|state| state.is_in_use(cloud.name())),
            Standing::Unseen | Standing::Ours | Standing::Emptied | Standing::Foreign => false,
        }
    }

    async fn begin_anew(&self, cloud: &Rc<Cloud>) -> Result<(), ResyncError> {
        let closed = cloud.close().await.ok_or(ResyncError::Begun)?;
        self.array.agree(Command::ResyncCloud { cloud: cloud.name().clone() }).await?;
        self.start_over(cloud.name());
        match cloud.begin_anew(closed).await {
            // It goes on by itself when it answers.
            Ok(()) | Err(CloudError::Away(_) | CloudError::Denied(_) | CloudError::Refused(_)) => Ok(()),
            Err(error) => Err(ResyncError::Cloud(error)),
        }
    }

    /// Begins anew with a cloud because another node had it do so. That one claims the place.
    async fn follow(&self, cloud: &Rc<Cloud>) -> Result<(), ResyncError> {
        let closed = cloud.close().await.ok_or(ResyncError::Begun)?;
        self.start_over(cloud.name());
        closed.expect_nothing();
        Ok(())
    }

    fn start_over(&self, name: &CloudName) {
        self.array.forget_cloud(name);
        self.catalogue.start_over(name);
        for (_, open) in self.open.all() {
            open.array.start_over(name);
        }
    }
}
