//! Clouds in memory that fail before or after they do what they are asked, go away, and are watched: after every change the
//! cloud is checked to hold whatever its records and checkpoints name.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use velum_node::{
    env::{CloudStore, CloudStoreError, Clouds, Local},
    keyring::{KeySet, Keyring, ObjectId, ObjectKind},
};
use velum_protocol::{
    checksum,
    format::{
        bind::ObjectHeader,
        metadata::ObjectRef,
        object::{self, Header},
        page::Payload,
    },
    id::{ObjectNumber, Seq},
};

use super::Rng;

const KINDS: [ObjectKind; 7] = [
    ObjectKind::Segment,
    ObjectKind::Page,
    ObjectKind::Root,
    ObjectKind::Stub,
    ObjectKind::Record,
    ObjectKind::Catalogue,
    ObjectKind::Claim,
];

/// What opens objects for the watcher.
#[derive(Clone)]
pub(crate) struct Eyes {
    pub(crate) keyring: Keyring,
    pub(crate) keys: Rc<RefCell<Vec<KeySet>>>,
}

impl Eyes {
    pub(crate) fn identify(&self, stored: &[u8]) -> Option<ObjectId> {
        let kind = KINDS.into_iter().find(|kind| kind.format().check(stored).is_ok())?;
        let parts = object::split(kind.format(), stored, 64 << 20).unwrap();
        let aad = ObjectHeader { cluster: self.keyring.cluster(), magic: kind.format().magic }.aad();
        let header = Header::decode(&self.keyring.state().open(&aad, parts.sealed_header).ok()?).unwrap();
        Some(ObjectId { kind, volume: header.volume, incarnation: header.incarnation, number: header.number })
    }

    /// The objects that an object names.
    fn named(&self, id: &ObjectId, stored: &Bytes) -> Vec<ObjectId> {
        let keys = self.keys.borrow();
        let Some(keys) = keys.iter().rev().find(|keys| keys.volume() == id.volume) else { return Vec::new() };
        let itself = ObjectRef {
            incarnation: id.incarnation,
            number: ObjectNumber(id.number),
            bytes: stored.len() as u64,
            hash: checksum::hash(stored),
        };
        let of = |kind| move |object: &ObjectRef| keys.id(kind, object.incarnation, object.number.0);
        match id.kind {
            ObjectKind::Record => {
                let record = keys.open_record((id.incarnation, Seq(id.number)), stored).unwrap();
                record.body.segments.iter().map(of(ObjectKind::Segment)).collect()
            }
            ObjectKind::Page => match Payload::decode(&keys.open_page(&itself, stored).unwrap()).unwrap() {
                Payload::Usage(usage) => {
                    let live = usage.segments.iter().filter(|segment| segment.live_blocks > 0);
                    live.map(|segment| of(ObjectKind::Segment)(&segment.object)).collect()
                }
                Payload::Leaf(leaf) => leaf
                    .segments
                    .iter()
                    .map(|segment| keys.id(ObjectKind::Segment, segment.incarnation, segment.number.0))
                    .collect(),
                page => page.objects().iter().map(of(ObjectKind::Page)).collect(),
            },
            ObjectKind::Root => {
                let (_, payload) = keys.open_root(&itself, stored).unwrap();
                Payload::decode(&payload).unwrap().objects().iter().map(of(ObjectKind::Page)).collect()
            }
            _ => Vec::new(),
        }
    }
}

struct Held {
    stored: Bytes,
    /// None for the fixed names.
    id: Option<ObjectId>,
    named: Vec<ObjectId>,
}

/// One cloud.
pub(crate) struct MemoryCloud {
    pub(crate) name: String,
    objects: RefCell<BTreeMap<String, Held>>,
    by_id: RefCell<BTreeMap<ObjectId, String>>,
    pub(crate) eyes: RefCell<Option<Eyes>>,
    pub(crate) away: Cell<bool>,
    /// Objects of this kind are not taken, whatever else is.
    pub(crate) refused: Cell<Option<ObjectKind>>,
    /// Requests out of a hundred that fail; half of them after they took effect.
    pub(crate) failures: Cell<u64>,
    pub(crate) latency_ms: Cell<u64>,
    rng: Rc<Rng>,
    pub(crate) puts: Cell<u64>,
    pub(crate) stored_bytes: Cell<u64>,
    pub(crate) deleted: RefCell<BTreeSet<ObjectId>>,
    /// Names with the hash they were first stored with, over all clouds.
    ledger: Rc<RefCell<BTreeMap<String, velum_protocol::id::Hash>>>,
}

