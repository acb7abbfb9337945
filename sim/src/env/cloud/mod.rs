//! Object stores in memory, with everything that real ones do to a client.
//!
//! A request has a fate: answered, failed before or after it took effect, its answer lost, or turned away. A request that
//! is under way when the node's process ends may still take effect, for the cloud has it already.

mod bucket;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ops::Range,
    rc::Rc,
};

use bytes::Bytes;
use tokio::sync::oneshot;
use velum_node::env::{CloudStore, CloudStoreError, Clouds, Local};

pub use bucket::{Bucket, LIES, Lie};

use crate::{
    rng::Rng,
    runtime::{Life, Sim},
};

/// A change of a cloud's contents, seen at the instant it takes effect.
#[derive(Debug)]
pub enum Change<'a> {
    /// An object was stored; `replaced` is what the name held before.
    Put {
        /// The object's name.
        name: &'a str,
        /// What was stored.
        body: &'a Bytes,
        /// What was there before.
        replaced: Option<&'a Bytes>,
    },
    /// An object was deleted.
    Delete {
        /// The object's name.
        name: &'a str,
    },
}

/// Sees every change of a cloud's contents just after it took effect.
pub type ChangeWitness = Rc<dyn Fn(&SimCloud, &Change<'_>)>;

/// Sees every object that a life of a node sends, when it sends it.
pub type DepartureWitness = Rc<dyn Fn(&Rc<Life>, &Bytes)>;

/// How a cloud behaves; the plan changes it while the world runs. Rates are per million requests.
#[derive(Debug)]
pub struct CloudFaults {
    /// Least milliseconds from request to answer.
    pub latency_ms_min: Cell<u64>,
    /// Most milliseconds from request to answer.
    pub latency_ms_max: Cell<u64>,
    /// Fails without effect.
    pub fail_before_ppm: Cell<u32>,
    /// Takes effect and fails.
    pub fail_after_ppm: Cell<u32>,
    /// Takes effect or not; the answer never comes, and the connection is given up after a long time.
    pub lost_ppm: Cell<u32>,
    /// Asked to slow down.
    pub throttle_ppm: Cell<u32>,
    /// Unreachable until this time.
    pub away_until_ms: Cell<u64>,
    /// Takes requests and does nothing about them until this time.
    pub stalled_until_ms: Cell<u64>,
    /// Refuses the credentials until this time.
    pub denied_until_ms: Cell<u64>,
    /// Refuses to change anything until this time.
    pub read_only_until_ms: Cell<u64>,
}

impl Default for CloudFaults {
    fn default() -> Self {
        Self {
            latency_ms_min: Cell::new(1),
            latency_ms_max: Cell::new(20),
            fail_before_ppm: Cell::new(0),
            fail_after_ppm: Cell::new(0),
            lost_ppm: Cell::new(0),
            throttle_ppm: Cell::new(0),
            away_until_ms: Cell::new(0),
            stalled_until_ms: Cell::new(0),
            denied_until_ms: Cell::new(0),
            read_only_until_ms: Cell::new(0),
        }
    }
}

impl CloudFaults {
    /// Ends every fault; latency stays.
    pub fn heal(&self) {
        for rate in [&self.fail_before_ppm, &self.fail_after_ppm, &self.lost_ppm, &self.throttle_ppm] {
            rate.set(0);
        }
        for until in [&self.away_until_ms, &self.stalled_until_ms, &self.denied_until_ms, &self.read_only_until_ms] {
            until.set(0);
        }
    }
}

/// Milliseconds after which a client gives up a connection that does not answer.
const LOST_MS: u64 = 15_000;

/// One cloud of a world.
pub struct SimCloud {
    sim: Rc<Sim>,
    name: Rc<str>,
    rng: Rng,
    /// Its contents.
    pub bucket: RefCell<Bucket>,
    /// The contents of its right place while another one is in its stead.
    hidden: RefCell<Option<Bucket>>,
    /// Counts changes of its place. A request goes to the place there was when it was sent.
    place: Cell<u64>,
    /// How it behaves.
    pub faults: CloudFaults,
    witness: RefCell<Option<ChangeWitness>>,
    departures: RefCell<Option<DepartureWitness>>,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    FailsBefore,
    FailsAfter,
    LostBefore,
    LostAfter,
    Throttled,
    Away,
    Denied,
}

impl SimCloud {
    /// An empty cloud.
    #[must_use]
    pub fn new(sim: Rc<Sim>, name: &str) -> Rc<Self> {
        let rng = Rng::new(sim.seed(), &format!("cloud {name}"));
        Rc::new(Self {
            sim,
            name: name.into(),
            rng,
            bucket: RefCell::default(),
            hidden: RefCell::default(),
            place: Cell::new(0),
            faults: CloudFaults::default(),
            witness: RefCell::default(),
            departures: RefCell::default(),
        })
    }

    /// Its name, as the trace and the config call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Shows every change from now on to `witness`.
    pub fn watch(&self, witness: ChangeWitness) {
        *self.witness.borrow_mut() = Some(witness);
    }

    /// Shows every object that is sent here from now on to `witness`.
    pub fn watch_departures(&self, witness: DepartureWitness) {
        *self.departures.borrow_mut() = Some(witness);
    }

    /// True when it can be reached and does what it is asked, now.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let now_ms = self.sim.now_ms();
        let CloudFaults { away_until_ms, stalled_until_ms, denied_until_ms, read_only_until_ms, .. } = &self.faults;
        [away_until_ms, stalled_until_ms, denied_until_ms, read_only_until_ms].iter().all(|until| until.get() <= now_ms)
    }

    /// Empties the cloud, or with `exchange` puts an empty place in its stead.
    pub fn empty(&self, exchange: bool) {
        let before = self.bucket.replace(Bucket::default());
        self.hidden.replace(exchange.then_some(before));
        self.place.set(self.place.get() + 1);
    }

    /// Puts the right place back.
    pub fn put_back(&self) {
        if let Some(hidden) = self.hidden.take() {
            self.bucket.replace(hidden);
            self.place.set(self.place.get() + 1);
        }
    }

    /// The place that is there now is the right one.
    pub fn forget_hidden(&self) {
        self.hidden.replace(None);
    }

    /// Serves what was stored again, also in the place that is to be put back.
    pub fn repent(&self) {
        self.bucket.borrow_mut().repent();
        if let Some(hidden) = self.hidden.borrow_mut().as_mut() {
            hidden.repent();
        }
    }

    fn fate(&self, kind: &str) -> Fate {
        let (faults, now_ms) = (&self.faults, self.sim.now_ms());
        if faults.away_until_ms.get() > now_ms {
            return Fate::Away;
        }
        let is_change = matches!(kind, "put" | "create" | "delete");
        if faults.denied_until_ms.get() > now_ms || (is_change && faults.read_only_until_ms.get() > now_ms) {
            return Fate::Denied;
        }
        let mut at = self.rng.below(1_000_000) as u32;
        for (rate, fate) in [
            (faults.fail_before_ppm.get(), Fate::FailsBefore),
            (faults.fail_after_ppm.get(), Fate::FailsAfter),
            (faults.lost_ppm.get() / 2, Fate::LostBefore),
            (faults.lost_ppm.get() / 2, Fate::LostAfter),
            (faults.throttle_ppm.get(), Fate::Throttled),
        ] {
            match at.checked_sub(rate) {
                Some(rest) => at = rest,
                None => return fate,
            }
        }
        Fate::Answered
    }

    /// Sends a request: `act` is its effect, performed by the cloud when the request reaches it.
    fn request<T: 'static>(
        self: &Rc<Self>,
        life: &Rc<Life>,
        kind: &'static str,
        name: &str,
        act: impl FnOnce(&Self) -> Result<T, CloudStoreError> + 'static,
    ) -> Local<Result<T, CloudStoreError>> {
        let (cloud, life, name) = (Rc::clone(self), Rc::clone(life), name.to_owned());
        Box::pin(async move {
            if !life.is_alive() {
                return std::future::pending().await;
            }
            let fate = cloud.fate(kind);
            cloud.sim.event(kind, &format!("{} {name}", cloud.name), &[fate as u64]);
            cloud.sim.count(
                match fate {
                    Fate::Answered => "cloud request",
                    Fate::FailsBefore => "cloud failure before effect",
                    Fate::FailsAfter => "cloud failure after effect",
                    Fate::LostBefore | Fate::LostAfter => "cloud answer lost",
                    Fate::Throttled => "cloud throttles",
                    Fate::Away => "cloud away",
                    Fate::Denied => "cloud denies",
                },
                1,
            );
            let (answer, answered) = oneshot::channel();
            cloud.carry(life, fate, act, answer);
            match answered.await {
                Ok(result) => result,
                Err(_) => std::future::pending().await,
            }
        })
    }

    fn carry<T: 'static>(
        self: Rc<Self>,
        life: Rc<Life>,
        fate: Fate,
        act: impl FnOnce(&Self) -> Result<T, CloudStoreError> + 'static,
        answer: oneshot::Sender<Result<T, CloudStoreError>>,
    ) {
        let (sim, faults) = (Rc::clone(&self.sim), &self.faults);
        let latency_ms = self.rng.between(faults.latency_ms_min.get(), faults.latency_ms_max.get());
        let stall_ms = faults.stalled_until_ms.get().saturating_sub(sim.now_ms());
        if stall_ms > 0 {
            sim.count("cloud stalls", 1);
        }
        let there_ms = stall_ms + self.rng.below(latency_ms + 1);
        let (back_ms, place) = (latency_ms, self.place.get());
        let has_effect = matches!(fate, Fate::Answered | Fate::FailsAfter | Fate::LostAfter);
        sim.clone().later(there_ms, move || {
            let sent = life.is_alive() || self.rng.chance(500_000);
            let is_there = self.place.get() == place;
            let result = if has_effect && sent && is_there { Some(act(&self)) } else { None };
            let unavailable = |why: &str| Err(CloudStoreError::Unavailable(why.to_owned()));
            let (wait_ms, result) = match (fate, result) {
                (Fate::Answered, Some(result)) => (back_ms, result),
                (Fate::Throttled, _) => (back_ms, Err(CloudStoreError::Throttled("simulated".to_owned()))),
                (Fate::Denied, _) => (back_ms, Err(CloudStoreError::Denied("simulated".to_owned()))),
                (Fate::LostBefore | Fate::LostAfter, _) => (LOST_MS, unavailable("simulated: no answer")),
                _ => (back_ms, unavailable("simulated: 503")),
            };
            sim.later(wait_ms, move || drop(answer.send(result)));
        });
    }

    fn witness(&self, change: &Change<'_>) {
        let witness = self.witness.borrow().clone();
        if let Some(witness) = witness {
            witness(self, change);
        }
    }

    /// Stores an object at once, as the cloud itself does when a request reaches it.
    pub fn store(&self, name: &str, body: Bytes) {
        let replaced = self.bucket.borrow().pristine().get(name).cloned();
        self.bucket.borrow_mut().put(name, body.clone());
        self.witness(&Change::Put { name, body: &body, replaced: replaced.as_ref() });
    }

    /// Deletes an object at once.
    pub fn erase(&self, name: &str) {
        self.bucket.borrow_mut().delete(name);
        self.witness(&Change::Delete { name });
    }
}

