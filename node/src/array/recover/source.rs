//! The clouds of a recovery: asking all of them at once, judging what each answers, and keeping the tally.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use velum_protocol::format::metadata::CloudName;

use super::{CloudAt, CloudReport, RecoverError, report::DETAILS_MAX};
use crate::{
    env::{Clock, CloudStore, CloudStoreError, Env},
    keyring::{Keyring, ObjectFault, ObjectId, ObjectKind},
};

/// How often one request is tried before the cloud counts as not answering: some 6 seconds of a passing fault.
const ATTEMPTS: u32 = 6;

/// Pause before the second attempt; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(200);

/// No object under a fixed name is longer.
const FIXED_BYTES_MAX: usize = 1 << 20;

/// All clouds of a recovery.
pub(super) struct Sources {
    clock: Rc<dyn Clock>,
    clouds: Vec<Source>,
}

/// One cloud.
pub(super) struct Source {
    pub(super) name: CloudName,
    store: Rc<dyn CloudStore>,
    /// Set once it answered anything but a passing fault.
    answered: Cell<bool>,
    /// The first request that it did not answer at all: what it holds is then not known.
    failed: RefCell<Option<String>>,
    /// Why it may not be the cluster's at all.
    doubt: RefCell<Option<String>>,
    /// Set when it holds another cluster or nothing: it is not asked again.
    refused: RefCell<Option<String>>,
    report: RefCell<CloudReport>,
}

/// What one cloud says of one object.
pub(super) enum Found<T> {
    /// It is there and opens.
    Authentic(T),
    /// It is not there.
    Missing,
    /// It is there but is not what its name says.
    Corrupt,
    /// The cloud did not answer.
    Silent,
}

impl<T> Found<T> {
    pub(super) fn authentic(self) -> Option<T> {
        match self {
            Self::Authentic(value) => Some(value),
            Self::Missing | Self::Corrupt | Self::Silent => None,
        }
    }
}