type Ledger = Rc<RefCell<BTreeMap<String, velum_protocol::id::Hash>>>;

impl MemoryCloud {
    pub(crate) fn new(name: &str, rng: Rc<Rng>, ledger: Ledger) -> Rc<Self> {
        Rc::new(Self {
            name: name.into(),
            objects: RefCell::default(),
            by_id: RefCell::default(),
            eyes: RefCell::default(),
            away: Cell::new(false),
            refused: Cell::default(),
            failures: Cell::new(0),
            latency_ms: Cell::new(5),
            rng,
            puts: Cell::new(0),
            stored_bytes: Cell::new(0),
            deleted: RefCell::default(),
            ledger,
        })
    }

    pub(crate) fn count(&self, kind: ObjectKind) -> usize {
        self.by_id.borrow().keys().filter(|id| id.kind == kind).count()
    }

    pub(crate) fn bytes_of(&self, kind: ObjectKind) -> u64 {
        let objects = self.objects.borrow();
        let of = objects.values().filter(|held| held.id.is_some_and(|id| id.kind == kind));
        of.map(|held| held.stored.len() as u64).sum()
    }

    pub(crate) fn ids(&self) -> BTreeSet<ObjectId> {
        self.by_id.borrow().keys().copied().collect()
    }

    pub(crate) fn holds(&self, id: &ObjectId) -> bool {
        self.by_id.borrow().contains_key(id)
    }

    pub(crate) fn contents(&self) -> BTreeMap<String, Bytes> {
        self.objects.borrow().iter().map(|(name, held)| (name.clone(), held.stored.clone())).collect()
    }

    /// Flips a bit in every object that `choose` picks.
    pub(crate) fn corrupt(&self, choose: impl Fn(&ObjectId) -> bool) -> usize {
        let mut corrupted = 0;
        for held in self.objects.borrow_mut().values_mut() {
            if held.id.as_ref().is_some_and(&choose) {
                let mut bytes = held.stored.to_vec();
                let at = self.rng.index(bytes.len());
                bytes[at] ^= 1 << self.rng.below(8);
                held.stored = bytes.into();
                corrupted += 1;
            }
        }
        corrupted
    }

    pub(crate) fn wipe(&self) {
        self.objects.borrow_mut().clear();
        self.by_id.borrow_mut().clear();
    }

    /// Takes an object, unless it is of a kind that is refused.
    fn take(&self, name: &str, body: Bytes) -> Result<(), CloudStoreError> {
        let kind = self.eyes.borrow().as_ref().and_then(|eyes| eyes.identify(&body)).map(|id| id.kind);
        if kind.is_some() && kind == self.refused.get() {
            return Err(CloudStoreError::Refused("not of this kind".into()));
        }
        self.keep(name, body);
        Ok(())
    }

    fn keep(&self, name: &str, body: Bytes) {
        let hash = checksum::hash(&body);
        self.puts.set(self.puts.get() + 1);
        let eyes = self.eyes.borrow().clone();
        let id = eyes.as_ref().and_then(|eyes| eyes.identify(&body));
        // Recoveries that race for a life are told apart by their claims.
        if id.is_none_or(|id| id.kind != ObjectKind::Claim) {
            let first = *self.ledger.borrow_mut().entry(name.to_owned()).or_insert(hash);
            assert_eq!(first, hash, "{name} is stored with two contents");
        }
        let named = match (&eyes, &id) {
            (Some(eyes), Some(id)) => eyes.named(id, &body),
            _ => Vec::new(),
        };
        if let (Some(eyes), Some(id)) = (&eyes, id) {
            assert_eq!(eyes.keyring.object_name(&id), name, "an object lies under its own name");
            assert!(!self.deleted.borrow().contains(&id), "{id:?} comes back to {} after it was deleted", self.name);
            self.by_id.borrow_mut().insert(id, name.to_owned());
        }
        let length = body.len() as u64;
        if self.objects.borrow_mut().insert(name.to_owned(), Held { stored: body, id, named }).is_none() {
            self.stored_bytes.set(self.stored_bytes.get() + length);
        }
        if let Some(id) = id.filter(|id| matches!(id.kind, ObjectKind::Record | ObjectKind::Root)) {
            self.check_closed(&id);
        }
        if let Some(id) = id.filter(|id| id.kind == ObjectKind::Stub) {
            let keys = eyes.as_ref().unwrap().keys.borrow();
            let keys = keys.iter().rev().find(|keys| keys.volume() == id.volume).unwrap();
            let stored = self.objects.borrow()[name].stored.clone();
            let stub = keys.open_stub(id.incarnation, id.number, &stored).unwrap();
            let newest = self.by_id.borrow().keys().filter(|other| other.kind == ObjectKind::Stub).count();
            let root = stub.checkpoint.root;
            // Stubs that a cloud missed are filled in below a newer root; theirs may be gone.
            let root_there = self.holds(&keys.id(ObjectKind::Root, root.incarnation, root.number.0));
            let later = self.by_id.borrow().keys().any(|other| {
                other.kind == ObjectKind::Root && (other.incarnation, other.number) > (root.incarnation, root.number.0)
            });
            assert!(root_there || later, "stub {} of {newest} came to {} before its root", id.number, self.name);
        }
    }

