//! Clouds as a node with a bug in its flush, its sequence or its reclaim would use them.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ops::Range,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use velum_node::{
    env::{Clock, CloudStore, CloudStoreError, Clouds, Disk, Env, Local, OpenMode},
    keyring::IDENTITY_NAME,
};
use velum_protocol::version::{CHECKPOINT_STUB, SEGMENT, SEQUENCE_RECORD};

use super::{Planted, resealed::seal_anew, stale::Staleness};
use crate::{
    env::{Surroundings, cloud::SimCloud},
    guest::pattern::payload,
};

/// How much too late segments are stored.
const TOO_LATE: Duration = Duration::from_millis(3_000);

/// Clouds with a bug above them.
pub(super) struct BuggyClouds {
    bug: Planted,
    around: Surroundings,
    clouds: Rc<dyn Clouds>,
    clock: Rc<dyn Clock>,
    disk: Rc<dyn Disk>,
    secret: [u8; 32],
    staleness: Rc<Staleness>,
}

impl BuggyClouds {
    pub(super) fn new(bug: Planted, around: &Surroundings, env: &Env, secret: [u8; 32]) -> Self {
        Self {
            bug,
            around: around.clone(),
            clouds: Rc::clone(&env.clouds),
            clock: Rc::clone(&env.clock),
            disk: Rc::clone(&env.disk),
            secret,
            staleness: Rc::new(Staleness::new(secret)),
        }
    }
}

impl Clouds for BuggyClouds {
    fn open(&self, url: &str, options: &BTreeMap<String, String>) -> Result<Rc<dyn CloudStore>, CloudStoreError> {
        let store = self.clouds.open(url, options)?;
        // The first name that the bug of a used name puts its objects under: one of an earlier life.
        let bucket = self.around.clouds.get(url).map(Rc::clone);
        let used = bucket.as_ref().and_then(|cloud| {
            let bucket = cloud.bucket.borrow();
            let segment = bucket.pristine().iter().find(|(_, body)| SEGMENT.check(body).is_ok());
            segment.map(|(name, _)| name.clone())
        });
        Ok(Rc::new(BuggyStore {
            bug: self.bug,
            is_first: url.ends_with('a'),
            store,
            clock: Rc::clone(&self.clock),
            disk: Rc::clone(&self.disk),
            bucket,
            secret: self.secret,
            staleness: Rc::clone(&self.staleness),
            lies: Rc::default(),
            records: Cell::new(0),
            last_segment: RefCell::default(),
            used: RefCell::new(used),
            identity: Rc::default(),
        }))
    }
}

/// One cloud with a bug above it.
struct BuggyStore {
    bug: Planted,
    is_first: bool,
    store: Rc<dyn CloudStore>,
    clock: Rc<dyn Clock>,
    disk: Rc<dyn Disk>,
    /// What it holds.
    bucket: Option<Rc<SimCloud>>,
    /// The root key.
    secret: [u8; 32],
    staleness: Rc<Staleness>,
    /// Lengths of objects that the node believes stored.
    lies: Rc<RefCell<BTreeMap<String, u64>>>,
    records: Cell<u64>,
    last_segment: RefCell<Option<String>>,
    used: RefCell<Option<String>>,
    identity: Rc<RefCell<Option<Bytes>>>,
}

impl BuggyStore {
    /// Says that an object is stored without storing it.
    fn pretend(&self, name: &str, body: &Bytes) -> Local<Result<(), CloudStoreError>> {
        self.lies.borrow_mut().insert(name.to_owned(), body.len() as u64);
        Box::pin(async { Ok(()) })
    }

    fn put_late(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let pretended = self.pretend(name, &body);
        let (store, sleep, lies, name) =
            (Rc::clone(&self.store), self.clock.sleep(TOO_LATE), Rc::clone(&self.lies), name.to_owned());
        velum_node::actor::spawn(async move {
            sleep.await;
            drop(store.put(&name, body).await);
            lies.borrow_mut().remove(&name);
        });
        pretended
    }

    fn put_and_forget_another(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let victim = self.last_segment.borrow().clone();
        let (put, delete) = (self.store.put(name, body), victim.map(|victim| self.store.delete(&victim)));
        Box::pin(async move {
            let done = put.await;
            if let Some(delete) = delete {
                drop(delete.await);
            }
            done
        })
    }

