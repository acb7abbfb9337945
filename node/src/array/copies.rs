//! Copies of objects in the clouds: storing one on enough clouds, bringing one to a cloud that lacks it, reading and deleting.
//!
//! Objects never change, so every call may be repeated. A cloud that fails is nobody's trouble but its own: an object is
//! stored when enough clouds have it, and what the others lack is brought to them by their cursors later. Bytes that come
//! from a cloud are compared with the hash they are known by before they go anywhere, so damage never spreads.

use std::{cell::RefCell, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::sync::Notify;
use velum_protocol::{
    checksum,
    format::metadata::{CloudName, ObjectRef},
    id::Hash,
};

use super::shelf::Shelf;
use crate::{
    actor,
    cloud::{Cloud, CloudError, CloudSet, identity::Visit},
    env::Clock,
    keyring::{Keyring, ObjectId},
};

/// First pause after a cloud refused an object; `Cloud` itself has tried a few times by then.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// Longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Bytes on their way to one cloud without anybody waiting for them; more are left to its cursor. So a cloud that stalls
/// does not fill the memory.
const LAG_BYTES_MAX: usize = 64 << 20;

/// Why an object could not be brought to a cloud.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The cloud it should go to failed.
    #[error("cloud {} does not take the object: {error}", .cloud.0)]
    Target {
        /// Which.
        cloud: CloudName,
        /// How.
        error: CloudError,
    },
    /// No other cloud could give it now.
    #[error("no cloud can give the object now")]
    Source,
    /// Every other cloud says that it has no such object.
    #[error("no cloud has the object any more")]
    Gone,
}

/// Reads and writes objects in all clouds of the cluster.
pub struct Copies {
    keyring: Keyring,
    clouds: Rc<CloudSet>,
    clock: Rc<dyn Clock>,
    shelf: RefCell<Shelf>,
    lags: RefCell<Vec<usize>>,
    changed: Notify,
}

impl Copies {
    /// Over the clouds of a set.
    #[must_use]
    pub fn new(keyring: Keyring, clouds: Rc<CloudSet>, clock: Rc<dyn Clock>) -> Rc<Self> {
        let lags = RefCell::new(vec![0; clouds.clouds.len()]);
        Rc::new(Self { keyring, clouds, clock, shelf: RefCell::default(), lags, changed: Notify::new() })
    }

    /// The clouds.
    #[must_use]
    pub fn clouds(&self) -> &CloudSet {
        &self.clouds
    }

    /// The cloud of a name.
    #[must_use]
    pub fn cloud(&self, name: &CloudName) -> Option<Rc<Cloud>> {
        self.clouds.clouds.iter().find(|cloud| cloud.name() == name).cloned()
    }

    /// The cloud of a name, with a visit there; none while it takes none.
    pub(crate) fn enter(&self, name: &CloudName) -> Option<(Visit, Rc<Cloud>)> {
        let cloud = self.cloud(name)?;
        Some((cloud.enter()?, cloud))
    }

    /// Stores an object: sends it to all clouds at once and returns when enough have it. Goes on for as long as that takes;
    /// clouds that need longer than the others are left to it in the background.
    pub async fn store(self: &Rc<Self>, id: ObjectId, stored: Bytes) {
        self.shelf.borrow_mut().put_up(id, stored.clone());
        for place in 0..self.clouds.clouds.len() {
            let Some(cloud) = self.clouds.clouds.get(place).cloned() else { continue };
            self.shelf.borrow_mut().set_busy(id, cloud.name());
            let own = Rc::clone(self);
            let stored = stored.clone();
            actor::spawn(async move { own.send(place, &cloud, id, stored).await });
        }
        self.wait_for(|shelf| shelf.holders(&id) >= self.clouds.quorum).await;
    }

    /// Keeps an object's bytes at hand for calls to [`Copies::bring`], without storing it anywhere.
    pub fn hold(&self, id: ObjectId, stored: Bytes) {
        self.shelf.borrow_mut().put_up(id, stored);
    }

    /// Sends an object to one cloud until it is there, or until enough others have it and this one has failed.
    async fn send(&self, place: usize, cloud: &Cloud, id: ObjectId, stored: Bytes) {
        let enough = |shelf: &Shelf| shelf.holders(&id) >= self.clouds.quorum;
        self.wait_for(|shelf| self.lag(place) < LAG_BYTES_MAX || enough(shelf)).await;
        let mut held = false;
        if self.lag(place) < LAG_BYTES_MAX {
            self.add_lag(place, stored.len());
            let name = self.keyring.object_name(&id);
            let mut pause = PAUSE_MIN;
            loop {
                if let Some(_visit) = cloud.enter() {
                    held = cloud.put(&name, stored.clone()).await.is_ok();
                    if held {
                        self.sent(id, cloud.name(), held);
                    }
                } else {
                    // Nothing is on its way to a place that takes nothing; nobody is to wait for it.
                    self.sent(id, cloud.name(), false);
                }
                if held || enough(&self.shelf.borrow()) {
                    break;
                }
                self.clock.sleep(pause).await;
                pause = pause.saturating_mul(2).min(PAUSE_MAX);
            }
            self.take_lag(place, stored.len());
        }
        if !held {
            self.sent(id, cloud.name(), held);
        }
    }

    /// A copy has arrived, or is not on its way any more.
    fn sent(&self, id: ObjectId, cloud: &CloudName, held: bool) {
        let mut shelf = self.shelf.borrow_mut();
        shelf.set_done(id, cloud, held);
        if shelf.holders(&id) == self.clouds.clouds.len() {
            shelf.take_down(&id);
        }
        drop(shelf);
        self.changed.notify_waiters();
    }