    /// Everything that a record or root names is here.
    fn check_closed(&self, id: &ObjectId) {
        let by_id = self.by_id.borrow();
        let objects = self.objects.borrow();
        let mut queue = vec![*id];
        let mut seen = BTreeSet::new();
        while let Some(next) = queue.pop() {
            if !seen.insert(next) {
                continue;
            }
            let held = by_id.get(&next).and_then(|name| objects.get(name));
            let held = held.unwrap_or_else(|| panic!("cloud {}: {id:?} needs {next:?}, which is not there", self.name));
            queue.extend(&held.named);
        }
    }

    pub(crate) fn check_all_closed(&self) {
        let ids: Vec<ObjectId> = self.by_id.borrow().keys().copied().collect();
        for id in ids.iter().filter(|id| matches!(id.kind, ObjectKind::Record | ObjectKind::Root)) {
            self.check_closed(id);
        }
    }

    fn drop_object(&self, name: &str) {
        let held = self.objects.borrow_mut().remove(name);
        if let Some(id) = held.and_then(|held| held.id) {
            self.by_id.borrow_mut().remove(&id);
            self.deleted.borrow_mut().insert(id);
            self.check_all_closed();
        }
    }
}

/// A handle that one process uses; cut off when the process crashes.
struct Link {
    cloud: Rc<MemoryCloud>,
    alive: Rc<Cell<bool>>,
}

