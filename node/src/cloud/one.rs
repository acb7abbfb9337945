//! One configured cloud.

use std::{cell::Cell, ops::Range, rc::Rc, time::Duration};

use bytes::Bytes;
use velum_protocol::format::metadata::CloudName;

use super::{
    admission::Admission,
    attempts::{Deadline, Meter, Retry},
    governor::View,
    identity::{Closed, Guard, Identity, Place, Standing, Visit},
    layer::Layered,
};
use crate::{
    env::{CloudStore, CloudStoreError, Env, Instant},
    metrics::{CloudMetrics, CloudOutcome, CloudRequest, CloudState, Label},
};

/// Why a cloud did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    /// The object is not there.
    #[error("no such object")]
    NotFound,
    /// A create found another object under the name.
    #[error("another object has this name")]
    Conflict,
    /// It does not answer, or with a passing fault, also after a few attempts. The request may have taken effect.
    #[error("the cloud is away: {0}")]
    Away(String),
    /// It says that the object is stored, and does not have it as sent.
    #[error("the cloud took the object and does not have it: {0}")]
    Unverified(String),
    /// It refuses the credentials.
    #[error("the cloud refuses the credentials: {0}")]
    Denied(String),
    /// It refuses the request for good.
    #[error("the cloud refuses the request: {0}")]
    Refused(String),
    /// The place is not the cluster's, or not any more.
    #[error("the cloud's place is not this cluster's: {0}")]
    NotOurs(String),
}

impl CloudError {
    /// True when the same request may succeed later: credentials are renewed, clouds come back.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Unverified(_) | Self::Denied(_) | Self::NotOurs(_))
    }
}

impl From<CloudStoreError> for CloudError {
    fn from(error: CloudStoreError) -> Self {
        match error {
            CloudStoreError::NotFound => Self::NotFound,
            CloudStoreError::AlreadyExists => Self::Conflict,
            CloudStoreError::Unavailable(text) | CloudStoreError::Throttled(text) => Self::Away(text),
            CloudStoreError::Denied(text) => Self::Denied(text),
            CloudStoreError::Refused(text) => Self::Refused(text),
            CloudStoreError::NotOurs(text) => Self::NotOurs(text),
        }
    }
}

/// How a cloud does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What can be done with it.
    pub state: CloudState,
    /// Since when.
    pub since: Instant,
    /// The newest failure, or why nothing is asked of it.
    pub last_error: Option<(Instant, String)>,
    /// Running mean of the last read times.
    pub read_time: Option<Duration>,
    /// 95th percentile of the last read times.
    pub read_time_p95: Option<Duration>,
    /// Running mean of the last times in which an object was stored.
    pub write_time: Option<Duration>,
    /// Requests under way.
    pub in_flight: usize,
    /// Requests that wait for others to end.
    pub waiting: usize,
    /// Requests that may be under way at once, as it stands now.
    pub window: u64,
    /// Objects it gave back otherwise than they were stored, since the node started.
    pub damaged: u64,
    /// Objects it should have and did not, since the node started.
    pub missing: u64,
}

/// One configured cloud, behind retries, admission, counting, deadlines and verification.
pub struct Cloud {
    name: CloudName,
    /// Without retries, for reads that have other clouds to go to.
    once: Rc<dyn CloudStore>,
    store: Rc<dyn CloudStore>,
    guard: Rc<Guard>,
    admission: Rc<Admission>,
    metrics: CloudMetrics,
    damaged: Cell<u64>,
    missing: Cell<u64>,
}

/// Times a body is sent before a cloud that does not have it as sent is given up.
const STORE_ROUNDS: u32 = 2;

impl Cloud {
    /// Puts the policy around a store. The place is the cluster's when it holds `identity`, and becomes so when it holds
    /// none, as [`Place`] says.
    #[must_use]
    pub fn new(
        env: &Env,
        name: CloudName,
        store: Rc<dyn CloudStore>,
        (identity, place): (Identity, Place),
        metrics: CloudMetrics,
    ) -> Rc<Self> {
        let clock = &env.clock;
        let admission = Admission::new(Rc::clone(clock), metrics.clone());
        let deadline = Deadline { clock: Rc::clone(clock) };
        let meter = Meter { clock: Rc::clone(clock), metrics: metrics.clone() };
        let retry = Retry { clock: Rc::clone(clock), entropy: Rc::clone(&env.entropy), metrics: metrics.clone() };
        // From the inside out: an attempt is bounded, then counted, then let out, if the place is right; a retry waits for
        // its turn again.
        let store = Layered::around(store, Rc::new(deadline));
        let store = Layered::around(store, Rc::new(meter));
        let store = Layered::around(store, Rc::clone(&admission));
        let guard = Guard::new(Rc::clone(&store), identity, place);
        let once = Layered::around(store, Rc::clone(&guard));
        let store = Layered::around(Rc::clone(&once), Rc::new(retry));
        let (damaged, missing) = (Cell::default(), Cell::default());
        Rc::new(Self { name, once, store, guard, admission, metrics, damaged, missing })
    }

