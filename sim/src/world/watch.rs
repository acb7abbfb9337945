//! The eyes of a world: every change of a cloud and every write to a disk is judged at the instant it takes effect.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::Rc,
};

use bytes::Bytes;
use velum_node::keyring::{Keyring, ObjectKind};
use velum_protocol::id::{ClusterId, Hash, Jseq, Seq, VolumeId};

use crate::{
    checker::{Verdict, cry1::Nonces, cry2::Canaries, seq1, seq2, seq3, seq4, seq4::Journaled, seq5, seq9},
    env::{
        cloud::{Change, SimCloud},
        disk::Medium,
    },
    guest::{pattern::Cell, workload::Guest},
    ledger::{Entry, Holding, Ledger, Meaning},
    runtime::Sim,
};

/// Judges what clouds and disks are given.
pub struct Watch {
    sim: Rc<Sim>,
    /// The book of all clouds.
    pub ledger: RefCell<Ledger>,
    clouds: BTreeMap<String, Rc<SimCloud>>,
    nonces: RefCell<Nonces>,
    canaries: Canaries,
    quorum: usize,
    /// How far the clouds reached that the machine was recovered from, when it was.
    adopted: RefCell<BTreeMap<VolumeId, Jseq>>,
    /// The cloud that was emptied or exchanged and is not whole again.
    unsettled: RefCell<Option<Unsettled>>,
    /// Relocations that no cloud but one that is being filled again has got.
    unjudged: RefCell<BTreeSet<Hash>>,
}

/// A cloud of which nothing is promised until it is whole again.
struct Unsettled {
    cloud: String,
    /// How far it reached.
    reached: BTreeMap<VolumeId, (Seq, Jseq)>,
    /// What it holds in its right place, when it was exchanged.
    hidden: Option<Holding>,
}

impl Watch {
    /// Watches `clouds`, of which `quorum` make d2, for a cluster whose root key is `secret`; `names` must stay unread.
    #[must_use]
    pub fn new(
        sim: &Rc<Sim>,
        clouds: Vec<Rc<SimCloud>>,
        quorum: usize,
        secret: [u8; 32],
        names: &[String],
    ) -> Rc<Self> {
        let cloud_names: Vec<_> = clouds.iter().map(|cloud| cloud.name().to_owned()).collect();
        let mut secrets: Vec<(&str, &[u8])> = vec![("the root key", &secret)];
        secrets.extend(names.iter().map(|name| ("a volume's name", name.as_bytes())));
        let watch = Rc::new(Self {
            sim: Rc::clone(sim),
            ledger: RefCell::new(Ledger::new(secret, &cloud_names)),
            clouds: clouds.iter().map(|cloud| (cloud.name().to_owned(), Rc::clone(cloud))).collect(),
            nonces: RefCell::default(),
            canaries: Canaries::new(&secrets),
            quorum,
            adopted: RefCell::default(),
            unsettled: RefCell::default(),
            unjudged: RefCell::default(),
        });
        for cloud in clouds {
            // The eyes hold the clouds: a cloud that held them too would keep every world in memory for ever.
            let watching = Rc::downgrade(&watch);
            cloud.watch(Rc::new(move |cloud, change| {
                if let Some(watching) = watching.upgrade() {
                    watching.changed(cloud, change);
                }
            }));
        }
        watch
    }

    /// Watches a disk too.
    pub fn disk(self: &Rc<Self>, medium: &Medium) {
        let watching = Rc::clone(self);
        medium.watch(Rc::new(move |path, bytes| watching.written(path, bytes)));
    }

    fn judge(&self, promise: &str, verdict: Verdict) {
        if let Err(why) = verdict {
            self.sim.fail(format!("{promise} {why}"));
        }
    }

    fn written(&self, path: &Path, bytes: &[u8]) {
        let place = path.to_string_lossy();
        self.judge("CRY2", self.canaries.check(bytes, &place));
        self.judge("CRY1", self.nonces.borrow_mut().note_journal(bytes, &place));
        self.sim.count("bytes written", bytes.len() as u64);
    }

    fn changed(&self, cloud: &SimCloud, change: &Change<'_>) {
        match change {
            Change::Put { name, body, .. } => self.put(cloud.name(), name, body),
            Change::Delete { name } => {
                self.sim.count("objects deleted", 1);
                let Some(gone) = self.ledger.borrow().named(name) else { return };
                let (before, _) = self.ledger.borrow().head(cloud.name(), gone.volume);
                self.ledger.borrow_mut().deleted(cloud.name(), name);
                if self.is_unsettled(cloud.name()) {
                    return;
                }
                self.judge("SEQ3", seq3::check_deleted(&self.ledger.borrow(), cloud.name(), &gone, before));
            }
        }
    }