/// A cloud as one life of a node sees it.
struct CloudView {
    cloud: Rc<SimCloud>,
    life: Rc<Life>,
}

impl CloudView {
    fn departs(&self, body: &Bytes) {
        let witness = self.cloud.departures.borrow().clone();
        if let Some(witness) = witness.filter(|_| self.life.is_alive()) {
            witness(&self.life, body);
        }
    }
}

impl CloudStore for CloudView {
    fn put(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let object = name.to_owned();
        self.departs(&body);
        self.cloud.request(&self.life, "put", name, move |cloud| {
            cloud.store(&object, body);
            Ok(())
        })
    }

    fn create(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let object = name.to_owned();
        self.departs(&body);
        self.cloud.request(&self.life, "create", name, move |cloud| {
            if cloud.bucket.borrow().served(&object).is_some() {
                return Err(CloudStoreError::AlreadyExists);
            }
            cloud.store(&object, body);
            Ok(())
        })
    }

    fn get(&self, name: &str, bytes_max: u64) -> Local<Result<Bytes, CloudStoreError>> {
        let object = name.to_owned();
        self.cloud.request(&self.life, "get", name, move |cloud| {
            let body = cloud.bucket.borrow().served(&object).ok_or(CloudStoreError::NotFound)?;
            if body.len() as u64 > bytes_max {
                return Err(CloudStoreError::Refused("the object is longer than the reader will take".to_owned()));
            }
            Ok(body)
        })
    }