    /// Creates an object under a name of an earlier life, and takes a name that is taken for one that is stored.
    fn create_under(&self, used: &str, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let (lies, bytes, create) = (Rc::clone(&self.lies), body.len() as u64, self.store.create(used, body));
        let name = name.to_owned();
        Box::pin(async move {
            match create.await {
                Ok(()) | Err(CloudStoreError::AlreadyExists) => {
                    lies.borrow_mut().insert(name, bytes);
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
    }

    /// Takes a failed upload for one that had no effect, and stores the segment sealed anew; the record names the first sealing.
    fn put_or_seal_anew(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let (store, lies, bucket, secret) =
            (Rc::clone(&self.store), Rc::clone(&self.lies), self.bucket.clone(), self.secret);
        let name = name.to_owned();
        Box::pin(async move {
            let failed = match store.put(&name, body.clone()).await {
                Err(error @ CloudStoreError::Unavailable(_)) => error,
                done => return done,
            };
            let anew = bucket.and_then(|cloud| seal_anew(secret, &body, cloud.bucket.borrow().pristine()));
            let Some((other, sealed)) = anew else { return Err(failed) };
            store.put(&other, sealed).await?;
            lies.borrow_mut().insert(name, body.len() as u64);
            Ok(())
        })
    }

    /// Remembers what identity a cloud had, and never looks again.
    fn look_once(&self) -> Local<Result<Bytes, CloudStoreError>> {
        let (seen, get) = (Rc::clone(&self.identity), self.store.get(IDENTITY_NAME, 1 << 16));
        Box::pin(async move {
            let known = seen.borrow().clone();
            if let Some(known) = known {
                return Ok(known);
            }
            let found = get.await?;
            *seen.borrow_mut() = Some(found.clone());
            Ok(found)
        })
    }

    /// Leaves a line for debugging, with the data it was about.
    fn log_data(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let (disk, put) = (Rc::clone(&self.disk), self.store.put(name, body));
        Box::pin(async move {
            if let Ok(file) = disk.open("/velum/debug.log".as_ref(), OpenMode::CreateNew).await {
                drop(file.write_at(0, &payload(1, 1)));
            }
            put.await
        })
    }
}

impl CloudStore for BuggyStore {
    fn put(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let is_segment = SEGMENT.check(&body).is_ok();
        let is_record = SEQUENCE_RECORD.check(&body).is_ok();
        let is_stub = CHECKPOINT_STUB.check(&body).is_ok();
        if is_segment {
            *self.last_segment.borrow_mut() = Some(name.to_owned());
        }
        if is_record {
            self.records.set(self.records.get() + 1);
        }
        match self.bug {
            Planted::SkippedRecord if is_record && self.records.get() == 3 => self.pretend(name, &body),
            Planted::RecordBeforeSegments if is_segment => self.put_late(name, body),
            Planted::TooFewClouds if is_segment && !self.is_first => self.put_late(name, body),
            Planted::TrimBeforeDurable if is_record => self.pretend(name, &body),
            Planted::DeletedTooEarly if is_stub => self.put_and_forget_another(name, body),
            Planted::ReusedName if is_segment && self.used.borrow().is_some() => {
                let used = self.used.take().unwrap_or_default();
                self.lies.borrow_mut().insert(name.to_owned(), body.len() as u64);
                self.store.put(&used, body)
            }
            Planted::UncomparedName if is_segment && self.used.borrow().is_some() => {
                let used = self.used.take().unwrap_or_default();
                self.create_under(&used, name, body)
            }
            Planted::ResealedSegment if is_segment => self.put_or_seal_anew(name, body),
            Planted::StaleRelocation if is_record => {
                let body = match &self.bucket {
                    Some(cloud) => self.staleness.spoil(name, body, cloud.bucket.borrow().pristine()),
                    None => body,
                };
                self.store.put(name, body)
            }
            Planted::ReadableData if is_segment => self.log_data(name, body),
            _ => self.store.put(name, body),
        }
    }

    fn create(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        self.store.create(name, body)
    }

    fn get(&self, name: &str, bytes_max: u64) -> Local<Result<Bytes, CloudStoreError>> {
        if self.bug == Planted::AcceptedEmptied && name == IDENTITY_NAME {
            return self.look_once();
        }
        self.store.get(name, bytes_max)
    }

    fn get_range(&self, name: &str, range: Range<u64>) -> Local<Result<Bytes, CloudStoreError>> {
        self.store.get_range(name, range)
    }

    fn head(&self, name: &str) -> Local<Result<u64, CloudStoreError>> {
        match self.lies.borrow().get(name) {
            Some(bytes) => {
                let bytes = *bytes;
                Box::pin(async move { Ok(bytes) })
            }
            None => self.store.head(name),
        }
    }

    fn delete(&self, name: &str) -> Local<Result<(), CloudStoreError>> {
        self.store.delete(name)
    }

    fn list(&self, prefix: &str, after: &str, count_max: usize) -> Local<Result<Vec<String>, CloudStoreError>> {
        self.store.list(prefix, after, count_max)
    }
}