    /// Forgets what was known to be in a cloud.
    pub(crate) fn forget_cloud(&self, cloud: &CloudName) {
        self.shelf.borrow_mut().forget_cloud(cloud);
    }

    /// Makes sure that what was stored in a cloud until now was stored in the cluster's own place.
    ///
    /// # Errors
    /// When it was not, or the cloud does not answer.
    pub async fn confirm(&self, cloud: &Cloud) -> Result<(), CopyError> {
        cloud.confirm().await.map_err(|error| CopyError::Target { cloud: cloud.name().clone(), error })
    }

    /// Brings an object to a cloud unless it is there.
    ///
    /// # Errors
    /// When the cloud does not take it, or nobody can give it.
    pub async fn bring(&self, cloud: &Cloud, id: &ObjectId, object: &ObjectRef) -> Result<(), CopyError> {
        let target = |error| CopyError::Target { cloud: cloud.name().clone(), error };
        self.wait_for(|shelf| !shelf.is_busy(id, cloud.name())).await;
        if self.shelf.borrow().is_held(id, cloud.name()) {
            return Ok(());
        }
        let name = self.keyring.object_name(id);
        if cloud.head(&name).await.map_err(target)? != Some(object.bytes) {
            let kept = self.shelf.borrow().bytes_of(id);
            let stored = match kept {
                Some(stored) => stored,
                None => self.read(id, object, Some(cloud.name())).await?,
            };
            cloud.put(&name, stored).await.map_err(target)?;
        }
        self.shelf.borrow_mut().set_done(*id, cloud.name(), true);
        Ok(())
    }

    /// Stores bytes in one cloud under an object's name.
    ///
    /// # Errors
    /// When the cloud does not take them.
    pub async fn put(&self, cloud: &Cloud, id: &ObjectId, stored: Bytes) -> Result<(), CopyError> {
        let name = self.keyring.object_name(id);
        cloud.put(&name, stored).await.map_err(|error| CopyError::Target { cloud: cloud.name().clone(), error })
    }

    /// Reads an object from memory or from the first cloud that has it undamaged, leaving out `except`.
    ///
    /// # Errors
    /// When none has it.
    pub async fn read(
        &self,
        id: &ObjectId,
        object: &ObjectRef,
        except: Option<&CloudName>,
    ) -> Result<Bytes, CopyError> {
        let kept = self.shelf.borrow().bytes_of(id);
        if let Some(stored) = kept {
            return Ok(stored);
        }
        let fits = |stored: &Bytes| object.hash == Hash::ZERO || checksum::hash(stored) == object.hash;
        self.read_where(id, object.bytes, except, fits).await
    }

    /// Reads an object whose hash is not known from the first cloud whose copy `fits` accepts.
    ///
    /// # Errors
    /// When there is none.
    pub async fn read_where(
        &self,
        id: &ObjectId,
        bytes_max: u64,
        except: Option<&CloudName>,
        fits: impl Fn(&Bytes) -> bool,
    ) -> Result<Bytes, CopyError> {
        let name = self.keyring.object_name(id);
        let mut absent = true;
        for cloud in self.clouds.clouds.iter().filter(|cloud| Some(cloud.name()) != except) {
            match cloud.get(&name, bytes_max).await {
                Ok(stored) if fits(&stored) => return Ok(stored),
                Ok(_) => {
                    tracing::warn!(cloud = cloud.name().0, object = name, "a copy is damaged; another cloud is asked");
                    absent = false;
                }
                Err(CloudError::NotFound) => {}
                Err(_) => absent = false,
            }
        }
        Err(if absent { CopyError::Gone } else { CopyError::Source })
    }

    /// Deletes an object from one cloud.
    ///
    /// # Errors
    /// When the cloud does not say that it is gone.
    pub async fn delete(&self, cloud: &Cloud, id: &ObjectId) -> Result<(), CopyError> {
        self.shelf.borrow_mut().forget(id);
        let name = self.keyring.object_name(id);
        cloud.delete(&name).await.map_err(|error| CopyError::Target { cloud: cloud.name().clone(), error })
    }

    /// True when a cloud has an object of this name, whatever its bytes.
    ///
    /// # Errors
    /// When the cloud does not answer.
    pub async fn is_there(&self, cloud: &Cloud, id: &ObjectId) -> Result<bool, CopyError> {
        let name = self.keyring.object_name(id);
        let length = cloud.head(&name).await;
        length.map(|length| length.is_some()).map_err(|error| CopyError::Target { cloud: cloud.name().clone(), error })
    }

    /// Waits until `reached` holds. It is asked again whenever an upload ends.
    async fn wait_for(&self, reached: impl Fn(&Shelf) -> bool) {
        loop {
            let changed = self.changed.notified();
            if reached(&self.shelf.borrow()) {
                return;
            }
            changed.await;
        }
    }

    fn lag(&self, place: usize) -> usize {
        self.lags.borrow().get(place).copied().unwrap_or_default()
    }

    fn add_lag(&self, place: usize, bytes: usize) {
        if let Some(lag) = self.lags.borrow_mut().get_mut(place) {
            *lag += bytes;
        }
    }

    fn take_lag(&self, place: usize, bytes: usize) {
        if let Some(lag) = self.lags.borrow_mut().get_mut(place) {
            *lag -= bytes;
        }
    }
}

/// A bound of a format as a length of an object.
#[must_use]
pub fn fits_in(bytes_max: usize) -> u64 {
    u64::try_from(bytes_max).expect("lengths in memory fit 64 bits")
}
