//! The clouds of a recovery: asking all of them at once, judging what each answers, and keeping the tally.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use velum_protocol::{checksum, format::metadata::CloudName, id::Hash};

use super::{CloudAt, CloudReport, RecoverError, Standing, report::DETAILS_MAX};
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

/// No object at all is longer.
const OBJECT_BYTES_MAX: usize = 33 << 20;

/// All clouds of a recovery.
pub(super) struct Sources {
    clock: Rc<dyn Clock>,
    clouds: Vec<Source>,
}

/// One cloud.
pub(super) struct Source {
    pub(super) name: CloudName,
    store: Rc<dyn CloudStore>,
    /// The first request that it did not answer at all: what it holds is then not known.
    failed: RefCell<Option<String>>,
    /// What it has under the fixed names.
    fixed: Cell<Fixed>,
    /// What it turned out to be, and what that was told by.
    standing: RefCell<(Standing, String)>,
    /// Objects seen to be damaged here and whole elsewhere, by name, with the hash of the whole one.
    hurt: RefCell<BTreeMap<String, Hash>>,
    report: RefCell<CloudReport>,
}

/// What a cloud has under the fixed names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fixed {
    /// The cluster's identity and its newest key slots.
    #[default]
    Good,
    /// One of them is missing or damaged, and neither is another cluster's.
    Wanting,
    /// One of them is another cluster's.
    Foreign,
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
                failed: RefCell::default(),
                fixed: Cell::default(),
                standing: RefCell::default(),
                hurt: RefCell::default(),
                report: RefCell::new(report),
            })
        };
        Ok(Self { clock: Rc::clone(&env.clock), clouds: clouds.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// The clouds that are asked: those that may have something of the cluster.
    pub(super) fn used(&self) -> impl Iterator<Item = &Source> {
        self.clouds.iter().filter(|source| matches!(source.standing(), Standing::Good | Standing::Damaged))
    }

    /// What the cloud of a name is worth, and why.
    pub(super) fn standing(&self, name: &CloudName) -> (Standing, String) {
        let Some(source) = self.clouds.iter().find(|source| source.name == *name) else {
            return (Standing::Absent, "it was not given".to_owned());
        };
        match source.failed() {
            Some(error) if source.standing() == Standing::Good => (Standing::Silent, silence(&error)),
            _ => source.standing.borrow().clone(),
        }
    }

    /// Says of each cloud what it is by what it has shown of identity, key slots, claims and catalogue. What holds nothing, or
    /// another cluster, is not asked any more; what is damaged is, for parts of it may be good.
    pub(super) fn sort_out(&self) {
        for source in &self.clouds {
            let known = source.report.borrow().authentic.values().sum::<u64>() > 0;
            let hurt = source.report.borrow().corrupt.values().sum::<u64>() > 0;
            let (standing, why) = match source.failed() {
                _ if !known && source.fixed.get() == Fixed::Foreign => {
                    (Standing::Foreign, "it holds another cluster".to_owned())
                }
                Some(error) => (Standing::Silent, silence(&error)),
                None if known => (Standing::Good, String::new()),
                None if hurt => (
                    Standing::Damaged,
                    "nothing that was looked at in it can be read, its identity included".to_owned(),
                ),
                None => (Standing::Empty, "it is empty: there is no identity object".to_owned()),
            };
            *source.standing.borrow_mut() = (standing, why);
            if !matches!(standing, Standing::Good | Standing::Damaged) {
                // What it lacks is not counted against it: it is no copy at all.
                let mut report = source.report.borrow_mut();
                *report = CloudReport { name: report.name.clone(), ..CloudReport::default() };
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
                        Ok(value) => (Found::Authentic(value), String::new(), Some(stored)),
                        Err(fault) => (Found::Corrupt, fault.to_string(), None),
                    },
                    Err(CloudStoreError::NotFound) => (Found::Missing, String::new(), None),
                    // An object that is too long, for instance: no other attempt will get it.
                    Err(error @ CloudStoreError::Refused(_)) => (Found::Corrupt, error.to_string(), None),
                    Err(_) => (Found::Silent, String::new(), None),
                };
                (source, found)
            }
        });
        let answers = join_all(asked).await;
        let whole = answers.iter().find_map(|(_, (.., stored))| stored.clone());
        for (source, (found, why, _)) in &answers {
            match (&whole, found) {
                (None, Found::Missing) => continue,
                (Some(whole), Found::Corrupt) => source.note_hurt(&name, checksum::hash(whole)),
                _ => {}
            }
            source.count(kind_name(id.kind), &name, found, why);
        }
        answers.into_iter().map(|(source, (found, ..))| (source, found)).collect()
    }

    /// Asks every cloud for the length of an object, but for damaged ones, where a length says nothing.
    pub(super) async fn lengths<'a>(&'a self, keyring: &Keyring, id: ObjectId) -> Vec<(&'a Source, Option<u64>)> {
        let name = keyring.object_name(&id);
        let asked = self.used().filter(|source| source.standing() == Standing::Good).map(|source| {
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

    /// Reads an object, known by its hash, in the clouds that are chosen. True when one has it whole.
    pub(super) async fn read_where(
        &self,
        chosen: &dyn Fn(&Source) -> bool,
        keyring: &Keyring,
        id: ObjectId,
        bytes_max: usize,
        hash: Hash,
    ) -> bool {
        let name = keyring.object_name(&id);
        let looked = self.used().filter(|source| chosen(source)).map(|source| {
            let name = &name;
            async move {
                let (found, why) = match source.get(&*self.clock, name, bytes_max).await {
                    Ok(stored) if checksum::hash(&stored) == hash => (Found::Authentic(()), String::new()),
                    Ok(_) => (Found::Corrupt, "it has another hash".to_owned()),
                    Err(error @ CloudStoreError::Refused(_)) => (Found::Corrupt, error.to_string()),
                    Err(CloudStoreError::NotFound) => (Found::Missing, String::new()),
                    Err(_) => (Found::Silent, String::new()),
                };
                if matches!(found, Found::Corrupt) {
                    source.note_hurt(name, hash);
                }
                source.count(kind_name(id.kind), name, &found, &why);
                matches!(found, Found::Authentic(()))
            }
        });
        join_all(looked).await.contains(&true)
    }

    /// Creates an object everywhere; gives what each cloud then holds under the name, where it answers.
    pub(super) async fn create_everywhere(&self, name: &str, body: &Bytes) -> Vec<(&Source, Bytes)> {
        let asked = self.used().map(|source| async move {
            let _taken_or_failed = source.store.create(name, body.clone()).await;
            Some((source, source.get(&*self.clock, name, OBJECT_BYTES_MAX).await.ok()?))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Reads bytes of a known hash from any cloud but one.
    pub(super) async fn whole(&self, name: &str, hash: &Hash, except: &Source) -> Option<Bytes> {
        for source in self.used().filter(|source| source.name != except.name) {
            match source.get(&*self.clock, name, OBJECT_BYTES_MAX).await {
                Ok(stored) if checksum::hash(&stored) == *hash => return Some(stored),
                _ => {}
            }
        }
        None
    }

    /// Stores an object in one cloud over whatever is there. True when it took it.
    pub(super) async fn put(&self, source: &Source, name: &str, body: &Bytes) -> bool {
        source.patiently(&*self.clock, || source.store.put(name, body.clone())).await.is_ok()
    }

    /// What each cloud given has shown, as it stands now.
    pub(super) fn reports(&self) -> Vec<CloudReport> {
        let report = |source: &Source| {
            let (standing, why) = self.standing(&source.name);
            CloudReport { standing, why, ..source.report.borrow().clone() }
        };
        self.clouds.iter().map(report).collect()
    }

    /// What one cloud has under a fixed name.
    pub(super) async fn fixed(&self, source: &Source, name: &str) -> Result<Bytes, CloudStoreError> {
        source.get(&*self.clock, name, FIXED_BYTES_MAX).await
    }
}

impl Source {
    /// What it turned out to be.
    pub(super) fn standing(&self) -> Standing {
        self.standing.borrow().0
    }

    /// Says what it has under the fixed names.
    pub(super) fn set_fixed(&self, fixed: Fixed) {
        self.fixed.set(fixed);
    }

    pub(super) fn fixed(&self) -> Fixed {
        self.fixed.get()
    }

    /// Notes an object that is damaged here, with the hash it should have.
    pub(super) fn note_hurt(&self, name: &str, hash: Hash) {
        self.hurt.borrow_mut().insert(name.to_owned(), hash);
    }

    /// Objects that are damaged here and whole elsewhere.
    pub(super) fn hurt(&self) -> BTreeMap<String, Hash> {
        self.hurt.borrow().clone()
    }

    /// Counts an object that was put right here, or could not be.
    pub(super) fn count_mended(&self, mended: bool) {
        let mut report = self.report.borrow_mut();
        let count = if mended { &mut report.mended } else { &mut report.unmended };
        *count += 1;
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

fn silence(error: &str) -> String {
    format!("it did not answer: {error}")
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