    fn put(&self, cloud: &str, name: &str, body: &Bytes) {
        self.sim.count("objects stored", 1);
        let place = format!("object {name} in cloud {cloud}");
        self.judge("CRY2", self.canaries.check(body, &place));
        self.judge("CRY2", self.canaries.check(name.as_bytes(), &place));
        let stored = self.ledger.borrow_mut().stored(cloud, name, body);
        match stored {
            Err(why) => self.sim.fail(format!("SEQ6 {why}")),
            Ok(None) => {}
            Ok(Some(entry)) => self.understood(cloud, &entry, body, &place),
        }
    }

    fn understood(&self, cloud: &str, entry: &Entry, body: &Bytes, place: &str) {
        let (ledger, id) = (self.ledger.borrow(), &entry.known.id);
        if entry.is_new {
            let frames = if let Meaning::Segment(frames) = &*entry.known.meaning { frames.as_slice() } else { &[] };
            self.judge("CRY1", self.nonces.borrow_mut().note_object(body, frames, place));
        }
        if let Meaning::Record(record) = &*entry.known.meaning {
            self.judge("SEQ1", seq1::check(&ledger, cloud, id, record));
            if entry.is_new {
                self.sim.count("sequence records", 1);
                self.judge("SEQ2", seq2::check(ledger.holdings.values(), self.quorum, id, record));
            }
            if entry.is_new && record.link.is_empty() {
                self.sim.count("relocations", 1);
                self.unjudged.borrow_mut().insert(entry.hash);
            }
            // A cloud that is being filled again gets records before those they follow.
            if !self.is_unsettled(cloud) && self.unjudged.borrow_mut().remove(&entry.hash) {
                let stored = |object: &str| self.clouds[cloud].bucket.borrow().pristine().get(object).cloned();
                let verdict = ledger.moved(cloud, id, record, &stored).and_then(|moved| seq9::check(&moved));
                let place = format!("record {} of volume {} in cloud {cloud}", id.number, id.volume);
                self.judge("SEQ9", verdict.map_err(|why| format!("{place}: {why}")));
            }
        }
        if id.kind == ObjectKind::Stub && entry.is_new {
            self.sim.count("checkpoints", 1);
        }
        if !self.is_unsettled(cloud) {
            self.judge("SEQ3", seq3::check_stored(&ledger, cloud, id));
        }
    }

    fn is_unsettled(&self, cloud: &str) -> bool {
        self.unsettled.borrow().as_ref().is_some_and(|unsettled| unsettled.cloud == cloud)
    }

    /// A cloud is about to be emptied, or exchanged for an empty one.
    pub fn misplaced(&self, cloud: &str, exchange: bool) {
        let mut ledger = self.ledger.borrow_mut();
        let reached = |volume| (volume, ledger.head(cloud, volume).min(self.newest_head(&ledger, volume, &|_| true)));
        let reached = ledger.volumes().map(reached).collect();
        let before = ledger.holdings.get_mut(cloud).expect("every cloud of the world has a holding");
        let empty = before.emptied();
        let before = std::mem::replace(before, empty);
        let hidden = exchange.then_some(before);
        self.unsettled.replace(Some(Unsettled { cloud: cloud.to_owned(), reached, hidden }));
    }

    /// The right place of an exchanged cloud is back.
    pub fn put_back(&self, cloud: &str) {
        let hidden = self.unsettled.borrow_mut().as_mut().and_then(|unsettled| unsettled.hidden.take());
        if let (Some(mut hidden), Some(holding)) = (hidden, self.ledger.borrow_mut().holdings.get_mut(cloud)) {
            hidden.learn_from(holding);
            *holding = hidden;
        }
    }

    /// The place that was in an exchanged cloud's stead is the right one from now on.
    pub fn forget_hidden(&self) {
        if let Some(unsettled) = self.unsettled.borrow_mut().as_mut() {
            unsettled.hidden = None;
        }
    }

    /// True when a cloud that was emptied or exchanged reaches as far as it did, and no record in it lies beyond its chain.
    /// From then on everything is promised of it again.
    pub fn is_whole(&self, cloud: &str) -> bool {
        let whole = self.unsettled.borrow().as_ref().is_none_or(|unsettled| {
            let ledger = self.ledger.borrow();
            ledger.volumes().all(|volume| {
                let (head, _) = ledger.head(cloud, volume);
                let reached = unsettled.reached.get(&volume).map_or(Seq(0), |(seq, _)| *seq);
                head >= reached && ledger.is_closed(cloud, volume)
            })
        });
        if whole {
            self.unsettled.replace(None);
        }
        whole
    }

    /// How far the newest life reaches that one of the `usable` clouds knows of. What clouds that do not know of it have beyond that
    /// is void.
    fn newest_head(&self, ledger: &Ledger, volume: VolumeId, usable: &dyn Fn(&str) -> bool) -> (Seq, Jseq) {
        let usable = || self.clouds.keys().filter(|name| usable(name));
        let life = usable().map(|name| ledger.newest_life(name)).max();
        let told = usable().filter(|name| Some(ledger.newest_life(name)) == life);
        told.map(|name| ledger.head(name, volume)).max().unwrap_or_default()
    }