impl Link {
    /// Waits, and perhaps fails, before or after `effect`.
    fn request<T: 'static>(
        &self,
        effect: impl FnOnce(&MemoryCloud) -> Result<T, CloudStoreError> + 'static,
    ) -> Local<Result<T, CloudStoreError>> {
        let (cloud, alive) = (Rc::clone(&self.cloud), Rc::clone(&self.alive));
        Box::pin(async move {
            let rng = Rc::clone(&cloud.rng);
            pause(1 + rng.below(cloud.latency_ms.get().max(1))).await;
            let failed = || CloudStoreError::Unavailable("made to fail".into());
            if !alive.get() {
                std::future::pending::<()>().await;
            }
            if cloud.away.get() {
                return Err(failed());
            }
            let fault = rng.below(200);
            if fault < cloud.failures.get() {
                return Err(failed());
            }
            let result = effect(&cloud);
            if fault < 2 * cloud.failures.get() {
                return Err(failed());
            }
            pause(1 + rng.below(cloud.latency_ms.get().max(1))).await;
            result
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "the virtual clock of these tests is tokio's paused one")]
pub(crate) async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

fn found(cloud: &MemoryCloud, name: &str) -> Result<Bytes, CloudStoreError> {
    cloud.objects.borrow().get(name).map(|held| held.stored.clone()).ok_or(CloudStoreError::NotFound)
}

impl CloudStore for Link {
    fn put(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let name = name.to_owned();
        self.request(move |cloud| cloud.take(&name, body))
    }

    fn create(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>> {
        let name = name.to_owned();
        self.request(move |cloud| {
            if found(cloud, &name).is_ok() {
                return Err(CloudStoreError::AlreadyExists);
            }
            cloud.take(&name, body)
        })
    }

    fn get(&self, name: &str, bytes_max: u64) -> Local<Result<Bytes, CloudStoreError>> {
        let name = name.to_owned();
        self.request(move |cloud| {
            let stored = found(cloud, &name)?;
            if stored.len() as u64 > bytes_max { Err(CloudStoreError::Refused("too long".into())) } else { Ok(stored) }
        })
    }

    fn get_range(&self, name: &str, range: Range<u64>) -> Local<Result<Bytes, CloudStoreError>> {
        let name = name.to_owned();
        self.request(move |cloud| {
            let stored = found(cloud, &name)?;
            let (start, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
            if end > stored.len() {
                Err(CloudStoreError::Refused("beyond".into()))
            } else {
                Ok(stored.slice(start..end))
            }
        })
    }

    fn head(&self, name: &str) -> Local<Result<u64, CloudStoreError>> {
        let name = name.to_owned();
        self.request(move |cloud| found(cloud, &name).map(|stored| stored.len() as u64))
    }

    fn delete(&self, name: &str) -> Local<Result<(), CloudStoreError>> {
        let name = name.to_owned();
        self.request(move |cloud| {
            cloud.drop_object(&name);
            Ok(())
        })
    }

    fn list(&self, _prefix: &str, _after: &str, _count_max: usize) -> Local<Result<Vec<String>, CloudStoreError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// Opens the clouds by the URL `memory:///NAME`, for one process.
pub(crate) struct MemoryClouds {
    pub(crate) clouds: BTreeMap<String, Rc<MemoryCloud>>,
    pub(crate) alive: Rc<Cell<bool>>,
}

impl Clouds for MemoryClouds {
    fn open(&self, url: &str, _options: &BTreeMap<String, String>) -> Result<Rc<dyn CloudStore>, CloudStoreError> {
        let name = url.rsplit('/').next().unwrap();
        let cloud = self.clouds.get(name).ok_or_else(|| CloudStoreError::Refused("no such cloud".into()))?;
        Ok(Rc::new(Link { cloud: Rc::clone(cloud), alive: Rc::clone(&self.alive) }))
    }
}

impl MemoryCloud {
    /// Puts an object with a fixed name there, as the founding of the cluster does.
    pub(crate) fn keep_fixed(&self, name: &str, body: Bytes) {
        self.keep(name, body);
    }
}

impl MemoryCloud {
    /// Rolls the cloud back: objects of a kind with a higher number were never there.
    pub(crate) fn wipe_after(&self, kind: ObjectKind, number: u64) {
        let gone = |id: &ObjectId| id.kind == kind && id.number > number;
        self.objects.borrow_mut().retain(|_, held| !held.id.as_ref().is_some_and(gone));
        self.by_id.borrow_mut().retain(|id, _| !gone(id));
    }
}

/// What an adversary does to a cloud behind the node's back. None of it is checked.
impl MemoryCloud {
    /// The names there are, with what they stand for; none for the fixed ones.
    pub(crate) fn names(&self) -> Vec<(String, Option<ObjectId>)> {
        self.objects.borrow().iter().map(|(name, held)| (name.clone(), held.id)).collect()
    }

    /// Changes the bytes of an object.
    pub(crate) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut objects = self.objects.borrow_mut();
        let held = objects.get_mut(name).unwrap();
        let mut bytes = held.stored.to_vec();
        change(&mut bytes);
        held.stored = bytes.into();
    }

    /// Loses an object.
    pub(crate) fn lose(&self, name: &str) {
        if let Some(id) = self.objects.borrow_mut().remove(name).and_then(|held| held.id) {
            self.by_id.borrow_mut().remove(&id);
        }
    }

    /// Loses an object as if it had never been stored in any cloud.
    pub(crate) fn forget(&self, name: &str) {
        self.lose(name);
        self.ledger.borrow_mut().remove(name);
    }

    /// What can be reached from the objects that `from` picks.
    pub(crate) fn closure_of(&self, from: impl Fn(&ObjectId) -> bool) -> BTreeSet<ObjectId> {
        let (by_id, objects) = (self.by_id.borrow(), self.objects.borrow());
        let mut queue: Vec<ObjectId> = by_id.keys().filter(|id| from(id)).copied().collect();
        let mut reached = BTreeSet::new();
        while let Some(next) = queue.pop() {
            if let Some(held) = by_id.get(&next).and_then(|name| objects.get(name)).filter(|_| reached.insert(next)) {
                queue.extend(&held.named);
            }
        }
        reached
    }

    /// Puts bytes under a name, whatever they are.
    pub(crate) fn plant(&self, name: &str, stored: Bytes) {
        let id = self.eyes.borrow().as_ref().and_then(|eyes| eyes.identify(&stored));
        let named = match (&*self.eyes.borrow(), &id) {
            (Some(eyes), Some(id)) => eyes.named(id, &stored),
            _ => Vec::new(),
        };
        if let Some(id) = id {
            self.by_id.borrow_mut().insert(id, name.to_owned());
        }
        self.objects.borrow_mut().insert(name.to_owned(), Held { stored, id, named });
    }

    /// Becomes what it was when `contents` were taken.
    pub(crate) fn roll_back(&self, contents: &BTreeMap<String, Bytes>) {
        self.wipe();
        for (name, stored) in contents {
            self.plant(name, stored.clone());
        }
    }
}