    fn get_range(&self, name: &str, range: Range<u64>) -> Local<Result<Bytes, CloudStoreError>> {
        let object = name.to_owned();
        self.cloud.request(&self.life, "get range", name, move |cloud| {
            let body = cloud.bucket.borrow().served(&object).ok_or(CloudStoreError::NotFound)?;
            if range.start >= range.end || range.end > body.len() as u64 {
                return Err(CloudStoreError::Refused("the range ends beyond the object".to_owned()));
            }
            Ok(body.slice(range.start as usize..range.end as usize))
        })
    }

    fn head(&self, name: &str) -> Local<Result<u64, CloudStoreError>> {
        let object = name.to_owned();
        self.cloud.request(&self.life, "head", name, move |cloud| {
            cloud.bucket.borrow().served(&object).map(|body| body.len() as u64).ok_or(CloudStoreError::NotFound)
        })
    }

    fn delete(&self, name: &str) -> Local<Result<(), CloudStoreError>> {
        let object = name.to_owned();
        self.cloud.request(&self.life, "delete", name, move |cloud| {
            cloud.erase(&object);
            Ok(())
        })
    }

    fn list(&self, prefix: &str, after: &str, count_max: usize) -> Local<Result<Vec<String>, CloudStoreError>> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        self.cloud.request(&self.life, "list", "", move |cloud| {
            let under = |name: &str| {
                prefix.is_empty()
                    || name.strip_prefix(&prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let bucket = cloud.bucket.borrow();
            let names = bucket.pristine().keys().filter(|name| under(name) && name.as_str() > after.as_str());
            Ok(names.take(count_max).cloned().collect())
        })
    }
}

/// All clouds of a world, by URL, as one life of a node sees them.
pub struct NodeClouds {
    clouds: Rc<BTreeMap<String, Rc<SimCloud>>>,
    life: Rc<Life>,
}

impl NodeClouds {
    /// The clouds in `clouds`, which maps URLs to them.
    #[must_use]
    pub fn new(clouds: Rc<BTreeMap<String, Rc<SimCloud>>>, life: Rc<Life>) -> Self {
        Self { clouds, life }
    }
}

impl Clouds for NodeClouds {
    fn open(&self, url: &str, options: &BTreeMap<String, String>) -> Result<Rc<dyn CloudStore>, CloudStoreError> {
        if let Some(option) = options.keys().next() {
            return Err(CloudStoreError::Refused(format!("simulated clouds know no option {option}")));
        }
        let cloud = self.clouds.get(url).ok_or_else(|| CloudStoreError::Refused(format!("no cloud at {url}")))?;
        Ok(Rc::new(CloudView { cloud: Rc::clone(cloud), life: Rc::clone(&self.life) }))
    }
}