    /// How far a cloud reaches, or reached before it was emptied.
    fn reach(&self, ledger: &Ledger, cloud: &str, volume: VolumeId) -> Jseq {
        let (_, now) = ledger.head(cloud, volume);
        let unsettled = self.unsettled.borrow();
        let lost = unsettled.as_ref().filter(|unsettled| unsettled.cloud == cloud);
        lost.and_then(|lost| lost.reached.get(&volume)).map_or(now, |(_, reached)| now.max(*reached))
    }

    /// The cluster, once its keys are known.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.ledger.borrow().keyring().map(Keyring::cluster)
    }

    /// The volume called `name`, as the catalogue says.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<VolumeId> {
        self.ledger.borrow().volume_named(name)
    }

    /// Reads a guest's volume from every cloud alone and judges each image as a prefix. Gives the newest image among
    /// `trusted` clouds, of which none need know of a life when another does: what it has beyond that life's beginning is void.
    pub fn sample(&self, guest: &Guest, trusted: &dyn Fn(&str) -> bool) -> Option<Vec<Cell>> {
        let volume = self.volume(&guest.export)?;
        let history = guest.history.borrow();
        let ledger = self.ledger.borrow();
        let whole = |name: &str| trusted(name) && !self.is_unsettled(name);
        let told = self.clouds.keys().filter(|name| whole(name)).max_by_key(|name| ledger.newest_life(name))?;
        let mut newest: Option<(u64, Vec<Cell>)> = None;
        for (name, cloud) in self.clouds.iter().filter(|(name, _)| !self.is_unsettled(name)) {
            let stored = |object: &str| cloud.bucket.borrow().pristine().get(object).cloned();
            let read = |told| {
                let image = ledger.image((name, told), volume, history.sectors(), &stored);
                image.map_err(|why| self.sim.fail(format!("SEQ3 volume {} in cloud {name}: {why}", guest.export))).ok()
            };
            let Some(mut image) = read(name) else { continue };
            let verdict = seq5::check_prefix(&history, &image.cells);
            self.judge("SEQ5", verdict.map_err(|why| format!("the image in cloud {name}: {why}")));
            if ledger.newest_life(told) > ledger.newest_life(name) {
                let Some(valid) = read(told) else { continue };
                image = valid;
            }
            if trusted(name) && newest.as_ref().is_none_or(|(seq, _)| image.seq.0 > *seq) {
                newest = Some((image.seq.0, image.cells));
            }
        }
        self.sim.count("cloud images judged", self.clouds.len() as u64);
        newest.map(|(_, image)| image)
    }

    /// The last journal position of `volume` that lies in enough clouds.
    #[must_use]
    pub fn durable(&self, volume: VolumeId) -> Jseq {
        let ledger = self.ledger.borrow();
        seq4::durable(self.clouds.keys().map(|cloud| self.reach(&ledger, cloud, volume)).collect(), self.quorum)
    }

    /// A machine without a journal is about to be recovered from the clouds that `usable` names.
    pub fn recovering(&self, guests: &[Rc<Guest>], usable: &dyn Fn(&str) -> bool) {
        let volumes = guests.iter().filter_map(|guest| self.volume(&guest.export));
        let ledger = self.ledger.borrow();
        let newest = |volume: VolumeId| (volume, self.newest_head(&ledger, volume, usable).1);
        self.adopted.replace(volumes.map(newest).collect());
        // The new life goes on from what it found, however far a cloud had come that is empty now.
        if let Some(unsettled) = self.unsettled.borrow_mut().as_mut() {
            for (volume, reached) in &mut unsettled.reached {
                *reached = (*reached).min(self.newest_head(&ledger, *volume, usable));
            }
        }
    }

    /// Judges what a journal still holds of `volume`.
    pub fn check_journal(&self, volume: VolumeId, journaled: &Journaled) {
        let adopted = self.adopted.borrow().get(&volume).copied().unwrap_or_default();
        let verdict = seq4::check(self.durable(volume), adopted, journaled);
        self.judge("SEQ4", verdict.map_err(|why| format!("volume {volume}: {why}")));
    }

    /// Judges that every pair of clouds a recovery may start from holds what was flushed.
    pub fn check_flushed(&self, guest: &Guest) {
        // A cloud that is not whole is the one that is missing already.
        for missing in self.clouds.keys().filter(|name| self.unsettled.borrow().is_none() || self.is_unsettled(name)) {
            if let Some(image) = self.sample(guest, &|name| name != missing) {
                let verdict = seq5::check_flushed(&guest.history.borrow(), &image);
                self.judge("SEQ5", verdict.map_err(|why| format!("without cloud {missing}: {why}")));
            }
        }
    }
}
