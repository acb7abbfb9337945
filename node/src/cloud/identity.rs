//! The guard before each cloud: nothing is read from or written to a bucket until its identity object says that it belongs to
//! this cluster.
//!
//! A decorator of [`CloudStore`]. The first request looks at the identity object: the cluster's own lets all requests pass
//! from then on; another cluster's refuses them all; none means that the bucket is new (the identity and key slots are
//! stored) or, when this cloud has been in use before, that somebody emptied it, which is refused too: a cloud that has lost
//! what others believe it holds must not quietly start over.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    rc::Rc,
};

use bytes::Bytes;

use crate::{
    env::{CloudStore, CloudStoreError, Clouds, Local},
    keyring::{IDENTITY_NAME, slots_name},
};

/// An identity object has some tens of bytes; what is longer is none.
const IDENTITY_BYTES_MAX: u64 = 64 << 10;

/// What is stored under the fixed names of every cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The identity object.
    pub object: Bytes,
    /// The key-slot object.
    pub slots: Bytes,
    /// The generation of the key slots; part of their name.
    pub generation: u64,
}

/// A cloud that answers only once it is known to be the cluster's own.
#[derive(Clone)]
pub struct Guarded(Rc<Inner>);

struct Inner {
    store: Rc<dyn CloudStore>,
    identity: Identity,
    may_be_new: bool,
    admitted: Cell<bool>,
}

impl Guarded {
    /// Guards `store`. With `may_be_new`, a bucket without identity object becomes the cluster's.
    #[must_use]
    pub fn new(store: Rc<dyn CloudStore>, identity: Identity, may_be_new: bool) -> Self {
        Self(Rc::new(Inner { store, identity, may_be_new, admitted: Cell::new(false) }))
    }

    /// Looks at the identity object now, unless it was found good before.
    ///
    /// # Errors
    /// `Refused` when the bucket is another cluster's or was emptied; otherwise whatever the cloud answered.
    pub async fn admit(&self) -> Result<(), CloudStoreError> {
        let inner = &self.0;
        if inner.admitted.get() {
            return Ok(());
        }
        match inner.store.get(IDENTITY_NAME, IDENTITY_BYTES_MAX).await {
            Ok(found) if found == inner.identity.object => {}
            Ok(_) => {
                return Err(CloudStoreError::Refused(
                    "it holds another cluster's data; to bring that cluster back use `velum recover`".to_owned(),
                ));
            }
            Err(CloudStoreError::NotFound) if inner.may_be_new => self.claim().await?,
            Err(CloudStoreError::NotFound) => {
                return Err(CloudStoreError::Refused(
                    "its identity object is gone although this cluster has used it: somebody emptied it".to_owned(),
                ));
            }
            Err(error) => return Err(error),
        }
        inner.admitted.set(true);
        Ok(())
    }

    /// Slots first: a bucket with an identity object always has the slots to open it with. Another cluster that claims the
    /// bucket at the same moment is seen by reading back.
    async fn claim(&self) -> Result<(), CloudStoreError> {
        let Inner { store, identity, .. } = &*self.0;
        store.put(&slots_name(identity.generation), identity.slots.clone()).await?;
        match store.create(IDENTITY_NAME, identity.object.clone()).await {
            Ok(()) | Err(CloudStoreError::AlreadyExists) => {}
            Err(error) => return Err(error),
        }
        let found = store.get(IDENTITY_NAME, IDENTITY_BYTES_MAX).await?;
        if found == identity.object {
            Ok(())
        } else {
            Err(CloudStoreError::Refused("another cluster claimed it at the same moment".to_owned()))
        }
    }

    fn then<T: 'static>(
        &self,
        request: impl FnOnce(&dyn CloudStore) -> Local<Result<T, CloudStoreError>> + 'static,
    ) -> Local<Result<T, CloudStoreError>> {
        if self.0.admitted.get() {
            return request(&*self.0.store);
        }
        let own = self.clone();
        Box::pin(async move {
            own.admit().await?;
            request(&*own.0.store).await
        })
    }
}

impl CloudStore for Guarded {
    fn put(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let name = name.to_owned();
        self.then(move |store| store.put(&name, body))
    }

    fn create(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let name = name.to_owned();
        self.then(move |store| store.create(&name, body))
    }

    fn get(&self, name: &str, bytes_max: u64) -> Local<Result<Bytes, CloudStoreError>> {
        let name = name.to_owned();
        self.then(move |store| store.get(&name, bytes_max))
    }

    fn get_range(&self, name: &str, range: Range<u64>) -> Local<Result<Bytes, CloudStoreError>> {
        let name = name.to_owned();
        self.then(move |store| store.get_range(&name, range))
    }

    fn head(&self, name: &str) -> Local<Result<u64, CloudStoreError>> {
        let name = name.to_owned();
        self.then(move |store| store.head(&name))
    }

    fn delete(&self, name: &str) -> Local<Result<(), CloudStoreError>> {
        let name = name.to_owned();
        self.then(move |store| store.delete(&name))
    }

    fn list(&self, prefix: &str, after: &str, count_max: usize) -> Local<Result<Vec<String>, CloudStoreError>> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        self.then(move |store| store.list(&prefix, &after, count_max))
    }
}

/// Opens clouds behind the guard.
pub struct GuardedClouds {
    clouds: Rc<dyn Clouds>,
    identity: Identity,
    used: BTreeSet<String>,
}

impl GuardedClouds {
    /// Guards every cloud that is opened through it. Those whose URLs are in `used` have been in use before and must hold
    /// the identity object already.
    #[must_use]
    pub fn new(clouds: Rc<dyn Clouds>, identity: Identity, used: BTreeSet<String>) -> Self {
        Self { clouds, identity, used }
    }
}

impl Clouds for GuardedClouds {
    fn open(&self, url: &str, options: &BTreeMap<String, String>) -> Result<Rc<dyn CloudStore>, CloudStoreError> {
        let store = self.clouds.open(url, options)?;
        Ok(Rc::new(Guarded::new(store, self.identity.clone(), !self.used.contains(url))))
    }
}