    /// The operator's name for it.
    #[must_use]
    pub fn name(&self) -> &CloudName {
        &self.name
    }

    /// Stores an object and makes sure that it is there, in its length. Storing the same bytes again is no error.
    ///
    /// # Errors
    /// After a few attempts; the object may be there nevertheless.
    pub async fn put(&self, name: &str, body: Bytes) -> Result<(), CloudError> {
        let mut last = String::new();
        for _ in 0..STORE_ROUNDS {
            self.store.put(name, body.clone()).await?;
            match self.check_stored(name, &body).await? {
                None => return Ok(()),
                Some(found) => last = found,
            }
        }
        Err(CloudError::Unverified(last))
    }

    /// Stores an object under a name that is free. When the name holds the same bytes already (an earlier attempt whose
    /// answer was lost), that is as good.
    ///
    /// # Errors
    /// `Conflict` when the name holds other bytes; else after a few attempts, when the object may be there nevertheless.
    pub async fn create(&self, name: &str, body: Bytes) -> Result<(), CloudError> {
        match self.store.create(name, body.clone()).await {
            Ok(()) => match self.check_stored(name, &body).await? {
                None => Ok(()),
                Some(found) => Err(CloudError::Unverified(found)),
            },
            Err(CloudStoreError::AlreadyExists) => match self.store.get(name, length(&body)).await {
                Ok(kept) if kept == body => Ok(()),
                Ok(_) | Err(CloudStoreError::Refused(_)) => Err(CloudError::Conflict),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// The whole object, at most `bytes_max` long. Not verified: the caller knows what it should be.
    ///
    /// # Errors
    /// `NotFound`, or after a few attempts.
    pub async fn get(&self, name: &str, bytes_max: u64) -> Result<Bytes, CloudError> {
        Ok(self.store.get(name, bytes_max).await?)
    }

    /// A part of an object. Not verified: the caller knows what it should be.
    ///
    /// # Errors
    /// `NotFound`, `Refused` when the object is shorter, or after a few attempts.
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, CloudError> {
        Ok(self.store.get_range(name, range).await?)
    }

    /// Like [`Cloud::get`], in one attempt.
    pub(super) async fn get_once(&self, name: &str, bytes_max: u64) -> Result<Bytes, CloudError> {
        Ok(self.once.get(name, bytes_max).await?)
    }

    /// Like [`Cloud::get_range`], in one attempt.
    pub(super) async fn get_range_once(&self, name: &str, range: Range<u64>) -> Result<Bytes, CloudError> {
        Ok(self.once.get_range(name, range).await?)
    }

    /// The object's length; `None` when it is not there.
    ///
    /// # Errors
    /// After a few attempts.
    pub async fn head(&self, name: &str) -> Result<Option<u64>, CloudError> {
        match self.store.head(name).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(CloudStoreError::NotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an object; no error when it is not there.
    ///
    /// # Errors
    /// After a few attempts.
    pub async fn delete(&self, name: &str) -> Result<(), CloudError> {
        Ok(self.store.delete(name).await?)
    }

    /// Up to `count_max` names after `after` under `prefix`, for people; correctness never rests on it.
    ///
    /// # Errors
    /// After a few attempts.
    pub async fn list(&self, prefix: &str, after: &str, count_max: usize) -> Result<Vec<String>, CloudError> {
        Ok(self.store.list(prefix, after, count_max).await?)
    }

    /// Looks whether the place is the cluster's still, in one small request. What was stored before and is counted only
    /// afterwards was stored in the right place.
    ///
    /// # Errors
    /// `NotOurs` when it is not, or when it has only just become so again; else when the cloud does not answer.
    pub async fn confirm(&self) -> Result<(), CloudError> {
        let before = self.guard.standing();
        let looked = self.guard.look().await;
        let found = self.guard.standing();
        if found != before {
            match &looked {
                Err(error @ CloudStoreError::NotOurs(_)) if found != Standing::Returned => {
                    tracing::error!(cloud = self.name.0, %error, "a cloud counts as away");
                }
                _ => tracing::info!(cloud = self.name.0, standing = ?found, "the place of a cloud was looked at"),
            }
        }
        Ok(looked?)
    }

    /// Begins something that must not go on across a new beginning of the cloud's cursors; none while it is not the
    /// cluster's, or is closed.
    #[must_use]
    pub fn enter(&self) -> Option<Visit> {
        self.guard.enter()
    }

    /// Lets nothing in until the answer is dropped, once everything under way has ended; none when it is closed already.
    pub async fn close(&self) -> Option<Closed> {
        self.guard.close().await
    }

    /// Takes the place as one in which nothing is believed to be, and claims it. What cannot be done now is done when the place
    /// was looked at again.
    ///
    /// # Errors
    /// `NotOurs` when it is another cluster's; else when the cloud does not answer.
    pub async fn begin_anew(&self, closed: Closed) -> Result<(), CloudError> {
        closed.expect_nothing();
        drop(closed);
        Ok(self.guard.claim().await?)
    }

    /// What was found when its place was looked at last.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.guard.standing()
    }

    /// What can be done with it.
    #[must_use]
    pub fn state(&self) -> CloudState {
        match self.guard.standing() {
            Standing::Emptied | Standing::Unclaimed => CloudState::Emptied,
            Standing::Foreign => CloudState::Foreign,
            Standing::Returned => CloudState::Returned,
            Standing::Unseen | Standing::Ours if !self.admission.governor().view().up => CloudState::Away,
            Standing::Unseen | Standing::Ours if !self.admission.takes_writes() => CloudState::ReadOnly,
            Standing::Unseen | Standing::Ours => CloudState::Up,
        }
    }

    /// Shows its state in the metrics.
    pub fn show(&self) {
        let state = self.state();
        self.metrics.up.set(i64::from(state == CloudState::Up));
        for other in CloudState::ALL {
            self.metrics.states.of(*other).set(i64::from(*other == state));
        }
    }

    /// How it does.
    #[must_use]
    pub fn health(&self) -> Health {
        let governor = self.admission.governor();
        let View { read_time, read_time_p95, .. } = governor.view();
        let refusal = self.guard.refusal().map(|error| (self.admission.turned_at(), error));
        let last_error = refusal.or_else(|| self.admission.last_error());
        Health {
            state: self.state(),
            since: self.admission.turned_at(),
            last_error: last_error.map(|(at, error)| (at, error.to_string())),
            read_time,
            read_time_p95,
            write_time: self.admission.write_time(),
            in_flight: governor.in_flight(),
            waiting: governor.waiting(),
            window: governor.window(),
            damaged: self.damaged.get(),
            missing: self.missing.get(),
        }
    }

    /// What choosing among clouds needs to know.
    pub(super) fn view(&self) -> View {
        let view = self.admission.governor().view();
        View { up: view.up && matches!(self.standing(), Standing::Unseen | Standing::Ours), ..view }
    }

    /// Counts an answer that was not what was stored. For whoever opens or hashes what a cloud gives back.
    pub fn report_damaged(&self, kind: CloudRequest) {
        self.damaged.set(self.damaged.get() + 1);
        self.metrics.requests.of(kind).of(CloudOutcome::Damaged).inc();
    }

    /// Counts an object that should have been there.
    pub fn report_missing(&self) {
        self.missing.set(self.missing.get() + 1);
    }

    /// Counts a read that went on to another cloud because of this one.
    pub(super) fn report_hedged(&self) {
        self.metrics.hedged.inc();
    }

    /// `None` when the cloud has an object of the right length, else what it has.
    async fn check_stored(&self, name: &str, body: &Bytes) -> Result<Option<String>, CloudError> {
        let expected = length(body);
        match self.head(name).await? {
            Some(found) if found == expected => Ok(None),
            Some(found) => {
                self.report_damaged(CloudRequest::Head);
                Ok(Some(format!("{found} bytes are stored of {expected}")))
            }
            None => {
                self.report_missing();
                Ok(Some("no object of the name is stored".to_owned()))
            }
        }
    }
}

fn length(body: &Bytes) -> u64 {
    u64::try_from(body.len()).expect("a length in memory fits 64 bits")
}