impl Sources {
    pub(super) fn open(env: &Env, clouds: &[CloudAt]) -> Result<Self, RecoverError> {
        let open = |from: &CloudAt| {
            let store = env.clouds.open(&from.url, &from.options);
            let store = store.map_err(|error| RecoverError::Open(from.name.0.clone(), error.to_string()))?;
            let report = CloudReport { name: from.name.0.clone(), ..CloudReport::default() };
            Ok::<_, RecoverError>(Source {
                name: from.name.clone(),
                store,
                answered: Cell::new(false),
                failed: RefCell::default(),
                doubt: RefCell::default(),
                refused: RefCell::default(),
                report: RefCell::new(report),
            })
        };
        Ok(Self { clock: Rc::clone(&env.clock), clouds: clouds.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// The clouds that are asked: those not refused.
    pub(super) fn used(&self) -> impl Iterator<Item = &Source> {
        self.clouds.iter().filter(|source| source.refused.borrow().is_none())
    }

    /// Why the cloud of a name cannot be counted on; none when it was given, is the cluster's and answered every request.
    pub(super) fn absence(&self, name: &CloudName) -> Option<String> {
        let Some(source) = self.clouds.iter().find(|source| source.name == *name) else {
            return Some("it was not given".to_owned());
        };
        source.refused.borrow().clone().or_else(|| source.failed().map(|error| format!("it did not answer: {error}")))
    }

    /// Leaves out clouds that have given nothing of this cluster so far, and those that do not answer any more.
    pub(super) fn leave_out_useless(&self) {
        for source in self.used() {
            let silent = source.failed().map(|error| format!("it did not answer: {error}"));
            if source.report.borrow().authentic.is_empty() {
                let why = source.doubt.borrow_mut().take().or(silent);
                source.refuse(why.unwrap_or_else(|| "it holds nothing of this cluster that can be read".to_owned()));
            } else if let Some(why) = silent {
                source.refuse(why);
            }
        }
    }

    /// Asks every cloud for an object and judges each answer with `open`. In the order of the clouds.
    pub(super) async fn ask<'a, T>(
        &'a self,
        keyring: &Keyring,
        id: ObjectId,
        bytes_max: usize,
        open: impl Fn(&Bytes) -> Result<T, ObjectFault>,
    ) -> Vec<(&'a Source, Found<T>)> {
        let name = keyring.object_name(&id);
        let asked = self.used().map(|source| {
            let (name, open) = (&name, &open);
            async move {
                let found = match source.get(&*self.clock, name, bytes_max).await {
                    Ok(stored) => match open(&stored) {
                        Ok(value) => (Found::Authentic(value), String::new()),
                        Err(fault) => (Found::Corrupt, fault.to_string()),
                    },
                    Err(CloudStoreError::NotFound) => (Found::Missing, String::new()),
                    // An object that is too long, for instance: no other attempt will get it.
                    Err(error @ CloudStoreError::Refused(_)) => (Found::Corrupt, error.to_string()),
                    Err(_) => (Found::Silent, String::new()),
                };
                (source, found)
            }
        });
        let answers = join_all(asked).await;
        let exists = answers.iter().any(|(_, (found, _))| matches!(found, Found::Authentic(_)));
        for (source, (found, why)) in &answers {
            if exists || !matches!(found, Found::Missing) {
                source.count(kind_name(id.kind), &name, found, why);
            }
        }
        answers.into_iter().map(|(source, (found, _))| (source, found)).collect()
    }

    /// Asks every cloud for the length of an object.
    pub(super) async fn lengths<'a>(&'a self, keyring: &Keyring, id: ObjectId) -> Vec<(&'a Source, Option<u64>)> {
        let name = keyring.object_name(&id);
        let asked = self.used().map(|source| {
            let name = &name;
            async move { (source, source.head(&*self.clock, name).await) }
        });
        let answers: Vec<(&Source, Result<u64, CloudStoreError>)> = join_all(asked).await;
        let exists = answers.iter().any(|(_, length)| length.is_ok());
        for (source, length) in &answers {
            if exists && matches!(length, Err(CloudStoreError::NotFound)) {
                source.count(kind_name(id.kind), &name, &Found::<()>::Missing, "");
            }
        }
        answers.into_iter().map(|(source, length)| (source, length.ok())).collect()
    }

    /// Creates an object everywhere; gives what each cloud then holds under the name, where it answers.
    pub(super) async fn create_everywhere(&self, name: &str, body: &Bytes) -> Vec<Bytes> {
        let asked = self.used().map(|source| async move {
            let _taken_or_failed = source.store.create(name, body.clone()).await;
            source.get(&*self.clock, name, 16 << 20).await.ok()
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    pub(super) fn reports(&self) -> Vec<CloudReport> {
        let report = |source: &Source| CloudReport {
            answered: source.answered.get(),
            refused: source.refused.borrow().clone(),
            ..source.report.borrow().clone()
        };
        self.clouds.iter().map(report).collect()
    }

    /// What one cloud has under a fixed name.
    pub(super) async fn fixed(&self, source: &Source, name: &str) -> Result<Bytes, CloudStoreError> {
        source.get(&*self.clock, name, FIXED_BYTES_MAX).await
    }
}

impl Source {
    /// Leaves this cloud out from now on. What it lacks is not counted against it: it is no copy at all.
    fn refuse(&self, why: String) {
        *self.refused.borrow_mut() = Some(why);
        let mut report = self.report.borrow_mut();
        *report = CloudReport { name: report.name.clone(), ..CloudReport::default() };
    }

    /// Says why this cloud may not be the cluster's; it counts unless something else of the cluster is found there.
    pub(super) fn doubt(&self, why: &str) {
        *self.doubt.borrow_mut() = Some(why.to_owned());
    }

    /// The first request that it did not answer.
    pub(super) fn failed(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    /// Counts what it said of an object; `why` tells what is wrong with one that is corrupt.
    pub(super) fn count<T>(&self, kind: &'static str, name: &str, found: &Found<T>, why: &str) {
        let mut report = self.report.borrow_mut();
        let (counts, line) = match found {
            Found::Authentic(_) => (&mut report.authentic, None),
            Found::Missing => (&mut report.missing, Some(format!("{kind} {name}: missing"))),
            Found::Corrupt => (&mut report.corrupt, Some(format!("{kind} {name}: {why}"))),
            Found::Silent => return,
        };
        *counts.entry(kind).or_default() += 1;
        if report.details.len() < DETAILS_MAX {
            report.details.extend(line);
        }
    }

    /// An object that is there but cannot be what the records say.
    pub(super) fn count_corrupt(&self, kind: ObjectKind, name: &str, why: &str) {
        self.count(kind_name(kind), name, &Found::<()>::Corrupt, why);
    }

    async fn get(&self, clock: &dyn Clock, name: &str, bytes_max: usize) -> Result<Bytes, CloudStoreError> {
        let bytes_max = u64::try_from(bytes_max).unwrap_or(u64::MAX);
        self.patiently(clock, || self.store.get(name, bytes_max)).await
    }

    async fn head(&self, clock: &dyn Clock, name: &str) -> Result<u64, CloudStoreError> {
        self.patiently(clock, || self.store.head(name)).await
    }

    /// Tries a request a few times; passing faults only.
    async fn patiently<T>(
        &self,
        clock: &dyn Clock,
        request: impl Fn() -> crate::env::Local<Result<T, CloudStoreError>>,
    ) -> Result<T, CloudStoreError> {
        let mut pause = PAUSE;
        // A cloud that is known to be away is asked on, for what it may still give, but not waited for.
        let attempts = if self.failed.borrow().is_some() { 1 } else { ATTEMPTS };
        for attempt in 1.. {
            let answer = request().await;
            let passing = matches!(answer, Err(CloudStoreError::Unavailable(_) | CloudStoreError::Throttled(_)));
            if let Err(error @ CloudStoreError::Denied(_)) = &answer {
                self.failed.borrow_mut().get_or_insert_with(|| error.to_string());
                return answer;
            }
            if !passing {
                self.answered.set(true);
                return answer;
            }
            if attempt == attempts {
                self.failed.borrow_mut().get_or_insert_with(|| answer_text(&answer));
                return answer;
            }
            clock.sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the loop ends by returning")
    }
}

fn answer_text<T>(answer: &Result<T, CloudStoreError>) -> String {
    answer.as_ref().err().map(ToString::to_string).unwrap_or_default()
}

/// A kind's name in reports.
pub(super) const fn kind_name(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Segment => "segment",
        ObjectKind::Page => "page",
        ObjectKind::Root => "root",
        ObjectKind::Stub => "stub",
        ObjectKind::Record => "record",
        ObjectKind::Catalogue => "catalogue",
        ObjectKind::Claim => "claim",
    }
}
